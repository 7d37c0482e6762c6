"""The task of shapes: items of two kinds, and splits of pairs of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from quatrain.protocols import Item
from quatrain.tasks.shapes.pairs import KINDS, Pairs
from quatrain.tasks.shapes.priors import reliance
from quatrain.tasks.shapes.problems import SIDES, Problems, Verifier
from quatrain.tasks.shapes.scenes import CODEBOOK
from quatrain.tasks.text import TextTask


class ShapesTask(TextTask):
    """A ``TextTask`` whose splits ``aligned``, ``retrieved``, ``related`` and ``random`` have pairs for starts: see ``pairs.Pairs``.

    sides    what the split ``train`` holds; held out are both.    objects  (fewest, most) shapes in a scene.
    train, heldout   how many items.    pool, threshold  of the retrieved pairs.
    prior    above 0: questions alone, this share of which their own words answer (see ``priors``), held out too; there are no pairs.
    """

    embedded = "tiny:shapes"  # the model that reads it, for model=auto and model=tiny
    observed = CODEBOOK  # the pieces of a prompt that are an image, that of nothing first

    def __init__(
        self,
        name: str = "shapes",
        sides: tuple[str, ...] = SIDES,
        objects: tuple[int, int] = (1, 3),
        train: int = 8192,
        heldout: int = 512,
        pool: int = 256,
        threshold: float = 0.6,
        seed: int = 0,
        prior: float = 0.0,
    ):
        measured = SIDES[:1] if prior else SIDES
        learnt = Problems("train", measured if sides == SIDES else sides, objects, train, seed, prior)
        super().__init__(name, learnt, Problems("heldout", measured, objects, heldout, seed, prior), Verifier(), seed)
        if prior:
            self.embedded = "tiny:shapes-prior"
        else:
            self.splits |= {kind: Pairs(learnt, kind, pool, threshold) for kind in KINDS}

    def measures(self, items: Sequence[Item], completions: Sequence[str], rewards: Tensor) -> dict[str, float]:
        """As a TextTask; ``joint``, the mean of the accuracies of the two kinds (of the one that was drawn); and ``priors.reliance``."""
        found = super().measures(items, completions, rewards)
        both = [found[name] for name in (f"accuracy/{side}" for side in SIDES) if name in found]
        return {**found, "joint": sum(both) / len(both)} | reliance(items, completions, rewards)
