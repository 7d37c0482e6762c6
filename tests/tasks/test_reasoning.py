"""reasoning-gym: addressable items, and the data set's own verdict."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest

from quatrain.errors import QuatrainError
from quatrain.tasks import files
from quatrain.tasks.reasoning import ReasoningItems, ReasoningReward

pytest.importorskip("reasoning_gym")
SMALL = (("min_numbers", 3), ("max_numbers", 3))


def test_items_depend_on_seed_and_index_alone() -> None:
    first, again = ReasoningItems("countdown", SMALL, seed=3, size=50), ReasoningItems("countdown", SMALL, seed=3, size=10)
    assert [first[index] for index in (7, 2, 5)] == [again[index] for index in (7, 2, 5)]
    assert first[2].id == 2 and len(first) == 50
    with pytest.raises(IndexError):
        first[50]


@pytest.mark.parametrize("name", ["countdown", "list_functions", "pool_matrix"])  # the last two draw from global generators
def test_global_generators_neither_matter_nor_move(name: str) -> None:
    random.seed(1), np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    item = ReasoningItems(name, seed=4, size=9)[8]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    random.seed(2), np.random.seed(2)
    other = ReasoningItems(name, seed=4, size=9)[8]
    assert (item.prompt, item.answer) == (other.prompt, other.answer)


def test_seeds_and_splits_share_no_stretch_of_items() -> None:
    prompts = [
        {ReasoningItems("countdown", (), seed=seed, size=15, heldout=heldout)[index].prompt for index in range(15)}
        for seed in (0, 1)
        for heldout in (False, True)
    ]
    assert len(set.union(*prompts)) == sum(map(len, prompts)) == 60


def test_the_reward_is_the_data_sets_own() -> None:
    items = ReasoningItems("countdown", SMALL, size=5)
    reward = pickle.loads(pickle.dumps(ReasoningReward(items)))
    item = items[0]
    assert reward(f" {item.answer}\n", item) == 1
    assert reward(f"<think>{item.answer}0</think><answer>{item.answer}</answer>", item) == 1
    assert reward("1+1", item) < 0.1 and reward("", item) < 0.1
    assert not reward.trusted and reward.name == "reasoning_gym:countdown"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"name": "countdwn"}, ["no data set 'countdwn'", "did you mean 'countdown'?"]),
        ({"name": "countdown", "options": (("min_number", 3),)}, ["no option 'min_number'", "did you mean 'min_numbers'?"]),
        ({"name": "countdown", "options": (("min_numbers", 9), ("max_numbers", 3))}, ["refuses its options", "min_numbers=9"]),
        ({"name": "countdown", "size": 0}, ["size=0"]),
        ({"name": "countdown", "seed": -1}, ["seed=-1"]),
    ],
)
def test_mistakes_are_one_message(arguments: dict, parts: list[str]) -> None:
    with pytest.raises(QuatrainError) as error:
        ReasoningItems(**arguments)
    for part in parts:
        assert part in str(error.value)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(QuatrainError, match=r"pip install quatrain\[reasoning\]"):
        ReasoningItems("countdown")
