"""Search: the step for what has no gradient. And a policy with something in its context to search for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from quatrain.batch import Batch, missing
from quatrain.errors import QuatrainError
from quatrain.knobs import resolve
from quatrain.parts.needs import needs_of
from quatrain.training.state import State
from quatrain.training.steps import read_from

Propose = Callable[[State, Any, Batch], Sequence[Any]]
Score = Callable[[State, int], float]


@dataclass(frozen=True)
class Search:
    """propose → score → accept: a value that a model holds (rules, a prompt, a structure) is replaced by a better one.

    of       the model; part: its attribute that is replaced. It must be in the module's state, or a resumed run would not have it.
    propose  (state, present value, batch) → candidates; none where nothing is to be changed.
    score    (state, seed) → how good the model is as it stands, higher is better. Candidates and the present value are scored with the
             same seed; the best one stays, the present one in a tie. None: the last candidate is taken unseen.
    source   the store that proposals are made from.

    The model's ``version`` counts what was accepted.
    """

    of: str
    propose: Propose
    score: Score | None = None
    part: str = "library"
    source: str = "fresh"

    def check(self, task: Any, models: set[str], stores: dict[str, set[str]]) -> None:
        provided = read_from(self.source, stores, "a Search")
        if self.of not in models:
            raise QuatrainError("a Search names a model that the recipe does not have", given=self.of, expected=", ".join(sorted(models)))
        if hasattr(self.propose, "check"):
            self.propose.check(task)
        for name in needs_of(self.propose):
            if name not in provided:
                raise missing(name, provided, repr(self.propose))

    @torch.no_grad()
    def __call__(self, state: State) -> None:
        began = perf_counter()
        step = resolve(self, state.knobs)
        model = state.models[step.of]
        present = getattr(model, step.part)
        candidates = list(step.propose(state, present, state.stores[step.source]))
        chosen = candidates[-1] if candidates else present
        if step.score is not None and candidates:
            seed, worth = state.draw("search"), []
            for value in (present, *candidates):
                setattr(model, step.part, value)
                worth.append(float(step.score(state, seed)))
            chosen = (present, *candidates)[worth.index(max(worth))]
        setattr(model, step.part, chosen)
        model.version += int(chosen != present)
        state.spent["proposals"] += len(candidates)
        state.measure({"search/accepted": (torch.tensor(float(chosen != present)), 1.0)})
        state.spend_seconds(f"search/{step.of}", began)


@dataclass(frozen=True)
class WithLibrary:
    """The policy with a library of at most ``size`` rules in its context: that of a file, else its own, else an empty one.

    Its weights are frozen.
    """

    size: int = 32
    library: str = ""
    of: str = "policy"

    def __call__(self, models: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        from quatrain.models.prompted import Prompted, prompted
        from quatrain.search.library import Library, read_library

        policy = models[self.of]
        if not isinstance(policy, Prompted):
            policy = prompted(policy, Library(size=self.size))
        if self.library:
            policy.library = read_library(self.library)
        policy.module.requires_grad_(False)
        return policy
