"""A recipe is a value: named models and stages of steps. Changing one thing gives its neighbour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from quatrain.errors import QuatrainError, nearest
from quatrain.estimator import Objective, Term
from quatrain.knobs import Knob, check_known, defaults
from quatrain.training.executors import Executor, synchronous
from quatrain.training.selves import Frozen, ModelSpec
from quatrain.training.state import Store
from quatrain.training.steps import Collect, Fit, Repeat, Sync, unrolled


@dataclass(frozen=True)
class Stage:
    """Steps repeated for ``rounds``, in the executor's order; ``begin`` are steps done once, when the stage begins."""

    steps: tuple[Any, ...]
    rounds: int | Knob = Knob("steps", 200)
    name: str = ""
    begin: tuple[Any, ...] = ()
    executor: Executor = synchronous

    def all_steps(self) -> Iterator[Any]:
        """The steps in order; after a Repeat those that it repeats."""
        return unrolled(self.steps)


@dataclass(frozen=True)
class Recipe:
    """What is learnt from what, and how.

    stages       one or more.
    models       name → how it comes about; ``policy`` is always there.
    stores       name → how it is made: stores that last from round to round. A Collect into any other name fills it anew.
    controllers  functions of (state, metrics) that return knobs, called after every round.
    target       what it claims to ascend, for ``quatrain diagnose``: "reward", "reward - 0.04*kl", "demonstrations" …; empty: read
                 off the terms.
    name, summary  set by the registry.
    """

    stages: tuple[Stage, ...]
    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    stores: Mapping[str, Callable[[], Store]] = field(default_factory=dict)
    controllers: tuple[Callable[[Any, Mapping[str, float]], Mapping[str, float]], ...] = ()
    target: str = ""
    name: str = ""
    summary: str = ""

    # -- neighbours ------------------------------------------------------------------------------------------------
    def but(self, term: str | None = None, /, **changes: Any) -> Recipe:
        """The neighbour with some parts of one term changed: ``grpo().but(bound=Clip(0.1, 0.1))``.

        term     which term, where the recipe has several; ``stage.term`` where several stages have it (``then`` names stages by recipe).
        changes  fields of a Term.

        Raises QuatrainError if the term is ambiguous or a field is unknown.
        """
        for name in changes:
            if name not in (known := [part.name for part in fields(Term)]):
                raise QuatrainError(f"a term has no part {name!r}", fix=nearest(name, known))
        terms = [
            (f"{stage.name}.{name}" if stage.name else name, step, name) for stage, step in self.fits(Objective) for name in step.loss.terms
        ]
        found = [(step, name) for full, step, name in terms if term in (None, name, full)]
        if len(found) != 1:
            raise QuatrainError(
                f"{term or 'the term'!r} is ambiguous or unknown in this recipe",
                given=f"terms {', '.join(full for full, _, _ in terms)}",
                fix=".but('term', part=…)",
            )
        step, name = found[0]
        terms = {**step.loss.terms, name: replace(step.loss.terms[name], **changes)}
        return self.swap(step, replace(step, loss=replace(step.loss, terms=terms)))

    def with_terms(self, **terms: Term) -> Recipe:
        """The neighbour whose policy's objective has these terms as well."""
        (_, step), *more = self.fits(Objective)
        if more:
            raise QuatrainError("several fits could take the terms", fix=".swap(step, new_step)")
        return self.swap(step, replace(step, loss=replace(step.loss, terms={**step.loss.terms, **terms})))

    def with_collect(self, **changes: Any) -> Recipe:
        """The neighbour whose (only) Collect has some fields changed: source, edits."""
        collects = [step for stage in self.stages for step in stage.all_steps() if isinstance(step, Collect)]
        if len(collects) != 1:
            raise QuatrainError("this recipe has several Collect steps", fix=".swap(step, new_step)")
        return self.swap(collects[0], replace(collects[0], **changes))

    def with_fit(self, **changes: Any) -> Recipe:
        """The neighbour whose (only) Fit of the policy has some fields changed: rule, epochs, minibatches."""
        (_, step), *more = self.fits(Objective)
        if more:
            raise QuatrainError("this recipe has several fits of the policy", fix=".swap(step, new_step)")
        return self.swap(step, replace(step, **changes))

    def with_models(self, **models: ModelSpec) -> Recipe:
        return replace(self, models={**self.models, **models})

    def then(self, other: Recipe) -> Recipe:
        """This recipe's stages, then the other's: ``sft().then(grpo())``. Knobs of the same name are shared.

        Stages without a name get that of their recipe; frozen copies are taken anew when the
        other's first stage begins.

        Raises QuatrainError if both name a model or a store that comes about differently.
        """
        for kind, ours, theirs in (("model", self.models, other.models), ("store", self.stores, other.stores)):
            for name in set(ours) & set(theirs):
                if ours[name] != theirs[name]:
                    raise QuatrainError(f"two recipes make one {kind} differently", given=f"{name}: {ours[name]} and {theirs[name]}")
        first, *rest = other.stages
        copies = tuple(Sync(spec.of, name) for name, spec in other.models.items() if isinstance(spec, Frozen))
        after = replace(other, stages=(replace(first, begin=(*first.begin, *copies)), *rest))
        return replace(
            self,
            stages=tuple(replace(stage, name=stage.name or part.name) for part in (self, after) for stage in part.stages),
            models={**self.models, **other.models},
            stores={**self.stores, **other.stores},
            controllers=self.controllers + other.controllers,
        )

    def swap(self, old: Any, new: Any) -> Recipe:
        """The neighbour with one step replaced (found by identity), also within a Repeat."""

        def swapped(step: Any) -> Any:
            if step is old:
                return new
            return replace(step, steps=tuple(map(swapped, step.steps))) if isinstance(step, Repeat) else step

        return replace(self, stages=tuple(replace(stage, steps=tuple(map(swapped, stage.steps))) for stage in self.stages))

    # -- reading ---------------------------------------------------------------------------------------------------
    def fits(self, kind: type = object) -> Iterator[tuple[Stage, Fit]]:
        """(stage, step) for every Fit whose loss is of that kind."""
        for stage in self.stages:
            for step in stage.all_steps():
                if isinstance(step, Fit) and isinstance(step.loss, kind):
                    yield stage, step

    def knobs(self) -> dict[str, float | int]:
        """Name → default of every number that may be set from outside."""
        return defaults((self.stages, self.models, self.stores))

    def check(self, task: Any, knobs: Mapping[str, float] | None = None) -> None:
        """Refuse names that nothing provides, before anything expensive runs."""
        check_known(knobs or {}, self.knobs())
        models = {"policy", *self.models}
        kept: dict[str, set[str]] = {}
        for stage in self.stages:
            stores = dict(kept)
            if hasattr(stage.executor, "check"):
                stage.executor.check(stage)
            for step in (*stage.begin, *stage.steps):
                step.check(task, models, stores)
            kept |= {name: provided for name, provided in stores.items() if name in self.stores}
