"""Fits of critics and densities: their losses by the plainly written equations, and any split into micro-batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.models.action_values import twin_critics
from quatrain.models.behaviour_vae import DensityOf
from quatrain.models.draws import normals, stream
from quatrain.models.networks import Box, DeterministicOf, NetworkPolicy, Squashed, deterministic
from quatrain.training.batching import micro_batches
from quatrain.training.fits import NegativeLogDensity, TwinQ
from quatrain.training.selves import Frozen, Made

BOX = Box((-2.0, 0.0), (2.0, 1.0))


def batch(n: int = 7) -> Batch:
    g = torch.Generator().manual_seed(0)
    seen, actions = torch.randn(n, 2, 3, generator=g), torch.rand(n, 1, 2, generator=g)
    columns = {
        "rewards": torch.randn(n, 1, generator=g),
        "terminated": torch.arange(n)[:, None] % 3 == 0,
        "draw": torch.randint(2**62, (n, 1), generator=g),
    }
    made = Batch(torch.ones(n, 1, dtype=torch.bool), actions, columns, contexts={"policy": {"observations": seen}})
    return made.to(torch.device("cpu"))._map(lambda value: value.double() if value.is_floating_point() else value)


def models() -> dict:
    policy = deterministic(NetworkPolicy(3, BOX), (8,), dropout=0.1)
    made = {"policy": policy, "critic": twin_critics(policy), "behaviour": DensityOf(hidden=(8,))(policy)}
    made |= {"target_policy": policy.clone(), "target_critic": made["critic"].clone()}
    for number, model in enumerate(made.values()):
        model.module.double()
        with torch.no_grad():
            for value in model.module.parameters():
                value += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    return made


def gradient(loss: TwinQ | NegativeLogDensity, model: object, here: Batch, others: dict, tokens: int) -> list[Tensor]:
    weights = list(model.module.parameters())
    total = [torch.zeros_like(value) for value in weights]
    for part in micro_batches(loss.finalise(loss.prepare(here)), tokens):
        found = torch.autograd.grad(loss.loss(model, part, others)[0], weights, allow_unused=True)
        total = [a if b is None else a + b for a, b in zip(total, found, strict=True)]
    return total


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(float(b.abs().max()), 1e-8)


@pytest.mark.parametrize("tokens", [100, 3, 1])
def test_the_critics_descend_the_squared_difference_to_the_targets(tokens: int):
    here, made = batch(), models()
    seen, after = here.contexts["policy"]["observations"].unbind(1)
    low, high = torch.tensor(BOX.low).double(), torch.tensor(BOX.high).double()
    half = (high - low) / 2
    noise = normals(stream(here["draw"][:, 0], "target"), 2).double()
    action = (made["target_policy"].distribution(after).mean + half * (0.2 * noise).clamp(-0.5, 0.5)).clamp(low, high)
    following = made["target_critic"].q(after, action).amin(0)
    y = here["rewards"][:, 0] + 0.9 * torch.where(here["terminated"][:, 0], 0.0, following)
    plain = sum(((made["critic"].q(seen, here.actions[:, 0])[k] - y.detach()) ** 2).mean() for k in range(2))
    expected = torch.autograd.grad(plain, list(made["critic"].module.parameters()))
    assert_close(gradient(TwinQ(discount=0.9), made["critic"], here, made, tokens), expected)


@pytest.mark.parametrize("tokens", [100, 3])
def test_the_density_descends_the_released_codes_loss_in_other_units(tokens: int):
    """−ELBO = (2A/β)·(mean squared error + β·mean KL) + a constant, for A dimensions and 2A latents."""
    here, made = batch(), models()["behaviour"]
    seen, action = here.contexts["policy"]["observations"][:, 0], BOX.unit(here.actions[:, 0])
    mean, log_std = made.module["encoder"](torch.cat([seen, action], 1))[0].chunk(2, -1)
    std = log_std.clamp(-4, 15).exp()
    z = mean + std * normals(stream(here["draw"][:, 0], "latents"), 4).double()
    error = (made.module["decoder"](torch.cat([seen, z], 1))[0].tanh() - action).square().mean(1)
    kl = -0.5 * (1 + 2 * std.log() - mean.square() - std.square()).mean(1)
    code = (error + 0.5 * kl).mean()
    expected = torch.autograd.grad(2 * 2 / 0.5 * code, list(made.module.parameters()))
    assert_close(gradient(NegativeLogDensity(), made, here, {}, tokens), expected)
    found = made.log_density(seen, here.actions[:, 0], here["draw"][:, 0]).mean()
    constant = 2 / 2 * math.log(2 * math.pi * 0.5 / 4)
    assert found.item() == pytest.approx(-8 * float(code.detach()) - constant, abs=1e-9)


def test_a_missing_column_is_named():
    with pytest.raises(QuatrainError, match="'draw' is needed by TwinQ"):
        TwinQ().check({"rewards", "terminated"})


def test_a_made_model_fits_the_one_that_it_is_made_of():
    given = NetworkPolicy(3, BOX)
    found = {"policy": given}
    for name, spec in {"policy": Made(DeterministicOf((8,), 0.2, 0.1)), "critic": Made(twin_critics), "slow": Frozen("policy")}.items():
        found[name] = spec(found, {})
    assert isinstance(found["policy"].action_space, Squashed) and found["policy"].action_space.executed == BOX
    assert found["critic"].q(torch.zeros(2, 3), torch.zeros(2, 2)).shape == (2, 2) and found["slow"].dropout == 0.1
    assert DeterministicOf()(found["policy"]) is found["policy"]
