"""A run at learning rate 0 leaves everything as it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

from quatrain.estimator import Objective
from quatrain.experiments.doctor.finding import Finding, judged
from quatrain.experiments.doctor.patient import Patient, find, fingerprint
from quatrain.experiments.doctor.sampler import gaps
from quatrain.parts.denominators import Ratio
from quatrain.training.driver import run
from quatrain.training.recipe import Recipe
from quatrain.training.steps import Fit

ROUNDS, EPOCHS = 2, 2
OWN = {"current", "old", "behaviour", "one"}  # columns that are the policy's own at learning rate 0


def still(recipe: Recipe) -> Recipe:
    """The recipe for two rounds at learning rate 0, at most two epochs each, with nothing that would change that."""

    def slow(step: Fit) -> Fit:
        rule = replace(step.rule, lr=0.0) if any(part.name == "lr" for part in fields(step.rule)) else step.rule
        epochs = min(step.epochs, EPOCHS) if isinstance(step.epochs, int) else step.epochs
        return replace(step, rule=rule, epochs=epochs)

    for _, fit in list(recipe.fits()):
        recipe = recipe.swap(fit, slow(fit))
    return replace(recipe, stages=tuple(replace(stage, rounds=ROUNDS) for stage in recipe.stages), controllers=())


def check_drift(patient: Patient) -> Iterator[Finding]:
    if patient.recipe is None:
        return
    state, seen = patient.state(lr=0.0), []
    trained = {step.model: state.models[step.model] for _, step in patient.recipe.fits()}
    before = {name: fingerprint(model.module) for name, model in trained.items()}
    run(still(patient.recipe), state, after=lambda state, metrics: seen.append(dict(metrics)))
    for name, model in trained.items():
        after = fingerprint(model.module)
        moved = [key for key in before[name] if after.get(key) != before[name][key]]
        updates = state.spent["updates" if name == "policy" else f"{name}/updates"]
        yield judged(
            not moved,
            "learning rate 0 changes nothing",
            f"{name}: {len(moved)} of {len(after)} tensors moved in {updates} updates" + (f", the first {moved[0]}" if moved else ""),
            "something besides the learning rate moves the weights: weight decay, a buffer in training mode, a copy that is written back",
            "scale the decay by the learning rate, freeze statistics (eval mode), and look at the tensor named",
        )
    yield from ratios(patient, state, seen)


def ratios(patient: Patient, state: object, seen: list[dict[str, float]]) -> Iterator[Finding]:
    """Ratios that the run itself measured, and the last batch scored again."""
    limit = patient.tolerance
    own = all({ratio.numerator, ratio.denominator} <= OWN - {"one"} for loss in patient.objectives for ratio in find(loss, Ratio))
    read = [abs(metrics[name] - 1) for metrics in seen for name in ("ratio", "ratio/max") if name in metrics]
    if own and read and any(isinstance(step.loss, Objective) for _, step in patient.recipe.fits()):
        yield judged(
            max(read) <= 2.72**limit.logp_max - 1,
            "learning rate 0 keeps ratio 1",
            f"in {len(seen)} rounds the ratio was at most {max(read):.2g} away from 1; allowed {2.72**limit.logp_max - 1:.2g}",
            "the denominator is not the policy that sampled",
            "check which column the ratio divides by, and that it was computed on the same tokens and distribution",
        )
    batch = next((store for store in state.stores.values() if "behaviour_logp" in store), None)
    if batch is not None:
        known = batch.mask & ~batch["behaviour_logp"].isnan() & (batch["origin"] == 0)
        gap = gaps(batch["behaviour_logp"], patient.logp(batch), known)
        yield judged(
            gap.max().item() <= limit.logp_max and gap.mean().item() <= limit.logp_mean,
            "learning rate 0 keeps ratio 1",
            f"the last of {len(seen)} rounds scored again: gap at most {gap.max():.2g}, mean {gap.mean():.2g} nats; "
            f"allowed {limit.logp_max:g} and {limit.logp_mean:g}",
            "sampler and scorer grow apart although nothing was learnt",
            "look for state in the model or the sampler: caches, random numbers, statistics in training mode",
        )
