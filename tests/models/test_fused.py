"""Log-probability and entropy in blocks, with a written-out gradient, against autograd through all logits."""

from __future__ import annotations

import math

import pytest
import torch

from quatrain.models import fused
from quatrain.models.backbone import split
from quatrain.models.fused import log_prob_and_entropy
from quatrain.models.scorer import score
from quatrain.parts.likelihoods import Entropy, LogProb
from tests.models.test_scorer import batch, gradients, largest, plain
from tests.tiny_models import ARCHITECTURES, tiny_model


def problem(dtype: torch.dtype, positions: int = 13, vocabulary: int = 30, width: int = 8, size: float = 1.0) -> tuple[torch.Tensor, ...]:
    """(hidden, weight, action, scale)"""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, width, dtype=torch.float64, generator=generator) * size for n in (positions, vocabulary))
    action = torch.randint(vocabulary, (positions,), generator=generator)
    scale = 0.5 + torch.rand(positions, dtype=torch.float64, generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), action, scale.to(dtype)


def oracle(hidden: torch.Tensor, weight: torch.Tensor, action: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    log_p = (hidden.double() @ weight.double().T * scale.double()[:, None]).log_softmax(-1)
    return log_p.gather(1, action[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


@pytest.mark.parametrize("elements", [2**20, 50, 7, 1])  # one block; blocks of three words; blocks of some rows and one word
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_values_and_gradients_are_those_of_all_logits(elements: int, dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, action, scale = problem(dtype, size=0.4)
    ours, exact = log_prob_and_entropy(hidden, weight, action, scale, elements), oracle(hidden, weight, action, scale)
    for mine, true in zip(ours, exact, strict=True):
        assert mine.dtype == dtype and relative(mine.double(), true) < tolerance
    c = torch.linspace(-1, 2, 13, dtype=torch.float64)
    c[3] = 0
    for by_log_prob, by_entropy in ((c, 0 * c), (c, c.flip(0)), (0 * c, c)):
        slopes = [
            torch.autograd.grad((by_log_prob * log_prob + by_entropy * entropy).sum(), [hidden, weight], retain_graph=True)
            for log_prob, entropy in (ours, exact)
        ]
        for mine, true in zip(*slopes, strict=True):
            assert relative(mine, true) < 2 * tolerance


def test_without_a_gradient_the_entropy_takes_another_way_to_the_same_value() -> None:
    hidden, weight, action, scale = problem(torch.float64)
    with torch.no_grad():
        ours = log_prob_and_entropy(hidden, weight, action, scale, 40)
    for mine, true in zip(ours, oracle(hidden, weight, action, scale), strict=True):
        torch.testing.assert_close(mine, true.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("differentiate", [True, False])
def test_logits_far_above_the_taken_action_do_not_overflow(differentiate: bool) -> None:
    hidden, weight = torch.eye(3, requires_grad=True), torch.diag(torch.tensor([500.0, -500.0, 1.0])).requires_grad_()
    action = torch.tensor([1, 1, 2])
    with torch.set_grad_enabled(differentiate):
        log_prob, entropy = log_prob_and_entropy(hidden, weight, action, None, 3)
    #  logits: (500, 0, 0), (0, −500, 0), (0, 0, 1)
    torch.testing.assert_close(log_prob[:2], torch.tensor([-500.0, -500.0 - math.log(2)]))
    torch.testing.assert_close(entropy[:2], torch.tensor([0.0, math.log(2)]))
    if differentiate:
        slope = torch.autograd.grad(log_prob[0], weight)[0]
        torch.testing.assert_close(slope[:, 0], torch.tensor([-1.0, 1.0, 0.0]))


def test_only_rows_with_a_gradient_and_only_a_trained_head_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, action, scale = problem(torch.float64)
    made, original = [], fused._blocks
    monkeypatch.setattr(fused, "_blocks", lambda x, w, elements: (made.append(len(x)), original(x, w, elements))[1])
    log_prob, entropy = log_prob_and_entropy(hidden, weight, action, scale, 40)
    log_prob[[2, 5]].sum().backward(retain_graph=True)
    assert made == [13, 2]
    (entropy[:4].sum() + log_prob[4]).backward()
    assert made == [13, 2, 5]
    log_prob, _ = log_prob_and_entropy(hidden, weight.detach(), action, scale, 40)
    log_prob.sum().backward()
    assert made == [13, 2, 5, 13]  # its forward only


def test_nothing_is_larger_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, action, scale = problem(torch.float32, positions=50, vocabulary=1000)
    logits, other, original = [], [], fused.product

    def seen(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        result = original(a, b)
        (logits if a.shape[1] == 8 else other).append(result.numel())
        return result

    monkeypatch.setattr(fused, "product", seen)
    log_prob, entropy = log_prob_and_entropy(hidden, weight, action, scale, 200)
    (log_prob + entropy).sum().backward()
    assert max(logits) <= 200 and sum(logits) == 2 * 50 * 1000
    assert max(other) <= 200 * 8


def test_a_second_derivative_is_refused() -> None:
    hidden, weight, action, scale = problem(torch.float64)
    squared = log_prob_and_entropy(hidden, weight, action, scale)[0].square().sum()
    slope = torch.autograd.grad(squared, hidden, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_scorer_uses_it_for_every_architecture(architecture: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used, original = [], fused.log_prob_and_entropy
    monkeypatch.setattr("quatrain.models.scorer.log_prob_and_entropy", lambda *args: (used.append(len(args[0])), original(*args))[1])
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 3e-6)):
        model, rows = tiny_model(architecture, tied=tied, vocabulary=30, dtype=dtype), batch()
        expected = plain(model, rows)
        results = score(split(model), rows, [LogProb(), Entropy()], chunk_elements=60)
        for statistic, value in results.items():
            torch.testing.assert_close(value, expected[statistic], rtol=1e-6, atol=tolerance)
        assert largest(gradients(model, expected), gradients(model, results)) < tolerance
    assert used == [int(rows.mask.sum())] * 2


def test_no_action_at_all() -> None:
    log_prob, entropy = log_prob_and_entropy(torch.zeros(0, 4, requires_grad=True), torch.ones(3, 4), torch.zeros(0, dtype=torch.long))
    (log_prob.sum() + entropy.sum()).backward()
    assert log_prob.shape == entropy.shape == (0,)
