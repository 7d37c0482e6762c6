"""Whole episodes: true transitions, starts as seeds, groups, cuts, what is recorded of every action, evaluation."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from quatrain.environments.gymnasium import GymTask
from quatrain.errors import QuatrainError
from quatrain.models.networks import Box, Discrete
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Sampling
from tests.environments.gym.examples import CARTPOLE, COUNTER, FREE, LAKE, certain, equal, states


def cartpole_step(state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Barto, Sutton & Anderson 1983, as integrated by Gymnasium (Euler, 0.02 s)."""
    x, v, angle, spin = state.double().unbind(-1)
    force = torch.where(action == 1, 10.0, -10.0).double()
    pull = (force + 0.05 * spin**2 * angle.sin()) / 1.1
    turning = (9.8 * angle.sin() - angle.cos() * pull) / (0.5 * (4 / 3 - 0.1 * angle.cos() ** 2 / 1.1))
    speeding = pull - 0.05 * turning * angle.cos() / 1.1
    return torch.stack([x + 0.02 * v, v + 0.02 * speeding, angle + 0.02 * spin, spin + 0.02 * turning], -1).float()


def test_every_recorded_transition_is_the_environment_s():
    """Between the state before and the state after each action lies CartPole's own equation, episodes' ends included."""
    task = GymTask(CARTPOLE, copies=7)
    policy = task.network()
    for batch in (task.rollout(policy, task.starts("train", 0, 5), 2, FREE, seed=1), task.steps(policy, 60, FREE, seed=1)):
        before, after = states(batch)[:, :-1][batch.mask], states(batch)[:, 1:][batch.mask]
        torch.testing.assert_close(after, cartpole_step(before, batch.actions[batch.mask]), atol=2e-6, rtol=1e-5)
        fallen = (after[:, 0].abs() > 2.4) | (after[:, 2].abs() > 12 * np.pi / 180)
        assert torch.equal(fallen, batch["terminated"][batch.mask]) and fallen.any()
        assert torch.equal(batch["rewards"], batch.mask.float())


def test_rows_are_whole_episodes_padded_on_the_right():
    task = GymTask(CARTPOLE)
    batch = task.rollout(task.network(), task.starts("train", 0, 6), 3, FREE, seed=0)
    position = torch.arange(batch.shape[1])
    assert torch.equal(batch.mask, position < batch.lengths[:, None]) and batch.shape == (18, int(batch.lengths.max()))
    ends = batch["terminated"] | batch["truncated"]
    assert torch.equal(ends, position == batch.lengths[:, None] - 1)
    assert torch.equal(batch["reward"], batch.lengths.float()) and torch.equal(batch["episode_return"][ends], batch["reward"])
    for padding in (batch.actions, batch["behaviour_logp"], batch["rewards"], states(batch)[:, 1:].abs().sum(-1)):
        assert (padding[~batch.mask] == 0).all()
    assert task.provides <= {*batch.columns, *batch.rows}


@pytest.mark.parametrize("env_id", [CARTPOLE, COUNTER])
def test_a_group_begins_in_the_same_state_and_goes_its_own_ways(env_id: str):
    task = GymTask(env_id)
    batch = task.rollout(task.network(), task.starts("train", 3, 4), 3, FREE, seed=0)
    first = states(batch)[:, 0].unflatten(0, (4, 3))
    assert (first == first[:, :1]).all() and len(first[:, 0].unique(dim=0)) > 1
    assert torch.equal(batch["prompt"].unflatten(0, (4, 3))[:, 0], torch.tensor(task.starts("train", 3, 4)))
    assert len(batch["reward"][:3].unique()) > 1


@pytest.mark.parametrize("env_id", [CARTPOLE, COUNTER])
def test_a_start_is_the_seed_of_a_reset(env_id: str):
    """The state is the one of a single environment reset with that seed, wherever the row stands."""
    task = GymTask(env_id)
    starts = task.starts("train", 0, 3)
    single = gymnasium.make_vec(env_id, 1) if env_id == CARTPOLE else gymnasium.make(env_id)
    expected = torch.stack([torch.as_tensor(single.reset(seed=start)[0]).flatten() for start in starts])
    for order in ([0, 1, 2], [2, 0, 1]):
        batch = task.rollout(task.network(), [starts[i] for i in order], 1, FREE, seed=9)
        assert torch.equal(states(batch)[:, 0], expected[order])


def test_the_same_seed_gives_the_same_episodes_and_another_one_others():
    task = GymTask(CARTPOLE)
    policy, starts = task.network(), task.starts("train", 0, 4)
    first = task.rollout(policy, starts, 2, FREE, seed=5)
    task.evaluate(policy, count=3)
    assert equal(first, task.rollout(policy, starts, 2, FREE, seed=5)) and equal(
        first, GymTask(CARTPOLE).rollout(policy, starts, 2, FREE, seed=5)
    )
    assert not torch.equal(first["reward"], task.rollout(policy, starts, 2, FREE, seed=6)["reward"])


def test_max_actions_cuts_an_episode():
    task = GymTask(CARTPOLE)
    batch = task.rollout(task.network(), task.starts("train", 0, 20), 1, Sampling(max_actions=12), seed=0)
    assert batch.shape[1] == 12
    cut = batch["truncated"]
    assert cut[:, 11].any() and not cut[:, :11].any() and not (cut & batch["terminated"]).any()
    assert (batch["terminated"] | cut).any(1).all()
    assert (states(batch)[:, 12][cut[:, 11]] != 0).any(1).all()  # the state it was cut at is there, for a value


def test_the_environment_s_own_limit_is_truncation():
    task = GymTask("QuatrainCut-v0", copies=12)
    whole = task.rollout(task.network(), task.starts("train", 0, 12), 1, FREE, seed=0)
    for batch in (whole, task.steps(task.network(), 20, FREE, seed=0)):
        key, count = states(batch)[:, 1:].unbind(-1)
        assert torch.equal(batch["terminated"], batch.mask & (count >= key))
        assert torch.equal(batch["truncated"], batch.mask & (count == 4) & (key > 4)) and batch["truncated"].any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_ratio_is_one_before_the_first_update(temperature: float):
    task = GymTask(CARTPOLE, copies=5)
    policy = task.network()
    with torch.no_grad():
        policy.module.trunk[-1].weight *= 100
    sampling = Sampling(temperature=temperature, max_actions=500)
    for batch in (task.rollout(policy, task.starts("train", 0, 4), 2, sampling, seed=1), task.steps(policy, 40, sampling, seed=1)):
        gap = policy.score(batch, [LogProb()])[LogProb()] - batch["behaviour_logp"]
        assert gap.abs().max() < 1e-5 and torch.equal(batch["behaviour_logp"], batch["old_logp"])


def test_box_actions_are_executed_clipped_and_recorded_as_drawn():
    task = GymTask(COUNTER, copies=4)
    assert task.action_space == Box((-1.0,), (2.0,)) and task.observation_size == 2
    policy = task.network()
    batch = task.rollout(policy, task.starts("train", 0, 20), 1, FREE, seed=0)
    drawn = batch.actions[..., 0]
    assert (drawn < -1).any() and torch.equal(batch["rewards"], torch.where(batch.mask, drawn.clamp(-1, 2), 0.0))
    assert torch.equal(batch.lengths.float(), states(batch)[:, 0, 0])
    torch.testing.assert_close(policy.score(batch, [LogProb()])[LogProb()], batch["behaviour_logp"])


def test_discrete_observations_are_one_hot():
    task = GymTask(LAKE)
    batch = task.rollout(task.network(), task.starts("train", 0, 3), 1, Sampling(max_actions=10), seed=0)
    assert task.observation_size == 16 and task.action_space == Discrete(4)
    assert (states(batch)[:, 0] == torch.eye(16)[0]).all() and (states(batch)[:, :-1][batch.mask].sum(-1) == 1).all()


def test_the_version_and_origin_of_every_action():
    task = GymTask(CARTPOLE)
    policy = task.network()
    policy.version = 3
    batch = task.rollout(policy, task.starts("train", 0, 2), 1, FREE, seed=0)
    assert (batch["version"] == 3).all() and (batch["origin"] == 0).all()


def test_starts_are_positions_and_splits_are_disjoint():
    task, other = GymTask(CARTPOLE, seed=1), GymTask(CARTPOLE, seed=2)
    assert [*task.starts("train", 0, 5), *task.starts("train", 5, 5)] == list(task.starts("train", 0, 10))
    everything = [start for t in (task, other) for split in ("train", "heldout", "test") for start in t.starts(split, 0, 100)]
    assert len(set(everything)) == 600 and max(GymTask(CARTPOLE, seed=2**29 - 1).starts("test", 2**32 - 1, 1)) < 2**63
    with pytest.raises(QuatrainError, match="did you mean 'heldout'"):
        task.starts("held-out", 0, 1)


def test_evaluation_is_the_greedy_return():
    task, policy = GymTask(CARTPOLE), certain(CARTPOLE)
    found = task.evaluate(policy, count=20)
    sampled = task.rollout(policy, task.starts("heldout", 0, 20), 1, FREE, seed=0)["reward"]  # certain: sampling is greedy
    assert found["return"] == pytest.approx(sampled.mean().item()) == found["length"]
    assert found["return/std"] == pytest.approx(sampled.std(correction=0).item(), abs=1e-4)
    assert task.evaluate(policy, count=20, samples=2)["return/sampled"] == pytest.approx(found["return"])


def test_evaluation_runs_to_the_environment_s_own_end():
    """A policy that pushes against the fall balances for all 500 steps, whatever max_actions says of training."""
    task = GymTask(CARTPOLE)
    policy = task.network(hidden=())
    with torch.no_grad():
        lean = torch.tensor([0.1, 0.5, 10.0, 2.0])
        policy.module.trunk[0].weight.copy_(torch.stack([-lean, lean]))
    assert task.evaluate(policy, count=50, sampling=Sampling(max_actions=8))["return"] == 500.0
