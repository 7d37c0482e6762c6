"""The grid laboratory: its rules, its expert, its splits, and a beginner who is taught on the spot."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from quatrain.environments.grid import Grid, Room, moved, solve
from quatrain.errors import QuatrainError
from quatrain.protocols import Sampling
from quatrain.tasks.apprentice import Apprenticeship, Reader, apprentice, watched
from quatrain.tasks.embedded import tokenizer
from quatrain.tasks.turns import TurnTask

ROOM = Room(3, frozenset({(1, 1)}), agent=(0, 0), door=(2, 0), key=(0, 2))


def test_moves_by_hand():
    """Walls and borders stop; the door is shut without the key; the key is taken where it lies; states are values."""
    assert moved(ROOM, "l") is None and moved(ROOM, "u") is None and moved(ROOM, "?") is None
    beside = moved(ROOM, "r")
    assert beside.agent == (1, 0) and moved(beside, "d") is None and moved(beside, "r") is None
    below = moved(moved(ROOM, "d"), "d")
    assert below.agent == (0, 2) and below.key is None and ROOM.key == (0, 2) and ROOM.agent == (0, 0)
    assert solve(ROOM) in ("ddrruu", "dduurr") and solve(below) in ("rruu", "uurr")
    assert solve(replace(ROOM, walls=frozenset({(0, 1), (1, 0)}))) == ""


def test_an_episode_by_hand():
    grid, state, seen = Grid(size=3), ROOM, []
    for move in "dd" + solve(moved(moved(ROOM, "d"), "d")):
        step = grid.step(state, move)
        seen.append(step.observation)
        state = step.state
    assert seen[:2] == ["d2,-1 k0,1:", "d2,-2 k:"] and step.ended and step.reward == 1.0
    stopped = grid.step(ROOM, "l")
    assert stopped.observation == "xd2,0 k0,2:" and stopped.state == ROOM and not stopped.ended and not stopped.reward
    assert Grid(size=3, hide=1).step(ROOM, "d").observation == "d? k0,1:"


@pytest.mark.parametrize("grid", [Grid(), Grid(size=5, walls=6), Grid(size=2), Grid(size=9, walls=20, hide=2)])
def test_the_expert_solves_every_room_within_its_limits(grid: Grid):
    for split in ("train", "heldout"):
        for index in range(20):
            start = grid.start(split, index)
            assert start == grid.start(split, index) and solve(start.state) == start.answer
            state, turns = start.state, 0
            while True:
                step = grid.step(state, grid.expert(state))
                state, turns = step.state, turns + 1
                if step.ended:
                    break
            assert turns == len(start.answer) and (grid.walls or turns <= grid.limits.turns)


def test_no_room_is_in_both_splits_and_every_character_can_be_read():
    grid = Grid(size=3)
    train, held = ({grid.start(split, index).state for index in range(60)} for split in ("train", "heldout"))
    assert not train & held and len(held) > 10
    assert Grid(size=3, seed=1).start("train", 0) != grid.start("train", 0)
    tokens = tokenizer()
    for index in range(50):
        assert tokens.unk_token_id not in tokens(Grid(size=9, hide=3).start("train", index).prompt + "xlrud").input_ids


def test_a_slip_runs_to_the_closed_door():
    assert {Grid().slip(ROOM, Random(seed)) for seed in range(20)} == {"r"}
    assert {Grid().slip(replace(ROOM, key=None), Random(seed)) for seed in range(50)} == set("lrud")


def test_impossible_grids_are_refused():
    for wrong in ({"size": 1}, {"size": 10}, {"walls": 14}, {"slack": 0}, {"hide": -1}):
        with pytest.raises(QuatrainError, match="this grid cannot be"):
            Grid(**wrong)


def test_what_a_beginner_watches():
    """Half of the turns are mistakes; answers are no labels."""
    tokens = tokenizer()
    reader = Reader(tokens.get_vocab(), tokens.eos_token_id)
    lesson = Apprenticeship(("grid?size=2", "grid?size=3"), examples=64, proper=0.0, slip=0.5)
    rows = list(watched(lesson, reader))
    assert rows == list(watched(lesson, reader)) and len(rows) == 64
    for row, labels in rows:
        assert len(row) == len(labels) and all(label in (-100, token) for token, label in zip(row, labels, strict=True))
        assert set(tokens.decode([label for label in labels if label >= 0])) <= set("lrud")
    proper = list(watched(replace(lesson, proper=1.0), reader))
    assert proper != rows and sum(len(row) for row, _ in proper) < sum(len(row) for row, _ in rows)


@pytest.mark.slow
def test_a_beginner_is_taught_on_the_spot(tmp_path, monkeypatch):
    monkeypatch.setenv("QUATRAIN_CACHE", str(tmp_path))
    made = apprentice(Grid(size=2), show=False, watched=("grid?size=2",), examples=64, hidden=32, inner=32, layers=1, heads=2, groups=1)
    assert made.defaults["max_actions"] == 8
    found = TurnTask("grid", Grid(size=2)).evaluate(made, 16, 0, Sampling(max_actions=8), 0)
    assert 0 <= found["success"] <= 1 and any(name.startswith("success/level") for name in found)
