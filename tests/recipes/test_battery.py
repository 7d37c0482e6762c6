"""What must hold for every recipe in the registry, and for every Fit in it. A new recipe is tested by being registered."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.estimator import Objective, Term
from quatrain.knobs import resolve
from quatrain.parts.bounds import unbounded
from quatrain.parts.denominators import Ratio
from quatrain.rollout.edits import AddDemonstrations
from quatrain.training.driver import run, total_rounds
from quatrain.training.recipe import Recipe
from quatrain.training.registry import entries, make
from quatrain.training.search import Search
from quatrain.training.state import State
from quatrain.training.steps import Collect, Fit
from tests.recipes.laboratories import TABLES, laboratory, start, weights
from tests.toy import NAN, Case, TabularChoices, TabularCritic, TabularPolicy, assert_same, case, fit_of, gradient

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "adaflow": [{"variant": "two-stage"}, {"variant": "plain"}],
    "adora": [{"version": "vision", "kl": 0.04}],
    "capo-curvature": [
        {"base": "dr-grpo", "rising": True, "optimiser": "sgd", "top": 2},
        {"base": "reinforce", "normaliser": "all", "kl": 0.04},
    ],
    "chord": [{"variant": "phi", "mu": 0.3}, {"variant": "importance"}, {"warmup": 2, "decay": 4}],
    "bgpo-dllm": [{"bound": "joint"}, {"bound": "token"}],
    "copg": [{"data": "pairs"}],
    "copo": [{"gate": "hard", "kl": 0.04}, {"unless": "no_signal"}],
    "dagrpo": [{"threshold": 0.7, "kl": 0.04}, {"threshold": 0.7, "distance": "score", "anchors": False}],
    "dapo": [{"mean": "batch"}],
    "dhpo": [{"guide": "entropy"}, {"guide": "entropy-response", "minimum": "branch"}, {"minimum": "after"}],
    "discovered-po": [{"drift": "clip", "entropy": 0.01}],
    "gmpo": [{"level": "sequence", "kl": 0.04}],
    "grpo": [{"kl": 0.0}],
    "hgpo": [{"within": "prompt", "kl": 0.0}],
    "hispo": [{"refresh": 2, "clip_on": "stale"}],
    "hapo-token": [{"version": "code", "tokens": False}],
    "hpt": [{"version": "code", "entropy": 0.001}, {"soft": True}],
    "lite-ppo": [{"finished": True}],
    "matpo": [{"workers": "frozen", "kl": 0.04}],
    "mdpo": [{"kl": "sampled", "q": 1.5}],
    "opd": [{"kind": "forward"}, {"kind": "jsd"}],
    "opsd": [
        {"beta": 0.0, "clip": 0.0, "teacher": "current"},
        {"beta": 0.3, "top": 2, "teacher": "average", "decay": 0.9, "mean": "token"},
        {"sampled": True},
    ],
    "oprl": [{"fuse": "reward", "level": "action", "kl": 0.04}, {"prm": "outcomes", "where": "mixed"}],
    "pairuni": [{"pairs": "random", "power": 0.0, "kl": 0.04}],
    "papo": [{"base": "dapo", "kl": 0.0, "entropy": 0.03, "anneal": True, "wrong": 0.1}],
    "pipeline-rl": [{"lag": 0, "cap": 1.0}],
    "poise": [{"baseline": "self"}, {"baseline": "others"}],
    "ppo": [{"entropy": 0.01}],
    "ppo-ewma-async": [{"proxy": "snapshot"}, {"proxy": "async"}, {"proxy": "linear"}, {"proxy": "coupled"}],
    "refine-nsp": [{"positions": "uniform", "reward": "hybrid"}],
    "reinforce": [{"baseline": False, "discount": 0.9}],
    "rpg": [{"kl": "forward", "beta": 0.1}, {"kl": "reverse", "clip": "clamp"}, {"kl": "unnormalised-forward", "clip": "none"}],
    "riskpo": [{"version": "code"}, {"attitude": "seeking"}],
    "sfpo": [{"moments": "rewound", "leave": "never"}, {"window": 2, "threshold": 0.1}],
    "single-stream-po": [{"baseline": "batch", "prioritised": False}],
    "simko": [{"smooth": 0.5, "press": 2.0, "level": 0.3}],
    "spot": [{"bound": "iwae", "samples": 2, "unit": "code"}, {"lam": 0.0}],
    "thinkless-degrpo": [{"version": "code", "alpha": 0.1}],
    "training-free-grpo": [{"propose": "random"}, {"group": 1, "alone": "successes"}, {"group": 1, "alone": "all"}, {"size": 5}],
    "treepo": [{"levels": "size", "drop": True}, {"levels": "root"}],
    "topr": [{"ratio": "token", "refresh": 2}, {"taper": "truncated"}],
}


def over(recipes: list[tuple[str, dict]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("name", "options"), recipes, ids=[f"{name}-{options}" if options else name for name, options in recipes]
    )


ALL = [(entry.name, options) for entry in entries() for options in [{}, *VARIANTS.get(entry.name, [])]]
TABULAR = [(name, options) for name, options in ALL if laboratory(make(name, **options)) is TABLES]
every_recipe, every_tabular = over(ALL), over(TABULAR)
every_network = over([one for one in ALL if one not in TABULAR and any(make(one[0], **one[1]).fits())])
every_learner = over([(name, options) for name, options in TABULAR if any(make(name, **options).fits(Objective))])  # by a policy gradient
KNOBS = {"max_actions": 5}


def batch_for(recipe: Recipe, **options: Any) -> Case:
    """A batch of the kind that the recipe collects."""
    shown = any(isinstance(edit, AddDemonstrations) for stage in recipe.stages for step in collects(stage) for edit in step.edits)
    return case(**{"demonstrations": shown, "prompts": 6, **options})


def collects(stage: Any) -> list[Collect]:
    return [step for step in stage.steps if isinstance(step, Collect)]


def model_for(step: Fit, here: Case) -> Any:
    """The policy, or a model of its kind that an objective trains; else a critic."""
    if step.model == "policy" or isinstance(step.loss, Objective):
        return here.policy
    g = torch.Generator().manual_seed(5)
    if step.model == "q":
        shape = (here.batch["target_probs"].shape[2], *here.policy.table.shape)
        return TabularChoices(torch.randn(shape, dtype=torch.float64, generator=g).to(here.policy.table.dtype))
    return TabularCritic(torch.randn(len(here.policy.table), dtype=torch.float64, generator=g).to(here.policy.table.dtype))


def gradients(recipe: Recipe, here: Case, **changes: Any) -> dict[str, Tensor]:
    found = {}
    for _, step in recipe.fits():
        step = replace(fit_of(recipe, step.model, **KNOBS), **changes)
        found[step.model] = gradient(step, here, model_for(step, here))
    return found


@every_tabular
def test_any_split_into_micro_batches_gives_the_same_gradient(name: str, options: dict):
    """Down to one row at a time: pairs and groups are cut across micro-batches."""
    recipe = make(name, **options)
    here = batch_for(recipe)
    whole = gradients(recipe, here)
    for tokens in (40, 7, 1):
        for model, found in gradients(recipe, here, micro_tokens=tokens).items():
            assert_same(found, whole[model], 1e-13)


@every_tabular
def test_the_order_of_rows_does_not_matter(name: str, options: dict):
    recipe = make(name, **options)
    here = batch_for(recipe)
    order = torch.randperm(len(here.batch), generator=torch.Generator().manual_seed(3))
    shuffled = replace(here, batch=here.batch.take(order))
    whole = gradients(recipe, here)
    for model, found in gradients(recipe, shuffled).items():
        assert_same(found, whole[model], 1e-12)


@every_tabular
@pytest.mark.parametrize("poison", [NAN, -200.0, 200.0, float("inf")])
def test_what_is_no_action_contributes_exactly_nothing(name: str, options: dict, poison: float):
    """fp32: NaN, infinity and log-ratios of ±200 outside the mask leave the gradient bit for bit."""
    recipe = make(name, **options)
    here = batch_for(recipe, dtype=torch.float32)
    clean = replace(here, batch=filled(here.batch, 0.0))
    assert not here.batch.mask.all(1).all()
    expected = gradients(recipe, clean)
    leaky = replace(clean, batch=filled(here.batch, poison), policy=TabularPolicy(here.policy.table.detach(), leaky=True))
    for model, found in gradients(recipe, leaky).items():
        assert expected[model].abs().max() > 0 and torch.equal(found, expected[model])


def filled(batch: Batch, value: float) -> Batch:
    """Every float column set to a value where there is no action."""
    floats = {name: column for name, column in batch.columns.items() if column.is_floating_point()}
    outside = {name: ~batch.mask.view(*batch.shape, *[1] * (column.ndim - 2)) for name, column in floats.items()}
    return batch.with_columns(**{name: column.masked_fill(outside[name], value) for name, column in floats.items()})


@every_learner
def test_on_policy_every_ratio_is_one(name: str, options: dict):
    """With old = current, ratio and bound may be left out: the plain policy gradient of this advantage and aggregation."""
    recipe = make(name, **options)
    here = batch_for(recipe)
    current = here.logp().detach()
    columns = {column: torch.where(here.batch[column].isnan(), NAN, current) for column in ("old_logp", "behaviour_logp", "proxy_logp")}
    here = replace(here, batch=here.batch.with_columns(**columns))
    plain = recipe
    for _, fit in recipe.fits(Objective):
        for term in fit.loss.terms:
            plain = plain.but(term, denominator=Ratio(), bound=unbounded)
    assert_same(gradients(recipe, here)["policy"], gradients(plain, here)["policy"], 1e-12)


@every_learner
def test_rows_without_a_coefficient_need_no_forward(name: str, options: dict):
    """Rows that ``active`` leaves out carry exactly no gradient."""
    recipe = make(name, **options)
    here = batch_for(recipe)
    step = fit_of(recipe, **KNOBS)
    batch = step.loss.prepare(here.batch)
    current = step.loss.current(here.policy, batch, here.others)
    batch = step.loss.finalise(batch, current)
    idle = ~step.loss.active(batch)
    others = {name: here.others[name] for name in step.loss.models()}
    loss, _ = step.loss.loss(here.policy, batch, others)
    found = torch.autograd.grad(loss, here.policy.table)[0].view(*here.batch.shape, -1)
    assert not found[idle].any() and found.any()


@every_network
def test_the_gradient_of_a_network_depends_neither_on_the_cut_nor_on_the_order(name: str, options: dict):
    recipe, state = start(name, options)
    run(recipe, state)
    for _, step in recipe.fits():
        step, model, batch = resolve(step, state.knobs), state.models[step.model], state.stores[step.source]
        turned = batch.take(torch.randperm(len(batch), generator=torch.Generator().manual_seed(3)))
        whole, *others = (
            network_gradient(replace(step, micro_tokens=tokens), model, state, rows)
            for tokens, rows in ((1 << 40, batch), (7, batch), (1 << 40, turned))
        )
        for found in others:
            assert_same(found, whole, 1e-4)


def network_gradient(step: Fit, model: Any, state: State, batch: Batch) -> Tensor:
    """[D] of one update, through the Fit."""
    model.module.zero_grad()
    others = {name: state.models[name] for name in step.loss.models()}
    for _ in step.gradient_parts(model, others, step.loss.prepare(batch)):
        pass
    return torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None])


# -- whole runs --------------------------------------------------------------------------------------------------------
@every_recipe
def test_a_run_moves_what_it_trains_and_repeats_itself(name: str, options: dict):
    first, second = (run(*start(name, options)) for _ in range(2))
    recipe, before = start(name, options)
    assert first.step == total_rounds(recipe, first) and first.spent == second.spent
    for model in trained(recipe):
        assert not same(weights(first)[model], weights(before)[model])
    assert same(weights(first), weights(second))
    other = run(*start(name, options, seed=1))
    if "tokens" in other.spent:  # what is sampled depends on the seed
        assert not same(weights(other)["policy"], weights(first)["policy"])


def trained(recipe: Recipe) -> set[str]:
    return {step.model for _, step in recipe.fits()} | {step.of for step in searches(recipe)}


def searches(recipe: Recipe) -> list[Search]:
    return [step for stage in recipe.stages for step in stage.all_steps() if isinstance(step, Search)]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@every_recipe
def test_a_learning_rate_of_zero_keeps_the_ratio_at_one(name: str, options: dict):
    recipe, state = start(name, options)
    state.knobs |= {knob: 0.0 for knob in recipe.knobs() if knob == "lr" or knob.endswith("_lr")}
    before, seen = weights(state), []
    run(recipe, state, after=lambda state, metrics: seen.append(dict(metrics)))
    for model in {step.model for _, step in recipe.fits()} | {"policy"} - {step.of for step in searches(recipe)}:
        assert same(weights(state)[model], before[model])
    for metrics in seen:
        assert metrics.get("ratio", 1.0) == 1.0 and metrics.get("clipped", 0.0) == 0.0


@every_recipe
def test_cut_anywhere_and_resumed_it_is_the_same_run(name: str, options: dict):
    saved: list[dict] = []
    whole = run(*start(name, options), after=lambda state, metrics: saved.append(copy.deepcopy(state.state_dict())))
    for kept in saved[:-1]:
        recipe, resumed = start(name, options, seed=77)
        resumed.load_state_dict(kept)
        run(recipe, resumed)
        assert resumed.spent == whole.spent and resumed.step == whole.step
        assert same(weights(resumed), weights(whole))


@every_recipe
def test_it_says_what_it_is(name: str, options: dict):
    recipe = make(name, **options)
    assert recipe.name == name and recipe.summary.endswith((".", ":", "(Williams 1992).")) and len(recipe.summary) < 140
    for _, fit in recipe.fits(Objective):
        assert all(isinstance(term, Term) for term in fit.loss.terms.values())
