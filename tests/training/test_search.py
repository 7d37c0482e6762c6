"""The step without a gradient: propose, score, accept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.rollout.sources import OnPolicy
from quatrain.training.driver import build, run
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.search import Search, WithLibrary
from quatrain.training.state import State
from quatrain.training.steps import Collect, Measure
from tests.toy import TabularPolicy, ToyTask

TASK = ToyTask()


class Holder(TabularPolicy):
    """A policy that holds a number."""

    number = 3


def neighbours(state: State, present: int, batch: Any) -> list[int]:
    return [present - 1, present + 1]


def distance(state: State, seed: int) -> float:
    return -abs(state.models["policy"].number - 5.0)


def searched(*steps: Any, rounds: int | Knob = 1) -> State:
    recipe = Recipe((Stage((Collect(OnPolicy(1, prompts=2, max_actions=3)), *steps), rounds=rounds),))
    state = State(TASK, {"policy": Holder(TASK.policy().table.detach())})
    build(recipe, state, {})
    return run(recipe, state)


def test_it_climbs_by_its_score_and_stays_at_the_top():
    seen: list[int] = []
    step = Search("policy", neighbours, distance, part="number")
    state = searched(step, Measure(lambda state: seen.append(state.models["policy"].number) or {}), rounds=4)
    assert seen == [4, 5, 5, 5] and state.models["policy"].version == 2 and state.spent["proposals"] == 8


def test_the_present_value_stays_in_a_tie_and_candidates_share_a_seed():
    seeds: list[int] = []
    state = searched(Search("policy", neighbours, lambda state, seed: seeds.append(seed) or 0.0, part="number"))
    assert state.models["policy"].number == 3 and state.models["policy"].version == 0 and len(set(seeds)) == 1 and len(seeds) == 3


def test_without_a_score_the_last_candidate_is_taken_and_none_changes_nothing():
    assert searched(Search("policy", neighbours, part="number")).models["policy"].number == 4
    state = searched(Search("policy", lambda *_: [], part="number"))
    assert state.models["policy"].number == 3 and state.models["policy"].version == 0


def test_names_are_checked_before_anything_runs():
    class Needs:
        needs = ("value",)

        def __call__(self, *_: Any) -> list[int]:
            return []

    for step, why in (
        (Search("critic", neighbours), "does not have"),
        (Search("policy", neighbours, source="old"), "no step before it fills"),
        (Search("policy", Needs()), "value"),
    ):
        with pytest.raises(QuatrainError, match=why):
            searched(step)


def test_a_policy_with_a_library_is_frozen():
    from quatrain.environments.tool_choice import ToolChoice

    made = WithLibrary(size=3)({"policy": ToolChoice().network()}, {})
    assert made.library.size == 3 and not any(weight.requires_grad for weight in made.module.parameters())
    assert isinstance(made.table, torch.Tensor)
