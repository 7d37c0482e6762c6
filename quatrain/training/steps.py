"""The steps of a stage: Collect, Fit, Sync, Measure, and Repeat of such; ``training.search`` has the fifth. None knows a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor

from quatrain.batch import Batch, missing
from quatrain.errors import QuatrainError
from quatrain.estimator import Measure as Measured
from quatrain.estimator import NonFiniteError
from quatrain.knobs import Knob, resolve
from quatrain.parts.needs import needs_of
from quatrain.training.batching import micro_batches, scored, updates
from quatrain.training.rules import AdamW, Rule
from quatrain.training.state import State

PATIENCE = 10  # updates in a row that may be skipped before a run stops


class Source(Protocol):
    """Where rows come from. One that reads a store has its name as ``store``: it provides what was put there as well."""

    def provides(self, task: Any) -> set[str]: ...

    def __call__(self, state: State) -> Batch: ...


class Edit(Protocol):
    """batch → batch, between sampling and learning. It may say what it ``needs`` and ``provides``, and which ``models`` it asks."""

    def __call__(self, state: State, batch: Batch) -> Batch: ...


class Loss(Protocol):
    """What a Fit descends: an Objective of terms, or a plain function for everything that is no policy."""

    live: bool

    def models(self) -> set[str]: ...
    def check(self, provided: set[str]) -> None: ...
    def prepare(self, batch: Batch) -> Batch: ...
    def current(self, model: Any, batch: Batch, others: Mapping[str, Any]) -> dict[Any, Tensor]: ...
    def finalise(self, batch: Batch, current: Mapping[Any, Tensor] | None = None) -> Batch: ...
    def active(self, batch: Batch) -> Tensor: ...
    def loss(self, model: Any, batch: Batch, others: Mapping[str, Any]) -> tuple[Tensor, dict[str, Measured]]: ...


@dataclass(frozen=True)
class Collect:
    """source → edits, in order → store: anew, or added to one that the recipe keeps. The ledger is charged by the source."""

    source: Source
    edits: tuple[Edit, ...] = ()
    into: str = "fresh"

    def check(self, task: Any, models: set[str], stores: dict[str, set[str]]) -> None:
        provided = set(self.source.provides(task))
        if (read := getattr(self.source, "store", None)) is not None:
            provided |= read_from(read, stores, "a source")
        stores[self.into] = with_edits(self.edits, provided, task, models)

    def __call__(self, state: State) -> None:
        began = perf_counter()
        step = resolve(self, state.knobs)
        batch = step.source(state)
        for edit in step.edits:
            batch = edit(state, batch)
        state.put(step.into, batch)
        state.spend_seconds("collect", began)


@dataclass(frozen=True)
class Fit:
    """store → weights of one model.

    model         whose weights move.
    loss          an Objective, or another Loss.
    rule          gradients → weights.
    source        the store that is read.
    epochs        passes over it; minibatches: updates per pass, cut by whole groups.
    edits         of the rows of each update, just before it: what depends on the weights and the optimiser as they are then.
    micro_tokens  the most (padded) positions that one forward and backward holds; changes memory, never the gradient.
    """

    loss: Loss
    model: str = "policy"
    rule: Rule = AdamW()
    source: str = "fresh"
    epochs: int | Knob = 1
    minibatches: int | Knob = 1
    micro_tokens: int | Knob = Knob("micro_tokens", 16384)
    edits: tuple[Edit, ...] = ()

    def check(self, task: Any, models: set[str], stores: dict[str, set[str]]) -> None:
        provided = with_edits(self.edits, read_from(self.source, stores, "a Fit"), task, models)
        for name in {self.model, *self.loss.models()} - models:
            raise QuatrainError("a Fit names a model that the recipe does not have", given=name, expected=", ".join(sorted(models)))
        self.loss.check(provided)

    def __call__(self, state: State) -> None:
        began = perf_counter()
        step = resolve(self, state.knobs)
        model, optimizer = state.models[step.model], state.optimizer(step.model, step.rule)
        others = {name: state.models[name] for name in step.loss.models()}
        batch = step.loss.prepare(state.stores[step.source]) if len(state.stores[step.source]) else None
        for _ in range(step.epochs if batch is not None else 0):
            for rows in updates(batch, step.minibatches, state.draw("updates")):
                step.update(state, model, others, optimizer, step.edited(state, batch.take(rows)))
        state.spend_seconds(f"fit/{step.model}", began)

    def edited(self, state: State, batch: Batch) -> Batch:
        """The rows of one update after its edits, in order."""
        for edit in self.edits:
            batch = edit(state, batch)
        return batch

    def update(self, state: State, model: Any, others: Mapping[str, Any], optimizer: torch.optim.Optimizer, batch: Batch) -> None:
        """One change of the weights. An update that is not finite is not applied, but counted."""
        of = "" if self.model == "policy" else f"{self.model}/"  # another model's numbers have its name

        def gradient() -> None:
            for part in self.gradient_parts(model, others, batch):
                state.measure({of + name if name == "loss" else name: measure for name, measure in part.items()})

        try:
            norm = self.rule.update(optimizer, gradient)
            why = "the gradient is not finite"
        except NonFiniteError as error:
            optimizer.zero_grad(set_to_none=True)
            norm, why = None, str(error)
        state.measure({f"{of}skipped": (torch.tensor(float(norm is None)), 1.0)})
        if norm is None:
            state.spent[f"{of}skipped in a row"] += 1
            if state.spent[f"{of}skipped in a row"] >= PATIENCE:
                raise QuatrainError(f"{PATIENCE} updates in a row were skipped: {why}", fix="lower lr, bound the ratio, or train in fp32")
            return
        state.spent[f"{of}skipped in a row"] = 0
        state.spent[f"{of}updates"] += 1
        model.version += 1
        state.measure({f"{of}gradient_norm": (torch.tensor(norm), 1.0)})

    def gradient_parts(self, model: Any, others: Mapping[str, Any], batch: Batch) -> Iterator[dict[str, Measured]]:
        """Accumulate the gradient of one update, micro-batch by micro-batch; yields the measures of each."""
        current: dict[Any, Tensor] | None = None
        shares = getattr(model, "shares_prefixes", False)
        if self.loss.live:
            current = scored(batch, lambda part: self.loss.current(model, part, others), self.micro_tokens, shares)
        batch = self.loss.finalise(batch, current)
        active = self.loss.active(batch)
        if self.model == "policy":
            yield {"rows/active": (active.sum(), len(active))}
        for part in micro_batches(batch.take(active), self.micro_tokens, shares):
            loss, measures = self.loss.loss(model, part, others)
            loss.backward()
            share = len(part) / int(active.sum())
            yield {name: (total, share if count is None else count) for name, (total, count) in measures.items()}


@dataclass(frozen=True)
class Sync:
    """weights → weights: ``target`` ← (1 − rate)·target + rate·source, every ``every`` rounds."""

    source: str
    target: str
    rate: float | Knob = 1.0
    every: int | Knob = 1

    def check(self, task: Any, models: set[str], stores: dict[str, set[str]]) -> None:
        for name in {self.source, self.target} - models:
            raise QuatrainError("a Sync names a model that the recipe does not have", given=name, expected=", ".join(sorted(models)))

    @torch.no_grad()
    def __call__(self, state: State) -> None:
        step = resolve(self, state.knobs)
        if (state.round + 1) % step.every:
            return
        source, target = state.models[step.source], state.models[step.target]
        for new, old in zip(source.module.parameters(), target.module.parameters(), strict=True):
            old.lerp_(new.to(old.dtype), step.rate)
        target.version = source.version


@dataclass(frozen=True)
class Measure:
    """anything → numbers with names, every ``every`` rounds (and never with a gradient)."""

    function: Callable[[State], Mapping[str, float]]
    every: int | Knob = 1

    def check(self, task: Any, models: set[str], stores: dict[str, set[str]]) -> None:
        pass

    @torch.no_grad()
    def __call__(self, state: State) -> None:
        if (state.round + 1) % resolve(self.every, state.knobs) == 0:
            state.metrics |= self.function(state)


@dataclass(frozen=True)
class Repeat:
    """Steps in order, ``times`` over, within one round: updates that each draw their own rows."""

    steps: tuple[Any, ...]
    times: int | Knob = 1

    def check(self, task: Any, models: set[str], stores: dict[str, set[str]]) -> None:
        for step in self.steps:
            step.check(task, models, stores)

    def __call__(self, state: State) -> None:
        for _ in range(resolve(self.times, state.knobs)):
            for step in self.steps:
                step(state)


def unrolled(steps: tuple[Any, ...]) -> Iterator[Any]:
    """The steps in order; after a Repeat those that it repeats."""
    for step in steps:
        yield step
        if isinstance(step, Repeat):
            yield from unrolled(step.steps)


def with_edits(edits: tuple[Edit, ...], provided: set[str], task: Any, models: set[str]) -> set[str]:
    """What rows have after the edits; refused if one of them reads what is not there."""
    provided = set(provided)
    for edit in edits:
        if hasattr(edit, "check"):
            edit.check(task)
        for name in needs_of(edit):
            if name not in provided:
                raise missing(name, provided, repr(edit))
        for name in set(getattr(edit, "models", ())) - models:
            raise QuatrainError(f"{edit!r} asks a model that the recipe does not name", given=name, expected=", ".join(sorted(models)))
        provided |= set(getattr(edit, "provides", ()))
    return provided


def read_from(name: str, stores: Mapping[str, set[str]], reader: str) -> set[str]:
    """The names of what a store holds; refused if no step before fills it."""
    if name not in stores:
        raise QuatrainError(
            f"{reader} reads a store that no step before it fills", given=name, expected=", ".join(sorted(stores)) or "a Collect before it"
        )
    return stores[name]
