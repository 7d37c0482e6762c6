"""What an evaluation of letters:modes says of the modes, by hand."""

from __future__ import annotations

import pytest
import torch

from quatrain.protocols import Item, Sampling
from quatrain.tasks.letters import letters
from quatrain.tasks.letters.mode_use import ModesTask


class Policy:
    def encode_completion(self, text):
        return [ord(text), 0]


class Rigged(ModesTask):
    """The outcomes of samples with a given opening are known."""

    rewards: dict[str, list[list[float]]]

    def outcomes(self, policy, items, samples, sampling, seed):
        (token,) = policy.tokens
        found = torch.tensor(self.rewards[chr(token)])
        assert found.shape == (len(items), samples)
        return found


def use(completions: list[str], worked: list[list[float]], direct: list[list[float]], levels: tuple[int, ...] = (1, 4)) -> dict[str, float]:
    items = [Item(id=level, prompt="", data={"level": level}) for level in levels]
    task = Rigged("modes", items, items, None)
    task.rewards = {"#": worked, ">": direct}
    return task.measures_of_samples(Policy(), items, completions, Sampling(), 0)


def test_two_problems_two_samples_each():
    """Worked out the easy problem is solved once of twice, the hard one twice; at once, the easy one twice and the hard one never."""
    found = use([">2", "#2>2", "#2>9>8>8", "8"], [[1.0, 0.0], [1.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]])
    assert found == {
        "worked": 0.5,
        "worked/easy": 0.5,
        "worked/hard": 0.5,
        "worked/gap": 0.0,
        "characters/easy": 3.0,
        "characters/hard": 4.5,
        "hybrid accuracy": 0.5,  # the first and the third; an answer without an opening is in neither mode
    }


@pytest.mark.parametrize(("worked", "pays"), [(1.0, "#"), (0.71, "#"), (0.7, ">"), (0.5, ">"), (0.0, ">")])
def test_working_it_out_has_to_be_worth_more_than_the_margin(worked: float, pays: str):
    found = use(["#2>2", ">2"], [[worked], [worked]], [[0.5], [0.5]])
    assert found["hybrid accuracy"] == 0.5 and found["worked/gap"] == -1.0
    assert use([pays, pays], [[worked], [worked]], [[0.5], [0.5]])["hybrid accuracy"] == 1.0


def test_what_is_not_there_is_not_reported():
    assert use([">8"], [[1.0]], [[0.0]], levels=(5,)) == {
        "worked": 0.0,
        "worked/hard": 0.0,
        "characters/hard": 2.0,
        "hybrid accuracy": 0.0,
    }


def test_it_is_the_task_of_that_kind_alone():
    assert isinstance(letters("letters:modes?levels=2"), ModesTask)
    assert not any(isinstance(letters(spec), ModesTask) for spec in ("letters", "letters:chain", "letters:modes+chain"))
