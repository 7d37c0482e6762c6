"""Pairs of an understanding and a generation item: of one instance, of the nearest other instance, or of any two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any, Literal, NamedTuple

from quatrain.errors import QuatrainError
from quatrain.protocols import Item
from quatrain.seeds import mix
from quatrain.tasks.shapes.problems import Problems, generation, understanding
from quatrain.tasks.shapes.scenes import COLOURS, FORMS, SIDE, Scene

TRIES = 1000  # scenes drawn before one is near enough to another
Kind = Literal["aligned", "retrieved", "related", "random"]
KINDS: tuple[Kind, ...] = ("aligned", "retrieved", "related", "random")


class Pair(NamedTuple):
    """Both sides; each item's data has the number of the pair, the side (0 understanding, 1 generation) and the similarity."""

    understanding: Item
    generation: Item


def features(scenes: Sequence[Scene]) -> Any:
    """[M, 35] unit vectors: sums over a scene's shapes of which colour, form, colour with form and cell they have."""
    import numpy as np

    found = np.zeros((len(scenes), len(COLOURS) + len(FORMS) + len(COLOURS) * len(FORMS) + SIDE * SIDE))
    for row, scene in enumerate(scenes):
        for colour, form, cell in scene:
            both = len(COLOURS) + len(FORMS) + colour * len(FORMS) + form
            for place in (colour, len(COLOURS) + form, both, len(COLOURS) + len(FORMS) + len(COLOURS) * len(FORMS) + cell):
                found[row, place] += 1
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@dataclass(frozen=True)
class Pairs(Sequence[Pair]):
    """Pairs of a split's problems, made when asked for.

    kind       ``aligned``: caption and question of one instance, similarity 1. ``retrieved``: a caption and a question about that image
               of a pool whose features have the greatest cosine, which is the similarity; scenes below ``threshold`` are passed
               over. ``related``: of either kind in turns. ``random``: a caption and a question about any image of the pool,
               similarity 1: nothing is known of it.
    pool       how many images may be asked about where the pair is not aligned.

    Raises QuatrainError where no image of the pool is near enough to any of a thousand scenes.
    """

    problems: Problems
    kind: Kind = "related"
    pool: int = 256
    threshold: float = 0.6

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not 0 <= self.threshold <= 1 or self.pool < 1:
            raise QuatrainError(
                "pairs of shapes are made otherwise",
                given=f"{self.kind}, pool {self.pool}, threshold {self.threshold}",
                expected=f"{', '.join(KINDS)}; a pool of 1 or more; a cosine from 0 to 1",
            )  #

    def __len__(self) -> int:
        return self.problems.size

    @cached_property
    def asked(self) -> list[Scene]:
        """The pool's scenes."""
        return [self.problems.scene(mix(1, place)) for place in range(self.pool)]

    @cached_property
    def index(self) -> Any:
        """[pool, 35]."""
        return features(self.asked)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        kind = ("aligned", "retrieved")[index % 2] if self.kind == "related" else self.kind
        random = Random(mix(self.problems.seed, 6, index))
        drawn = self.problems.scene(mix(2, index))
        seen, similarity = drawn, 1.0
        if kind == "random":
            seen = self.asked[int(random.random() * self.pool)]
        if kind == "retrieved":
            drawn, seen, similarity = self.nearest(index)
        sides = understanding(2 * index, seen, random), generation(2 * index + 1, drawn)
        marked = ({"pair": index, "side": side, "similarity": similarity} for side in (0, 1))
        return Pair(*(replace(item, data={**item.data, **mark}) for item, mark in zip(sides, marked, strict=True)))

    def nearest(self, index: int) -> tuple[Scene, Scene, float]:
        """(a scene, the pool's nearest, their cosine, at least ``threshold``)."""
        for attempt in range(TRIES):
            drawn = self.problems.scene(mix(2, index, attempt))
            cosine = (self.index @ features([drawn])[0]).tolist()
            best = max(range(self.pool), key=cosine.__getitem__)
            if cosine[best] >= self.threshold:
                return drawn, self.asked[best], min(cosine[best], 1.0)
        raise QuatrainError("no image of the pool is near enough to any scene", given=f"threshold={self.threshold}", fix="lower threshold=")
