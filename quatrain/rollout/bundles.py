"""Bundles: samples of different questions judged together, so that a binary reward becomes a score with a distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.parts.risk import bundle_score


@dataclass(frozen=True)
class Bundles:
    """``bundle`` and ``block`` [N]: every sample is in one bundle, of one sample from each of ``size`` questions.

    size       questions per block, in the order of the batch. The last block has what remains.
    pairing    ``random``: the samples of each question are dealt out by a permutation of their own; ``order``: k-th with k-th.
    low, high  the quantiles in use: what share of the bundles' scores is below them is measured as ``bundle/below_low`` and
               ``bundle/below_high``, for a tracker.

    Of G samples per question, each block has G bundles.
    """

    size: int | Knob = 5
    pairing: Literal["random", "order"] = "random"
    low: float | Knob = 0.0
    high: float | Knob = 0.0
    needs = ("prompt", "reward")
    provides = ("bundle", "block")

    def __post_init__(self) -> None:
        if isinstance(self.size, int) and self.size < 1:
            raise QuatrainError("a bundle has a question or more", given=self.size)
        if self.pairing not in ("random", "order"):
            raise QuatrainError("unknown pairing of samples into bundles", given=self.pairing, expected="random or order")

    def __call__(self, state: Any, batch: Batch) -> Batch:
        seed = state.draw("bundles") if self.pairing == "random" else None
        bundle, block = bundled(batch, self.size, seed)
        batch = batch.with_rows(bundle=bundle, block=block)
        first = _first_rows(bundle)
        score = bundle_score(batch, self.size)[first]
        below = {
            f"bundle/below_{name}": ((score < limit).double().sum(), len(first)) for name, limit in (("low", self.low), ("high", self.high))
        }
        state.measure({**below, "bundle/score": (score.sum(), len(first))})
        return batch


def bundled(batch: Batch, size: int, seed: int | None) -> tuple[Tensor, Tensor]:
    """(bundle [N], block [N]) numbers from 0. ``seed``: of the permutations; None: the k-th samples of all questions go together."""
    index, count = group_index(batch)
    index = index.cpu()
    generator = torch.Generator().manual_seed(seed) if seed is not None else None
    groups = sorted(((index == group).nonzero()[:, 0] for group in range(count)), key=lambda rows: int(rows[0]))
    most = max(map(len, groups))
    bundle, block = torch.empty(len(batch), dtype=torch.long), torch.empty(len(batch), dtype=torch.long)
    for number, rows in enumerate(groups):
        order = torch.arange(len(rows)) if generator is None else torch.randperm(len(rows), generator=generator)
        block[rows] = number // size
        bundle[rows] = number // size * most + order
    return bundle.to(batch.device), block.to(batch.device)


def _first_rows(bundle: Tensor) -> Tensor:
    """One row of each bundle."""
    values, index = torch.unique(bundle, return_inverse=True)
    place = torch.arange(len(bundle), device=bundle.device)
    return torch.full((len(values),), len(bundle), device=bundle.device).scatter_reduce(0, index, place, "amin")
