"""A second-order model of one action's update of a softmax's last layer, against autograd and exact enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.curvature import Moments, WithinShifts, logit_motion, objective_shift, policy_shift, score_of_logits

V, D, M, LR = 5, 3, 8, 0.01


def draw(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(weights [V, D], hidden [M, D], action [M], advantage [M])."""
    g = torch.Generator().manual_seed(seed)
    weights, hidden = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((V, D), (M, D)))
    return weights, hidden, torch.randint(V, (M,), generator=g), torch.randn(M, generator=g, dtype=torch.float64)


def seen(seed: int = 1, steps: int = 7) -> Moments:
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(V, D, generator=g, dtype=torch.float64) / 5
    return Moments(mean, mean.square() + torch.rand(V, D, generator=g, dtype=torch.float64) / 20, steps)


def surrogate(weights: Tensor, hidden: Tensor, action: Tensor, advantage: Tensor, old: Tensor) -> Tensor:
    """A · π_W(a)/π_old(a) of one action."""
    return advantage * ((weights @ hidden).log_softmax(-1)[action] - (old @ hidden).log_softmax(-1)[action]).exp()


@pytest.mark.parametrize("moments", [None, seen()], ids=["ascent", "adam"])
def test_the_objective_shift_is_the_second_order_expansion(moments: Moments | None):
    """g·Δ + ½ ΔᵀHΔ with g and H from autograd, Δ from the plainly written optimiser."""
    weights, hidden, action, advantage = draw()
    _, p, v = score_of_logits(hidden @ weights.T, action)
    motion = logit_motion(v, hidden, advantage, moments)
    found = objective_shift(p, v, motion, advantage, LR)
    for m in range(M):
        of = lambda w, m=m: surrogate(w, hidden[m], action[m], advantage[m], weights)  # noqa: E731
        g = torch.autograd.functional.jacobian(of, weights)
        h = torch.autograd.functional.hessian(of, weights).view(V * D, V * D)
        step = LR * (g if moments is None else moments.direction(g))
        expected = (g * step).sum() + step.flatten() @ h @ step.flatten() / 2
        assert torch.allclose(found[m], expected, rtol=1e-10, atol=1e-15)
        assert torch.allclose(motion[m], step @ hidden[m] / LR, rtol=1e-10, atol=1e-14)


def test_all_actions_of_a_state_enumerated():
    """Σ π(a) m_H(a) at one Δ is the expansion of J(W) = Σ π_W(a) A(a); Σ π(a) m_F(a) is the KL, both but for third order."""
    weights, hidden, _, _ = draw(3)
    h, advantage = hidden[0], torch.tensor([1.0, -0.5, 0.3, 0.0, -2.0], dtype=torch.float64)
    _, p, v = score_of_logits((weights @ h).expand(V, V), torch.arange(V))
    motion = torch.randn(V, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).expand(V, V)
    before = (weights @ h).log_softmax(-1)
    for lr in (1e-2, 1e-3):
        after = (weights @ h + lr * motion[0]).log_softmax(-1)
        gain = (after.exp() * advantage).sum() - (before.exp() * advantage).sum()
        kl = (before.exp() * (before - after)).sum()
        assert abs((p[0] * objective_shift(p, v, motion, advantage, lr)).sum() - gain) < 2 * lr**3
        assert abs((p[0] * policy_shift(v, motion, lr)).sum() - kl) < 2 * lr**3 < kl / 20


@pytest.mark.parametrize("steps", [0, 1, 20])
def test_the_direction_is_that_of_torch(steps: int):
    weight = torch.nn.Parameter(draw()[0])
    adam = torch.optim.Adam([weight], lr=LR)
    g = torch.Generator().manual_seed(2)
    for _ in range(steps):
        weight.grad = torch.randn(V, D, generator=g, dtype=torch.float64)
        adam.step()
    state, zero = adam.state.get(weight, {}), torch.zeros(V, D, dtype=torch.float64)
    moments = Moments(-state.get("exp_avg", zero).clone(), state.get("exp_avg_sq", zero).clone(), steps)
    ascent = torch.randn(V, D, generator=g, dtype=torch.float64)
    before = weight.detach().clone()
    weight.grad = -ascent
    adam.step()
    assert torch.allclose(LR * moments.direction(ascent), weight.detach() - before, rtol=1e-9)


def test_by_hand():
    """Two entries of ½, |h|² = 4, A = 1: v = ±½, u = ±2, v·u = 2."""
    hidden, advantage = torch.tensor([[2.0, 0.0]]), torch.tensor([1.0])
    entries, p, v = score_of_logits(torch.zeros(1, 2), torch.tensor([0]))
    motion = logit_motion(v, hidden, advantage)
    assert entries == slice(None) and v.tolist() == [[0.5, -0.5]] and motion.tolist() == [[2.0, -2.0]]
    assert policy_shift(v, motion, 0.1).item() == pytest.approx(0.5 * 0.01 * 4)
    assert objective_shift(p, v, motion, advantage, 0.1).item() == pytest.approx(0.1 * 2 + 0.5 * 0.01 * (4 - 4))
    first = logit_motion(v, hidden, advantage, Moments(torch.zeros(2, 2), torch.zeros(2, 2)))
    assert first.tolist()[0] == pytest.approx([2.0, -2.0])  # sign(g) h


def test_the_likeliest_entries_have_the_action_among_them():
    weights, hidden, action, advantage = draw(5)
    logits = hidden @ weights.T
    action[0] = logits[0].argmin()
    entries, p, v = score_of_logits(logits, action, top=2)
    assert (entries == action[:, None]).any(1).all() and torch.allclose(p.sum(1), torch.ones(M, dtype=torch.float64))
    full = score_of_logits(logits, action, top=V)
    assert isinstance(full[0], slice)
    chosen = logit_motion(v, hidden, advantage, seen(), entries)
    wide = torch.zeros(M, V, dtype=torch.float64).scatter(1, entries, v)
    assert torch.allclose(chosen, logit_motion(wide, hidden, advantage, seen()).gather(1, entries), rtol=1e-12)


@pytest.mark.parametrize("most", [1, 4, 7, 40])
def test_however_it_is_cut(most: int):
    weights, hidden, action, advantage = draw(6)
    _, _, v = score_of_logits(hidden @ weights.T, action)
    assert torch.allclose(logit_motion(v, hidden, advantage, seen(), most=most), logit_motion(v, hidden, advantage, seen()), rtol=1e-12)


def test_the_selection():
    mask = torch.tensor([[True, True, True, True, False]])
    shifts = {"current_policy_shift": torch.tensor([[0.1, 0.3, 0.1, 0.1, math.nan]])}
    shifts["current_objective_shift"] = torch.tensor([[0.1, 0.1, 0.6, -0.1, math.nan]])
    batch = Batch(mask, torch.zeros(1, 5), shifts)
    assert WithinShifts(0.2, 0.5)(batch).tolist() == [[True, False, False, True, False]]
    assert WithinShifts(0.2, 0.5, rising=True)(batch).tolist() == [[True, False, False, False, False]]
    assert torch.equal(WithinShifts(math.inf, math.inf)(batch), mask)
    with pytest.raises(QuatrainError, match="policy's shift"):
        WithinShifts(0.0, 1.0)
