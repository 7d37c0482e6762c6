"""A table as a task: what is sampled agrees with what is exact, and ordinary recipes train on it."""

from __future__ import annotations

import pytest
import torch

from quatrain.environments.tables.exact import optimal
from quatrain.environments.tables.generators import rtb
from quatrain.environments.tables.task import TableTask
from quatrain.errors import QuatrainError
from quatrain.models.tables import TablePolicy
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Sampling
from quatrain.tasks.loading import load_task
from quatrain.training.run import train

QUIET = {"live": False, "report": False, "tensorboard": False, "eval_every": 0, "save_every": 0}


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.5), Sampling(top_p=0.7), Sampling(top_k=2)])
def test_what_is_recorded_is_the_distribution_that_was_sampled_from(sampling: Sampling):
    task = TableTask(rtb(horizon=4))
    policy = task.network()
    batch = task.rollout(policy, task.starts("train", 0, 8), 2, sampling, 5)
    torch.testing.assert_close(policy.score(batch, [LogProb()])[LogProb()].detach(), batch["behaviour_logp"])
    assert batch["terminated"][:, -1].all() and not batch["truncated"].any()
    again = task.rollout(policy, task.starts("train", 0, 8), 2, sampling, 5)
    assert torch.equal(batch.actions, again.actions)


def test_sampled_returns_agree_with_the_exact_ones():
    task = TableTask(rtb(horizon=6))
    policy = task.network()
    reward = task.rollout(policy, task.starts("train", 0, 4000), 1, Sampling(), 1)["reward"]
    support, chance = task.returns(policy)
    assert (support * chance).sum().item() == pytest.approx(task.value(policy))
    assert reward.mean().item() == pytest.approx(task.value(policy), abs=4 * reward.std().item() / 4000**0.5)
    often = (reward[:, None] == support).double().mean(0)
    assert (often - chance).abs().max() < 0.03


def test_members_of_a_group_begin_alike_and_endless_episodes_are_truncated():
    task = TableTask(rtb(horizon=None, discount=0.9), limit=7)
    batch = task.rollout(task.network(), task.starts("train", 0, 5), 3, Sampling(max_actions=5), 0)
    first = batch["node"][:, 0].view(5, 3)
    assert (first == first[:, :1]).all() and batch.shape == (15, 5)
    assert batch["truncated"][:, -1].all() and not batch["terminated"].any()


def test_another_policy_is_refused():
    task = TableTask(rtb())
    with pytest.raises(QuatrainError, match="does not fit"):
        task.value(TablePolicy(torch.zeros(3, 3)))
    with pytest.raises(QuatrainError, match="its own rewards"):
        load_task("tables:rtb", "math")
    with pytest.raises(QuatrainError, match="no demonstrations"):
        task.demonstrations(task.network(), [])


@pytest.mark.parametrize("name", ["reinforce", "grpo", "ppo"])
def test_ordinary_recipes_train_on_it(name: str, tmp_path):
    run = train(name, task="tables:rtb?horizon=5&skill=0&blur=0", steps=25, out=str(tmp_path / name), **QUIET)
    task = run.state.task
    start, best = task.value(task.network()), float(optimal(task.mdp).value)
    assert run.metrics["return"] > start + 0.4 * (best - start)
