"""Sources: what they ask of the task, what they charge, and dynamic sampling with a source whose luck is known."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.protocols import Sampling
from quatrain.rollout.sources import Demonstrations, DynamicSampling, OnPolicy, Pairs, Segments, mixed_rewards
from quatrain.training.state import State
from tests.toy import ToyTask


def state(task=None, seed: int = 0) -> State:
    task = task or ToyTask()
    return State(task=task, models={"policy": ToyTask().policy()}, seed=seed)


def test_rollouts_are_start_by_start_and_go_on_where_the_last_call_ended():
    here, source = state(), OnPolicy(group=2, prompts=3, max_actions=3)
    first, second = source(here), source(here)
    assert first["prompt"].tolist() == [0, 0, 1, 1, 2, 2] and first.notes["start"] == (0, 0, 1, 1, 2, 2)
    assert second["prompt"].tolist() == [3, 3, 0, 0, 1, 1] and here.cursors["train"] == 6
    assert here.spent["trajectories"] == 12 and here.spent["tokens"] == int(first.mask.sum() + second.mask.sum())


def test_sampling_is_addressed_by_the_runs_seed():
    source = OnPolicy(group=4, prompts=4, max_actions=3)
    a, b, c = (source(state(seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(a.actions, b.actions) and not torch.equal(a.actions, c.actions)


def test_what_is_measured_of_a_batch():
    here = state(ToyTask(reward=lambda row, p: float(p)))
    batch = OnPolicy(group=2, prompts=4, max_actions=3)(here)
    metrics = here.close_round()
    assert metrics["reward"] == 1.5 and metrics["groups/no_signal"] == 1.0
    assert metrics["length"] == pytest.approx(float(batch.lengths.double().mean()))
    assert metrics["truncated"] == pytest.approx(float(batch["truncated"].any(1).double().mean()))


def test_where_a_row_holds_several_episodes_the_reward_is_per_episode():
    class Episodes(ToyTask):
        def rollout(self, policy, starts, group, sampling, seed):
            batch = super().rollout(policy, starts, group, sampling, seed)
            returns = torch.full(batch.shape, float("nan"))
            returns[0, 0], returns[0, 2], returns[1, 2] = 1.0, 2.0, 6.0
            return batch.with_columns(episode_return=returns)

    here = state(Episodes())
    OnPolicy(group=2, prompts=2, max_actions=3)(here)
    assert here.close_round()["reward"] == 3.0


def test_the_sampling_reaches_the_task():
    seen: list[Sampling] = []

    class Watching(ToyTask):
        def rollout(self, policy, starts, group, sampling, seed):
            seen.append(sampling)
            return super().rollout(policy, starts, group, sampling, seed)

    OnPolicy(temperature=0.7, top_p=0.9, top_k=3, prompts=1, max_actions=2)(state(Watching()))
    assert seen == [Sampling(0.7, 0.9, 3, 2)]


def test_segments_come_from_living_episodes_or_are_whole_trajectories():
    whole = OnPolicy(group=1, prompts=3, temperature=0.5, max_actions=3)
    assert len(Segments(whole=whole)(state())) == 3

    class Living(ToyTask):
        def steps(self, policy, count, sampling, seed):
            assert (count, sampling.temperature) == (7, 0.5)
            return ToyTask.rollout(self, policy, [0, 1], 1, Sampling(max_actions=3), seed)

    here = state(Living())
    assert len(Segments(length=7, whole=whole)(here)) == 2 and here.spent["trajectories"] == 2


def test_demonstrations_and_pairs():
    here = state()
    shown = Demonstrations(prompts=4)(here)
    assert len(shown) == 3 and here.spent["demonstrations"] == 3  # the last problem has none
    pairs = Pairs(prompts=2)(here)
    assert pairs["preference"].tolist() == [1, -1, 1, -1] and here.spent["pairs"] == 2 and here.cursors["train"] == 6


@pytest.mark.parametrize(
    "source", [OnPolicy(prompts=2, max_actions=3), Segments(whole=OnPolicy(prompts=2, max_actions=3)), Pairs(2), Demonstrations(2)]
)
def test_what_a_source_promises_is_there(source):
    class Full(ToyTask):
        provides = frozenset({"reward", "state"})

    here = state(Full())
    batch = source(here)
    assert all(name in batch for name in source.provides(here.task)), sorted(source.provides(here.task))


def test_mixed_rewards():
    rows = {"prompt": torch.tensor([5, 5, 2, 2, 9]), "reward": torch.tensor([0.1, 0.1, 0.0, 1.0, 1.0])}
    batch = Batch(torch.ones(5, 1, dtype=torch.bool), torch.zeros(5, 1), rows=rows)
    assert mixed_rewards(batch).tolist() == [False, False, True, True, False]


@dataclass(frozen=True)
class Scripted:
    """Draws with as many mixed groups of two as the script says, of ``prompts``."""

    script: tuple[int, ...]
    prompts: int = 3
    group: int = 2
    drawn: list[int] = field(default_factory=list)

    def provides(self, task) -> set[str]:
        return {"reward"}

    def __call__(self, state) -> Batch:
        mixed, number = self.script[len(self.drawn)], len(self.drawn)
        self.drawn.append(mixed)
        reward = torch.tensor([[1.0, 0.0]] * mixed + [[0.0, 0.0]] * (self.prompts - mixed)).view(-1)
        prompt = (torch.arange(self.prompts) + 100 * number).repeat_interleave(2)
        return Batch(torch.ones(6, 1, dtype=torch.bool), torch.zeros(6, 1), rows={"reward": reward, "prompt": prompt})


@pytest.mark.parametrize(
    ("script", "draws", "prompts", "kept"),
    [
        ((3,), 1, [0, 1, 2], 1.0),  # enough at once
        ((1, 0, 2), 3, [0, 200, 201], 3 / 9),  # enough at last
        ((2, 3), 2, [0, 1, 100], 5 / 6),  # more than enough: whole groups are cut off
        ((1, 0, 1, 0), 4, [0, 200], 2 / 12),  # never enough: what was found
        ((0, 0, 0, 0), 4, [300, 301, 302], 0.0),  # nothing: the last draw
    ],
)
def test_dynamic_sampling(script: tuple, draws: int, prompts: list[int], kept: float):
    here, source = state(), Scripted(script)
    batch = DynamicSampling(source, tries=4)(here)
    assert len(source.drawn) == draws and batch["prompt"].tolist() == [prompt for prompt in prompts for _ in range(2)]
    assert here.metrics["sampling/kept"] == pytest.approx(kept)
    assert DynamicSampling(source).provides(here.task) == {"reward"}


def test_dynamic_sampling_draws_at_least_once():
    with pytest.raises(QuatrainError, match="at least once"):
        DynamicSampling(OnPolicy(), tries=0)
