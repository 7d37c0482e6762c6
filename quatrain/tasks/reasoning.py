"""reasoning-gym: procedurally generated reasoning problems with their own scorers."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from quatrain.errors import QuatrainError, nearest
from quatrain.protocols import Item
from quatrain.rewards.exact import answer_text
from quatrain.tasks.files import require

SIZE, HELDOUT = 10_000, 200
# An item is made from seed + index, so neighbouring seeds share items. Seeds are a million apart, the held-out half of them further.
_STRIDE, _HELDOUT_SEED, _SEEDS = 1_000_000, 2**31, 2000


@dataclass(frozen=True)
class ReasoningItems(Sequence[Item]):
    """``size`` problems of one reasoning-gym data set, made when asked for: each depends on (seed, index) alone.

    name     reasoning-gym's name ("countdown").
    options  its configuration, as pairs.
    seed     0 to 1999. The held-out split has seeds of its own; in a family with few different problems one may still occur in both.

    Raises QuatrainError: not installed, unknown name or option, a value that the data set refuses.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    seed: int = 0
    size: int = SIZE
    heldout: bool = False
    _made: list[Any] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < _SEEDS or not 0 < self.size <= _STRIDE:
            raise QuatrainError(
                f"reasoning-gym: seed below {_SEEDS}, size from 1 to {_STRIDE}", given=f"seed={self.seed}, size={self.size}"
            )
        self.dataset  # noqa: B018 – refuse a bad name or option now

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": []}

    @property
    def dataset(self) -> Any:
        if not self._made:
            seed = self.seed * _STRIDE + (_HELDOUT_SEED if self.heldout else 0)
            self._made.append(_create(self.name, {**dict(self.options), "seed": seed, "size": self.size}))
        return self._made[0]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.size:
            raise IndexError(index)
        with _private_draws(self.seed * _STRIDE + index):
            entry = self.dataset[index]
        answer = entry["answer"]
        return Item(index, entry["question"], None if answer is None else str(answer), data={"entry": entry})


@dataclass(frozen=True)
class ReasoningReward:
    """The data set's own score, 0 to 1, of the completion (or the text within its <answer> tags).

    Not trusted: some scorers evaluate the expression that the model wrote. reasoning-gym gives a little partial credit (0.01) to
    well-formed wrong answers of some families.
    """

    items: ReasoningItems
    needs: ClassVar[tuple[str, ...]] = ()
    trusted: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"reasoning_gym:{self.items.name}"

    def prepare(self) -> None:
        self.items.dataset  # noqa: B018 – imports and configures it

    def __call__(self, completion: str, item: Item) -> float:
        with _private_draws(0):
            return self.items.dataset.score_answer(answer_text(completion), item.data["entry"])


def reasoning_splits(name: str, options: dict[str, Any]) -> tuple[ReasoningItems, ReasoningItems]:
    """(training, held-out) problems; ``seed``, ``size`` and ``heldout`` (how many) may be among the options of the data set."""
    own = {"seed": 0, "size": SIZE, "heldout": HELDOUT}
    seed, size, heldout = (options.get(key, default) for key, default in own.items())
    if not (isinstance(size, int) and isinstance(heldout, int)):
        given = {"size": size, "heldout": heldout}
        raise QuatrainError("size and heldout of a reasoning-gym task are whole numbers", given=given, fix=f"size={SIZE}&heldout={HELDOUT}")
    pairs = tuple((key, value) for key, value in options.items() if key not in own)
    return ReasoningItems(name, pairs, seed, size), ReasoningItems(name, pairs, seed, heldout, heldout=True)


def parse_options(name: str, query: str) -> dict[str, Any]:
    """``min_numbers=3&operators=['+','-']`` as a configuration: values are Python literals, else text.

    >>> parse_options("countdown", "min_numbers=3&word=two")
    {'min_numbers': 3, 'word': 'two'}
    """
    options: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        key, equals, text = pair.partition("=")
        if not equals:
            raise QuatrainError(f"option {key!r} has no value", given=f"{name}?{query}", expected="key=value&key=value")
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = {"true": True, "false": False}.get(text.lower(), text)
    return options


def _create(name: str, options: dict[str, Any]) -> Any:
    require("reasoning_gym", "reasoning", f"for reasoning_gym:{name}")
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise QuatrainError(f"reasoning-gym has no data set {name!r}", fix=nearest(name, DATASETS))
    known = [option.name for option in fields(DATASETS[name][1])]
    for key in options:
        if key not in known:
            raise QuatrainError(
                f"reasoning_gym:{name} has no option {key!r}", given=options[key], fix=nearest(key, set(known) - {"seed", "size"})
            )
    try:
        return reasoning_gym.create_dataset(name, **options)
    except (AssertionError, ValueError, TypeError) as error:
        raise QuatrainError(
            f"reasoning_gym:{name} refuses its options: {error}",
            given=", ".join(f"{key}={value}" for key, value in options.items() if key not in ("seed", "size")),
        ) from error


@contextmanager
def _private_draws(seed: int) -> Iterator[None]:
    """A few generators draw from the global random state: give them one of their own, and leave the global one as it was."""
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
