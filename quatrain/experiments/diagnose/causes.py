"""Which part causes what: one part at a time is switched back to the neighbour's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from quatrain.errors import QuatrainError
from quatrain.estimator import Objective, Term
from quatrain.experiments.diagnose.judge import PLAIN, Judgement, Setting, judge
from quatrain.experiments.diagnose.problems import Problem
from quatrain.training.describe import expression
from quatrain.training.recipe import Recipe
from quatrain.training.steps import Fit


@dataclass(frozen=True)
class Cause:
    """A part, what it is and what it was switched back to, and the judgement after that: None if the part cannot stand there."""

    part: str
    ours: str
    theirs: str
    after: Judgement | None
    refused: str = ""


def switched(recipe: Recipe, beside: Recipe) -> Iterator[tuple[str, str, str, Recipe]]:
    """(part, ours, theirs, the recipe with that part of the neighbour) for every part of the policy's term that differs.

    Terms that only the recipe has are taken away, one at a time.
    """
    (fit, ours), (_, theirs) = _policy_term(recipe), _policy_term(beside)
    for part in fields(Term):
        mine, other = getattr(ours, part.name), getattr(theirs, part.name)
        if mine != other:
            yield part.name, expression(mine), expression(other), _with_terms(recipe, fit, policy=replace(ours, **{part.name: other}))
    for name in fit.loss.terms:
        if name != "policy" and name not in _fit(beside).loss.terms:
            yield f"term {name}", "present", "absent", _without(recipe, fit, name)


def causes(recipe: Recipe, beside: Recipe, problem: Problem, setting: Setting = PLAIN, **budget: int) -> list[Cause]:
    """Every part that differs, switched back alone. The targets are those of the changed recipe."""
    found = []
    for part, ours, theirs, changed in switched(recipe, beside):
        try:
            after = judge(changed, problem, setting, name=f"{recipe.name} − {part}", **budget)
            refused = ""
        except QuatrainError as error:  # a part may need what this recipe does not have: a z-score of demonstrations, a critic's value
            after, refused = None, error.what
        found.append(Cause(part, ours, theirs, after, refused))
    return found


def _fit(recipe: Recipe) -> Fit:
    found = [step for _, step in recipe.fits(Objective) if step.model == "policy" and "policy" in step.loss.terms]
    if not found:
        raise QuatrainError("parts can be switched between recipes that have a term named policy", given=recipe.name or "a recipe")
    return found[-1]


def _policy_term(recipe: Recipe) -> tuple[Fit, Term]:
    fit = _fit(recipe)
    return fit, fit.loss.terms["policy"]


def _with_terms(recipe: Recipe, fit: Fit, **terms: Term) -> Recipe:
    return recipe.swap(fit, replace(fit, loss=replace(fit.loss, terms={**fit.loss.terms, **terms})))


def _without(recipe: Recipe, fit: Fit, name: str) -> Recipe:
    kept = {term: value for term, value in fit.loss.terms.items() if term != name}
    return recipe.swap(fit, replace(fit, loss=replace(fit.loss, terms=kept)))
