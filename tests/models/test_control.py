"""Policies for control by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from quatrain.environments.plane.task import PlaneTask
from quatrain.errors import QuatrainError
from quatrain.models.control import control_policy
from quatrain.models.flow import FlowPolicy
from quatrain.models.networks import NetworkPolicy

TASK = PlaneTask("reach")


def test_new_ones():
    assert type(control_policy("auto", TASK)) is type(control_policy("mlp", TASK)) is NetworkPolicy
    made = control_policy("flow?tolerance=0.3&steps=7&path=cosine&chain=3&noise=1", TASK, seed=4)
    assert isinstance(made, FlowPolicy) and made.seed == 4
    assert (made.tolerance, made.steps, made.path, made.chain, made.noise) == (0.3, 7, "cosine", 3, 1.0)


@pytest.mark.parametrize("name", ["mlp", "flow?chain=2"])
def test_saved_ones_of_either_kind(name: str, tmp_path: Path):
    made = control_policy(name, TASK, seed=3)
    made.save(tmp_path)
    back = control_policy(str(tmp_path), TASK)
    assert type(back) is type(made)
    assert all(value.equal(back.module.state_dict()[key]) for key, value in made.module.state_dict().items())


@pytest.mark.parametrize(
    ("name", "told"), [("flow?step=3", "did you mean 'steps'"), ("flow?steps=x", "is a number"), ("tiny", "does not fit the task")]
)
def test_refusals(name: str, told: str):
    with pytest.raises(QuatrainError, match=told):
        control_policy(name, TASK)


def test_a_folder_of_something_else(tmp_path: Path):
    with pytest.raises(QuatrainError, match="no network policy"):
        control_policy(str(tmp_path), TASK)
