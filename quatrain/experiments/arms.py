"""What is compared, in words: ``grpo``, ``gspo:minibatches=8``, ``grpo:group=16,lr=3e-4``; and which seeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quatrain.errors import QuatrainError

if TYPE_CHECKING:
    from quatrain.training.recipe import Recipe


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    label   how tables and curves call it.
    recipe  a registered name, a Recipe, or a named function of a module that returns one.
    keys    its own options, knobs and settings, in which it differs from the other arms.
    """

    label: str
    recipe: str | Recipe | Callable[[], Recipe]
    keys: Mapping[str, Any] = field(default_factory=dict)


def parse_arm(text: str) -> Arm:
    """``name[:key=value[,key=value …]]``.

    >>> parse_arm("gspo:minibatches=8,lr=1e-3").keys
    {'minibatches': 8, 'lr': 0.001}
    """
    from quatrain.training.settings import split_pairs

    name, _, options = text.partition(":")
    pairs = [part for part in options.split(",") if part]
    if not name or any("=" not in pair for pair in pairs):
        raise QuatrainError("an arm is a recipe with its own keys", given=text, expected="NAME or NAME:key=value,key=value")
    return Arm(text, name, split_pairs(pairs))


def as_arms(arms: Sequence[str | Arm | Recipe] | Mapping[str, Any]) -> list[Arm]:
    """Arms from texts, Arms, Recipes, or a mapping of label → text, Recipe or function that returns one.

    Raises QuatrainError for none, or for two of one label.
    """
    found = [_named(label, arm) for label, arm in arms.items()] if isinstance(arms, Mapping) else [_as_arm(arm) for arm in arms]
    labels = [arm.label for arm in found]
    if not found or len(set(labels)) < len(labels):
        raise QuatrainError(
            "a comparison has arms with different labels",
            given=", ".join(labels) or "none",
            fix="with the same seeds two equal arms are the same run; name what differs: gspo:minibatches=8",
        )
    return found


def parse_seeds(value: int | str | Sequence[int]) -> list[int]:
    """5 → 0 … 4; "10-19" → 10 … 19; "0,3,7" and lists as they are.

    >>> parse_seeds(3), parse_seeds("10-12"), parse_seeds("0,3")
    ([0, 1, 2], [10, 11, 12], [0, 3])
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return list(range(value))
    if isinstance(value, str) and re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", value):
        ends = [part.partition("-") for part in value.split(",")]
        found = [seed for low, _, high in ends for seed in range(int(low), int(high or low) + 1)]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        found = [int(seed) for seed in value]
    else:
        found = []
    if not found or len(set(found)) < len(found):
        raise QuatrainError("seeds are a count, or different numbers", given=value, expected="seeds=5, seeds=10-19 or seeds=0,3,7")
    return found


def _as_arm(arm: Any) -> Arm:
    if isinstance(arm, Arm):
        return arm
    return parse_arm(arm) if isinstance(arm, str) else Arm(getattr(arm, "name", "") or "recipe", arm)


def _named(label: str, arm: Any) -> Arm:
    known = _as_arm(arm) if isinstance(arm, (str, Arm)) else Arm(label, arm)
    return Arm(label, known.recipe, known.keys)
