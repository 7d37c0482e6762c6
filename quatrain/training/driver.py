"""The driver: stages, rounds, steps. It knows no recipe, no engine and no method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

from quatrain.errors import QuatrainError
from quatrain.knobs import check_known, resolve
from quatrain.training.executors import Executor
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.state import State

After = Callable[[State, Mapping[str, float]], None]


def rounds_of(stage: Stage, state: State) -> int:
    return int(resolve(stage.rounds, state.knobs))


def total_rounds(recipe: Recipe, state: State) -> int:
    return sum(rounds_of(stage, state) for stage in recipe.stages)


def run(
    recipe: Recipe,
    state: State,
    after: After = lambda state, metrics: None,
    executor: Executor | None = None,
    until: Callable[[State], bool] = lambda state: False,
) -> State:
    """Run the recipe from where the state is; ``after`` is called once per round, to log and to save.

    ``executor`` takes the place of the stages' own.
    ``until`` ends the run early where it is true: a budget, a goal. It is asked before every round.

    The state is at the beginning of the next round when ``after`` sees it, so that what it saves continues exactly.
    Raises QuatrainError if a controller sets an unknown knob.
    """
    known = recipe.knobs()
    while state.stage < len(recipe.stages) and not until(state):
        stage = recipe.stages[state.stage]
        if state.round >= rounds_of(stage, state):
            state.stage, state.round = state.stage + 1, 0
            continue
        began = perf_counter()
        for step in stage.begin if state.round == 0 else ():
            step(state)
        (executor or stage.executor)(stage, state)
        state.round, state.step = state.round + 1, state.step + 1
        state.spend_seconds("round", began)
        metrics = state.close_round()
        for controller in recipe.controllers:
            moved = controller(state, metrics)
            check_known(moved, known)
            state.knobs |= moved
            state.steered |= set(moved)
        after(state, metrics)
    return state


def build(recipe: Recipe, state: State, given: Mapping[str, object]) -> None:
    """Make the recipe's other models, in order, and its stores; check every name. ``given``: models that the user passed."""
    if "policy" not in state.models:
        raise QuatrainError("a run needs a policy", fix="model=…")
    recipe.check(state.task, state.knobs)
    for name, spec in recipe.models.items():
        state.models[name] = resolve(spec, state.knobs)(state.models, given)
    for name, spec in recipe.stores.items():
        state.kept[name] = resolve(spec, state.knobs)()
