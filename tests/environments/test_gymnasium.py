"""Gymnasium as a task: true transitions, starts as seeds, living copies that come back exactly, and refusals."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from quatrain.batch import Batch
from quatrain.environments.copies import Copies, _Arrays, _Loop
from quatrain.environments.gymnasium import GymTask
from quatrain.environments.record import returns
from quatrain.errors import QuatrainError
from quatrain.models.networks import Box, Discrete, NetworkPolicy
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Sampling


class Counter(gymnasium.Env):
    """Shows [episode's seed-drawn key, steps so far]; pays the action; ends for good at step ``key`` (3 … 6)."""

    observation_space = spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 2.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.key, self.count = int(self.np_random.integers(3, 7)), 0
        return np.array([self.key, 0], np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.count += 1
        return np.array([self.key, self.count], np.float32), float(action[0]), self.count >= self.key, False, {}


class Pictures(gymnasium.Env):
    observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = spaces.Discrete(2)


class Named(gymnasium.Env):
    observation_space = spaces.Dict({"x": spaces.Box(0.0, 1.0, (2,))})
    action_space = spaces.Discrete(2)


class Several(gymnasium.Env):
    observation_space = spaces.Box(0.0, 1.0, (2,))
    action_space = spaces.MultiDiscrete([2, 3])


for environment in (Counter, Pictures, Named, Several):
    gymnasium.register(f"Quatrain{environment.__name__}-v0", environment, disable_env_checker=True)
gymnasium.register("QuatrainCut-v0", Counter, max_episode_steps=4, disable_env_checker=True)

CARTPOLE, COUNTER, LAKE = "CartPole-v1", "QuatrainCounter-v0", "FrozenLake-v1"
FREE = Sampling(max_actions=500)


def states(batch: Batch) -> torch.Tensor:
    return batch.contexts["policy"]["observations"]


def cartpole_step(state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Barto, Sutton & Anderson 1983, as integrated by Gymnasium (Euler, 0.02 s)."""
    x, v, angle, spin = state.double().unbind(-1)
    force = torch.where(action == 1, 10.0, -10.0).double()
    pull = (force + 0.05 * spin**2 * angle.sin()) / 1.1
    turning = (9.8 * angle.sin() - angle.cos() * pull) / (0.5 * (4 / 3 - 0.1 * angle.cos() ** 2 / 1.1))
    speeding = pull - 0.05 * turning * angle.cos() / 1.1
    return torch.stack([x + 0.02 * v, v + 0.02 * speeding, angle + 0.02 * spin, spin + 0.02 * turning], -1).float()


def equal(a: Batch, b: Batch) -> bool:
    parts = [(a.mask, b.mask), (a.actions, b.actions), (states(a), states(b))]
    parts += [(a.columns[name], b.columns[name]) for name in a.columns] + [(a.rows[name], b.rows[name]) for name in a.rows]
    return a.columns.keys() == b.columns.keys() and all(torch.equal(x.nan_to_num(-7), y.nan_to_num(-7)) for x, y in parts)


# -- episodes ----------------------------------------------------------------------------------------------------------
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


# -- starts ------------------------------------------------------------------------------------------------------------
def test_starts_are_positions_and_splits_are_disjoint():
    task, other = GymTask(CARTPOLE, seed=1), GymTask(CARTPOLE, seed=2)
    assert [*task.starts("train", 0, 5), *task.starts("train", 5, 5)] == list(task.starts("train", 0, 10))
    everything = [start for t in (task, other) for split in ("train", "heldout", "test") for start in t.starts(split, 0, 100)]
    assert len(set(everything)) == 600 and max(GymTask(CARTPOLE, seed=2**29 - 1).starts("test", 2**32 - 1, 1)) < 2**63
    with pytest.raises(QuatrainError, match="did you mean 'heldout'"):
        task.starts("held-out", 0, 1)


# -- living copies -----------------------------------------------------------------------------------------------------
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


def certain(env_id: str) -> NetworkPolicy:
    """A policy whose actions do not depend on the draws."""
    policy = GymTask(env_id).network(seed=4)
    with torch.no_grad():
        policy.module.trunk[-1].weight *= 1e12
        policy.module.log_std.fill_(-30.0)
    return policy


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


# -- evaluation --------------------------------------------------------------------------------------------------------
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


# -- the two ways to step ----------------------------------------------------------------------------------------------
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


# -- refusals ----------------------------------------------------------------------------------------------------------
def test_an_unknown_environment_is_named_with_its_nearest():
    with pytest.raises(QuatrainError, match="did you mean 'CartPole-v1'"):
        GymTask("CartPol-v1")


@pytest.mark.parametrize(
    ("env_id", "message"),
    [("QuatrainPictures-v0", "observations"), ("QuatrainNamed-v0", "observations"), ("QuatrainSeveral-v0", "actions")],
)
def test_spaces_without_a_small_network_are_refused(env_id: str, message: str):
    with pytest.raises(QuatrainError, match=message):
        GymTask(env_id)


def test_an_option_that_the_environment_has_not_is_refused():
    with pytest.raises(QuatrainError, match="gravity"):
        GymTask(COUNTER, options={"gravity": 1.0})
    with pytest.raises(QuatrainError, match="module_that_is_not_there"):
        GymTask("module_that_is_not_there:X-v0")


@pytest.mark.parametrize(
    ("sampling", "message"), [(Sampling(top_p=0.9), "whole"), (Sampling(top_k=1), "whole"), (Sampling(temperature=0), "greedy")]
)
def test_samplings_that_a_network_has_not_are_refused(sampling: Sampling, message: str):
    task = GymTask(CARTPOLE, copies=2)
    for collect in (
        lambda: task.rollout(task.network(), task.starts("train", 0, 1), 1, sampling, 0),
        lambda: task.steps(task.network(), 4, sampling, 0),
    ):
        with pytest.raises(QuatrainError, match=message):
            collect()


def test_a_policy_of_another_environment_is_refused():
    with pytest.raises(QuatrainError, match="does not fit"):
        GymTask(CARTPOLE).evaluate(GymTask(COUNTER).network(), count=1)
    with pytest.raises(QuatrainError, match="temperature 1"):
        GymTask(COUNTER, copies=1).steps(GymTask(COUNTER).network(), 3, Sampling(temperature=0.5), 0)


def test_demonstrations_are_refused():
    task = GymTask(CARTPOLE)
    with pytest.raises(QuatrainError, match="no demonstrations"):
        task.demonstrations(task.network(), [0])


@pytest.mark.parametrize(("copies", "seed"), [(0, 0), (1, -1), (1, 2**29)])
def test_impossible_tasks_are_refused(copies: int, seed: int):
    with pytest.raises(QuatrainError, match="at least one copy"):
        GymTask(CARTPOLE, copies=copies, seed=seed)


def test_a_closed_task_opens_again_at_the_beginning():
    task = GymTask(CARTPOLE, copies=3)
    policy = task.network()
    first = task.steps(policy, 5, FREE, seed=0)
    task.close()
    assert task.state_dict() == {} and equal(first, task.steps(policy, 5, FREE, seed=0))
