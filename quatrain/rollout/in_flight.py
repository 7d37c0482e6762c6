"""Rollouts under way while weights change: groups begin, are decoded token by token, and are handed out when they are whole."""

from __future__ import annotations

from typing import Any

import torch

from quatrain.batch import Batch
from quatrain.rollout.sources import OnPolicy, charge

KEY = "in flight"


def is_interruptible(state: Any, source: OnPolicy) -> bool:
    """Whether the source's rollouts can be left between two actions."""
    return source.through is None and hasattr(state.task, "judge") and hasattr(state.models[source.model], "decoding")


class Rollouts:
    """The groups of a source that are under way, as the state remembers them: taken from it when made, left there by ``keep``.

    Starts and seeds are those of the source called once per ``prompts`` starts, so that nothing but the weights decides what is
    said. A group is handed out whole. It is kept as its position among the starts, the round in which it began, and its rows.
    """

    def __init__(self, source: OnPolicy, state: Any):
        self.source, self.state, self.policy = source, state, state.models[source.model]
        self.decoding = self.policy.decoding(source.sampling)
        kept = state.memory.get(KEY, {"ahead": [], "groups": []})
        self.ahead = list(kept["ahead"])  # drawn and not yet begun: (position, seeds)
        self.groups = list(kept["groups"])  # in order of beginning: (position, round, ids, seeds)
        if "decoding" in kept:
            self.decoding.load_state_dict(kept["decoding"])
        if self.decoding.version != self.policy.version:
            self.decoding.renew(self.policy.version)

    def keep(self) -> None:
        """Leave everything in the state."""
        self.state.memory[KEY] = {"ahead": self.ahead, "groups": self.groups, "decoding": self.decoding.state_dict()}

    def begin(self, most: int, rows: int) -> None:
        """Begin groups while fewer than ``most`` are under way and no more than ``rows`` rows are decoded."""
        while len(self.groups) < most and self.decoding.live + self.source.group <= rows:
            if not self.ahead:
                self._draw()
            position, seeds = self.ahead[0]
            self.ahead = self.ahead[1:]
            (start,) = self.state.task.starts("train", position, 1)
            ids = self.decoding.admit([self.policy.encode(start.prompt)] * self.source.group, torch.tensor(seeds))
            self.groups = [*self.groups, (position, self.state.round, ids, seeds)]

    def _draw(self) -> None:
        first, group = self.state.cursors["train"], self.source.group
        starts = self.state.next_starts(self.source.prompts)
        seeds = self.state.task.seeds(starts, group, self.state.draw("sample")).tolist()
        self.ahead = [(first + index, seeds[index * group : (index + 1) * group]) for index in range(len(starts))]

    def whole(self) -> list[tuple]:
        """Groups whose rows have all ended, in order of beginning."""
        ended = set(self.decoding.finished())
        return [group for group in self.groups if ended.issuperset(group[2])]

    def is_ready(self, count: int, lag: int) -> bool:
        """Whether there are ``count`` whole groups, and those that stay can all be trained within ``lag`` rounds of their beginning."""
        chosen = self.whole()[:count]
        stay = [begun for position, begun, *_ in self.groups if position not in {group[0] for group in chosen}]
        return len(chosen) == count and all(self.state.round + 1 + index // count <= begun + lag for index, begun in enumerate(stay))

    def take(self, count: int) -> Batch:
        """The first ``count`` whole groups, rewarded."""
        groups = self.whole()[:count]
        taken = [group[0] for group in groups]
        self.groups = [group for group in self.groups if group[0] not in taken]
        starts = [self.state.task.starts("train", position, 1)[0] for position in taken for _ in range(self.source.group)]
        seeds = torch.tensor([seed for group in groups for seed in group[3]])
        samples = self.decoding.take([row for group in groups for row in group[2]])
        prompts = [self.policy.encode(start.prompt) for start in starts]
        batch = self.policy.sampled(prompts, samples, self.source.sampling, seeds)
        batch = self.state.task.judge(self.policy, starts, batch, seeds).with_notes(start=starts)
        charge(self.state, batch)
        return batch
