"""The driver and the state: order, addressed randomness, controllers, and exact continuation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.seeds import derive
from quatrain.training.driver import build, rounds_of, run, total_rounds
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.registry import make
from quatrain.training.rules import AdamW
from quatrain.training.selves import Frozen
from quatrain.training.state import State
from tests.toy import ToyTask


@dataclass(frozen=True)
class Note:
    """A step that writes down when it ran."""

    name: str
    log: list

    def check(self, task, models, stores) -> None:
        pass

    def __call__(self, state: State) -> None:
        self.log.append((self.name, state.stage, state.round, state.step))


def fresh(**models) -> State:
    task = ToyTask()
    return State(task=task, models={"policy": task.policy(), **models})


# -- order -------------------------------------------------------------------------------------------------------------
def test_steps_in_rounds_in_stages():
    log: list = []
    recipe = Recipe((Stage((Note("a", log), Note("b", log)), rounds=2), Stage((Note("c", log),), rounds=Knob("n", 1)), Stage((), rounds=0)))
    state = fresh()
    state.knobs["n"] = 2
    seen = []
    run(recipe, state, after=lambda state, metrics: seen.append((state.stage, state.round, state.step)))
    assert log == [("a", 0, 0, 0), ("b", 0, 0, 0), ("a", 0, 1, 1), ("b", 0, 1, 1), ("c", 1, 0, 2), ("c", 1, 1, 3)]
    assert seen == [(0, 1, 1), (0, 2, 2), (1, 1, 3), (1, 2, 4)] and state.stage == 3
    assert total_rounds(recipe, state) == 4 and rounds_of(recipe.stages[1], state) == 2


def test_a_run_continues_from_where_the_state_is():
    log: list = []
    recipe = Recipe((Stage((Note("a", log),), rounds=3),))
    state = fresh()
    state.round = state.step = 2
    run(recipe, state)
    assert log == [("a", 0, 2, 2)]


def test_another_executor_decides_the_order():
    log: list = []
    recipe = Recipe((Stage((Note("a", log), Note("b", log)), rounds=1),))
    run(recipe, fresh(), executor=lambda stage, state: [step(state) for step in reversed(stage.steps)])
    assert [name for name, *_ in log] == ["b", "a"]


def test_two_stages_of_real_recipes():
    recipe = make("sft").then(make("rloo", group=2))
    state = fresh()
    state.knobs = {"steps": 2, "prompts": 4, "max_actions": 3, "lr": 0.05}
    build(recipe, state, {})
    rewards = []
    run(recipe, state, after=lambda state, metrics: rewards.append("reward" in metrics))
    assert rewards == [False, False, True, True] and state.spent["updates"] == 4 and state.spent["demonstrations"] == 6


# -- controllers -------------------------------------------------------------------------------------------------------
def test_a_controller_sets_knobs_for_the_next_round():
    seen: list[float] = []

    def warm(state: State, metrics) -> dict[str, float]:
        seen.append(metrics["gradient_norm"])
        return {"lr": 0.1 * state.step}

    recipe = replace(make("sft").with_fit(rule=AdamW()), controllers=(warm,))
    state = fresh()
    state.knobs = {"steps": 3, "prompts": 3, "lr": 0.0}
    build(recipe, state, {})
    tables = []
    run(recipe, state, after=lambda state, metrics: tables.append(state.models["policy"].table.detach().clone()))
    assert len(seen) == 3 and state.knobs["lr"] == pytest.approx(0.3)
    assert torch.equal(tables[0], ToyTask().policy().table) and not torch.equal(tables[1], tables[0])


def test_a_knob_that_the_recipe_does_not_have_is_refused():
    recipe = replace(make("sft"), controllers=(lambda state, metrics: {"lrr": 1.0},))
    state = fresh()
    state.knobs = {"steps": 1, "prompts": 2}
    with pytest.raises(QuatrainError, match="unknown knob 'lrr'"):
        run(recipe, state)


# -- building ----------------------------------------------------------------------------------------------------------
def test_models_are_built_in_order_and_names_checked():
    recipe = replace(make("sft"), models={"first": Frozen(), "second": Frozen("first")})
    state = fresh()
    build(recipe, state, {})
    assert set(state.models) == {"policy", "first", "second"} and not state.models["second"].table.requires_grad
    with pytest.raises(QuatrainError, match="needs a policy"):
        build(recipe, State(task=ToyTask(), models={}), {})
    state.knobs = {"stepz": 3}
    with pytest.raises(QuatrainError, match="unknown knob 'stepz'"):
        build(recipe, state, {})


def test_knobs_of_a_model_are_resolved():
    @dataclass(frozen=True)
    class Sized:
        size: int | Knob = Knob("size", 2)

        def __call__(self, models, given):
            return self.size

    state = fresh()
    state.knobs["size"] = 5
    build(replace(make("sft"), models={"extra": Sized()}), state, {})
    assert state.models["extra"] == 5


# -- the state ---------------------------------------------------------------------------------------------------------
def test_randomness_is_addressed():
    assert derive(0, "a", 1) == derive(0, "a", 1) and 0 <= derive(0, "a", 1) < 2**62
    assert len({derive(0, "a", 1), derive(1, "a", 1), derive(0, "b", 1), derive(0, "a", 2)}) == 4
    one, other = fresh(), fresh()
    draws = [one.draw("sample"), one.draw("updates"), one.draw("sample")]
    other.draw("updates")  # another name's draws change nothing
    assert [other.draw("sample"), other.draw("sample")] == [draws[0], draws[2]] and len(set(draws)) == 3


def test_starts_are_a_position():
    state = fresh()
    assert state.next_starts(3) == [0, 1, 2] and state.next_starts(3) == [3, 0, 1] and state.cursors["train"] == 6
    assert state.next_starts(2, "heldout") == [0, 1] and state.cursors["train"] == 6


def test_measures_are_averaged_and_maxima_kept():
    state = fresh()
    for total, count, largest in ((1.0, 2.0, 5.0), (4.0, 3.0, 3.0)):
        state.measure({"x": (torch.tensor(total), count), "x/max": (torch.tensor(largest), 1.0)})
    state.measure({"never": (torch.tensor(0.0), 0.0), "low/max": (torch.tensor(-2.0), 1.0)})
    state.metrics["other"] = 7.0
    assert state.close_round() == {"other": 7.0, "x": 1.0, "x/max": 5.0, "low/max": -2.0}
    assert state.close_round() == {}


def test_an_optimiser_that_a_resumed_run_has_not_asked_for_yet_is_not_lost():
    state = fresh(critic=ToyTask().critic())
    for name in ("policy", "critic"):
        optimizer = state.optimizer(name, AdamW(lr=0.1))
        state.models[name].module.values.grad = torch.ones_like(state.models[name].module.values)
        optimizer.step()
    saved = state.state_dict()
    resumed = fresh(critic=ToyTask().critic())
    resumed.load_state_dict(saved)
    resumed.optimizer("policy", AdamW(lr=0.1))
    again = resumed.state_dict()
    assert set(again["optimizers"]) == {"policy", "critic"}
    third = fresh(critic=ToyTask().critic())
    third.load_state_dict(again)
    for name in ("policy", "critic"):
        moments = third.optimizer(name, AdamW(lr=0.1)).state_dict()["state"][0]["exp_avg"]
        assert torch.equal(moments, state.optimizers[name].state_dict()["state"][0]["exp_avg"])


def test_a_state_is_restored_whole():
    state = fresh()
    state.draw("sample"), state.next_starts(5)
    state.spent["tokens"], state.knobs["lr"], state.stage, state.round, state.step = 9, 0.5, 1, 2, 3
    state.models["policy"].version = 4
    resumed = fresh()
    resumed.models["policy"].table.data.zero_()
    resumed.seed = 99
    resumed.load_state_dict(state.state_dict())
    assert torch.equal(resumed.models["policy"].table, state.models["policy"].table) and resumed.models["policy"].version == 4
    assert (resumed.stage, resumed.round, resumed.step, resumed.knobs, resumed.seed) == (1, 2, 3, {"lr": 0.5}, 0)
    assert (
        resumed.spent == state.spent and resumed.next_starts(1) == state.next_starts(1) and resumed.draw("sample") == state.draw("sample")
    )


def test_a_task_that_has_a_state_keeps_it():
    class Living(ToyTask):
        place = 0

        def state_dict(self):
            return {"place": self.place}

        def load_state_dict(self, state):
            self.place = state["place"]

    task, other = Living(), Living()
    task.place = 5
    State(task=other, models={}).load_state_dict(State(task=task, models={}).state_dict())
    assert other.place == 5
