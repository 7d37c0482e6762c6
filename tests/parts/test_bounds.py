"""Bounds: gradients of the surrogates they stand for, worked out by hand and by autograd."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.bounds import Clip, unbounded
from quatrain.parts.denominators import Ratio

RATIOS = torch.tensor([[0.5, 0.8, 1.0, 1.2, 1.5, 4.0]], dtype=torch.float64)


def factor(clip, sign: float) -> list[float]:
    return clip(RATIOS.log(), torch.full_like(RATIOS, sign), None)[0].tolist()


def test_unbounded_is_the_ratio():
    assert factor(unbounded, 1.0) == pytest.approx(RATIOS[0].tolist())


def test_clip_by_sign():
    assert factor(Clip(0.3, 0.3), 1.0) == pytest.approx([0.5, 0.8, 1.0, 1.2, 0.0, 0.0])
    assert factor(Clip(0.3, 0.3), -1.0) == pytest.approx([0.0, 0.8, 1.0, 1.2, 1.5, 4.0])


def test_at_its_very_edge_nothing_is_clipped():
    ratio = torch.tensor([[1.5, 0.5]], dtype=torch.float64).log()
    high, low = float(ratio[0, 0].exp()) - 1, 1 - float(ratio[0, 1].exp())
    for sign in (1.0, -1.0):
        assert Clip(low, high)(ratio, torch.full((1, 2), sign), None).all()


def test_clip_higher():
    assert factor(Clip(0.1, 0.6), 1.0) == pytest.approx([0.5, 0.8, 1.0, 1.2, 1.5, 0.0])
    assert factor(Clip(0.1, 0.6), -1.0) == pytest.approx([0.0, 0.0, 1.0, 1.2, 1.5, 4.0])


def test_dual_clip():
    assert factor(Clip(0.3, 0.3, dual=3.0), -1.0) == pytest.approx([0.0, 0.8, 1.0, 1.2, 1.5, 0.0])
    assert factor(Clip(0.3, 0.3, dual=3.0), 1.0) == factor(Clip(0.3, 0.3), 1.0)


@pytest.mark.parametrize("dual", [None, 2.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_it_is_the_gradient_of_the_surrogate(sign: float, dual: float | None):
    ratio = torch.linspace(0.05, 4, 200, dtype=torch.float64, requires_grad=True)
    surrogate = torch.minimum(ratio * sign, ratio.clamp(0.8, 1.28) * sign)
    if dual is not None and sign < 0:
        surrogate = torch.maximum(surrogate, torch.full_like(ratio, dual * sign))
    (slope,) = torch.autograd.grad(surrogate.sum(), ratio)
    found = Clip(0.2, 0.28, dual=dual)(ratio.detach().log()[None], torch.full((1, 200), sign), None)[0]
    assert torch.allclose(found * sign, slope * ratio.detach(), rtol=1e-12)


def test_clipped_by_one_ratio_and_weighed_by_another():
    """Decoupled PPO: clip on θ/old, weigh with θ/behaviour."""
    columns = {"current_logp": torch.zeros(1, 3), "old_logp": torch.tensor([[-1.0, 0.0, 1.0]])}
    batch = Batch(torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3), columns=columns)
    clip = Clip(0.2, 0.2, on=Ratio("current", "old"))
    weight = torch.tensor([[3.0, 5.0, 7.0]])
    assert clip(weight.log(), torch.ones(1, 3), batch)[0].tolist() == pytest.approx([0.0, 5.0, 7.0])
    assert clip(weight.log(), -torch.ones(1, 3), batch)[0].tolist() == pytest.approx([3.0, 5.0, 0.0])
    assert clip.needs == ("current_logp", "old_logp") and Clip().needs == ()


def test_an_infinite_ratio_that_is_clipped_is_zero_not_nan():
    assert Clip()(torch.tensor([[200.0]]), torch.ones(1, 1), None).item() == 0.0


def test_it_becomes_unbounded_as_its_bounds_grow():
    for sign in (1.0, -1.0):
        assert factor(Clip(1e9, 1e9), sign) == factor(unbounded, sign)


@pytest.mark.parametrize("options", [{"low": 0.0}, {"high": -0.1}, {"low": float("nan")}, {"dual": 1.0}])
def test_bounds_out_of_range_are_refused(options: dict):
    with pytest.raises(QuatrainError, match=f"Clip's {next(iter(options))} is out of range"):
        Clip(**options)
