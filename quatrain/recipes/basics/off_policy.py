"""The neighbour that learns from another self's trajectories: the policy as it was, for good or for some rounds."""

from __future__ import annotations

from dataclasses import replace

from quatrain.training.recipe import Recipe
from quatrain.training.selves import Frozen
from quatrain.training.steps import Collect, Sync


def off_policy(recipe: Recipe, refresh: int = 0) -> Recipe:
    """The recipe whose rollouts come from a frozen copy of the policy: fresh data of one fixed distribution, without end.

    refresh  rounds after which the copy becomes the policy again; 0: never (offline, each trajectory used once).

    ``behaviour_logp`` and ``old_logp`` are then that copy's.
    """
    (collect,) = (step for step in recipe.stages[0].steps if isinstance(step, Collect))
    old = recipe.with_collect(source=replace(collect.source, model="sampler")).with_models(sampler=Frozen())
    first, *rest = old.stages
    steps = (*first.steps, Sync("policy", "sampler", every=refresh)) if refresh else first.steps
    return replace(old, stages=(replace(first, steps=steps), *rest))
