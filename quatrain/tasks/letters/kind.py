"""What a kind of problem is, and helpers that several kinds share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

Problem = tuple[Any, ...]


def exact(completion: str, problem: Problem, answer: str) -> bool:
    """The completion is the answer, up to surrounding white space."""
    return completion.strip() == answer


def after(mark: str) -> Callable[[str, Problem, str], bool]:
    """A check of what follows the last ``mark``; a completion without it is judged whole."""

    def check(completion: str, problem: Problem, answer: str) -> bool:
        return completion.rsplit(mark, 1)[-1].strip() == answer

    return check


@dataclass(frozen=True)
class Kind:
    """One kind of problem, as pure functions. ``level`` is 1 (easy) to 5 (hard).

    draw(random, level)           a problem, as a tuple of numbers and texts
    key(problem)                  its content, equal for problems that one must not see in training to be tested on the other
    prompt(problem)               the text shown
    steps(problem)                the worked solution's steps; the last one is the answer. Joined by ``mark`` they are the solution
    slip(problem, random, rate)   a pupil's solution: every chance of this kind's typical mistake is taken with probability ``rate``
    check(completion, problem, answer)   the exact verifier of a whole completion
    """

    name: str
    draw: Callable[[Random, int], Problem]
    key: Callable[[Problem], str]
    prompt: Callable[[Problem], str]
    steps: Callable[[Problem], tuple[str, ...]]
    slip: Callable[[Problem, Random, float], str]
    check: Callable[[str, Problem, str], bool] = exact
    mark: str = ""


def below(random: Random, n: int) -> int:
    """A uniform integer in [0, n); several times faster than randrange."""
    return int(random.random() * n)


def word(random: Random, length: int, alphabet: str) -> str:
    """A text of that length, uniform over the alphabet."""
    size = len(alphabet)
    return "".join([alphabet[int(random.random() * size)] for _ in range(length)])
