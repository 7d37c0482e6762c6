"""Functions of logits that are never held at once: chunk by chunk forward, and again in backward.

Axes: M positions, D features, V vocabulary, S results per position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Measure = Callable[[Tensor, Any], Tensor]  # (logits [m, V], slice or index of the m positions) → results [S, m]


def by_chunks(measure: Measure, hidden: Tensor, head: nn.Module, size: int, plain: bool) -> Tensor:
    """[S, M] results of ``measure`` on ``head(hidden)`` for hidden [M, D], at most ``size`` positions at a time.

    The value and the first derivative are those of ``measure(head(hidden), …)``. With one chunk that is what runs.
    With more, the backward pass makes the logits again, and only for positions whose incoming gradient is not zero;
    a second derivative is then refused. ``plain`` says that the head is a bare ``nn.Linear``: its gradient is then
    accumulated in place, without one [V, D] temporary per chunk.
    """
    if len(hidden) <= size:
        return measure(head(hidden), slice(0, len(hidden)))
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    return _Chunked.apply(measure, head, size, plain, hidden, *parameters)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, measure: Measure, head: nn.Module, size: int, plain: bool, hidden: Tensor, *parameters: Tensor) -> Tensor:
        ctx.measure, ctx.head, ctx.size, ctx.plain = measure, head, size, plain
        ctx.save_for_backward(hidden, *parameters)
        pieces = [slice(start, start + size) for start in range(0, len(hidden), size)]
        return torch.cat([measure(head(hidden[piece]), piece) for piece in pieces], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *parameters = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden)
        # Low precision would lose small chunks in a running sum.
        sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
        for index in grad.ne(0).any(0).nonzero()[:, 0].split(ctx.size):
            step = _through_linear if ctx.plain else _through_module
            grad_hidden[index] = step(ctx, hidden[index], index, grad[:, index], parameters, sums)
        results = [total.to(p.dtype) for total, p in zip(sums, parameters, strict=True)]
        return None, None, None, None, grad_hidden, *results


def _through_linear(ctx: Any, hidden: Tensor, index: Tensor, grad: Tensor, parameters: list[Tensor], sums: list[Tensor]) -> Tensor:
    """Gradient [m, D] of the hidden states; those of weight and bias are added to ``sums``."""
    head: nn.Linear = ctx.head
    logits = nn.functional.linear(hidden, head.weight, head.bias).requires_grad_()
    with torch.enable_grad():
        results = ctx.measure(logits, index)
    (slope,) = torch.autograd.grad(results, logits, grad)
    for parameter, total in zip(parameters, sums, strict=True):
        if parameter.ndim == 1:
            total += slope.sum(0)
        elif total.dtype == slope.dtype:
            total.addmm_(slope.T, hidden)
        else:
            total += slope.T @ hidden
    return slope @ head.weight


def _through_module(ctx: Any, hidden: Tensor, index: Tensor, grad: Tensor, parameters: list[Tensor], sums: list[Tensor]) -> Tensor:
    """The same for a head of any kind (adapters, hooks), through autograd."""
    hidden = hidden.detach().requires_grad_()
    with torch.enable_grad():
        results = ctx.measure(ctx.head(hidden), index)
    slope, *rest = torch.autograd.grad(results, [hidden, *parameters], grad)
    for total, part in zip(sums, rest, strict=True):
        total += part
    return slope
