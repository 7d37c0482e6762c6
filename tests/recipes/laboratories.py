"""A small laboratory per kind of policy: where the battery runs a recipe. Which kind that is can be read off the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from quatrain.environments.gymnasium import GymTask, gym_task
from quatrain.environments.plane.task import PlaneTask
from quatrain.environments.tool_choice import ToolChoice
from quatrain.losses.flow import FlowMatching
from quatrain.models.flow import FlowPolicy
from quatrain.models.networks import NetworkPolicy
from quatrain.training.driver import build
from quatrain.training.recipe import Recipe
from quatrain.training.registry import find, make
from quatrain.training.search import WithLibrary
from quatrain.training.selves import Given, Made
from quatrain.training.state import State
from tests.toy import ToyTask


@dataclass(frozen=True)
class Laboratory:
    """task: anew for every run; policy: of that task; options and knobs: those that a recipe has of them; given: other models."""

    task: Callable[[], Any]
    policy: Callable[[Any], Any]
    knobs: Mapping[str, float]
    options: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)


def pendulum() -> GymTask:
    """With recordings that are made once; only its living copies are its own."""
    task = gym_task("gym:Pendulum-v1?data=0.8*random+0.2*good&size=60")
    task.copies, task.__dict__["recorded"] = 4, recordings()
    return task


@cache
def recordings() -> Any:
    return gym_task("gym:Pendulum-v1?data=0.8*random+0.2*good&size=60").recorded


TABLES = Laboratory(
    ToyTask,
    ToyTask.policy,
    # The limits are of what a step moves: this one is large.
    {"steps": 3, "prompts": 8, "lr": 0.1, "max_actions": 3, "micro_tokens": 20, "policy_limit": 3e-3, "objective_limit": 0.1},
    {"epochs": 2, "minibatches": 2},
    {"teacher": lambda task: task.policy(9), "critic": ToyTask.critic, "q": lambda task: task.choices(6)},
)
FLOWS = Laboratory(
    lambda: PlaneTask("route", demonstrations=40),
    lambda task: FlowPolicy(2, task.action_space, (16, 16), 0, chain=3),
    {"steps": 3, "prompts": 6, "lr": 1e-2, "max_actions": 9},
)
ACTORS = Laboratory(
    pendulum,
    lambda task: NetworkPolicy(3, task.action_space, seed=1),
    {"steps": 2, "vae_steps": 1, "vae_updates": 2, "online_steps": 2, "updates": 2, "online_updates": 1}
    | {"batch": 16, "segment": 2, "capacity": 80},
    {"hidden": 8, "vae_hidden": 8},
)
PROMPTED = Laboratory(ToolChoice, lambda task: task.network(seed=1), {"steps": 4, "prompts": 20, "max_actions": 2})


def laboratory(recipe: Recipe) -> Laboratory:
    """By what the recipe puts in the policy's place, or fits it by."""
    own = recipe.models.get("policy")
    if isinstance(own, WithLibrary):
        return PROMPTED
    if isinstance(own, Made):
        return ACTORS
    return FLOWS if any(isinstance(fit.loss, FlowMatching) for _, fit in recipe.fits()) else TABLES


def start(name: str, options: Mapping[str, Any], seed: int = 0, **knobs: float) -> tuple[Recipe, State]:
    """A run of the recipe in its laboratory, its models built."""
    here = laboratory(make(name, **options))
    recipe = make(name, **{**{option: value for option, value in here.options.items() if option in find(name).options}, **options})
    return started(recipe, here, seed, **knobs)


def started(recipe: Recipe, here: Laboratory, seed: int = 0, **knobs: float) -> tuple[Recipe, State]:
    task = here.task()
    # A table has one context: a teacher that is told more is another table; a critic is no network on it.
    recipe = recipe.with_models(**{model: Given(model) for model in here.given if model in recipe.models})
    state = State(task, {"policy": here.policy(task)}, seed)
    state.knobs = {knob: value for knob, value in {**here.knobs, **knobs}.items() if knob in recipe.knobs()}
    build(recipe, state, {model: made(task) for model, made in here.given.items()})
    for model in state.models.values():
        model.module.requires_grad_(True)
    return recipe, state


def weights(state: State) -> dict[str, dict[str, Any]]:
    """model → what it learns: tensors, and what a search has found."""
    found = {name: {key: value.clone() for key, value in model.module.named_parameters()} for name, model in state.models.items()}
    return {name: {**found[name], "library": getattr(model, "library", None)} for name, model in state.models.items()}
