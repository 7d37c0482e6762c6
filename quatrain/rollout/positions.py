"""Where in a document to stop reading and go on alone: one place in each of several equal chunks.

Axes: N documents, T tokens, R places.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Choice = Literal["entropy", "uniform", "argmax", "argmin"]


def pooled(value: Tensor, mask: Tensor, width: int) -> Tensor:
    """[N, T] mean of ``value`` over the ``width`` tokens (an even width: one more) around each, as far as ``mask`` goes; 0 outside it.

    >>> pooled(torch.tensor([[1.0, 2.0, 6.0]]), torch.ones(1, 3, dtype=torch.bool), 3).tolist()
    [[1.5, 3.0, 4.0]]
    """
    half = width // 2
    inside = torch.nn.functional.pad(torch.where(mask, value, 0.0), (half, half)).unfold(1, 2 * half + 1, 1).sum(-1)
    count = torch.nn.functional.pad(mask.to(value.dtype), (half, half)).unfold(1, 2 * half + 1, 1).sum(-1)
    return torch.where(mask, inside / count.clamp(min=1), 0.0)


def chosen(score: Tensor, lengths: Tensor, chunks: int, room: int, choice: Choice, temperature: float, seed: int) -> tuple[Tensor, Tensor]:
    """(row [R], place [R]): one place in every chunk of every document, row by row.

    score    [N, T]; the first ``lengths`` [N] are tokens. ``room``: how many have to follow from a place on, its own included.
    choice   ``entropy``: drawn from softmax(score/temperature) within the chunk; ``uniform``: evenly; ``argmax``, ``argmin`` of the score.

    The places with room are cut into ``chunks`` equal ones (up to one place); a document with fewer places has as many chunks.
    """
    places = (lengths - room + 1).clamp(min=0)[:, None]
    at = torch.arange(score.shape[1], device=score.device)
    chunk = torch.where(at < places, at * chunks // places.clamp(min=1), -1)
    key = score.double() / temperature
    if choice == "uniform":
        key = torch.zeros_like(key)
    if choice in ("entropy", "uniform"):  # the largest of log p + Gumbel noise is a draw from p
        draw = torch.rand(score.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        key = key - (-draw.clamp(min=1e-300).log()).log().to(key.device)
    key = -key if choice == "argmin" else key
    best = torch.stack([key.masked_fill(chunk != number, -torch.inf).argmax(1) for number in range(chunks)], 1)
    there = (chunk[:, None, :] == torch.arange(chunks, device=score.device)[None, :, None]).any(2)
    row = torch.arange(len(score), device=score.device)[:, None].expand_as(best)
    return row[there], best[there]
