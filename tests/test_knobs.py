"""Knobs: found anywhere in a recipe, resolved before use, refused when unknown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from quatrain.errors import QuatrainError
from quatrain.knobs import Knob, check_known, defaults, knobs_in, resolve
from quatrain.parts.bounds import Clip
from quatrain.rollout.sources import Demonstrations, OnPolicy, Pairs
from quatrain.training.registry import entries, make
from quatrain.training.steps import Collect, Fit


@dataclass(frozen=True)
class Holder:
    inner: Any
    other: Any = None
    derived: int = field(default=0, init=False)


def test_knobs_are_found_and_resolved_in_dataclasses_mappings_and_sequences():
    tree = {"a": Holder((Knob("x", 1.5), [Knob("y", 2)])), "b": 3}
    assert [knob.name for knob in knobs_in(tree)] == ["x", "y"]
    assert resolve(tree, {"x": 0.5}) == {"a": Holder((0.5, [2])), "b": 3}
    assert defaults(tree) == {"x": 1.5, "y": 2}


def test_what_has_no_knob_is_shared():
    tree = Holder({"a": (1, 2)}, Holder("text"))
    assert resolve(tree, {"x": 1}) is tree
    mixed = Holder(tree, Knob("x", 1))
    assert resolve(mixed, {}).inner is tree


def test_a_class_is_not_a_tree():
    assert resolve(Holder, {}) is Holder and list(knobs_in(Holder)) == []


def test_counts_stay_whole_numbers():
    assert isinstance(resolve(Knob("prompts", 32), {"prompts": 16.0}), int)
    assert resolve(Knob("weight", 0), {"weight": 0.5}) == 0.5
    assert isinstance(resolve(Knob("lr", 1e-3), {"lr": 1.0}), float)


def test_a_resolved_value_is_checked_like_any_other():
    clip = Clip(Knob("low", 0.2), 0.2)
    assert resolve(clip, {"low": 0.1}).low == 0.1
    with pytest.raises(QuatrainError, match="Clip's low"):
        resolve(clip, {"low": -1.0})


def test_one_name_has_one_default():
    with pytest.raises(QuatrainError, match="two defaults"):
        defaults((Knob("x", 1), Knob("x", 2)))
    assert defaults((Knob("x", 1), Knob("x", 1))) == {"x": 1}


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(QuatrainError, match="did you mean 'temperature'"):
        check_known({"temprature": 1.0}, {"temperature": 1.0, "lr": 0.1})
    check_known({"lr": 1}, {"lr": 0.1})


@pytest.mark.parametrize("name", [entry.name for entry in entries()])
def test_every_recipe_has_consistent_knobs(name: str):
    """Every one counts its rounds; one that samples says from how many starts, one that fits how much it holds and how far it goes."""
    recipe = make(name)
    knobs, steps = set(recipe.knobs()), [step for stage in recipe.stages for step in stage.all_steps()]
    assert "steps" in knobs
    if any(isinstance(step, Collect) and isinstance(step.source, (OnPolicy, Demonstrations, Pairs)) for step in steps):
        assert "prompts" in knobs
    if any(isinstance(step, Fit) for step in steps):
        assert "micro_tokens" in knobs and any(knob == "lr" or knob.endswith("_lr") for knob in knobs)
