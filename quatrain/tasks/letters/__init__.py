"""The *letters* laboratory: arithmetic and symbolic problems with short answers, graded in difficulty.

>>> problems = Problems("train", kinds=("chain",), levels=(1, 1))
>>> item = problems[0]
>>> item.prompt.count(">"), len(item.steps), item.answer == item.steps[-1], check(item.solution, item)
(1, 1, True, 1.0)

Which split a problem belongs to is decided by a hash of its content, so that no held-out problem is ever in training,
whatever the seed. ``Problems(split, …)[index]`` is a pure function of its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from urllib.parse import parse_qsl

from quatrain.errors import QuatrainError, nearest
from quatrain.protocols import Item
from quatrain.seeds import mix, text_hash
from quatrain.tasks.letters.addition import add, scratch
from quatrain.tasks.letters.chain import chain, long, worked
from quatrain.tasks.letters.countdown import countdown
from quatrain.tasks.letters.kind import Kind, below
from quatrain.tasks.letters.modes import modes
from quatrain.tasks.letters.recall import needle, recall
from quatrain.tasks.letters.words import count, reverse, shift, sort

_ALL = (add, scratch, chain, worked, long, modes, countdown, sort, reverse, count, shift, recall, needle)
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}
MIXED = ("chain", "chain", "sort", "sort", "reverse", "reverse", "countdown", "shift")  # weighted so that a base has room
SPLITS = ("train", "heldout")
HELDOUT_ONE_IN = 5


def split_of(key: str) -> str:
    """The split that a problem's content belongs to: one in five is held out."""
    return "heldout" if text_hash(key) % HELDOUT_ONE_IN == 0 else "train"


def check(completion: str, item: Item) -> float:
    """1.0 if the completion solves the item, else 0.0: the exact verifier of its kind."""
    return float(KINDS[item.data["kind"]].check(completion, item.data["problem"], item.answer))


class Verifier:
    """The laboratory's reward: ``check`` of each completion."""

    def __call__(self, completion: str, item: Item) -> float:
        return check(completion, item)

    def score(self, completions: Sequence[str], items: Sequence[Item]) -> list[float]:
        return [check(completion, item) for completion, item in zip(completions, items, strict=True)]


@dataclass(frozen=True)
class Problems(Sequence[Item]):
    """A split's problems, made when asked for. Uniform over the levels and over the kinds named (one named twice has twice the share).

    levels  (lowest, highest), within 1 and 5.
    size    how many problems the split has.
    """

    split: str
    kinds: tuple[str, ...] = MIXED
    levels: tuple[int, int] = (1, 5)
    size: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise QuatrainError("no such split", given=self.split, expected=" or ".join(SPLITS))
        for name in self.kinds:
            if name not in KINDS:
                raise QuatrainError("letters has no such kind of problem", given=name, fix=nearest(name, KINDS))
        if not self.kinds or not 1 <= self.levels[0] <= self.levels[1] <= 5:
            raise QuatrainError("levels go from 1 (easy) to 5 (hard)", given=self.levels, expected="levels=2-4")
        if self.size < 1:
            raise QuatrainError("a split has at least one problem", given=self.size)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.size:
            raise IndexError(index)
        random = Random(mix(self.seed, SPLITS.index(self.split), index))
        kind = KINDS[self.kinds[below(random, len(self.kinds))]]
        level = self.levels[0] + below(random, self.levels[1] - self.levels[0] + 1)
        problem = kind.draw(random, level)
        while split_of(kind.key(problem)) != self.split:
            problem = kind.draw(random, level)
        steps = kind.steps(problem)
        solution = kind.mark.join(steps)
        return Item(
            id=index,
            prompt=kind.prompt(problem),
            answer=steps[-1],
            solution=solution,
            steps=steps,
            chosen=solution,
            rejected=_wrong(kind, problem, steps[-1], random),
            data={"kind": kind.name, "level": level, "problem": problem},
        )


def _wrong(kind: Kind, problem: tuple, answer: str, random: Random) -> str:
    """The kind's typical mistake; where the problem gives no chance for it, the solution with a wrong last character."""
    wrong = kind.slip(problem, random, 1.0)
    if not kind.check(wrong, problem, answer):
        return wrong
    last = wrong[-1]
    return wrong[:-1] + (chr(ord(last) - 1) if last in "123456789bcdefghijklmnopqrstuvwxyz" else "1" if last == "0" else "b")


def parse(spec: str) -> dict:
    """``letters``, ``letters:chain``, ``letters:chain+add?levels=2-4&train=4096&heldout=256&seed=3`` as arguments of ``letters``.

    >>> parse("letters:chain+add?levels=2-4")
    {'kinds': ('chain', 'add'), 'levels': (2, 4)}
    """
    name, _, query = spec.partition("?")
    family, _, kinds = name.partition(":")
    if family != "letters":
        raise QuatrainError("not a letters task", given=spec, expected="letters, letters:KIND, letters:KIND+KIND?levels=2-4")
    arguments: dict = {"kinds": tuple(kinds.split("+"))} if kinds else {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in ("levels", "train", "heldout", "seed"):
            raise QuatrainError(f"letters has no option {key!r}", given=spec, fix=nearest(key, ("levels", "train", "heldout", "seed")))
        numbers = value.split("-") if key == "levels" else [value]
        if len(numbers) > 2 or not all(number.isdigit() for number in numbers):
            raise QuatrainError(f"option {key!r} of letters is a number", given=f"{key}={value}", expected="levels=2-4, levels=3")
        arguments[key] = (int(numbers[0]), int(numbers[-1])) if key == "levels" else int(value)
    return arguments


def letters(spec: str = "letters", **options):
    """The TextTask of a spec string; keyword options (kinds, levels, train, heldout, seed) override what it says.

    Where all problems are ``modes`` it is a ``ModesTask``, which reports how modes are used.
    """
    from quatrain.tasks.letters.mode_use import ModesTask
    from quatrain.tasks.text import TextTask

    arguments = {"kinds": MIXED, "levels": (1, 5), "train": 8192, "heldout": 512, "seed": 0, **parse(spec), **options}
    shared = {"kinds": tuple(arguments["kinds"]), "levels": tuple(arguments["levels"]), "seed": arguments["seed"]}
    build = ModesTask if set(shared["kinds"]) == {"modes"} else TextTask
    return build(
        spec,
        train=Problems("train", size=arguments["train"], **shared),
        heldout=Problems("heldout", size=arguments["heldout"], **shared),
        reward=Verifier(),
        seed=arguments["seed"],
    )
