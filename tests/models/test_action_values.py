"""A critic and a density along the policy's own action: the actor is an objective of two terms."""

from __future__ import annotations

import torch

from quatrain.batch import Batch
from quatrain.estimator import Objective, Term
from quatrain.models.action_values import twin_critics
from quatrain.models.behaviour_vae import DensityOf
from quatrain.models.networks import Box, NetworkPolicy, deterministic
from quatrain.parts.aggregations import value_scale
from quatrain.parts.likelihoods import CriticAlong


def test_the_actor_descends_minus_q_over_its_size_minus_the_weighted_density():
    policy = deterministic(NetworkPolicy(3, Box((-2.0,), (2.0,))), (16,), dropout=0.1)
    others = {"critic": twin_critics(policy), "behaviour": DensityOf(hidden=(16,))(policy)}
    g = torch.Generator().manual_seed(0)
    seen, draw = torch.randn(6, 2, 3, generator=g), torch.arange(6)[:, None]
    batch = Batch(torch.ones(6, 1, dtype=torch.bool), torch.zeros(6, 1, 1), {"draw": draw}, contexts={"policy": {"observations": seen}})
    for weight in (0.0, 0.3):
        support = Term(likelihood=CriticAlong("behaviour"), weight=weight)
        objective = Objective({"value": Term(likelihood=CriticAlong(), aggregation=value_scale), "support": support})
        ready = objective.finalise(objective.prepare(batch), objective.current(policy, batch, others))
        loss, _ = objective.loss(policy, ready, others)
        action = policy.distribution(seen[:, 0], draws=draw[:, 0]).mean
        q = others["critic"].q(seen[:, 0], action)[0]
        plain = -q.mean() / q.abs().mean().detach() - weight * others["behaviour"].log_density(seen[:, 0], action, draw[:, 0]).mean()
        weights = list(policy.module.trunk.parameters())
        for ours, theirs in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(plain, weights), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        assert all(value.grad is None for other in others.values() for value in other.module.parameters())
