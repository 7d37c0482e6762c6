"""Divergences entry by entry: limits in β, bounds, the cap, the teacher's likeliest; the chunked scorer sees the same."""

from __future__ import annotations

import math

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.models.distributions import Categorical, Gaussian
from quatrain.models.entries import jsd_entries, kl_entries, total
from quatrain.parts.likelihoods import Divergence


def pair(rows: int = 6, size: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(rows, size, generator=g, dtype=torch.float64) for _ in range(2))


P, Q = (z.log_softmax(-1) for z in pair())


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_by_enumeration(beta: float):
    p, q = P.exp(), Q.exp()
    m = (1 - beta) * p + beta * q
    plain = {0.0: q * (q / p).log(), 1.0: p * (p / q).log()}.get(beta, beta * q * (q / m).log() + (1 - beta) * p * (p / m).log())
    torch.testing.assert_close(jsd_entries(P, Q, beta), plain, rtol=1e-12, atol=1e-14)


def test_the_limits_in_beta_and_the_bound():
    forward, reverse, small = total(kl_entries(Q, P)), total(kl_entries(P, Q)), 1e-6
    torch.testing.assert_close(total(jsd_entries(P, Q, small)) / small, forward, rtol=1e-4, atol=0)
    torch.testing.assert_close(total(jsd_entries(P, Q, 1 - small)) / small, reverse, rtol=1e-4, atol=0)
    assert (forward > 0).all() and (total(jsd_entries(P, Q, 0.5)) < math.log(2)).all()
    apart = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.0, 1.0]]).log()
    assert total(jsd_entries(*apart, 0.5)).item() == pytest.approx(math.log(2)) and total(kl_entries(*apart)).item() == math.inf


def test_the_cap_by_hand():
    """p = (½, ½), q = (¾, ¼): KL(q‖p) = ¾ log 1.5 + ¼ log ½ = 0.3041 − 0.1733; capped at 0.1 the sum is negative."""
    p, q = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[0.75, 0.25]]).double().log()
    entries = jsd_entries(p, q, 0.0)
    assert entries[0].tolist() == pytest.approx([0.30410, -0.17329], abs=1e-5)
    assert total(entries).item() == pytest.approx(0.13081, abs=1e-5) and total(entries, 0.1).item() == pytest.approx(-0.07329, abs=1e-5)
    assert torch.equal(total(entries, math.inf), entries.sum(-1))
    z = p.clone().requires_grad_()
    slope = torch.autograd.grad(Categorical(z).divergence(Categorical(q), "forward", cap=0.1), z)[0]
    # only the second entry has a slope, −q₂ ∂log p₂ = −¼ (−½, ½)
    assert slope[0].tolist() == pytest.approx([0.125, -0.125])
    impossible = torch.tensor([[1.0, 0.0]]).log()
    assert total(kl_entries(p.float(), impossible), 0.05).item() == pytest.approx(0.5 * math.log(0.5) + 0.05)


def test_the_likeliest_of_the_teacher():
    z, w = pair()
    best = w.topk(3).indices
    expected = total(jsd_entries(z.gather(-1, best).log_softmax(-1), w.gather(-1, best).log_softmax(-1), 0.3))
    torch.testing.assert_close(Categorical(z).divergence(Categorical(w), "jsd", beta=0.3, top=3), expected)
    whole = Categorical(z).divergence(Categorical(w), "jsd", beta=0.3)
    for enough in (0, 9, 50):
        assert torch.equal(Categorical(z).divergence(Categorical(w), "jsd", beta=0.3, top=enough), whole)


def test_equal_distributions_have_no_divergence_and_no_slope():
    z = pair()[0].requires_grad_()
    for beta in (0.0, 0.3, 0.5, 1.0):
        value = Categorical(z).divergence(Categorical(z.detach()), "jsd", beta=beta, cap=0.05)
        assert value.abs().max() < 1e-15 and torch.autograd.grad(value.sum(), z)[0].abs().max() < 1e-15


def test_the_statistic_passes_its_numbers_on_and_refuses_wrong_ones():
    (z, w), action = pair(), torch.zeros(6, dtype=torch.long)
    found = Divergence("teacher", "jsd", beta=0.2, cap=0.03, top=4)(Categorical(z), action, {"teacher": Categorical(w)})
    assert torch.equal(found, Categorical(z).divergence(Categorical(w), "jsd", 0.2, 0.03, 4))
    for wrong in ({"beta": 1.5}, {"cap": 0.0}, {"top": -1}):
        with pytest.raises(QuatrainError, match="out of range"):
            Divergence(**wrong)
    normal = Gaussian(torch.zeros(1, 1), torch.ones(1, 1))
    with pytest.raises(QuatrainError, match="one by one"):
        normal.divergence(normal, "reverse", cap=0.1)
