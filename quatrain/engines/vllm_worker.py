"""What vLLM's worker gains: it takes weights, and says what it holds. Runs where the engine's model is.

Named to vLLM as ``worker_extension_cls``; vLLM mixes the class into its Worker (0.8 to 0.33) and calls the methods
through ``LLM.collective_rpc``. Nothing but torch is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Sums = dict[str, tuple[tuple[int, ...], str, float, float]]  # name → (shape, dtype, Σw, Σw²), the sums in fp64


class WeightReceiver:
    """Methods of the worker; the prefix keeps them apart from vLLM's own."""

    model_runner: Any

    @torch.no_grad()
    def quatrain_receive(self, weights: Iterable[tuple[str, Tensor]]) -> list[str]:
        """Load weights under their Hugging Face names; returns the engine's parameters that got nothing (none if vLLM does not say)."""
        model = self.model_runner.model
        loaded = model.load_weights(weights)
        return [] if loaded is None else sorted({name for name, _ in model.named_parameters()} - set(loaded))

    @torch.no_grad()
    def quatrain_sums(self) -> Sums:
        """Shape, dtype, sum and sum of squares of every parameter, under vLLM's names (query, key, value are one; gate, up too)."""
        return {name: sums(tensor) for name, tensor in self.model_runner.model.named_parameters()}


def sums(tensor: Tensor) -> tuple[tuple[int, ...], str, float, float]:
    """(shape, dtype, Σw, Σw²), summed in fp64 without a copy in fp64.

    >>> sums(torch.tensor([3.0, 4.0]))
    ((2,), 'float32', 7.0, 25.0)
    """
    square = torch.linalg.vector_norm(tensor, dtype=torch.float64).item() ** 2
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.sum(dtype=torch.float64).item(), square
