"""Kinds of tasks by name: what stands before the colon of ``task=``. A kind is a function; its decorator says how it is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quatrain.environments.loading import LABORATORIES, load_environment
from quatrain.protocols import Task
from quatrain.rewards.base import Reward
from quatrain.rewards.workers import RewardWorkers
from quatrain.tasks.reasoning import ReasoningReward, parse_options, reasoning_splits


@dataclass(frozen=True)
class Asked:
    """A task as it is asked for.

    spec    what stands after ``task=``: KIND:name?query.
    seed    of the run: a kind's own, unless the query has one.
    limit   at most this many recorded transitions.
    judged  a kind's own reward → the same in the run's worker processes.
    """

    spec: str
    seed: int
    limit: int | None
    judged: Callable[[Reward], RewardWorkers]

    @property
    def name(self) -> str:
        return self.spec.partition("?")[0].partition(":")[2]

    @property
    def options(self) -> dict[str, Any]:
        head, _, query = self.spec.partition("?")
        return parse_options(head, query)

    @property
    def seeded(self) -> dict[str, int]:
        """The run's seed, where the text has none."""
        return {} if "seed=" in self.spec else {"seed": self.seed}


@dataclass(frozen=True)
class Kind:
    """form: how it is written; load: what makes it; rewards: does it take a ``reward=``, in place of its own?"""

    form: str
    load: Callable[[Asked], Task]
    rewards: bool


KINDS: dict[str, Kind] = {}


def kind(*forms: str, rewards: bool = False) -> Callable[[Callable[[Asked], Task]], Callable[[Asked], Task]]:
    """Register a function under the words that its forms begin with."""

    def register(load: Callable[[Asked], Task]) -> Callable[[Asked], Task]:
        for form in forms:
            KINDS[re.split(r"[:\[]", form)[0]] = Kind(form, load, rewards)
        return load

    return register


@kind("letters[:KIND]", rewards=True)
def letters(asked: Asked) -> Task:
    from quatrain.tasks.letters import letters

    return letters(asked.spec, **asked.seeded)


@kind("shapes", rewards=True)
def shapes(asked: Asked) -> Task:
    from quatrain.tasks.shapes import shapes

    return shapes(asked.spec, **asked.seeded)


@kind("reasoning_gym:NAME", rewards=True)
def reasoning(asked: Asked) -> Task:
    from quatrain.tasks.text import TextTask

    train, heldout = reasoning_splits(asked.name, {**asked.seeded, **asked.options})
    return TextTask(asked.spec, train, heldout, asked.judged(ReasoningReward(train)), seed=train.seed)


@kind("plane:WORLD")
def plane(asked: Asked) -> Task:
    from quatrain.environments.plane.task import plane

    return plane(asked.spec, asked.seed)


@kind("gym:ENVIRONMENT")
def gym(asked: Asked) -> Task:
    from quatrain.environments.gymnasium import gym_task

    return gym_task(asked.spec, asked.seed, asked.limit)


@kind(*LABORATORIES)
def turned(asked: Asked) -> Task:
    from quatrain.tasks.turns import TurnTask

    return TurnTask(asked.spec, load_environment(asked.spec, asked.seed), seed=asked.seed)


USERS = Kind("file.py:Environment", turned, rewards=False)  # a path of the user's: no word to register


@kind("tables:NAME")
def tables(asked: Asked) -> Task:
    from quatrain.environments.tables.task import table_task

    return table_task(asked.name or "rtb", asked.options, asked.seed)


@kind("tool-choice")
def tool_choice(asked: Asked) -> Task:
    from quatrain.environments.tool_choice import tool_choice

    return tool_choice(asked.options, asked.seed)
