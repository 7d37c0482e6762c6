"""Rewards that are noise, fail, take their time or cannot tell right from wrong."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

import torch

from quatrain.batch import Batch
from quatrain.environments.gymnasium import GymTask
from quatrain.protocols import Item
from tests.experiments.doctor.ward.planting import Plant, both, bugs, keys
from tests.experiments.doctor.ward.setups import Contains, Setup, control


def reward(one: Callable[[str, Item], float]) -> Plant:
    def plant(setup: Setup) -> None:
        judge = Contains()
        judge.one = one
        setup.task.reward = judge

    return plant


def slow(text: str, item: Item) -> float:
    time.sleep(0.03)
    return float(item.answer in text)


def broken(text: str, item: Item) -> float:
    return float(text.split("=")[1])


class NoisyReturns(GymTask):
    def rollout(self, *given: Any) -> Batch:
        batch = super().rollout(*given)
        return batch.with_rows(reward=batch["reward"] + torch.tensor([random.random() for _ in range(len(batch))]))


def noisy_environment(setup: Setup) -> None:
    setup.task.__class__ = NoisyReturns


REWARD = bugs(
    "the reward",
    {
        "random": (reward(lambda text, item: random.random()), "reward is repeatable"),
        "NaN": (reward(lambda text, item: math.nan), "reward answers"),
        "raises": (reward(broken), "reward answers"),
        "slow": (both(keys(deadline=0.02), reward(slow)), "reward is in time"),
        "constant": (reward(lambda text, item: 0.5), "reward tells apart"),
        "out of scale": (reward(lambda text, item: 100.0 * (item.answer in text)), "reward has the usual scale"),
        "rewards empty answers": (reward(lambda text, item: float(len(text) < 20)), "nothing is not rewarded"),
        "does not know its reference": (reward(lambda text, item: float(f"<{item.answer}>" in text)), "reward tells apart"),
        "half marks for the reference": (reward(lambda text, item: 0.5 * (item.answer in text)), "references are solved"),
        "nothing is ever solved": (reward(lambda text, item: float(text in (item.answer, item.solution))), "groups have a signal"),
        "an environment's reward is random": (noisy_environment, "reward is repeatable", control),
    },
)
