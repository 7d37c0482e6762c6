"""Distributions against torch.distributions, hand numbers and limiting cases; no gradient is ever NaN."""

from __future__ import annotations

import math

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.models.distributions import Categorical, Gaussian


def logits(rows: int = 5, size: int = 7, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(value: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, leaf)[0]


def test_categorical_equals_torch() -> None:
    temperature = torch.tensor([0.5, 0.7, 1.0, 1.3, 2.0], dtype=torch.float64)
    ours, oracle = Categorical(logits(), temperature=temperature), torch.distributions.Categorical(logits=logits() / temperature[:, None])
    action = torch.tensor([0, 6, 3, 2, 2])
    torch.testing.assert_close(ours.log_prob(action), oracle.log_prob(action), rtol=0, atol=1e-13)
    torch.testing.assert_close(ours.entropy(), oracle.entropy(), rtol=0, atol=1e-13)


def test_uniform_entropy_is_log_v() -> None:
    assert Categorical(torch.zeros(1, 8)).entropy().item() == pytest.approx(math.log(8), abs=1e-6)


def test_support_renormalises_and_a_row_of_zeros_is_not_truncated() -> None:
    z, temperature = logits(3), torch.tensor([0.7, 0.7, 0.7], dtype=torch.float64)
    support = torch.tensor([[2, 5, 0], [1, 0, 0], [0, 0, 0]])
    ours = Categorical(z, support, temperature)
    tempered = z / 0.7
    expected = torch.stack([tempered[0, 4] - tempered[0, [1, 4]].logsumexp(0), torch.tensor(0.0).double(), tempered[2].log_softmax(0)[3]])
    torch.testing.assert_close(ours.log_prob(torch.tensor([4, 0, 3])), expected, rtol=0, atol=1e-13)
    entropies = [torch.distributions.Categorical(logits=row).entropy() for row in (tempered[0, [1, 4]], tempered[1, [0]], tempered[2])]
    torch.testing.assert_close(ours.entropy(), torch.stack(entropies), rtol=0, atol=1e-13)


def test_probabilities_on_the_support_sum_to_one() -> None:
    ours = Categorical(logits(1).expand(7, 7), torch.tensor([[1, 4, 7, 0]]).expand(7, 4))
    probability = ours.log_prob(torch.arange(7)).exp()
    assert probability.sum().item() == pytest.approx(1, abs=1e-12)
    assert probability[[1, 2, 4, 5]].tolist() == [0, 0, 0, 0]


def test_outside_the_support_is_minus_infinity_with_zero_gradient() -> None:
    z = logits(2).requires_grad_()
    log_prob = Categorical(z, torch.tensor([[1, 2], [0, 0]])).log_prob(torch.tensor([5, 5]))
    assert log_prob[0].item() == -math.inf and math.isfinite(log_prob[1].item())
    slope = gradient(torch.where(torch.tensor([False, True]), log_prob, 0).sum(), z)
    assert slope[0].abs().max() == 0 and torch.isfinite(slope).all() and slope[1].abs().max() > 0


@pytest.mark.parametrize("support", [None, torch.tensor([[2, 4], [0, 0]])])
def test_no_nan_gradient_with_impossible_actions(support: torch.Tensor | None) -> None:
    z = logits(2)
    z[:, 0] = -math.inf
    z.requires_grad_()
    other = Categorical(z.detach().flip(0) + torch.linspace(0, 1, 7).double())
    ours = Categorical(z, support, torch.tensor([0.5, 2.0]).double())
    values = [
        ours.log_prob(torch.tensor([1, 3])),
        ours.entropy(),
        *(ours.divergence(other, kind) for kind in ("reverse", "forward", "jsd")),
    ]
    for value in values:
        assert torch.isfinite(value).all()
        slope = torch.autograd.grad(value.sum(), z, retain_graph=True)[0]
        assert torch.isfinite(slope).all() and slope[:, 0].abs().max() == 0
    never = Categorical(z).log_prob(torch.tensor([0, 1]))
    assert never[0].item() == -math.inf and gradient(never[0], z).abs().max() == 0


def test_an_infinite_divergence_has_no_gradient() -> None:
    z = logits(1).requires_grad_()
    hole = logits(1, seed=1)
    hole[0, 2] = -math.inf
    value = Categorical(z).divergence(Categorical(hole), "reverse")
    assert value.item() == math.inf and gradient(value.sum(), z).abs().max() == 0
    assert math.isfinite(Categorical(z).divergence(Categorical(hole), "forward").item())


def test_divergences_by_enumeration_and_other_is_frozen() -> None:
    z, w = logits().requires_grad_(), logits(seed=1).requires_grad_()
    temperature = torch.full((5,), 0.7, dtype=torch.float64)
    ours, other = Categorical(z, torch.tensor([[1, 2]]).expand(5, 2), temperature), Categorical(w, None, temperature)
    p, q = (z / 0.7).softmax(-1).detach(), (w / 0.7).softmax(-1).detach()
    m = (p + q) / 2
    expected = {
        "reverse": (p * (p / q).log()).sum(-1),
        "forward": (q * (q / p).log()).sum(-1),
        "jsd": ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2,
    }
    for kind, value in expected.items():
        result = ours.divergence(other, kind)
        torch.testing.assert_close(result, value, rtol=0, atol=1e-12)
        assert torch.autograd.grad(result.sum(), w, retain_graph=True, allow_unused=True)[0] is None
        assert ours.divergence(ours, kind).abs().max() < 1e-12


def test_gradients_are_those_of_finite_differences() -> None:
    z, support = logits(3).requires_grad_(), torch.tensor([[2, 5, 0], [0, 0, 0], [7, 1, 2]])
    other, action = Categorical(logits(3, seed=1)), torch.tensor([1, 3, 0])
    for name in ("log_prob", "entropy", "reverse", "forward", "jsd"):

        def function(x: torch.Tensor, name: str = name) -> torch.Tensor:
            ours = Categorical(x, support, torch.tensor([0.5, 1.0, 2.0]).double())
            return {"log_prob": lambda: ours.log_prob(action), "entropy": ours.entropy}.get(name, lambda: ours.divergence(other, name))()

        assert torch.autograd.gradcheck(function, z)


def test_bf16_logits_are_read_in_fp32() -> None:
    z = logits().bfloat16()
    assert Categorical(z).entropy().dtype == torch.float32
    torch.testing.assert_close(Categorical(z).entropy(), Categorical(z.float()).entropy(), rtol=0, atol=0)


def test_gaussian_equals_torch() -> None:
    mean, std, action = logits(4, 3), logits(4, 3, 1).exp(), logits(4, 3, 2)
    mean2, std2 = logits(4, 3, 3), logits(4, 3, 4).exp()
    ours, other = Gaussian(mean, std), Gaussian(mean2, std2)
    p, q = (torch.distributions.Independent(torch.distributions.Normal(*x), 1) for x in ((mean, std), (mean2, std2)))
    torch.testing.assert_close(ours.log_prob(action), p.log_prob(action), rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.entropy(), p.entropy(), rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.divergence(other, "reverse"), torch.distributions.kl_divergence(p, q), rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.divergence(other, "forward"), torch.distributions.kl_divergence(q, p), rtol=1e-12, atol=0)


def test_gaussian_broadcasts_its_std_and_freezes_the_other() -> None:
    mean, std, other_mean = logits(4, 3).requires_grad_(), torch.ones(3, dtype=torch.float64), torch.zeros(4, 3).double().requires_grad_()
    divergence = Gaussian(mean, std).divergence(Gaussian(other_mean, std), "reverse")
    torch.testing.assert_close(divergence, mean.square().sum(-1) / 2)
    assert torch.autograd.grad(divergence.sum(), other_mean, allow_unused=True)[0] is None


def test_refusals_say_what_to_do() -> None:
    with pytest.raises(QuatrainError, match="closed form"):
        Gaussian(torch.zeros(1, 1), torch.ones(1, 1)).divergence(Gaussian(torch.zeros(1, 1), torch.ones(1, 1)), "jsd")
    with pytest.raises(QuatrainError, match="same vocabulary"):
        Categorical(logits()).divergence(Categorical(logits(5, 8)), "reverse")
    with pytest.raises(QuatrainError, match="reverse, forward, jsd"):
        Categorical(logits()).divergence(Categorical(logits()), "tv")
