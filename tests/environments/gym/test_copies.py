"""Living copies: segments that continue, resets, returns across rows, states that come back exactly, the two ways to step."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from quatrain.environments.copies import Copies, _Arrays, _Loop
from quatrain.environments.gymnasium import GymTask
from quatrain.environments.record import returns
from quatrain.errors import QuatrainError
from tests.environments.gym.examples import CARTPOLE, COUNTER, FREE, LAKE, certain, equal, states


@pytest.mark.parametrize("env_id", [CARTPOLE, COUNTER])
def test_segments_continue_where_the_last_one_ended(env_id: str):
    """Two segments are one longer one cut in two: with greedy-like certainty of actions the states are the same."""
    policy = certain(env_id)
    long = GymTask(env_id, copies=3).steps(policy, 40, FREE, seed=0)
    task = GymTask(env_id, copies=3)
    parts = [task.steps(policy, 25, FREE, seed=1), task.steps(policy, 15, FREE, seed=2)]
    assert torch.equal(states(parts[0])[:, -1], states(parts[1])[:, 0])
    assert torch.equal(torch.cat([states(parts[0])[:, :-1], states(parts[1])], 1), states(long))
    for name in ("rewards", "terminated", "episode", "episode_return"):
        joined = torch.cat([part[name] for part in parts], 1)
        assert torch.equal(joined.nan_to_num(-7), long[name].nan_to_num(-7)), name


def test_the_step_after_an_end_resets_and_is_no_action():
    task = GymTask(COUNTER, copies=6)
    batch = task.steps(task.network(), 50, FREE, seed=0)
    ended = batch["terminated"]
    assert torch.equal(~batch.mask[:, 1:], ended[:, :-1]) and batch.mask[:, 0].all()
    key, count = states(batch).unbind(-1)
    resets = ~batch.mask
    assert (count[:, :-1][resets] == key[:, :-1][resets]).all()  # before it: the true final state
    assert (count[:, 1:][resets] == 0).all()  # after it: the new episode's first
    assert torch.equal(batch["episode"], resets.cumsum(1))
    assert not batch["truncated"].any()


def test_living_episodes_are_those_of_their_seeds():
    """Each episode that lives in a row begins as a reset with its own seed would, copies and episodes all different."""
    task = GymTask(COUNTER, copies=5, seed=3)
    batch = task.steps(task.network(), 60, FREE, seed=0)
    single = gymnasium.make(COUNTER)
    seeds = set()
    for copy in range(5):
        for number in range(int(batch["episode"].max())):
            seed = ((3 << 32) + number * 5 + copy) * 4 + 3
            here = batch["episode"][copy] == number
            if here.any() and batch.mask[copy, here].any():
                assert (states(batch)[copy, :-1][here & batch.mask[copy], 0] == single.reset(seed=seed)[0][0]).all()
                seeds.add(seed)
    assert len(seeds) > 30


def test_an_episode_s_return_counts_what_came_before_the_row():
    task = GymTask(COUNTER, copies=4)
    policy = task.network()
    parts = [task.steps(policy, 7, FREE, seed=seed) for seed in range(6)]
    rewards, ends, episode = (torch.cat([part[name] for part in parts], 1) for name in ("rewards", "terminated", "episode"))
    found = torch.cat([part["episode_return"] for part in parts], 1)
    assert torch.equal(found.isnan(), ~ends)
    for copy, step in ends.nonzero().tolist():
        total = rewards[copy][episode[copy] == episode[copy, step]].sum()
        assert found[copy, step].item() == pytest.approx(total.item(), abs=1e-5)


def test_returns_may_be_negative():
    ends = torch.tensor([[True, False, True, True]])
    found = returns(torch.tensor([[-3.0, 1.0, -5.0, 2.0]]), ends, torch.tensor([1.0]))
    assert found.nan_to_num(99).tolist() == [[-2.0, 99.0, -4.0, 2.0]]


@pytest.mark.parametrize("env_id", [CARTPOLE, COUNTER, LAKE])
@pytest.mark.parametrize("cut", [0, 1, 17, 64])
def test_cut_and_resumed_is_bit_identical(env_id: str, cut: int):
    """FrozenLake slips at random within an episode: the replay draws the same slips again."""

    def fresh() -> GymTask:
        return GymTask(env_id, copies=6, seed=2)

    whole, first = fresh(), fresh()
    policy = whole.network(seed=1)
    if cut:
        whole.steps(policy, cut, FREE, seed=0), first.steps(policy, cut, FREE, seed=0)
    resumed = fresh()
    resumed.steps(policy, 3, FREE, seed=99)
    resumed.load_state_dict(first.state_dict())
    for seed in (1, 2):
        assert equal(whole.steps(policy, 30, FREE, seed), resumed.steps(policy, 30, FREE, seed))
    again = fresh()
    again.load_state_dict(resumed.state_dict())
    assert equal(whole.steps(policy, 9, FREE, 3), again.steps(policy, 9, FREE, 3))


def test_a_checkpoint_of_other_copies_is_refused():
    task = GymTask(CARTPOLE, copies=3)
    task.steps(task.network(), 4, FREE, seed=0)
    with pytest.raises(QuatrainError, match="number of copies"):
        GymTask(CARTPOLE, copies=4).load_state_dict(task.state_dict())


def test_evaluation_and_rollouts_do_not_disturb_living_copies():
    calm, busy = GymTask(CARTPOLE, copies=3), GymTask(CARTPOLE, copies=3)
    policy = calm.network()
    calm.steps(policy, 10, FREE, seed=0), busy.steps(policy, 10, FREE, seed=0)
    busy.evaluate(policy, count=3), busy.rollout(policy, busy.starts("train", 0, 3), 1, FREE, seed=0)
    assert equal(calm.steps(policy, 10, FREE, seed=1), busy.steps(policy, 10, FREE, seed=1))


def test_a_closed_task_opens_again_at_the_beginning():
    task = GymTask(CARTPOLE, copies=3)
    policy = task.network()
    first = task.steps(policy, 5, FREE, seed=0)
    task.close()
    assert task.state_dict() == {} and equal(first, task.steps(policy, 5, FREE, seed=0))


def test_cartpole_is_stepped_by_its_own_vector_version_and_others_one_by_one():
    assert isinstance(Copies(CARTPOLE, 3)._stepper, _Arrays) and isinstance(Copies(COUNTER, 3)._stepper, _Loop)


def test_both_ways_have_the_same_dynamics():
    """From equal states and actions, CartPole's vector version and the loop over single environments go the same way."""
    fast, slow = Copies(CARTPOLE, 4), Copies(CARTPOLE, 4)
    slow._stepper = _Loop(CARTPOLE, 4, {})
    everyone, seeds = np.ones(4, bool), [1, 2, 3, 4]
    fast.begin(everyone, seeds), slow.begin(everyone, seeds)
    np.testing.assert_allclose(fast.observation, slow.observation, atol=1e-6)
    for t in range(8):
        actions = np.array([t % 2, 1, (t // 2) % 2, 0])
        for a, b in zip(fast.step(actions), slow.step(actions), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(fast.observation, slow.observation, atol=1e-5)
