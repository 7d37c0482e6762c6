"""ppo: autograd of the clipped surrogate with standardised GAE, the entropy bonus and the critic's squared error."""

from __future__ import annotations

import pytest
import torch

from quatrain.training.registry import make
from tests.toy import TabularCritic, assert_same, autograd, case, fit_of, gradient


def credit(here, discount: float, trace: float) -> torch.Tensor:
    """GAE by a plain loop over the actions of a row; the last one ends the episode."""
    batch, out = here.batch, torch.zeros(here.batch.shape, dtype=torch.float64)
    for i in range(len(batch)):
        following = 0.0
        for t in reversed(range(batch.shape[1])):
            if batch.mask[i, t]:
                after = 0.0 if batch["terminated"][i, t] else float(batch["next_value"][i, t])
                delta = float(batch["rewards"][i, t]) + discount * after - float(batch["value"][i, t])
                following = delta + (0.0 if batch["terminated"][i, t] else discount * trace * following)
                out[i, t] = following
    return out


@pytest.mark.parametrize("entropy", [0.0, 0.01])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, entropy: float):
    here = case(seed)
    mask = here.batch.mask
    advantage = credit(here, 0.99, 0.95)
    seen = advantage[mask]
    advantage = (advantage - seen.mean()) / (seen.std(correction=0) + 1e-8)
    ratio = here.ratio()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)[mask]
    p = here.policy.table.softmax(-1)[here.batch["state"]][mask]
    loss = -surrogate.mean() + entropy * (p * p.log()).sum(-1).mean()
    assert_same(gradient(make("ppo", entropy=entropy), here), autograd(loss, here))


def test_the_critic_regresses_on_the_lambda_returns():
    here = case(2)
    critic = TabularCritic(torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    mask = here.batch.mask
    target = credit(here, 0.99, 0.95) + here.clean("value")
    loss = (critic.module.values[here.batch["state"]] - target)[mask].square().mean() / 2
    expected = torch.autograd.grad(loss, critic.module.values)[0]
    assert_same(gradient(fit_of(make("ppo"), "critic"), here, critic), expected)
