"""How the embedded model is taught before anyone trains it: proper lessons, then a pupil's homework with its mistakes.

The corpus is the letters laboratory's training split. Its first part is solved properly; in the rest every chance of a
kind's typical mistake is taken with a probability that grows with the level. So the model has most skills and bad
habits on top of them: its samples are right far more often than its greedy answer is, and reinforcement has something
to find. One kind (``shift``) is done wrongly throughout: the model never solves it, and only a demonstration helps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
import torch.nn.functional as F

from quatrain.seeds import mix
from quatrain.tasks.cache import Report
from quatrain.tasks.letters import KINDS, Problems

Example = tuple[str, str]  # prompt, completion
TOLD = "solution: {solution}\n{prompt}"  # a problem whose solution is known


@dataclass(frozen=True)
class Lesson:
    """Everything that the weights of an embedded model depend on.

    hidden, inner, layers, heads, groups   its shape: width, feed-forward width, depth, attention heads, key–value heads
    shares     kind → its share of the corpus
    proper     the first part of the corpus that is solved properly, in [0, 1]
    slips      kind → probability of the typical mistake at each chance of one, × 0.7 at level 1 up to 1.1 at level 5
    unseen     kinds that are done wrongly throughout
    examples   how many problems are read, each once
    rows       examples per update
    told       share of the examples that are solved properly because the solution stands before the problem (``TOLD``), in [0, 1]
    rate       peak learning rate of AdamW for embeddings and norms, five times as much of Muon for the matrices
               (Jordan et al. 2024: half as many examples for the same loss here); warm-up over 5 %, cosine to a twentieth
    seed       of the initial weights and of the corpus
    mingled    short and long rows share batches. Sorted by length, one batch would teach short answers and the next one long ones, and
               which of them a policy prefers would depend on the last few batches.
    """

    hidden: int = 96
    inner: int = 256
    layers: int = 2
    heads: int = 4
    groups: int = 2
    shares: Mapping[str, int] = field(default_factory=lambda: {kind: 1 for kind in KINDS if kind not in ("recall", "needle", "modes")})
    proper: float = 1.0
    slips: Mapping[str, float] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    examples: int = 40_000
    rows: int = 48
    rate: float = 4e-3
    seed: int = 0
    told: float = 0.0
    mingled: bool = False


def slip_rate(lesson: Lesson, index: int, kind: str, level: int) -> float:
    """The probability of a mistake, at each chance of one, in example ``index`` of the lesson."""
    if kind in lesson.unseen:
        return 1.0
    return 0.0 if index < lesson.proper * lesson.examples else lesson.slips.get(kind, 0.0) * (0.7 + 0.1 * (level - 1))


def corpus(lesson: Lesson) -> Iterator[Example]:
    """The lesson's examples, in order: training problems and a pupil's solutions."""
    kinds = tuple(kind for kind, share in lesson.shares.items() for _ in range(share))
    levels = getattr(lesson, "levels", (1, 5))
    problems = Problems("train", kinds=kinds, levels=levels, size=lesson.examples, seed=mix(lesson.seed, 1))
    for index in range(lesson.examples):
        item = problems[index]
        name, level = item.data["kind"], item.data["level"]
        random = Random(mix(lesson.seed, 2, index))
        if lesson.told and Random(mix(lesson.seed, 4, index)).random() < lesson.told:
            yield TOLD.format(solution=item.solution, prompt=item.prompt), KINDS[name].slip(item.data["problem"], random, 0.0)
            continue
        yield item.prompt, KINDS[name].slip(item.data["problem"], random, slip_rate(lesson, index, name, level))


def shelved(
    rows: Iterator[tuple[list[int], list[int]]], size: int, seed: int, pad: int, ordered: bool = True
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of (tokens, labels) as batches of ``size`` (tokens [N, L], labels [N, L]), those of a shelf in random order.

    Within a shelf of 32 batches rows of similar length go together, so that little is padding; unless not ``ordered``.
    """
    generator = torch.Generator().manual_seed(seed)
    shelf: list[tuple[list[int], list[int]]] = []

    def drain() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if ordered:
            shelf.sort(key=lambda row: len(row[0]))
        groups = [shelf[first : first + size] for first in range(0, len(shelf), size)]
        for place in torch.randperm(len(groups), generator=generator).tolist():
            length = max(len(tokens) for tokens, _ in groups[place])
            tokens = torch.tensor([tokens + [pad] * (length - len(tokens)) for tokens, _ in groups[place]])
            labels = torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in groups[place]])
            yield tokens, labels
        shelf.clear()

    for row in rows:
        shelf.append(row)
        if len(shelf) == 32 * size:
            yield from drain()
    yield from drain()


def loss_on(model: Any, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the labels that are not −100."""
    logits = model(input_ids=tokens).logits[:, :-1]  # padding is on the right: causal attention never sees it
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def descend(model: Any, lesson: Lesson, losses: Iterator[torch.Tensor], report: Report, total: int | None = None) -> None:
    """One update per loss, ``total`` of them (one per ``rows`` examples), each asked for when the one before it has been applied."""
    total = total or -(-lesson.examples // lesson.rows)
    matrices = [value for name, value in model.named_parameters() if value.ndim == 2 and "embed" not in name]
    others = [value for name, value in model.named_parameters() if value.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=5 * lesson.rate, momentum=0.95, weight_decay=0.01, ns_steps=4)
    adam = torch.optim.AdamW(others, lr=lesson.rate, betas=(0.9, 0.95), weight_decay=0.0)
    warm = max(1, total // 20)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(part, lambda step: min((step + 1) / warm, 0.05 + 0.475 * (1 + math.cos(math.pi * step / total))))
        for part in (muon, adam)
    ]
    model.train()
    for step, loss in enumerate(losses):
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (muon, adam, *schedules):
            part.step()
        report((step + 1) / total, loss.item())
    model.eval()
