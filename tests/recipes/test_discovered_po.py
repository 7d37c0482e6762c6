"""discovered-po: autograd of r·A − f(r, A) for every drift; a drift's factor is r·(1 − f′(r)/A), and it may be negative."""

from __future__ import annotations

import math

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.parts.bounds import Clip
from quatrain.parts.drifts import ClipDrift, DiscoveredDrift, Drifting, LearnedDrift, Sum
from quatrain.recipes.estimator.discovered_po import with_drift
from quatrain.training.registry import make
from tests.recipes.test_ppo import credit
from tests.toy import assert_same, autograd, case, gradient


def learned(seed: int = 0, hidden: int = 128) -> LearnedDrift:
    g = torch.Generator().manual_seed(seed)
    return LearnedDrift.of(torch.randn(9 * hidden, generator=g, dtype=torch.float64).tolist())


def discovered(ratio, advantage, alpha=2.0, beta=0.6):
    """§5, written plainly."""
    up, down = (ratio - 1) * advantage, ratio.log() * advantage
    return torch.where(advantage >= 0, torch.relu(up - alpha * torch.tanh(up / alpha)), torch.relu(down - beta * torch.tanh(down / beta)))


def network(drift: LearnedDrift):
    """§4, written plainly."""
    inner, outer = (torch.tensor(weights, dtype=torch.float64) for weights in drift.weights)

    def f(ratio, advantage):
        x = [1 - ratio, (1 - ratio) ** 2, ratio.log(), ratio.log() ** 2]
        x = torch.stack([*x, *(value * advantage for value in x)], -1)
        return torch.relu(torch.tanh(x @ inner.T) @ outer - 1e-4)

    return f


def clip(ratio, advantage):
    return torch.relu((ratio - ratio.clamp(0.8, 1.2)) * advantage)


PLAIN = {
    "clip": (ClipDrift(0.2), clip),
    "discovered": (DiscoveredDrift(), discovered),
    "other scales": (DiscoveredDrift(0.3, 3.0), lambda r, a: discovered(r, a, 0.3, 3.0)),
    "learned": (learned(), network(learned())),
    "both": (Sum((ClipDrift(0.2), learned(1))), lambda r, a: clip(r, a) + network(learned(1))(r, a)),
}
every_drift = pytest.mark.parametrize("name", PLAIN)


def grid() -> tuple[torch.Tensor, torch.Tensor]:
    ratio = torch.linspace(-2.5, 1.5, 41, dtype=torch.float64).exp()
    return torch.meshgrid(ratio, torch.tensor([-8.0, -2.0, -0.3, 0.3, 2.0, 8.0], dtype=torch.float64), indexing="ij")


@every_drift
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, name: str):
    drift, f = PLAIN[name]
    here = case(seed, stale=1.0)
    mask, advantage = here.batch.mask, credit(here, 0.99, 0.95)
    seen = advantage[mask]
    advantage = ((advantage - seen.mean()) / (seen.std(correction=0) + 1e-8))[mask]
    ratio = here.ratio()[mask]
    loss = -(ratio * advantage - f(ratio, advantage)).mean()
    assert_same(gradient(with_drift(drift), here), autograd(loss, here))


def test_the_recipes_own_options():
    here = case(3, stale=1.0)
    assert_same(gradient(make("discovered-po"), here), gradient(with_drift(DiscoveredDrift()), here), 1e-15)
    strict = make("discovered-po", alpha=0.3, beta=0.1, entropy=0.01)
    assert_same(gradient(strict, here), gradient(with_drift(DiscoveredDrift(0.3, 0.1), entropy=0.01), here), 1e-15)
    assert_same(gradient(make("discovered-po", drift="clip"), here), gradient(make("ppo"), here), 1e-12)


@every_drift
def test_it_is_a_drift(name: str):
    """f ≥ 0 everywhere; f = 0 and f′ = 0 at r = 1."""
    drift, _ = PLAIN[name]
    ratio, advantage = grid()
    assert (drift(ratio.log(), advantage) >= 0).all() and (drift(ratio.log(), advantage) > 0).any()
    here = torch.zeros_like(advantage)
    assert not drift(here, advantage).any() and not drift.slope(here, advantage).any()
    assert torch.equal(Drifting(drift)(here, advantage, None), torch.ones_like(advantage))


@every_drift
def test_the_factor_is_the_ratio_times_the_slope_of_the_surrogate(name: str):
    """r·g′(r)/A with g = r·A − f, against autograd in r."""
    drift, f = PLAIN[name]
    ratio, advantage = grid()
    r = ratio.clone().requires_grad_()
    slope = torch.autograd.grad((r * advantage - f(r, advantage)).sum(), r)[0]
    factor = Drifting(drift)(ratio.log(), advantage, None)
    assert torch.allclose(factor, ratio * slope / advantage, rtol=1e-9, atol=1e-12)


def test_a_factor_may_be_negative():
    """r = 0.1, A = −8: r − tanh²(A log r/β) is 0.1 − 1. The action that was pushed down too far is pulled up again."""
    ratio, advantage = torch.tensor([[0.1]], dtype=torch.float64), torch.tensor([[-8.0]], dtype=torch.float64)
    factor = Drifting()(ratio.log(), advantage, None).item()
    assert factor == pytest.approx(0.1 - math.tanh(8 * math.log(10) / 0.6) ** 2) and factor < -0.89
    assert Clip(0.2, 0.2)(ratio.log(), advantage, None).item() == 0.0
    ratio, advantage = grid()
    negative = Drifting()(ratio.log(), advantage, None) < 0
    assert negative.any() and not negative[(advantage > 0) | (ratio >= 1)].any()


def test_hand_numbers():
    one = torch.ones((), dtype=torch.float64)
    assert DiscoveredDrift()((1.5 * one).log(), 2 * one).item() == pytest.approx(1 - 2 * math.tanh(0.5)) == pytest.approx(0.07577, abs=1e-5)
    # A = 2, r = 1.5: r·(1 − tanh²(½));  r = 0.5: the drift lets be what moves down for A ≥ 0
    assert Drifting()((1.5 * one).log(), 2 * one, None).item() == pytest.approx(1.5 * (1 - math.tanh(0.5) ** 2))
    assert Drifting()((0.5 * one).log(), 2 * one, None).item() == pytest.approx(0.5)


def test_an_advantage_of_zero_is_harmless():
    assert Drifting()(torch.tensor([[0.3]]), torch.zeros(1, 1), None).item() == pytest.approx(math.exp(0.3))


def test_bad_weights():
    with pytest.raises(QuatrainError, match="above 0"):
        make("discovered-po", beta=0.0)
    with pytest.raises(QuatrainError, match="rows of 8"):
        LearnedDrift((((1.0,) * 7,), (1.0,)))
