"""Bands: the truth table of HisPO's two masks, and what they leave alone."""

from __future__ import annotations

import math

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.bounds import Clip, unbounded
from quatrain.parts.denominators import Ratio
from quatrain.parts.discrepancy import Band, Within, around
from quatrain.parts.guides import Surprise
from quatrain.parts.levels import TwoLevelClip

SEQUENCE, TOKEN = around(Ratio("old", "behaviour", "sequence"), 0.1), around(Ratio("old", "behaviour"), 0.5)


def batch_of(*rows: list[float]) -> Batch:
    """Rows of ratios old/behaviour."""
    ratio = torch.tensor(rows, dtype=torch.float64)
    return Batch(torch.ones_like(ratio, dtype=torch.bool), ratio, {"old_logp": ratio.log(), "behaviour_logp": torch.zeros_like(ratio)})


def test_the_truth_table_of_two_levels():
    """(sequence, token): yes and yes; yes and no (2 · ½ is 1 on average); no and yes; no and no."""
    here = batch_of([1.0, 1.05], [2.0, 0.5], [1.3, 1.2], [2.0, 2.0])
    assert SEQUENCE(here).tolist() == [[True, True], [True, True], [False, False], [False, False]]
    assert TOKEN(here).tolist() == [[True, True], [False, False], [True, True], [False, False]]
    factor = Within(unbounded, (SEQUENCE, TOKEN))(torch.full((4, 2), math.log(3.0)), torch.ones(4, 2), here)
    assert factor.tolist() == [[pytest.approx(3.0)] * 2, [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


def test_the_edges_are_outside():
    here = batch_of([0.5, 1.5, 0.6, 1.4])
    assert TOKEN(here).tolist() == [[False, False, True, True]]


def test_no_band_at_all_is_the_bound():
    here = batch_of([1.0, 2.0])
    log_ratio, advantage = torch.tensor([[0.1, 0.5]]), torch.ones(1, 2)
    assert torch.equal(Within(Clip(), ())(log_ratio, advantage, here), Clip()(log_ratio, advantage, here))


def test_it_says_what_it_reads_and_passes_on_guides():
    both = Within(TwoLevelClip(Surprise()), (SEQUENCE,))
    assert set(both.needs) == {"current_entropy", "old_logp", "behaviour_logp"} and both.guides == (Surprise(),)


@pytest.mark.parametrize(("low", "high"), [(1.0, 2.0), (0.5, 1.0), (2.0, 0.5)])
def test_a_band_that_does_not_hold_one_is_refused(low: float, high: float):
    with pytest.raises(QuatrainError, match="around a ratio of 1"):
        Band(Ratio("old", "behaviour"), low, high)
