"""``quatrain diagnose``: recipes side by side on every problem, along group size, staleness, temperature and top-p; causes and faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from quatrain.errors import QuatrainError
from quatrain.estimator import Objective
from quatrain.experiments.diagnose.causes import Cause, causes
from quatrain.experiments.diagnose.checks import Finding, findings
from quatrain.experiments.diagnose.facts import Fact, known_facts
from quatrain.experiments.diagnose.judge import Judgement, Setting, judge
from quatrain.experiments.diagnose.problems import PROBLEMS, Problem, find_problem
from quatrain.experiments.diagnose.subject import make_subject
from quatrain.training.recipe import Recipe

SWEEPS: dict[str, tuple[str, tuple[float, ...]]] = {
    "group size": ("draws", (2, 4, 8, 16)),
    "updates since sampled": ("staleness", (0, 1, 4, 16)),
    "temperature": ("temperature", (0.7, 1.0, 1.3)),
    "top-p": ("top_p", (1.0, 0.9, 0.8)),
}
STALE = 4  # updates old in the second column of causes
QUICK = 1000  # batches sampled in a sweep, where enumeration is not feasible


@dataclass(frozen=True)
class Sweep:
    """One setting moved: value → recipe → judgement."""

    name: str
    values: tuple[float, ...]
    judged: Mapping[str, tuple[Judgement, ...]]


@dataclass(frozen=True)
class Caused:
    """A part switched back to the neighbour's, judged on its own samples and on older ones. The first of a row is the recipe as it is."""

    fresh: Cause
    stale: Cause


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was measured."""

    recipes: Mapping[str, Recipe]
    problems: tuple[Problem, ...]
    beside: str
    judged: tuple[Judgement, ...]
    sweeps: tuple[Sweep, ...]
    swept_on: str
    causes: Mapping[str, tuple[Caused, ...]]
    found: Mapping[str, tuple[Finding, ...]]
    facts: tuple[Fact, ...]
    seconds: float = field(default=0.0, compare=False)

    def data(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "recipes": list(self.recipes),
            "problems": {problem.name: problem.about for problem in self.problems},
            "judged": [found.data() for found in self.judged],
            "sweeps": [
                {"name": sweep.name, "problem": self.swept_on, "values": list(sweep.values)}
                | {"judged": {name: [found.data() for found in row] for name, row in sweep.judged.items()}}
                for sweep in self.sweeps
            ],
            "beside": self.beside,
            "causes": {
                name: [
                    {"part": one.fresh.part, "ours": one.fresh.ours, "theirs": one.fresh.theirs, "refused": one.fresh.refused}
                    | {"fresh": one.fresh.after and one.fresh.after.data(), "stale": one.stale.after and one.stale.after.data()}
                    for one in row
                ]
                for name, row in self.causes.items()
            },
            "findings": {name: [vars(finding) for finding in row] for name, row in self.found.items()},
            "facts": [
                {**vars(fact), "but_not": None if fact.but_not != fact.but_not else fact.but_not, "holds": fact.holds}
                for fact in self.facts
            ],
            "seconds": self.seconds,
        }


def diagnose(
    recipes: Mapping[str, Recipe],
    problems: Sequence[str] = tuple(PROBLEMS),
    beside: tuple[str, Recipe] | None = None,
    swept_on: str = "tree",
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Diagnosis:
    """Measure all that there is to say about these recipes.

    recipes   name → recipe.      problems   names of PROBLEMS.
    beside    the neighbour (its name, itself) whose parts are switched in one at a time; None leaves that out.
    swept_on  the problem of sweeps and causes.
    """
    began = perf_counter()
    if not recipes:
        raise QuatrainError("there is nothing to diagnose", expected="one or more recipes", fix="quatrain diagnose grpo rloo")
    made = tuple(find_problem(name) for name in problems)
    ground = find_problem(swept_on)
    judged, seen = [], {}

    def look(name: str, problem: Problem, setting: Setting, **budget: int) -> Judgement:
        key = (name, problem.name, setting)
        if key not in seen:
            progress(f"{name} on {problem.name}")
            seen[key] = judge(recipes[name], problem, setting, seed, name, **budget)
        return seen[key]

    for problem in made:
        for name in recipes:
            judged.append(look(name, problem, Setting()))
    sampled = {name: recipe for name, recipe in recipes.items() if make_subject(recipe, Setting().scene(ground, recipe)).kind == "rollouts"}
    sweeps = [_sweep(name, field_, values, sampled, ground, look) for name, (field_, values) in SWEEPS.items()] if sampled else []
    caused = {}
    for name, recipe in recipes.items():
        if beside and beside[0] != name and name in sampled and _has_policy(recipe) and _has_policy(beside[1]):
            progress(f"{name} beside {beside[0]}")
            both = []
            for setting in (Setting(), Setting(staleness=STALE)):
                here = Cause("(as it is)", "", "", look(name, ground, setting))
                both.append([here, *causes(recipe, beside[1], ground, setting, sampled=QUICK)])
            caused[name] = tuple(Caused(fresh, stale) for fresh, stale in zip(*both, strict=True))
    found = {}
    for name, recipe in recipes.items():
        progress(f"faults of {name}")
        found[name] = tuple(findings(recipe, seed=seed))
    progress("known facts")
    facts = tuple(known_facts())
    return Diagnosis(
        recipes, made, beside[0] if beside else "", tuple(judged), tuple(sweeps), swept_on, caused, found, facts, perf_counter() - began
    )


def _sweep(name: str, moved: str, values: tuple[float, ...], recipes: Mapping[str, Recipe], ground: Problem, look: Callable) -> Sweep:
    own = {"staleness": 0, "temperature": 1.0, "top_p": 1.0}
    judged = {}
    for recipe in recipes:
        settings = [replace(Setting(), **{moved: value}) for value in values]
        judged[recipe] = tuple(
            look(recipe, ground, setting, **({} if value == own.get(moved) else {"sampled": QUICK}))
            for setting, value in zip(settings, values, strict=True)
        )
    return Sweep(name, values, judged)


def _has_policy(recipe: Recipe) -> bool:
    return any(step.model == "policy" and "policy" in step.loss.terms for _, step in recipe.fits(Objective))
