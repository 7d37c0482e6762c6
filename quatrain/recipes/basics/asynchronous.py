"""The neighbour whose rollouts come from an engine that lags behind and computes a little differently: a simulation in one process."""

from __future__ import annotations

from dataclasses import replace

from quatrain.training.columns import Score
from quatrain.training.publish import Publish
from quatrain.training.recipe import Recipe
from quatrain.training.selves import Frozen
from quatrain.training.steps import Collect


def asynchronous(recipe: Recipe, refresh: int = 1, bits: int = 0) -> Recipe:
    """The recipe sampled by copies of the policy that are up to ``refresh − 1`` rounds old, with weights rounded to ``bits`` digits.

    ``behaviour_logp`` is the engine's (the rounded weights'), ``old_logp`` the trainer's own at the version that sampled, from an exact
    snapshot of it; ``version`` is that version, per action. Time is counted in rounds: nothing runs at the same time, so that a run
    repeats itself. An answer is from one version: for weights that change within an answer, and a clock, see ``executors.InFlight``.

    → the recipe itself for refresh = 1 and bits = 0.
    """
    if refresh == 1 and bits == 0:
        return recipe
    (collect,) = (step for step in recipe.stages[0].steps if isinstance(step, Collect))
    exact = (Score("snapshot", name="old_logp"),) if bits else ()  # without rounding the engine's log-probabilities are the old ones
    late = recipe.with_collect(source=replace(collect.source, model="sampler"), edits=(*exact, *collect.edits))
    published = (Publish("policy", "sampler", refresh, bits), *([Publish("policy", "snapshot", refresh)] if bits else []))
    first, *rest = late.stages
    late = replace(late, stages=(replace(first, steps=(*published, *first.steps)), *rest)).with_models(sampler=Frozen())
    return late.with_models(snapshot=Frozen()) if bits else late
