"""Items of both kinds, and their verifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from quatrain.errors import QuatrainError
from quatrain.protocols import Item
from quatrain.seeds import mix
from quatrain.tasks.letters import SPLITS, split_of
from quatrain.tasks.letters.kind import below
from quatrain.tasks.shapes.priors import Primed, prime
from quatrain.tasks.shapes.questions import ask
from quatrain.tasks.shapes.scenes import Scene, caption, draw, image, likeness, read

SIDES = ("understanding", "generation")


def understanding(id: int, scene: Scene, random: Random) -> Item:
    """An image and a question about it; the answer is a word or two."""
    question = ask(scene, random)
    data = {"kind": SIDES[0], "level": len(scene), "scene": scene}
    return Item(id, image(scene) + question.text, question.answer, question.answer, data=data)


def primed(id: int, found: Primed) -> Item:
    """A question that its words may answer; ``depends`` of its data says whether they do not."""
    data = {"kind": SIDES[0], "level": len(found.scene), "scene": found.scene, "depends": found.depends}
    return Item(id, image(found.scene) + found.question.text, found.question.answer, found.question.answer, data=data)


def generation(id: int, scene: Scene) -> Item:
    """A caption; the answer is an image."""
    data = {"kind": SIDES[1], "level": len(scene), "scene": scene}
    return Item(id, f"draw {caption(scene)}:", image(scene), image(scene), data=data)


class Verifier:
    """1.0 for the right answer, else 0.0; of a drawing the share of shapes that are as asked (``likeness``), 0.0 where it is no image."""

    def score(self, completions: Sequence[str], items: Sequence[Item]) -> list[float]:
        return [self(completion, item) for completion, item in zip(completions, items, strict=True)]

    def __call__(self, completion: str, item: Item) -> float:
        if item.data["kind"] == SIDES[0]:
            return float(completion.strip() == item.answer)
        drawn = read(completion.strip())
        return 0.0 if drawn is None else likeness(drawn, item.data["scene"])


@dataclass(frozen=True)
class Problems(Sequence[Item]):
    """A split's problems, made when asked for; half of them of each side, unless one is named.

    sides    which of ``understanding`` and ``generation``, in turns.
    objects  (fewest, most) shapes in a scene, within 1 and 6.
    prior    above 0: the share of questions whose answer is the usual one, up to 1 (see ``priors``); there are only questions then.

    Which split a scene belongs to is decided by a hash of it: none that is held out is ever in training, on either side.
    """

    split: str
    sides: tuple[str, ...] = SIDES
    objects: tuple[int, int] = (1, 3)
    size: int = 8192
    seed: int = 0
    prior: float = 0.0

    def __post_init__(self) -> None:
        if self.split not in SPLITS or not self.sides or set(self.sides) - set(SIDES):
            raise QuatrainError("no such problems of shapes", given=f"{self.split}, {self.sides}", expected=f"{SPLITS}, {SIDES}")
        if not 1 <= self.objects[0] <= self.objects[1] <= 6 or self.size < 1:
            raise QuatrainError("a scene has 1 to 6 shapes", given=f"objects={self.objects}, size={self.size}", expected="objects=2-4")
        if not 0 <= self.prior <= 1 or (self.prior and SIDES[1] in self.sides):
            raise QuatrainError("a prior is a share of questions", given=f"prior={self.prior}, {self.sides}", expected="0 to 1, no drawing")

    def __len__(self) -> int:
        return self.size

    def scene(self, number: int) -> Scene:
        """The scene of that number, in this split."""
        random = Random(mix(self.seed, SPLITS.index(self.split), number))
        count = self.objects[0] + below(random, self.objects[1] - self.objects[0] + 1)
        scene = draw(random, count)
        while split_of(image(scene)) != self.split:
            scene = draw(random, count)
        return scene

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.size:
            raise IndexError(index)
        if self.prior:
            return primed(index, self.primed(index))
        if self.sides[index % len(self.sides)] == SIDES[1]:
            return generation(index, self.scene(index))
        return understanding(index, self.scene(index), Random(mix(self.seed, 7, index)))

    def primed(self, index: int) -> Primed:
        """The scene and the question of that number where words may answer. How many shapes there are does not depend on ``depends``."""
        random = Random(mix(self.seed, 8, SPLITS.index(self.split), index))
        depends, count = random.random() >= self.prior, self.objects[0] + below(random, self.objects[1] - self.objects[0] + 1)
        found = prime(draw(random, count), random, depends)
        while found is None or split_of(image(found.scene)) != self.split:
            found = prime(draw(random, count), random, depends)
        return found
