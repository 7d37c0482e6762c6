"""Transitions, draws from a store, and a task's recordings."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from quatrain.batch import Batch
from quatrain.environments.gymnasium import gym_task
from quatrain.errors import QuatrainError
from quatrain.models.networks import Box, Discrete
from quatrain.rollout.replayed import Draw, Recordings, Transitions, transitions
from quatrain.stores.replay import ReplayStore
from quatrain.training.state import State


def episodes() -> Batch:
    mask = torch.tensor([[True, True, True], [True, False, True]])  # the second row resets in between
    seen = torch.arange(8.0).view(2, 4, 1)
    columns = {"rewards": torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 5.0]]), "terminated": torch.tensor([[0, 0, 1], [1, 0, 0]]).bool()}
    actions = torch.tensor([[0.1, 0.2, 9.0], [-9.0, 0.0, 0.5]])[..., None]
    return Batch(mask, actions, columns, contexts={"policy": {"observations": seen}})


def test_every_action_is_a_row_with_what_was_seen_before_and_after():
    found = transitions(episodes())
    assert found.shape == (5, 1) and found.mask.all()
    assert found.contexts["policy"]["observations"][..., 0].tolist() == [[0, 1], [1, 2], [2, 3], [4, 5], [6, 7]]
    assert found["rewards"][:, 0].tolist() == [1, 2, 3, 4, 5] and found["terminated"][:, 0].tolist() == [False, False, True, True, False]


def test_actions_are_kept_as_they_were_executed():
    def edited(space: object) -> list[float]:
        return Transitions()(SimpleNamespace(models={"policy": SimpleNamespace(action_space=space)}), episodes()).actions.flatten().tolist()

    assert edited(Box((-1.0,), (2.0,))) == pytest.approx([0.1, 0.2, 2.0, -1.0, 0.5])
    assert edited(Discrete(2)) == pytest.approx([0.1, 0.2, 9.0, -9.0, 0.5])


def test_draws_are_addressed_and_new_every_time():
    def state() -> State:
        made = State(SimpleNamespace(), {}, seed=3, kept={"replay": ReplayStore(10)})
        made.kept["replay"].add(transitions(episodes()))
        return made

    one, other = state(), state()
    first, second = Draw(4)(one), Draw(4)(one)
    assert torch.equal(first["draw"], Draw(4)(other)["draw"]) and not torch.equal(first["draw"], second["draw"])
    assert len(first["draw"].unique()) == 4 and set(first["rewards"].flatten().tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0}


def test_recordings_are_asked_for_in_words():
    with pytest.raises(QuatrainError, match=r"(?s)learns from recordings.*data="):
        Recordings().provides(gym_task("gym:Pendulum-v1"))
    task = gym_task("gym:Pendulum-v1?data=random&size=50")
    assert Recordings().provides(task) == {"rewards", "terminated", "truncated"}
    state = State(task, {"policy": task.network()})
    assert int(Recordings()(state).mask.sum()) == state.spent["recorded"] == 50
