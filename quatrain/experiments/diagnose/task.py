"""An enumerated problem as a Task: recipes collect from it as from any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from quatrain.batch import Batch, Origin
from quatrain.experiments.diagnose.chances import chances
from quatrain.experiments.diagnose.problems import Problem
from quatrain.models.draws import draw
from quatrain.models.tables import TablePolicy
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Sampling


class Begin(NamedTuple):
    """A start: the key of its group, and which question it asks."""

    key: int
    question: int


@dataclass(frozen=True)
class EnumeratedTask:
    """Outcomes are drawn with their exact probabilities, or handed out as they are asked for (``observe``)."""

    problem: Problem
    name: str = "enumerated"
    provides: ClassVar[frozenset[str]] = frozenset({"reward", "state", "node", "turn", "question", "rewards", "support", "temperature"})

    def starts(self, split: str, cursor: int, count: int) -> list[Begin]:
        return [Begin(position, position % self.problem.questions) for position in range(cursor, cursor + count)]

    def rollout(self, policy: TablePolicy, starts: Sequence[Begin], group: int, sampling: Sampling, seed: int) -> Batch:
        g = torch.Generator().manual_seed(seed)
        chance = chances(self.problem, policy.table.detach(), sampling)
        question = self.problem.outcomes["question"]
        rows = [torch.multinomial(torch.where(question == start.question, chance, 0.0), group, True, generator=g) for start in starts]
        keys = torch.tensor([start.key for start in starts]).repeat_interleave(group)
        return observe(self.problem, policy, sampling, torch.cat(rows), keys)

    def demonstrations(self, policy: TablePolicy, starts: Sequence[Begin]) -> Batch:
        rows = torch.tensor([self.problem.shown[start.question] for start in starts], dtype=torch.long)
        return shown(self.problem, rows, torch.tensor([start.key for start in starts], dtype=torch.long))

    def pairs(self, policy: TablePolicy, starts: Sequence[Begin]) -> Batch:
        rows = torch.tensor([self.problem.pairs[start.question] for start in starts]).flatten()
        return paired(self.problem, rows, torch.tensor([start.key for start in starts]).repeat_interleave(2))

    def evaluate(self, policy: TablePolicy, count: int, samples: int, sampling: Sampling, seed: int) -> dict[str, float]:
        chance = chances(self.problem, policy.table.detach(), sampling)
        return {"reward": float((chance * self.problem.outcomes["reward"]).sum())}


@torch.no_grad()
def observe(problem: Problem, policy: TablePolicy, sampling: Sampling, rows: Tensor, keys: Tensor) -> Batch:
    """The outcomes [N] as a source would return them: log-probabilities of the distribution sampled from, its support and temperature."""
    return handed(observed(problem, policy, sampling), rows, keys)


@torch.no_grad()
def observed(problem: Problem, policy: TablePolicy, sampling: Sampling) -> Batch:
    """Every outcome once."""
    bare = problem.outcomes
    batch = bare.with_columns(origin=torch.full(bare.shape, Origin.POLICY), version=torch.full(bare.shape, policy.version))
    if sampling.temperature != 1:
        batch = batch.with_rows(temperature=torch.full((len(bare),), sampling.temperature, dtype=torch.float64))
    flat = policy.logits(bare).flatten(0, 1)
    _, _, support = draw(flat, torch.zeros(len(flat), dtype=torch.float64), sampling)
    if support is not None:
        batch = batch.with_columns(support=torch.where(bare.mask[..., None], support.unflatten(0, bare.shape), 0))
    logp = policy.score(batch, [LogProb()])[LogProb()]
    return batch.with_columns(behaviour_logp=logp, old_logp=logp)


def handed(table: Batch, rows: Tensor, keys: Tensor, noted: bool = True) -> Batch:
    """Rows [N] of a table of observed outcomes, with the keys of their groups; ``noted``: and their starts, for edits that ask."""
    batch = table.take(rows).with_rows(prompt=keys, seed=torch.arange(len(rows)))
    return batch.with_notes(start=begins(keys, batch["question"])) if noted else batch


def begins(keys: Tensor, questions: Tensor) -> list[Begin]:
    return [Begin(key, question) for key, question in zip(keys.tolist(), questions.tolist(), strict=True)]


def shown(problem: Problem, rows: Tensor, keys: Tensor) -> Batch:
    """Outcomes as demonstrations: nothing of a policy's is in them."""
    batch = problem.outcomes.take(rows)
    kept = {name: batch.columns[name] for name in ("present", "state", "node", "turn")}
    kept["origin"] = torch.full(batch.shape, Origin.DEMONSTRATION)
    return replace(batch, columns=kept, rows={"prompt": keys}, notes={"start": tuple(begins(keys, batch["question"]))})


def paired(problem: Problem, rows: Tensor, keys: Tensor) -> Batch:
    """Outcomes as preference pairs: chosen, rejected, chosen, …"""
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(len(rows) // 2)
    return shown(problem, rows, keys).with_rows(pair=torch.arange(len(rows)) // 2, preference=sign)
