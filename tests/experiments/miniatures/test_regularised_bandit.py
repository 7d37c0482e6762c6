"""The bandit's expectation is that of its pairs, and its optimum is stationary for CoPG and not without a baseline."""

from __future__ import annotations

import pytest
import torch

from quatrain.estimator import Objective, Term
from quatrain.experiments.miniatures.regularised_bandit import RegularisedReward, chance, distances, expectation, pairs
from quatrain.models.tables import TablePolicy
from quatrain.parts.baselines import RegularisedLeaveOneOut

REWARD, BEHAVIOUR = (torch.tensor(value, dtype=torch.float64) for value in ([0.0, 0.3, 1.0], [0.7, 0.2, 0.1]))
BETA = 0.5


def slope(advantage, logits: torch.Tensor) -> torch.Tensor:
    policy, batch = TablePolicy(logits[None]), pairs(REWARD, BEHAVIOUR)
    objective = Objective({"policy": Term(advantage=advantage, aggregation=expectation, weight=chance)})
    return torch.autograd.grad(objective(batch, policy.score(batch, objective.statistics())).loss, policy.table)[0][0]


@pytest.mark.parametrize("advantage", [RegularisedLeaveOneOut(BETA), RegularisedReward(BETA, "mean"), RegularisedReward(BETA, "value")])
def test_the_expectation_over_pairs(advantage):
    """−2 E_μ[(R − b) ∇log π], b by hand."""
    logits = torch.tensor([0.2, -0.4, 0.1], dtype=torch.float64)
    logp = logits.log_softmax(0)
    regularised = REWARD - BETA * (logp + torch.tensor(3.0).log())
    own = {"mean": BEHAVIOUR @ REWARD, "value": logp.exp() @ regularised}
    b = own.get(getattr(advantage, "baseline", ""), BEHAVIOUR @ regularised)  # the other of a pair: its mean under μ
    scores = torch.eye(3, dtype=torch.float64) - logp.exp()
    expected = -2 * ((BEHAVIOUR * (regularised - b))[:, None] * scores).sum(0)
    assert torch.allclose(slope(advantage, logits), expected, atol=1e-7)


def test_what_is_stationary_at_the_optimum():
    best = REWARD / BETA
    for advantage in (RegularisedLeaveOneOut(BETA), RegularisedReward(BETA, "value")):
        assert slope(advantage, best).abs().max() < 1e-12
    for name in ("none", "mean"):
        assert slope(RegularisedReward(BETA, name), best).abs().max() > 0.01


def test_distances_repeat_themselves():
    assert distances(1, steps=5) == distances(1, steps=5) != distances(2, steps=5)
