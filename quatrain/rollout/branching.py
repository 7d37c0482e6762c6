"""How rollouts branch: paths advance segment by segment, and between two segments a budget of leaves is shared out among them.

Plain book-keeping without a policy; ``trees`` samples the segments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from quatrain.errors import QuatrainError
from quatrain.knobs import Knob


@dataclass(frozen=True)
class Branching:
    """How a prompt's group of w leaves grows as a tree: Li et al. 2025 (TreePO), §2.3.

    segment      actions between two branchings.
    children     N of each path, as long as the paths that are under way and the leaves that have ended are at most w; what ended leaves
                 free is shared out to the others, N for each.
    first        at most so many of the root, drawn for each prompt from ``children`` up; 0: ``children``.
    shares       who gets more of the budget: all paths alike (``even``), or likelier (``likely``) or less likely ones (``unlikely``), by
                 softmax of ±log π(path)/temperature.
    restart      where leaves that are still wanted begin when every path has ended: at a random boundary of segments of an ended one
                 (``boundary``), or at the prompt (``root``).

    → independent sampling, draw for draw, for ``children`` ≥ w and one segment.
    """

    segment: int | Knob = 8
    children: int | Knob = 2
    first: int | Knob = 0
    shares: Literal["even", "likely", "unlikely"] = "even"
    temperature: float = 1.0
    restart: Literal["boundary", "root"] = "boundary"

    def __post_init__(self) -> None:
        numbers = [(name, getattr(self, name)) for name in ("segment", "children")]
        if wrong := [(name, value) for name, value in numbers if isinstance(value, int) and value < 1]:
            raise QuatrainError("a tree has segments of an action or more and children", given=f"{wrong[0][0]}={wrong[0][1]}")
        if self.shares not in ("even", "likely", "unlikely") or self.restart not in ("boundary", "root") or not self.temperature > 0:
            raise QuatrainError(
                "unknown way to branch", given=self, expected="shares even|likely|unlikely, restart boundary|root, temperature above 0"
            )

    def width(self, random: Random) -> int:
        """How many children a root has."""
        return random.randint(self.children, max(self.children, self.first))

    def divided(self, logp: Sequence[float], total: int) -> list[int]:
        """How many children each path has, of ``total``; ``logp`` are the paths' log-probabilities."""
        sign = {"even": 0.0, "likely": 1.0, "unlikely": -1.0}[self.shares]
        most = max(sign * value for value in logp)
        weights = [math.exp((sign * value - most) / self.temperature) for value in logp]
        return allot([weight / sum(weights) for weight in weights], total)


def allot(weights: Sequence[float], total: int) -> list[int]:
    """``total`` things shared out by weights that add up to 1: one for each, the rest by largest remainders, the first ones at a tie.

    >>> allot([0.5, 0.25, 0.25], 7), allot([0.5, 0.5], 1)
    ([3, 2, 2], [1, 1])
    """
    rest = max(0, total - len(weights))
    exact = [weight * rest for weight in weights]
    given = [math.floor(value + 1e-9) for value in exact]
    order = sorted(range(len(weights)), key=lambda i: (round(given[i] - exact[i], 9), i))
    for i in order[: rest - sum(given)]:
        given[i] += 1
    return [1 + value for value in given]


@dataclass
class Path:
    """A leaf in the making: it goes its own way after ``begin`` actions of its parent. ``share``: its part of the prompt's probability.

    ``length`` actions with log-probability ``logp``, from the prompt on; it may have ``ended``.
    """

    slot: int
    parent: int
    begin: int
    share: float
    length: int = 0
    logp: float = 0.0
    ended: bool = False


class Tree:
    """The paths of one prompt, of at most ``width`` leaves in ``slots``; ``going`` are those under way."""

    def __init__(self, plan: Branching, slots: Sequence[int], seed: int):
        self.plan, self.slots, self.random = plan, slots, Random(seed)
        self.paths = [Path(slots[0], slots[0], 0, 1.0)]
        self._divide(self.paths, self.plan.width(self.random))

    @property
    def going(self) -> list[Path]:
        return [path for path in self.paths if not path.ended]

    def branch(self, freed: int) -> None:
        """Between two segments; ``freed`` leaves have ended in the last one."""
        if going := self.going:
            self._divide(going, self.plan.children * (len(going) + freed))
        else:
            self._restart()

    def _divide(self, going: list[Path], total: int) -> None:
        total = min(total, len(going) + len(self.slots) - len(self.paths))
        for path, count in zip(going[:], self.plan.divided([path.logp for path in going], total), strict=True):
            path.share /= count
            self._fork(path, count - 1, path.length, path.share)

    def _restart(self) -> None:
        """Nothing is known of these leaves that the ended ones have not decided: they stand for no probability."""
        ended, length = self.paths[:], self.plan.segment
        self.random.shuffle(ended)
        for path in ended:
            begin = length * self.random.randint(0, (path.length - 1) // length) if self.plan.restart == "boundary" else 0
            self._fork(path, self.plan.children if self.plan.restart == "boundary" else len(self.slots), begin, 0.0)

    def _fork(self, path: Path, count: int, begin: int, share: float) -> None:
        for slot in self.slots[len(self.paths) : len(self.paths) + count]:
            self.paths.append(Path(slot, path.slot, begin, share, begin))
