"""Matrix products on a CPU through the library that is fast there.

Torch multiplies fp32 matrices with MKL, which on AMD processors leaves AVX-512 unused. oneDNN, which torch ships as
well, does not: 200 GFLOP/s instead of 90 on one core of a Zen 5. The choice depends on the machine and the type alone,
never on a timing, so that a resumed run computes the same bits. ``QUATRAIN_PRODUCTS=mkl`` or ``onednn`` overrides it.
"""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LONGEST = 2048  # terms of a sum: a longer one is cut, which keeps it in cache and its rounding small
SMALLEST = 2**20  # multiplications: below, the call costs more than is saved


@cache
def is_onednn() -> bool:
    """Whether fp32 products on this machine's CPU go to oneDNN."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    chosen = os.environ.get("QUATRAIN_PRODUCTS", "")
    if chosen:
        return chosen == "onednn"
    info = Path("/proc/cpuinfo")
    return info.exists() and "AuthenticAMD" in info.read_text()[:2000] and torch.backends.cpu.get_cpu_capability() == "AVX512"


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ bᵀ [m, n] for a [m, k] and b [n, k], without gradient; either may be a transposed view.

    >>> product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])).tolist()
    [[11.0, 17.0]]
    """
    if not _takes(a, b):
        return a @ b.T
    if a.shape[1] <= LONGEST:
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    total = None
    for x, y in zip(a.split(LONGEST, 1), b.split(LONGEST, 1), strict=True):
        part = torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")
        total = part if total is None else total.add_(part)
    return total


class Matrix:
    """A matrix [n, k] that inputs are multiplied with again and again, without gradient: what decides how is found out once."""

    def __init__(self, weight: Tensor):
        self.weight, self.turned = weight, weight.T
        suits = weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.numel() > 0 and is_onednn()
        self.least = SMALLEST / weight.numel() if suits else math.inf  # rows

    def __call__(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        """x @ weightᵀ (+ more) [m, n] for x [m, k] and more [m, n].

        >>> Matrix(torch.tensor([[3.0, 4.0], [5.0, 6.0]]))(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.0]])).tolist()
        [[11.5, 17.0]]
        """
        if len(x) >= self.least:
            y = product(x, self.weight)
            return y if more is None else y.add_(more)
        return torch.mm(x, self.turned) if more is None else torch.addmm(more, x, self.turned)


def _takes(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype == torch.float32
        and a.device.type == "cpu"
        and a.numel() * b.shape[0] >= SMALLEST
        and b.numel() > 0
        and is_onednn()
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = product(x, weight)
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        return (
            product(grad, weight.T) if by_x else None,
            product(grad.T, x.T) if by_weight else None,
            grad.sum(0) if by_bias else None,
        )


class FastLinear(TorchFunctionMode):
    """Within it ``F.linear`` of fp32 CPU tensors uses ``product``, forward and backward; first derivatives only.

    What torch.compile traces keeps its own products: its compiler cannot lower oneDNN's with weights that change.
    """

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is F.linear and not kwargs and len(args) >= 2 and not torch.compiler.is_compiling():
            x, weight = args[0], args[1]
            flat = x.reshape(-1, x.shape[-1])
            if type(x) is Tensor and _takes(flat, weight):
                return _Linear.apply(flat, weight, args[2] if len(args) > 2 else None).view(*x.shape[:-1], -1)
        return function(*args, **(kwargs or {}))
