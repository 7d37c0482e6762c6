"""Flow matching: hand numbers, the analytic spread, seeds that address the draws, splits, the two-stage variant."""

from __future__ import annotations

import math

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.losses.flow import FlowMatching, flow_loss
from quatrain.models.flow import FlowPolicy
from quatrain.models.networks import Box, Discrete, NetworkPolicy
from quatrain.training.batching import micro_batches


def batch(n: int = 6, t: int = 4, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(t) < torch.randint(1, t + 1, (n, 1), generator=g)
    return Batch(
        mask=mask,
        actions=torch.rand(n, t, 2, generator=g, dtype=torch.float64) * 2 - 1,
        columns={"draw": torch.randint(2**62, (n, t), generator=g)},
        contexts={"policy": {"observations": torch.randn(n, t + 1, 3, generator=g)}},
    )


def policy(**options: str) -> FlowPolicy:
    made = FlowPolicy(3, Box((-1.0, -1.0), (1.0, 1.0)), (16, 16), **options)
    made.module.double()
    return made


def gradients(loss: FlowMatching, model: FlowPolicy, here: Batch, tokens: int = 1000) -> dict[str, torch.Tensor]:
    model.module.zero_grad()
    whole = loss.finalise(loss.prepare(here))
    for part in micro_batches(whole.take(loss.active(whole)), tokens):
        loss.loss(model, part, {})[0].backward()
    return {name: value.grad.clone() for name, value in model.module.named_parameters() if value.grad is not None}


def test_hand_numbers_and_limits():
    error, log_std = torch.tensor([3.0, 0.5], dtype=torch.float64), torch.tensor([0.2, -1.0], dtype=torch.float64)
    expected = [3 / (2 * math.exp(0.4)) + 0.2, 0.5 / (2 * math.exp(-2)) - 1]
    assert flow_loss(error, log_std).tolist() == pytest.approx(expected)
    assert torch.equal(flow_loss(error, torch.zeros(2)), error / 2), "σ = 1 is plain flow matching"


def test_the_best_spread_is_the_conditional_variance():
    """x₁ = ±1 with equal chance, x₀ ~ N(0, 1), t = ½, x_t = 0: u = x₁ − x₀ = 2x₁, since x₀ = −x₁; variance 4."""
    sign = torch.tensor([1.0, -1.0]).double()
    u = sign - (-sign)
    variance = (u - u.mean()).square().mean()
    assert variance == 4.0
    grid = torch.linspace(-1, 2, 3001).double()
    risk = torch.stack([flow_loss((u - u.mean()).square(), log_std.expand(2)).mean() for log_std in grid])
    assert grid[risk.argmin()].item() == pytest.approx(math.log(math.sqrt(4.0)), abs=1e-3)


@pytest.mark.parametrize("path", ["straight", "cosine"])
@pytest.mark.parametrize("fit", ["both", "velocity", "spread"])
def test_the_gradient_is_that_of_the_papers_loss(fit: str, path: str):
    here, model, loss = batch(), policy(path=path), FlowMatching(fit)
    found = gradients(loss, model, here)
    model.module.zero_grad()
    drawn, total, count = loss.prepare(here), torch.zeros(()).double(), 0
    for i, t in here.mask.nonzero().tolist():
        seen, x1 = here.contexts["policy"]["observations"][i, t], here.actions[i, t]
        time, x0 = drawn["flow_time"][i, t].double(), drawn["flow_noise"][i, t].double()
        phase = time * math.pi / 2
        point, u = (
            ((1 - time) * x0 + time * x1, x1 - x0)
            if path == "straight"
            else (
                phase.cos() * x0 + phase.sin() * x1,
                phase.cos() * x1 - phase.sin() * x0,
            )
        )
        velocity, log_std = (part[0] for part in model.field(seen[None], point[None], time[None]))
        error = sum((u[d] - velocity[d]) ** 2 for d in range(2))
        total = total + (error / 2 if fit == "velocity" else error / (2 * (2 * log_std).exp()) + log_std)
        count += 1
    (total / count).backward()
    moved = ("log_std",) if fit == "spread" else ("trunk", "velocity") if fit == "velocity" else ("trunk", "velocity", "log_std")
    for name, value in model.module.named_parameters():
        if name.startswith(moved):
            assert (found[name] - value.grad).abs().max() <= 1e-10 * value.grad.abs().max(), name
        else:
            assert name not in found or not found[name].any(), f"{name} stays"


def test_any_split_sees_the_same_draws():
    here, model, loss = batch(9, 5), policy(), FlowMatching()
    whole = gradients(loss, model, here)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    for found in (gradients(loss, model, here, 3), gradients(loss, model, here, 7), gradients(loss, model, here.take(order))):
        for name, value in whole.items():
            assert torch.allclose(found[name], value, rtol=1e-10, atol=1e-13)


def test_what_is_no_action_contributes_nothing():
    here, model, loss = batch(), policy(), FlowMatching()
    spoilt = Batch(
        mask=here.mask,
        actions=here.actions.masked_fill(~here.mask[..., None], float("nan")),
        columns=here.columns,
        contexts=here.contexts,
    )
    whole = gradients(loss, model, here)
    assert all(torch.equal(value, whole[name]) for name, value in gradients(loss, model, spoilt).items())


def test_times_are_uniform_and_noises_normal():
    drawn = FlowMatching().prepare(batch(400, 50))
    assert drawn["flow_time"].mean().item() == pytest.approx(0.5, abs=0.01)
    assert drawn["flow_time"].std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.01)
    noise = drawn["flow_noise"].flatten(0, 1)
    assert torch.allclose(noise.T.cov(), torch.eye(2), atol=0.03) and noise.mean(0).abs().max() < 0.02
    both = torch.stack([drawn["flow_time"].flatten(), noise[:, 0]])
    assert both.corrcoef()[0, 1].abs() < 0.02


def test_refusals():
    with pytest.raises(QuatrainError, match="draw"):
        FlowMatching().check({"prompt"})
    loss = FlowMatching()
    here = loss.finalise(loss.prepare(batch()))
    with pytest.raises(QuatrainError, match="model=flow"):
        loss.loss(NetworkPolicy(3, Discrete(2)), here, {})
