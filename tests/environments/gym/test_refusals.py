"""What a Gymnasium task refuses, in sentences."""

from __future__ import annotations

import pytest

from quatrain.environments.gymnasium import GymTask
from quatrain.errors import QuatrainError
from quatrain.protocols import Sampling
from tests.environments.gym.examples import CARTPOLE, COUNTER


def test_an_unknown_environment_is_named_with_its_nearest():
    with pytest.raises(QuatrainError, match="did you mean 'CartPole-v1'"):
        GymTask("CartPol-v1")


@pytest.mark.parametrize(
    ("env_id", "message"),
    [("QuatrainPictures-v0", "observations"), ("QuatrainNamed-v0", "observations"), ("QuatrainSeveral-v0", "actions")],
)
def test_spaces_without_a_small_network_are_refused(env_id: str, message: str):
    with pytest.raises(QuatrainError, match=message):
        GymTask(env_id)


def test_an_option_that_the_environment_has_not_is_refused():
    with pytest.raises(QuatrainError, match="gravity"):
        GymTask(COUNTER, options={"gravity": 1.0})
    with pytest.raises(QuatrainError, match="module_that_is_not_there"):
        GymTask("module_that_is_not_there:X-v0")


@pytest.mark.parametrize(
    ("sampling", "message"), [(Sampling(top_p=0.9), "whole"), (Sampling(top_k=1), "whole"), (Sampling(temperature=0), "greedy")]
)
def test_samplings_that_a_network_has_not_are_refused(sampling: Sampling, message: str):
    task = GymTask(CARTPOLE, copies=2)
    for collect in (
        lambda: task.rollout(task.network(), task.starts("train", 0, 1), 1, sampling, 0),
        lambda: task.steps(task.network(), 4, sampling, 0),
    ):
        with pytest.raises(QuatrainError, match=message):
            collect()


def test_a_policy_of_another_environment_is_refused():
    with pytest.raises(QuatrainError, match="does not fit"):
        GymTask(CARTPOLE).evaluate(GymTask(COUNTER).network(), count=1)
    with pytest.raises(QuatrainError, match="temperature 1"):
        GymTask(COUNTER, copies=1).steps(GymTask(COUNTER).network(), 3, Sampling(temperature=0.5), 0)


def test_demonstrations_are_refused():
    task = GymTask(CARTPOLE)
    with pytest.raises(QuatrainError, match="no demonstrations"):
        task.demonstrations(task.network(), [0])


@pytest.mark.parametrize(("copies", "seed"), [(0, 0), (1, -1), (1, 2**29)])
def test_impossible_tasks_are_refused(copies: int, seed: int):
    with pytest.raises(QuatrainError, match="at least one copy"):
        GymTask(CARTPOLE, copies=copies, seed=seed)
