"""K small networks of one shape, evaluated together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """K relu networks with the same sizes and different weights: [K, M, inputs] or [M, inputs] → [K, M, outputs].

    Weights and biases are uniform in ±1/√inputs, torch's own start for linear layers.

    >>> Ensemble(2, (3, 8, 1), torch.Generator().manual_seed(0))(torch.zeros(5, 3)).shape
    torch.Size([2, 5, 1])
    """

    def __init__(self, members: int, sizes: Sequence[int], generator: torch.Generator):
        super().__init__()

        def start(*shape: int, inputs: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(members, *shape, generator=generator) - 1) / math.sqrt(inputs))

        self.weights = nn.ParameterList(start(inputs, outputs, inputs=inputs) for inputs, outputs in pairwise(sizes))
        self.biases = nn.ParameterList(start(1, outputs, inputs=inputs) for inputs, outputs in pairwise(sizes))

    def forward(self, x: Tensor, members: int | None = None, frozen: bool = False) -> Tensor:
        """members  only the first so many. frozen  the weights are constants: the gradient is with respect to x alone."""
        count = len(self.weights[0]) if members is None else members
        x = x.expand(count, *x.shape) if x.ndim == 2 else x
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            weight, bias = (value[:count].detach() if frozen else value[:count] for value in (weight, bias))
            x = torch.baddbmm(bias, x.relu() if layer else x, weight)
        return x
