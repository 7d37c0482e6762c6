"""Sources: where a batch comes from. Each charges the ledger for what it spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.parts.trees import sampled_once
from quatrain.protocols import Sampling
from quatrain.rollout.documents import whole_documents

SAMPLED = {"behaviour_logp", "old_logp", "terminated", "truncated", "version", "origin", "prompt"}


@dataclass(frozen=True)
class OnPolicy:
    """``group`` trajectories from each of ``prompts`` new starts, sampled from the policy as it is, rewarded by the task.

    temperature, top_p, top_k, max_actions  the distribution that is sampled from; the ratio is taken on that very distribution.
    heat     entropy → factor on the temperature, action by action (language models).
    through  policy → what samples in its place: a policy that opens, steers or branches it, as ``Trees``.
    """

    group: int | Knob = 1
    prompts: int | Knob = Knob("prompts", 32)
    temperature: float | Knob = Knob("temperature", 1.0)
    top_p: float | Knob = Knob("top_p", 1.0)
    top_k: int | Knob = Knob("top_k", 0)
    max_actions: int | Knob = Knob("max_actions", 64)
    model: str = "policy"
    heat: Callable[[Tensor], Tensor] | None = None
    through: Callable[[Any], Any] | None = None

    def provides(self, task: Any) -> set[str]:
        return SAMPLED | set(task.provides)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_actions, heat=self.heat)

    def __call__(self, state: Any) -> Batch:
        return self.of(state, state.next_starts(self.prompts))

    @torch.no_grad()
    def of(self, state: Any, starts: list[Any]) -> Batch:
        """``group`` trajectories from each of these starts."""
        policy = state.models[self.model]
        policy = self.through(policy) if self.through else policy
        batch = state.task.rollout(policy, starts, self.group, self.sampling, state.draw("sample"))
        if "start" not in batch.notes:  # a task whose trajectories call others says itself where each row began
            batch = batch.with_notes(start=[start for start in starts for _ in range(self.group)])
        charge(state, batch)
        return batch


@dataclass(frozen=True)
class Segments:
    """The next ``length`` steps of each of a task's living episodes: they go on where the last segment ended.

    A task without living episodes (a text ends by itself) gives whole trajectories in their place.
    """

    length: int | Knob = Knob("segment", 128)
    whole: OnPolicy = OnPolicy()

    def provides(self, task: Any) -> set[str]:
        return self.whole.provides(task)

    @torch.no_grad()
    def __call__(self, state: Any) -> Batch:
        if not hasattr(state.task, "steps"):
            return self.whole(state)
        sampling = Sampling(self.whole.temperature, self.whole.top_p, self.whole.top_k)
        batch = state.task.steps(state.models[self.whole.model], self.length, sampling, state.draw("sample"))
        charge(state, batch)
        return batch


@dataclass(frozen=True)
class Demonstrations:
    """One demonstrated trajectory for each of ``prompts`` new starts. ``whole``: as documents, whose prompts are learnt as well."""

    prompts: int | Knob = Knob("prompts", 32)
    whole: bool = False

    def provides(self, task: Any) -> set[str]:
        require(task, "demonstrations")
        return {"origin", "prompt"}

    def __call__(self, state: Any) -> Batch:
        batch = state.task.demonstrations(state.models["policy"], state.next_starts(self.prompts))
        batch = whole_documents(state.models["policy"], batch) if self.whole else batch
        state.spent["demonstrations"] += len(batch)
        return batch


@dataclass(frozen=True)
class Pairs:
    """A chosen and a rejected trajectory for each of ``prompts`` new starts."""

    prompts: int | Knob = Knob("prompts", 32)

    def provides(self, task: Any) -> set[str]:
        require(task, "pairs")
        return {"origin", "prompt", "pair", "preference"}

    def __call__(self, state: Any) -> Batch:
        batch = state.task.pairs(state.models["policy"], state.next_starts(self.prompts))
        state.spent["pairs"] += len(batch) // 2
        return batch


EXPECTED = {
    "demonstrations": "a column of worked solutions",
    "pairs": "columns of chosen and rejected completions",
    "recordings": "an environment with a data set: gym:Pendulum-v1?data=0.8*random+0.2*good, or ?data=FOLDER",
}


def require(task: Any, what: str) -> None:
    """Refuse a task that does not hold ``demonstrations``, ``pairs`` or ``recordings``."""
    if what not in getattr(task, "has", ()):
        raise QuatrainError(
            f"this recipe learns from {what}, and the task has none",
            given=task.name,
            expected=EXPECTED[what],
            fix="another task, or a recipe that explores",
        )


def mixed_rewards(batch: Batch, by: str = "prompt") -> Tensor:
    """[N] bool: rows whose group's rewards are not all equal."""
    index, count = group_index(batch, by)
    reward = batch["reward"].double()
    mean = group_sum(reward, index, count) / group_sum(torch.ones_like(reward), index, count)
    return group_sum((reward - mean[index]).abs(), index, count)[index] > 1e-9


@dataclass(frozen=True)
class DynamicSampling:
    """Sample again until as many groups as the source draws at once have a signal: Yu et al. 2025 (DAPO), eq. 11.

    keep   batch → [N] bool.
    tries  the most draws; after them what was found is used, or the last draw if nothing was.
    """

    source: OnPolicy
    keep: Callable[[Batch], Tensor] = mixed_rewards
    tries: int | Knob = 4

    def __post_init__(self) -> None:
        if isinstance(self.tries, int) and self.tries < 1:
            raise QuatrainError("dynamic sampling draws at least once", given=f"tries={self.tries}", expected="1 or more")

    def provides(self, task: Any) -> set[str]:
        return self.source.provides(task)

    def __call__(self, state: Any) -> Batch:
        wanted, kept, drawn = self.source.prompts * self.source.group, [], 0
        for _ in range(self.tries):
            batch = self.source(state)
            drawn += len(batch)
            kept.append(batch.take(self.keep(batch)))
            if sum(map(len, kept)) >= wanted:
                break
        state.metrics["sampling/kept"] = sum(map(len, kept)) / drawn
        found = Batch.cat([part for part in kept if len(part)] or [batch])
        return found.take(torch.arange(min(wanted, len(found))))


def charge(state: Any, batch: Batch) -> None:
    """Write down what a sampled batch cost, and what people want to see of it. What trajectories share was sampled once."""
    actions = int(batch.mask.sum())
    sampled = int(sampled_once(batch).sum()) if "node" in batch else actions
    state.spent["tokens"] += sampled
    state.spent["trajectories"] += len(batch)
    length = batch.lengths.double()
    cut = (batch["truncated"] & batch.mask).any(1)
    state.measure({"length": (length.sum(), len(batch)), "truncated": (cut.sum(), len(batch))})
    reward = batch["reward"].double()
    if "episode_return" in batch:  # a row may hold several episodes, or a part of one
        reward = batch["episode_return"][~batch["episode_return"].isnan()].double()
    state.measure({"reward": (reward.sum(), len(reward))})
    surprise = torch.where(batch.mask, batch["behaviour_logp"], 0.0).double()  # its mean is an unbiased estimate of the entropy
    state.measure({"entropy": (-surprise.sum(), actions)})
    if "old_logp" in batch and not torch.equal(batch["old_logp"], batch["behaviour_logp"]):  # an engine sampled, the trainer scored
        gap = torch.where(batch.mask, batch["behaviour_logp"] - batch["old_logp"], 0.0).double().abs()
        state.measure({"sampler_gap": (gap.sum(), actions)})
    if "node" in batch:
        state.measure({"tree/sampled": (torch.tensor(sampled), actions)})
    if len(batch["prompt"].unique()) < len(batch):
        state.measure({"groups/no_signal": ((~mixed_rewards(batch)).sum(), len(batch))})
