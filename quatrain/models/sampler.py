"""Completions of prompts, from beginning to end: a ``Decoding`` that nobody interrupts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from quatrain.models.backbone import Backbone
from quatrain.models.decoding import Decoding, Samples, Stops
from quatrain.protocols import Sampling

__all__ = ["Samples", "Stops", "sample"]


def sample(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    group: int,
    sampling: Sampling,
    seeds: Tensor,
    stops: Stops,
    pad: int = 0,
    max_rows: int | None = None,
    refill: float = 0.0,
    version: int = 0,
) -> Samples:
    """``group`` completions of each prompt, rows ordered prompt by prompt, so N = len(prompts)·group.

    seeds     [N] int64, one per row.
    pad       any token id: what padding inside the batch is filled with (always masked).
    max_rows  rows sampled at the same time; others follow, shortest prompts first. None for all at once.
    refill, version  as for ``Decoding``.

    The model should be in evaluation mode. Raises QuatrainError for an empty prompt, an impossible sampling, or
    prompts that leave no room for ``max_actions`` within the model's positions.
    """
    decoding = Decoding(backbone, sampling, stops, pad, max_rows, refill, version)
    owner = [i for i in range(len(prompts)) for _ in range(group)]
    order = list(range(len(owner)))
    if max_rows:
        order.sort(key=lambda row: (len(prompts[owner[row]]), owner[row]))
    ids = decoding.admit([prompts[owner[row]] for row in order], seeds[order])
    while decoding.live:
        decoding.advance(sampling.max_actions)
    of = dict(zip(order, ids, strict=True))
    return decoding.take([of[row] for row in range(len(owner))])
