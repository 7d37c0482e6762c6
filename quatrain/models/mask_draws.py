"""Mask draws: which positions of a canvas are hidden, as data. The evidence bound of a masked-diffusion model is a mean over them.

    log p(y|x) ≥ E_k E_{|S|=k} [L/k · Σ_{i∈S} log p(y_i | y without S, x)],   k uniform on 1 … L, S a random set of k of the L positions

One draw (k, S) of that expectation is a row of booleans. Ou et al. 2024, eq. 3.3; Nie et al. 2025 (LLaDA), eqs. 3 and 14.
Axes: N rows, C positions of the canvas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quatrain.models.draws import uniforms

APART = 1 << 40  # where the counters of mask draws begin: a row's seed also draws its tokens


def hide(eligible: Tensor, level: Tensor, order: Tensor) -> Tensor:
    """[N, C] bool: k = 1 + ⌊L·level⌋ (at most L) of the L eligible positions of each row, those that come first in the order.

    eligible [N, C] bool; level [N] in [0, 1]; order [N, C], a uniform number per position. A row without eligible positions hides none.

    >>> hide(torch.ones(2, 3, dtype=torch.bool), torch.tensor([0.0, 0.7]), torch.tensor([[0.2, 0.1, 0.3], [0.3, 0.2, 0.1]])).int().tolist()
    [[0, 1, 0], [1, 1, 1]]
    """
    count = eligible.sum(1)
    number = torch.minimum(1 + (count * level).floor().long(), count)
    place = order.masked_fill(~eligible, float("inf")).argsort(1).argsort(1)
    return eligible & (place < number[:, None])


def weight(hidden: Tensor, eligible: Tensor) -> Tensor:
    """[N] L/k, what the log-probabilities of the k hidden positions are multiplied by; 0 where nothing is hidden."""
    count = hidden.sum(1)
    return torch.where(count > 0, eligible.sum(1).double() / count.clamp(min=1), 0.0)


def stratified(eligible: Tensor, count: int, seeds: Tensor, whole: bool = False) -> Tensor:
    """[N, count, C] bool: ``count`` draws of every row, one from each of as many equal intervals of the level.

    seeds  [N] int64: the same seed gives the same draws, whatever else is in the batch.
    whole  everything is hidden in every draw: the fully masked answer of one-step estimates.

    Their mean is unbiased for any count, and varies less than that of independent draws.
    """
    n, width = eligible.shape
    steps = APART + torch.arange(count * (width + 1), device=eligible.device)
    uniform = uniforms(seeds.to(eligible.device), steps).view(n, count, width + 1)
    level = (torch.arange(count, device=eligible.device) + uniform[..., 0]) / count
    level = torch.ones_like(level) if whole else level
    repeated = eligible.repeat_interleave(count, 0)
    return hide(repeated, level.flatten(), uniform[..., 1:].flatten(0, 1)).view(n, count, width)
