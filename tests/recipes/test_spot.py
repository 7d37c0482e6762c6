"""spot: what its actor descends, what it becomes without its penalty, and its arms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import quatrain
from quatrain.batch import Batch
from quatrain.controllers.schedules import Annealed
from quatrain.estimator import Objective
from quatrain.knobs import resolve
from quatrain.models.networks import NetworkPolicy
from quatrain.recipes.rl_offline.spot import SMALL as OF_ARMS
from quatrain.recipes.rl_offline.spot import cloning, td3, td3_bc
from quatrain.training.driver import run
from quatrain.training.recipe import Recipe
from quatrain.training.registry import make
from quatrain.training.state import State
from tests.recipes.laboratories import ACTORS, started

SMALL = dict(ACTORS.options)


def start(recipe: Recipe, seed: int = 0, **knobs: float) -> tuple[Recipe, State]:
    """Whole runs: data, density, offline, online, on few copies of the pendulum."""
    return started(recipe, ACTORS, seed, **knobs)


def tensors(state: State) -> dict[str, Tensor]:
    return {f"{name}.{key}": value.clone() for name, model in state.models.items() for key, value in model.module.state_dict().items()}


def assert_equal(one: State, other: State) -> None:
    assert all(torch.equal(value, tensors(other)[name]) for name, value in tensors(one).items())


# -- the actor ---------------------------------------------------------------------------------------------------------
def batch(actions: int, n: int = 6) -> Batch:
    g = torch.Generator().manual_seed(0)
    seen = torch.randn(n, 2, 3, generator=g, dtype=torch.float64)
    chosen = 2 * torch.rand(n, 1, actions, generator=g, dtype=torch.float64) - 1
    draw = torch.randint(2**62, (n, 1), generator=g)
    return Batch(torch.ones(n, 1, dtype=torch.bool), chosen, {"draw": draw}, contexts={"policy": {"observations": seen}})


def actor(recipe: Recipe, actions: int = 2) -> tuple[Objective, dict[str, Any]]:
    """The offline actor's objective, and its models in float64."""
    from quatrain.models.networks import Box

    models: dict[str, Any] = {"policy": NetworkPolicy(3, Box((-2.0,) * actions, (2.0,) * actions), seed=1)}
    for name, spec in recipe.models.items():
        models[name] = spec(models, {})
        models[name].module.double()
    fit = next(step for stage, step in recipe.fits(Objective))
    return resolve(fit, {}).loss, models


def gradient(objective: Objective, models: dict[str, Any], here: Batch) -> list[Tensor]:
    policy = models["policy"]
    ready = objective.finalise(objective.prepare(here), objective.current(policy, here, models))
    return list(torch.autograd.grad(objective.loss(policy, ready, models)[0], list(policy.module.trunk.parameters())))


def assert_close(ours: list[Tensor], theirs: tuple[Tensor, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-10 * float(b.abs().max())


@pytest.mark.parametrize("options", [{"lam": 0.3}, {"lam": 0.3, "unit": "code"}, {"lam": 0.3, "bound": "iwae", "samples": 3}, {"lam": 0.0}])
def test_the_actor_descends_the_papers_loss(options: dict):
    """−Q₁/mean |Q₁| − λ log π̂_β at its own action; in the code's unit, λ·(mean squared error + β·mean KL) = −λ·β/(2A)·log π̂_β."""
    objective, models = actor(make("spot", **SMALL, **options))
    here = batch(2)
    seen, draw = here.contexts["policy"]["observations"][:, 0], here["draw"][:, 0]
    action = models["policy"].distribution(seen, draws=draw).mean
    q = models["critic"].q(seen, action)[0]
    plain = -q.mean() / q.detach().abs().mean()
    if options["lam"]:
        scale = 0.5 / (2 * 2) if options.get("unit") == "code" else 1.0
        plain = plain - options["lam"] * scale * models["behaviour"].log_density(seen, action, draw).mean()
    assert_close(gradient(objective, models, here), torch.autograd.grad(plain, list(models["policy"].module.trunk.parameters())))


def test_with_respect_to_the_action_it_is_minus_q_over_its_size_minus_the_densitys_slope():
    """A policy that is its action: the gradient of each row's own action is −(dQ/da)/(n·mean |Q|) − λ/n·(d log π̂_β/da)."""
    objective, models = actor(make("spot", **SMALL, lam=0.3))
    here = batch(2)
    seen, draw = here.contexts["policy"]["observations"][:, 0], here["draw"][:, 0]
    action = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
    distribution = SimpleNamespace(mean=action)
    others = {name: models[name].distributions(here) for name in ("critic", "behaviour")}
    scores = {statistic: statistic(distribution, None, others)[:, None] for statistic in objective.statistics()}
    (found,) = torch.autograd.grad(objective(here, scores).loss, action)
    q = models["critic"].q(seen, action)[0]
    (dq,) = torch.autograd.grad(q.sum(), action)
    (dp,) = torch.autograd.grad(models["behaviour"].log_density(seen, action, draw).sum(), action)
    assert (found - (-dq / q.detach().abs().sum() - 0.3 * dp / 6)).abs().max() < 1e-12


def test_td3_bc_is_td3_with_the_squared_error_to_the_datas_action():
    """α·(the loss here) = −α·Q₁/mean |Q₁| + mean (u − μ)², α = 2.5; actions as fractions of the box."""
    objective, models = actor(td3_bc())
    here = batch(2)
    seen, draw = here.contexts["policy"]["observations"][:, 0], here["draw"][:, 0]
    action = models["policy"].distribution(seen, draws=draw).mean
    q = models["critic"].q(seen, action)[0]
    plain = -2.5 * q.mean() / q.detach().abs().mean() + ((action - here.actions[:, 0]) / 2).square().mean()
    expected = torch.autograd.grad(plain / 2.5, list(models["policy"].module.trunk.parameters()))
    assert_close(gradient(objective, models, here), expected)


def test_a_penalty_of_no_weight_is_td3():
    recipe = replace(make("spot", **SMALL, lam=0.3), controllers=())
    plain = recipe
    for _, step in recipe.fits(Objective):
        value = {name: term for name, term in step.loss.terms.items() if name == "value"}
        plain = plain.swap(step, replace(step, loss=replace(step.loss, terms=value)))
    one, other = run(*start(recipe, support=0.0)), run(*start(plain))
    assert_equal(one, other)
    bare = make("spot", **SMALL, lam=0.0)
    assert bare.stages[1:] == plain.stages[2:] and replace(bare.stages[0], begin=()) == plain.stages[1]


def test_online_the_penalty_falls_to_a_fifth():
    cooled = Annealed("support", 0.5, rounds=10, floor=0.2, stage=2)
    seen = [
        cooled(SimpleNamespace(stage=stage, round=k, knobs={}), {})["support"] for stage, k in ((1, 5), (2, 1), (2, 5), (2, 9), (2, 10))
    ]
    assert seen == pytest.approx([0.5, 0.45, 0.25, 0.1, 0.5])
    shown: list[float] = []
    run(*start(make("spot", **SMALL), online_steps=5), after=lambda state, metrics: shown.append(state.knobs["support"]))
    assert shown == pytest.approx([0.1, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02, 0.1])


# -- whole runs: what the battery does not have --------------------------------------------------------------------------
@pytest.mark.parametrize(("arm", "moved"), [(td3_bc, {"policy", "critic", "target_policy", "target_critic"}), (cloning, {"policy"})])
def test_an_arm_moves_its_models_and_the_replay_is_the_same_when_cut(arm: Callable[[], Recipe], moved: set[str]):
    saved: list[dict] = []
    whole = run(*start(arm()), after=lambda state, metrics: saved.append(copy.deepcopy(state.state_dict())))
    before = tensors(start(arm())[1])
    assert moved == {key.split(".")[0] for key, value in tensors(whole).items() if not torch.equal(value, before[key])}
    recipe, resumed = start(arm(), seed=77)
    resumed.load_state_dict(saved[0])
    run(recipe, resumed)
    assert_equal(resumed, whole)
    rows = (state.kept["replay"].rows() for state in (resumed, whole))
    assert torch.equal(*(part.contexts["policy"]["observations"] for part in rows))


def test_online_steps_join_the_data_in_the_replay():
    found = run(*start(make("spot", **SMALL, lam=0.0), capacity=1000))
    assert found.spent["recorded"] == 60 and len(found.kept["replay"]) == 60 + 2 * 4 * 2 and found.spent["tokens"] == 16


def test_arms_differ_in_the_actors_terms_alone():
    assert td3().models == td3_bc().models == cloning().models
    parts = [next(step for _, step in recipe.fits() if step.model == "critic") for recipe in (td3(), td3_bc(), make("spot", **OF_ARMS))]
    assert parts[0] == parts[1] == parts[2]


# -- as a user runs it -------------------------------------------------------------------------------------------------
def test_train_save_and_go_on(tmp_path: Path):
    quiet = {"live": False, "tensorboard": False, "report": False, "eval_every": 0, "eval_count": 2, "eval_samples": 0, "save_every": 0}
    task = "gym:Pendulum-v1?data=0.8*random+0.2*good&size=300"
    few = {**SMALL, **ACTORS.knobs, "capacity": 500}
    first = quatrain.train("spot", task=task, out=str(tmp_path / "a"), limit=200, **few, **quiet)
    assert first.state.spent["recorded"] == 200 and "normalised" in first.metrics
    again = quatrain.train("spot", task=task, model=str(tmp_path / "a/model"), out=str(tmp_path / "b"), **few, **quiet)
    assert again.state.models["policy"].hidden == (8, 8)
    with pytest.raises(quatrain.errors.QuatrainError, match="recordings"):
        quatrain.train("spot", task="gym:Pendulum-v1", out=str(tmp_path / "c"), **few, **quiet)
    with pytest.raises(quatrain.errors.QuatrainError, match="actions in a box"):
        quatrain.train("spot", task="gym:CartPole-v1?data=random&size=50", out=str(tmp_path / "d"), **few, **quiet)
