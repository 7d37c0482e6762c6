"""Preference pairs out of outcomes."""

from __future__ import annotations

import torch
from torch import Tensor


def ranked_pairs(value: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """([P] better, [P] worse): within each group (index [N]) the best with the worst, the second best with the second worst …

    Every element is in one pair at most, and a pair's values differ: a group of one value has none, one of n solved and m unsolved
    trajectories has min(n, m). Equal values are taken in order; NaN takes no part.

    >>> better, worse = ranked_pairs(torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0]), torch.tensor([0, 0, 0, 0, 7]))
    >>> better.tolist(), worse.tolist()
    ([1, 2], [3, 0])
    """
    known = (~value.isnan()).nonzero()[:, 0]
    order = known[torch.argsort(value[known], descending=True, stable=True)]
    order = order[torch.argsort(index[order], stable=True)]
    _, size = torch.unique_consecutive(index[order], return_counts=True)
    size = size.repeat_interleave(size)
    place = torch.arange(len(order), device=value.device)
    first = torch.searchsorted(index[order], index[order])
    mirror = 2 * first + size - 1 - place
    chosen = (place < mirror) & (value[order] > value[order[mirror]])
    return order[chosen], order[mirror[chosen]]
