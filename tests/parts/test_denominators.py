"""Log-ratios by hand: per action, per sequence, against the constant 1."""

from __future__ import annotations

import math

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.denominators import Ratio, over_sequence

NAN = float("nan")
MASK = torch.tensor([[True, True, False], [False, False, False]])
BATCH = Batch(
    MASK,
    torch.zeros(2, 3),
    columns={
        "current_logp": torch.tensor([[math.log(0.8), math.log(0.2), 0.0], [0.0, 0.0, 0.0]]),
        "old_logp": torch.tensor([[math.log(0.4), math.log(0.4), NAN], [NAN, 200.0, -200.0]]),
    },
)


def ratio(**options) -> list[list[float]]:
    return Ratio(**options)(BATCH).exp().tolist()


def test_per_action():
    assert ratio(denominator="old") == [pytest.approx([2.0, 0.5, 1.0]), [1.0, 1.0, 1.0]]
    assert ratio(numerator="old", denominator="current")[0] == pytest.approx([0.5, 2.0, 1.0])


def test_per_sequence():
    # ratios 2 and ½: their product and their geometric mean are 1
    assert ratio(denominator="old", level="sequence") == [pytest.approx([1.0] * 3), [1.0] * 3]
    up = BATCH.with_columns(old_logp=torch.log(torch.tensor([[0.4, 0.05, 1.0], [1.0, 1.0, 1.0]])))  # ratios 2 and 4
    assert Ratio(denominator="old", level="sequence", reduce="sum")(up)[0].exp().tolist() == pytest.approx([8.0] * 3)
    assert Ratio(denominator="old", level="sequence")(up)[0].exp().tolist() == pytest.approx([8.0**0.5] * 3)


def test_current_is_not_one():
    assert ratio() == [[1.0] * 3] * 2 and Ratio().needs == ()
    assert ratio(denominator="one")[0] == pytest.approx([0.8, 0.2, 1.0])
    assert ratio(numerator="one", denominator="old")[0] == pytest.approx([2.5, 2.5, 1.0])


def test_it_says_what_it_reads():
    assert Ratio("current", "old").needs == ("current_logp", "old_logp")
    assert Ratio("current", "one").needs == ("current_logp",)


def test_sums_and_means_over_a_sequence():
    value = torch.tensor([[1.0, 2.0, NAN], [NAN, NAN, NAN]])
    assert over_sequence(value, MASK, "sum").tolist() == [[3.0] * 3, [0.0] * 3]
    assert over_sequence(value, MASK, "mean").tolist() == [[1.5] * 3, [0.0] * 3]


@pytest.mark.parametrize("options", [{"level": "token"}, {"reduce": "max"}])
def test_unknown_levels_are_refused(options: dict):
    with pytest.raises(QuatrainError, match="unknown level or reduction"):
        Ratio(**options)
