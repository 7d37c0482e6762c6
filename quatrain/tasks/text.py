"""Single-turn text: items in, rewarded completions out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import replace
from itertools import pairwise
from math import comb
from typing import Any, Protocol

import torch
from torch import Tensor

from quatrain.batch import Batch, Origin
from quatrain.errors import QuatrainError, nearest
from quatrain.protocols import Item, Policy, Sampling
from quatrain.seeds import mix

ROWS_AT_ONCE = 1024  # trajectories sampled in one call while evaluating
SOLVED = 1.0 - 1e-6  # a reward of at least 1 counts as solved


class Source(Protocol):
    """Items by position: a sequence, or a generator without end (no ``__len__``). Reading one twice gives equal items."""

    def __getitem__(self, index: int) -> Item: ...


class Rewards(Protocol):
    """Judges completions: finite rewards, one each, whatever the completions are."""

    def score(self, completions: list[str], items: list[Item]) -> list[float]: ...


class TextTask:
    """A set of problems whose rollouts are one completion each. Implements ``protocols.Task``.

    train    items to learn from, shuffled anew each epoch by (seed, epoch) alone.
    heldout  items to measure on; the same (shuffled once) order at every evaluation. None: there are none.
    reward   ``score(completions, items) → rewards``; a reward of at least 1 counts as solved.

    Items have unique ids within their split; an id is the group key of its rollouts.
    """

    provides = frozenset({"reward", "prompt", "seed", "behaviour_logp", "origin"})

    def __init__(self, name: str, train: Source, heldout: Source | None, reward: Rewards, seed: int = 0):
        self.name, self.reward, self.seed = name, reward, seed
        self.splits: dict[str, Source] = {"train": train} | ({"heldout": heldout} if heldout is not None else {})
        for split, source in self.splits.items():
            if isinstance(source, Sized) and not len(source):
                raise QuatrainError(f"task {name!r} has no {split} items", given=0, expected="at least one")
        self._orders: dict[tuple[str, int], list[int]] = {}

    @property
    def has(self) -> frozenset[str]:
        """What its first training items hold besides problems: ``demonstrations``, ``pairs``."""
        held = {"demonstrations": "solution", "pairs": "rejected"}
        return frozenset(name for name, field in held.items() if not self._never(field))

    def check(self, policy: Policy) -> None:
        """Encode the first training items, so that a prompt the policy cannot read is refused before anything runs."""
        size = self.size("train")
        for item in self.starts("train", 0, 4 if size is None else min(4, size)):
            policy.encode(item.prompt)

    @property
    def judged(self) -> bool:
        """Whether completions can be rewarded; demonstrations and pairs need no reward."""
        return getattr(self.reward, "judges", True)

    def size(self, split: str) -> int | None:
        """How many items the split has; None for a generator without end."""
        source = self._source(split)
        return len(source) if isinstance(source, Sized) else None

    def starts(self, split: str, cursor: int, count: int) -> list[Item]:
        """``count`` items from position ``cursor`` of the endless sequence of shuffled epochs. Held-out epochs are all alike."""
        source, size = self._source(split), self.size(split)
        if size is None:
            return [source[index] for index in range(cursor, cursor + count)]
        positions = [divmod(position, size) for position in range(cursor, cursor + count)]
        return [source[self._order(split, epoch if split == "train" else 0)[place]] for epoch, place in positions]

    # -- trajectories ----------------------------------------------------------------------------------------------
    def rollout(self, policy: Policy, starts: Sequence[Item], group: int, sampling: Sampling, seed: int) -> Batch:
        """``group`` rewarded completions of each item, item by item.

        A row's randomness depends on (seed, item, member) alone: not on the other rows, nor on how rollouts are split into
        calls. An item that is named twice in one call has 2·group different members.
        """
        seeds = self.seeds(starts, group, seed)
        batch = policy.sample([policy.encode(item.prompt) for item in starts], group, sampling, seeds)
        return self.judge(policy, [item for item in starts for _ in range(group)], batch, seeds)

    def seeds(self, starts: Sequence[Item], group: int, seed: int) -> Tensor:
        """[N] what each row of a rollout is drawn with."""
        seen: Counter[int] = Counter()
        found = []
        for item in starts:
            found += [mix(seed, item.id, seen[item.id] + member) for member in range(group)]
            seen[item.id] += group
        return torch.tensor(found, dtype=torch.int64)

    def judge(self, policy: Policy, items: Sequence[Item], batch: Batch, seeds: Tensor) -> Batch:
        """Sampled rows, one of each of these N items, rewarded and labelled."""
        flat, ends = batch.actions[batch.mask].tolist(), batch.mask.sum(1).cumsum(0).tolist()
        spoken = [tuple(flat[begin:end]) for begin, end in pairwise((0, *ends))]
        texts = {tokens: policy.decode(tokens) for tokens in dict.fromkeys(spoken)}  # short answers are often the same
        completions = [texts[tokens] for tokens in spoken]
        reward = torch.tensor(self.reward.score(completions, list(items)), dtype=torch.float32)
        batch = batch.with_rows(reward=reward.to(batch.device), seed=seeds.to(batch.device))
        return _labelled(batch, items, completions)

    def demonstrations(self, policy: Policy, starts: Sequence[Item]) -> Batch:
        """One row per item that has a solution, origin DEMONSTRATION, without a reward; no rows if none of these has one.

        Raises QuatrainError if none of them has one and the task's first training items have none either.
        """
        items = [item for item in starts if item.solution is not None]
        if not items and self._never("solution"):
            raise QuatrainError(
                f"task {self.name!r} has no demonstrations", given="items without a solution", fix="name the column of worked solutions"
            )
        return self._demonstrate(policy, items, [item.solution for item in items], starts)

    def pairs(self, policy: Policy, starts: Sequence[Item]) -> Batch:
        """Two adjacent rows per item that has a preference pair: chosen (preference +1), then rejected (−1).

        Raises QuatrainError if none of them has one and the task's first training items have none either.
        """
        items = [item for item in starts if item.chosen is not None and item.rejected is not None]
        if not items and self._never("rejected"):
            raise QuatrainError(
                f"task {self.name!r} has no preference pairs", given="items without chosen and rejected", fix="name the two columns"
            )
        rows = [(item, text) for item in items for text in (item.chosen, item.rejected)]
        batch = self._demonstrate(policy, [item for item, _ in rows], [text for _, text in rows], starts)
        seen: Counter[int] = Counter()
        keys = []
        for item in items:
            keys += [mix(item.id, seen[item.id])] * 2
            seen[item.id] += 1
        return batch.with_rows(
            pair=torch.tensor(keys, dtype=torch.int64, device=batch.device),
            preference=torch.tensor([1.0, -1.0] * len(items), device=batch.device),
        )

    # -- measuring -------------------------------------------------------------------------------------------------
    def outcomes(self, policy: Policy, items: Sequence[Item], samples: int, sampling: Sampling, seed: int) -> Tensor:
        """[items, samples] rewards of independent completions of each item."""
        return self._measured(policy, items, samples, sampling, seed)[0]

    def evaluate(self, policy: Policy, count: int, samples: int, sampling: Sampling, seed: int) -> dict[str, float]:
        """Performance on the first ``count`` held-out items (all of them, if there are fewer).

        accuracy     share solved by the greedy completion
        pass@k       chance that one of k samples solves it, for k = 1, 2, 4 … samples (with samples = 0, none)
        reward, length   means over the samples (over the greedy completions, with samples = 0)
        …            what ``measures`` says of the greedy completions, and ``measures_of_samples`` of the samples
        """
        size = self.size("heldout")
        items = self.starts("heldout", 0, count if size is None else min(count, size))
        reward, length, greedy = self._measured(policy, items, 1, replace(sampling, temperature=0.0), seed)
        further = self.measures(items, greedy, reward[:, 0])
        result = {"accuracy": (reward >= SOLVED).double().mean().item()}
        if samples:
            reward, length, sampled = self._measured(policy, items, samples, sampling, seed)
            further |= self.measures_of_samples(policy, items, sampled, sampling, seed)
            correct = (reward >= SOLVED).sum(1)
            powers = [2**power for power in range(samples.bit_length()) if 2**power < samples]
            result |= {f"pass@{k}": pass_at_k(correct, samples, k).mean().item() for k in [*powers, samples]}
        return result | {"reward": reward.mean().item(), "length": length.mean().item()} | further

    def measures(self, items: Sequence[Item], completions: Sequence[str], rewards: Tensor) -> dict[str, float]:
        """What else is known of M held-out items and their greedy completions: named numbers, each of which can be a claim's metric.

        rewards  [M] of these completions.

        ``accuracy/KIND`` and ``accuracy/levelN`` where items say so. A task that knows more of its items adds to it.
        """
        return accuracies([_labels(item) for item in items], rewards)

    def measures_of_samples(
        self, policy: Policy, items: Sequence[Item], completions: Sequence[str], sampling: Sampling, seed: int
    ) -> dict[str, float]:
        """What else is known of samples of M held-out items, where there are any; by default nothing.

        completions  M·samples texts, item by item; ``sampling`` is what they were drawn with, ``seed`` the evaluation's. The policy
                     may be asked for more.
        """
        return {}

    # -- inside ----------------------------------------------------------------------------------------------------
    def _source(self, split: str) -> Source:
        if split not in self.splits:
            raise QuatrainError(f"task {self.name!r} has no split {split!r}", fix=nearest(split, self.splits))
        return self.splits[split]

    def _order(self, split: str, epoch: int) -> list[int]:
        if (split, epoch) not in self._orders:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._orders = {key: order for key, order in self._orders.items() if key[0] != split or key[1] == epoch - 1}
            self._orders[split, epoch] = torch.randperm(self.size(split), generator=generator).tolist()
        return self._orders[split, epoch]

    def _never(self, field: str) -> bool:
        source, size = self._source("train"), self.size("train")
        return all(getattr(source[index], field) is None for index in range(min(size if size is not None else 16, 16)))

    def _demonstrate(self, policy: Policy, items: list[Item], completions: list[str], starts: Sequence[Item]) -> Batch:
        if not items:  # a batch with the right columns and no rows
            return self._demonstrate(policy, [starts[0]], [""], starts).take(torch.zeros(0, dtype=torch.long))
        batch = policy.demonstrate([policy.encode(item.prompt) for item in items], completions)
        origin = torch.where(batch.mask, Origin.DEMONSTRATION, 0)
        return _labelled(batch.with_columns(origin=origin), items, completions)

    def _measured(
        self, policy: Policy, items: Sequence[Item], samples: int, sampling: Sampling, seed: int
    ) -> tuple[Tensor, Tensor, list[str]]:
        """([items, samples] rewards, [items, samples] lengths, the completions item by item), a bounded number of rows at a time."""
        step = max(1, ROWS_AT_ONCE // samples)
        parts = [self.rollout(policy, items[first : first + step], samples, sampling, seed) for first in range(0, len(items), step)]
        rewards = torch.cat([part["reward"].cpu() for part in parts])
        lengths = torch.cat([part.lengths.cpu() for part in parts])
        texts = [text for part in parts for text in part.notes["completion"]]
        return rewards.view(len(items), samples), lengths.view(len(items), samples).double(), texts


def pass_at_k(correct: Tensor, samples: int, k: int) -> Tensor:
    """[M] the unbiased estimate 1 − C(n−c, k)/C(n, k) of the chance that one of k samples is right.

    correct  [M] integers: how many of the n = ``samples`` were right. 1 ≤ k ≤ n; k = 1 is c/n. Chen et al. 2021, equation 1.

    >>> pass_at_k(torch.tensor([0, 1, 3]), 4, 2).tolist()
    [0.0, 0.5, 1.0]
    """
    return torch.tensor([1.0 - comb(samples - c, k) / comb(samples, k) for c in correct.tolist()], dtype=torch.float64)


def accuracies(labels: Sequence[Sequence[str]], rewards: Tensor) -> dict[str, float]:
    """``accuracy/LABEL`` of every label: the share solved of the items that have it. M items, rewards [M], any number of labels each.

    >>> accuracies([["short"], ["short", "red"], []], torch.tensor([1.0, 0.0, 0.0]))
    {'accuracy/red': 0.0, 'accuracy/short': 0.5}
    """
    solved = (rewards >= SOLVED).double()
    return {
        f"accuracy/{label}": solved[torch.tensor([label in found for found in labels])].mean().item()
        for label in sorted({label for found in labels for label in found})
    }


def _labels(item: Item) -> list[str]:
    labels = [str(item.data["kind"])] if "kind" in item.data else []
    return labels + ([f"level{item.data['level']}"] if "level" in item.data else [])


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def _labelled(batch: Batch, items: Sequence[Item], completions: Sequence[str]) -> Batch:
    """With the group key and, for people and reports, the texts."""
    return batch.with_rows(prompt=torch.tensor([item.id for item in items], dtype=torch.int64, device=batch.device)).with_notes(
        prompt=[_text(item.prompt) for item in items], completion=completions, answer=[item.answer or "" for item in items]
    )
