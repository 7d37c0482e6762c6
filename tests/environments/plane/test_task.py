"""The plane as a task: batches of rollouts and demonstrations, decisions of several actions, evaluation, refusals."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from quatrain.environments.plane.task import PlaneTask, coverage
from quatrain.errors import QuatrainError
from quatrain.models.networks import Discrete, NetworkPolicy
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Decision, Sampling
from quatrain.tasks.loading import load_task

LONG = Sampling(max_actions=200)


class Expert:
    """Knows the world; of a ``depth`` above 1 it makes every decision in that many actions, of which the last one counts."""

    version = 3

    def __init__(self, task: PlaneTask, depth: int = 1):
        self.task, self.depth = task, depth
        self.observation_size, self.action_space = task.observation_size, task.action_space

    def decide(self, observations: torch.Tensor, generator: torch.Generator, greedy: bool) -> Decision:
        hand = observations / 4 if self.task.world.modes == 2 else observations
        action = self.task.world.expert(hand, torch.zeros(len(observations)))
        steps = torch.stack([action * (k + 1) / self.depth for k in range(self.depth)], 1)
        index = torch.arange(self.depth).expand(len(action), -1)
        return Decision(action, steps, index.float(), {"place": index}, torch.full((len(action),), self.depth))


def test_a_rollout_is_a_batch_that_the_policy_scores():
    task = PlaneTask("route")
    policy = task.network()
    batch = task.rollout(policy, task.starts("train", 0, 5), 3, LONG, seed=1)
    assert batch.shape == (15, 40) and batch.contexts["policy"]["observations"].shape == (15, 41, 2)
    assert torch.allclose(policy.score(batch, [LogProb()])[LogProb()], batch["old_logp"], atol=1e-5)
    assert torch.equal(batch["prompt"].unique(return_counts=True)[1], torch.full((5,), 3))
    first = batch.contexts["policy"]["observations"][:, 0].view(5, 3, 2)
    assert torch.equal(first[:, 0], first[:, 1]), "a group begins in one state"
    assert "duration" not in batch and task.provides <= {*batch.columns, *batch.rows}


def test_rewards_sum_to_the_way_made_and_one_for_the_goal():
    task = PlaneTask("reach")
    batch = task.rollout(Expert(task), task.starts("train", 0, 50), 1, LONG, seed=0)
    world, seeds = task.world, torch.tensor(task.starts("train", 0, 50))
    final = batch.contexts["policy"]["observations"][torch.arange(50), batch.lengths]
    left = (final[:, 2:] - final[:, :2]).norm(dim=1)
    assert torch.allclose(batch["reward"], world.distance(world.start(seeds)) - left + 1, atol=1e-5)
    assert batch["solved"].all() and (batch["terminated"].sum(1) == 1).all() and not batch["truncated"].any()
    assert torch.equal(batch["terminated"].float().argmax(1) + 1, batch.lengths)


def test_a_decision_of_three_actions_is_rewarded_at_the_third():
    task = PlaneTask("reach")
    starts = task.starts("train", 0, 20)
    plain = task.rollout(Expert(task), starts, 1, LONG, seed=0)
    deep = task.rollout(Expert(task, 3), starts, 1, LONG, seed=0)
    assert deep.shape == (20, 3 * plain.shape[1]) and torch.equal(deep.lengths, 3 * plain.lengths)
    for name in ("rewards", "terminated", "truncated"):
        assert torch.equal(deep[name][:, 2::3], plain[name]) and not deep[name][:, 0::3].any() and not deep[name][:, 1::3].any()
    assert (deep["duration"].view(20, -1, 3) == torch.tensor([0.0, 0.0, 1.0])).all()
    seen, flat = (batch.contexts["policy"]["observations"] for batch in (plain, deep))
    for row in range(20):
        n = int(plain.lengths[row])
        assert torch.equal(flat[row, : 3 * n : 3], seen[row, :n]) and torch.equal(flat[row, 1 : 3 * n : 3], seen[row, :n])
        assert torch.equal(flat[row, 3 * n], seen[row, n]), "the final state stands after the last action"
    assert torch.equal(deep["place"][deep.mask].view(-1, 3), torch.arange(3).expand(int(plain.mask.sum()), -1))
    cut = task.rollout(Expert(task, 3), starts, 1, Sampling(max_actions=2), seed=0)
    assert cut.shape == (20, 6) and bool(cut["truncated"][:, 5].any()), "max_actions counts decisions"


def test_demonstrations_reach_the_goal_by_both_ways_and_come_again():
    task = PlaneTask("route", demonstrations=300)
    policy = task.network()
    batch = task.demonstrations(policy, task.starts("train", 0, 300))
    assert abs(float(batch["way"].float().mean()) - 0.5) < 0.1 and (batch["way"] >= 0).all()
    again = task.demonstrations(policy, task.starts("train", 300, 7))
    assert torch.equal(again["prompt"], batch["prompt"][:7])
    assert torch.equal(again.actions, batch.actions[:7, : again.shape[1]])
    end = batch.contexts["policy"]["observations"][torch.arange(300), batch.lengths]
    assert ((end / 4 - torch.tensor([1.2, 0.0])).norm(dim=1) < 0.12).all()
    assert policy.score(again, [LogProb()])[LogProb()].shape == again.shape


def test_evaluation_counts():
    task = PlaneTask("reach")
    found = task.evaluate(Expert(task, 4), 20, 2)
    assert found["success"] == 1.0 and found["evaluations"] == 4.0 and found["return"] > 1 and "coverage" not in found
    route = PlaneTask("route")
    assert route.evaluate(Expert(route), 20, 2)["coverage"] == 0.0, "a policy that always goes below covers one way"


def test_coverage_by_hand():
    way = torch.tensor([0, 1, 0, 1, 0, 0, 0, 0, -1, -1, -1, -1, 0, 0, 0, 1])
    assert coverage(way, 4, 2).item() == pytest.approx((1 + 0 + 0 + 0.8112781) / 4)


def test_tasks_by_name_and_refusals():
    task = load_task("plane:push?demonstrations=9&seed=5")
    assert (task.name, task.size_train, task.seed) == ("plane:push", 9, 5)
    for wrong, told in (("plane:rout", "route"), ("plane:push?demos=3", "demonstrations"), ("plane:push?seed=x", "number")):
        with pytest.raises(QuatrainError, match=told):
            load_task(wrong)
    with pytest.raises(QuatrainError, match="own rewards"):
        load_task("plane:push", reward="exact")
    with pytest.raises(QuatrainError, match="does not fit"):
        task.evaluate(NetworkPolicy(6, Discrete(2)), 2)
    with pytest.raises(QuatrainError, match="as they are"):
        task.rollout(task.network(), [0], 1, Sampling(temperature=0.5), 0)
    with pytest.raises(QuatrainError, match="unknown split"):
        task.starts("trian", 0, 1)
    with pytest.raises(QuatrainError, match="small seed"):
        PlaneTask("push", demonstrations=0)
    with pytest.raises(QuatrainError):
        task.evaluate(SimpleNamespace(), 2)
