"""The choice of tools: addressable, judged by its heuristics, exact when it is evaluated."""

from __future__ import annotations

import pytest
import torch

from quatrain.environments.tool_choice import CUES, TELLING, TOOLS, ToolChoice
from quatrain.errors import QuatrainError
from quatrain.models.tables import TablePolicy
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Sampling
from quatrain.tasks.loading import load_task


def test_requests_are_addressable_and_repeat():
    task = ToolChoice(samples=7)
    assert task.starts("train", 2, 10)[5:] == task.starts("train", 7, 5) and task.starts("train", 7, 1)[0].index == 0
    cues = task.cues(task.starts("train", 0, 7))
    assert torch.equal(cues, ToolChoice().cues(ToolChoice().starts("train", 0, 7)))
    assert not torch.equal(cues, task.cues(task.starts("heldout", 0, 7))) and not torch.equal(ToolChoice(1).right, task.right)
    assert (cues[..., 0] < len(TELLING)).all() and (cues[..., 1:] >= len(TELLING)).all() and (cues < len(CUES)).all()
    assert (cues[..., 1] != cues[..., 2]).all()


def test_one_who_knows_the_heuristics_always_succeeds_and_evaluation_is_exact():
    task = ToolChoice()
    known = torch.zeros(len(CUES), len(TOOLS), dtype=torch.float64)
    known[torch.arange(len(TELLING)), task.right] = 40.0
    starts = task.starts("train", 0, 20)
    assert task.rollout(TablePolicy(known), starts, 3, Sampling(), 0)["reward"].all()
    assert task.evaluate(TablePolicy(known), 64, 0, Sampling(), 0)["success"] == pytest.approx(1.0)
    found = task.network()
    exact = task.evaluate(found, 1024, 0, Sampling(), 0)["success"]
    sampled = task.rollout(found, task.starts("heldout", 0, 1024), 20, Sampling(), 0)["reward"].mean()
    assert exact == pytest.approx(float(sampled), abs=0.01) and 0.05 < exact < 0.4


def test_what_is_recorded_is_what_is_scored():
    task, sampling = ToolChoice(), Sampling(temperature=0.7, top_k=3)
    policy = task.network()
    batch = task.rollout(policy, task.starts("train", 0, 9), 2, sampling, 4)
    torch.testing.assert_close(policy.score(batch, [LogProb()])[LogProb()].detach(), batch["behaviour_logp"], rtol=1e-12, atol=1e-12)
    again = task.rollout(policy, task.starts("train", 0, 9), 2, sampling, 4)
    assert torch.equal(batch.actions, again.actions) and batch["prompt"].tolist() == [n // 2 for n in range(18)]
    cut = task.rollout(policy, task.starts("train", 0, 9), 2, Sampling(max_actions=1), 4)
    assert not cut["reward"].any() and cut["truncated"].all()


def test_mistakes_are_refused():
    assert load_task("tool-choice?samples=50&blur=0.1", seed=3).samples == 50
    for spec, why in (
        ("tool-choice?tools=3", "no option 'tools'"),
        ("tool-choice?samples=many", "whole number"),
        ("tool-choice?samples=0", "a request and a decision"),
        ("tool-choise", "tool-choice"),
    ):
        with pytest.raises(QuatrainError, match=why):
            load_task(spec)
    with pytest.raises(QuatrainError, match="own rewards"):
        load_task("tool-choice", "exact")
    task = ToolChoice()
    with pytest.raises(QuatrainError, match="does not fit"):
        task.rollout(TablePolicy(torch.zeros(3, 3)), task.starts("train", 0, 1), 1, Sampling(), 0)
    with pytest.raises(QuatrainError, match="no demonstrations"):
        task.demonstrations(task.network(), [])
