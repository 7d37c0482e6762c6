"""A bandit with skewed data: how far from the regularised optimum do estimators without importance weights end?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.estimator import Objective, Term
from quatrain.models.tables import TablePolicy
from quatrain.parts.baselines import RegularisedLeaveOneOut
from quatrain.parts.needs import needs


@needs("chance")
def chance(batch: Batch) -> Tensor:
    """[N] how often the data has the row's pair."""
    return batch["chance"]


def expectation(batch: Batch, where: Tensor) -> Tensor:
    """1: the rows are a whole distribution, each with its chance."""
    return where.double()


@dataclass(frozen=True)
class RegularisedReward:
    """A = R − b, R = r − β log π_θ/π_ref: a policy gradient that does not ask where its data comes from.

    baseline  b: ``none``; ``mean``: the data's mean r; ``value``: E_π[R] over the arms. Rows of one arm are alike, and all arms are
              there.
    """

    beta: float
    baseline: Literal["none", "mean", "value"] = "none"
    needs = ("current_logp", "reference_logp", "reward", "chance")

    def __call__(self, batch: Batch) -> Tensor:
        found = batch["reward"][:, None] - self.beta * (batch["current_logp"] - batch["reference_logp"])
        if self.baseline == "none":
            return found
        if self.baseline == "mean":
            return found - (batch["chance"] * batch["reward"]).sum() / batch["chance"].sum()
        rows = (batch.actions == batch.actions.T).sum(1, keepdim=True)  # an arm has several
        return found - (batch["current_logp"].exp() / rows * found).sum()


def pairs(reward: Tensor, behaviour: Tensor) -> Batch:
    """Every ordered pair of arms as a group of two, with its chance under the behaviour policy; the reference is uniform."""
    arms = len(reward)
    drawn = torch.cartesian_prod(torch.arange(arms), torch.arange(arms))
    actions = drawn.flatten()[:, None]
    often = behaviour[drawn].prod(1).repeat_interleave(2)
    return Batch(
        mask=torch.ones_like(actions, dtype=torch.bool),
        actions=actions,
        columns={
            "state": torch.zeros(*actions.shape, 1, dtype=torch.long),
            "reference_logp": torch.full(actions.shape, 1 / arms, dtype=torch.float64).log(),
        },
        rows={"reward": reward[actions[:, 0]], "prompt": torch.arange(len(drawn)).repeat_interleave(2), "chance": often},
    )


def distances(seed: int, beta: float = 0.5, arms: int = 3, skew: float = 1.5, steps: int = 1000, rate: float = 1.0) -> dict[str, float]:
    """log10 KL(π*‖π) at the end of exact gradient steps on data of a random skewed policy, by estimator; at least −12.

    ``copg``: the other sample of a pair as baseline; ``none``, ``mean``, ``value``: as in RegularisedReward.
    """
    generator = torch.Generator().manual_seed(seed)
    reward = torch.rand(arms, dtype=torch.float64, generator=generator)
    behaviour = (skew * torch.randn(arms, dtype=torch.float64, generator=generator)).softmax(0)
    batch, best = pairs(reward, behaviour), (reward / beta).softmax(0)
    others = {name: RegularisedReward(beta, name) for name in ("none", "mean", "value")}
    advantages = {"copg": RegularisedLeaveOneOut(beta), **others}
    found = {}
    for name, advantage in advantages.items():
        objective = Objective({"policy": Term(advantage=advantage, aggregation=expectation, weight=chance)})
        policy = TablePolicy(torch.zeros(1, arms))
        for _ in range(steps):
            loss = objective(batch, policy.score(batch, objective.statistics())).loss
            (slope,) = torch.autograd.grad(loss, policy.table)
            with torch.no_grad():
                policy.table.sub_(rate * slope)
        ours = policy.table.detach().log_softmax(-1)[0]
        found[name] = max(-12.0, float((best * (best.log() - ours)).sum().clamp(min=1e-12).log10()))
    return found
