"""The coefficient picture: what a recipe's terms do to an action, by its ratio; and on a trajectory that was sampled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.estimator import Objective
from quatrain.knobs import resolve
from quatrain.parts.guides import guides_of
from quatrain.parts.needs import is_live
from quatrain.training.recipe import Recipe
from quatrain.training.state import State

Curve = tuple[Tensor, Tensor, Tensor]


def ratio_curves(recipe: Recipe, points: int = 401) -> dict[str, Curve]:
    """Term → (ratio [K] from 0 to 2, coefficient at advantage +1, at −1), without its normaliser and weight.

    Every trajectory has one action, so that a sequence's ratio is its action's; columns that a bound reads besides are equal to the
    denominator's. Terms whose ratio is always 1 are one point of a flat line; those that depend on the policy otherwise are left out.
    """
    ratio = torch.linspace(0, 2, points + 1)[1:]
    curves = {}
    for _, step in resolve(recipe, {}).fits(Objective):
        for name, term in step.loss.terms.items():
            if is_live(term.advantage) or guides_of(term.bound):
                continue
            columns = {column: torch.zeros(points, 1) for _, column in term.needs() if column.endswith("_logp")}
            mask = torch.ones(points, 1, dtype=torch.bool)
            batch = Batch(mask, torch.zeros(points, 1), columns={**columns, "current_logp": ratio.log()[:, None]})
            sides = [(term.bound(term.denominator(batch), torch.full((points, 1), sign), batch) * sign)[:, 0] for sign in (1.0, -1.0)]
            label = recipe.name or "recipe"
            curves[label if name == "policy" else f"{label}: {name}"] = (ratio, *sides)
    return curves


@torch.no_grad()
def sampled_strip(recipe: Recipe, state: State) -> tuple[list[str], Mapping[str, Tensor]]:
    """(tokens, term → coefficient [T]) of the last batch's trajectory that moves the policy most; nothing where actions are no texts."""
    batch, policy = state.stores.get("fresh"), state.models["policy"]
    found = list(recipe.fits(Objective))
    if batch is None or not len(batch) or not found or not hasattr(policy, "decode"):
        return [], {}
    fit = resolve(found[-1][1], state.knobs)
    objective = fit.loss
    part = fit.edited(state, batch if len(batch) <= 64 else batch.take(torch.arange(64)))
    scores = policy.score(part, objective.statistics(), others={name: state.models[name] for name in objective.models()})
    terms = objective(part, scores).terms
    total = sum(term.coefficient.abs().sum(1) for term in terms.values())
    row = int(total.argmax())
    kept = part.mask[row]
    tokens = [policy.tokenizer.decode([token]) for token in part.actions[row][kept].tolist()]
    return tokens, {name: term.coefficient[row][kept] for name, term in terms.items()}
