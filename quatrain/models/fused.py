"""Log-probability and entropy under a linear head, from hidden states, in blocks of the vocabulary.

A block of logits [m, v] lives in cache and is gone before the next. What a softmax of a large vocabulary usually costs
beside its matrix products, passes over [M, V], is avoided where algebra allows it:

    shift      z − z_a (the taken action's logit, known before any block) instead of z − max z. The running sums are
               rescaled where a block exceeds it by more than a factor of 2^SLACK, which is seldom.
    base 2     2^(z·log₂e): the factor is put on the hidden states, with the temperature, and exp2 costs a quarter of exp.
    gradient   of the hidden states c (w_a − Σ π_v w_v): Σ π w is made in forward, before c is known; of the weights
               Σ_i c_i (e_a − π_i) h_iᵀ: c is put on h_i, not on π_i. Logits are made again in backward, for rows with a
               gradient only, and not at all where the head is frozen. An entropy that is only measured costs nothing there.

That leaves four matrix products with a trained head: logits, Σ π w, logits again, weights.
Axes: M positions, D features, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quatrain.models.products import product

ROWS = 1024  # positions of a block, at most
BLOCK = 2**19  # logits of a block, by measurement: with their rows and words they fit the cache of one core
SLACK = 4.0  # log₂ of the largest exponential before sums are rescaled; the smaller, the less is cancelled in the entropy
LOG2_E, LN_2 = 1 / math.log(2), math.log(2)


def log_prob_and_entropy(
    hidden: Tensor, weight: Tensor, action: Tensor, scale: Tensor | None = None, elements: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """([M] log π(a), [M] entropy in nats) for π = softmax(scale · hidden @ weightᵀ), with first derivatives.

    hidden [M, D] and weight [V, D] of one type, fp32 or fp64; action [M]; scale [M] above 0, None for 1;
    ``elements`` logits are held at once.

    >>> h, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [math.log(3.0), 1.0]])
    >>> log_prob, entropy = log_prob_and_entropy(h, w, torch.tensor([1]))
    >>> round(log_prob.exp().item(), 6), round(entropy.item(), 6)
    (0.75, 0.562335)
    """
    factor = hidden.new_full((len(hidden),), LOG2_E) if scale is None else scale.to(hidden.dtype) * LOG2_E
    return _Fused.apply(hidden, weight, action.long(), factor, elements)


class _Fused(torch.autograd.Function):
    """Logits are in base 2: z = x · w with x = h · scale · log₂e."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, action: Tensor, factor: Tensor, elements: int) -> tuple[Tensor, Tensor]:
        x = hidden * factor[:, None]
        chosen = torch.linalg.vecdot(x, weight[action])
        normaliser, entropy, mean = _expectations(x, weight, chosen, elements, ctx.needs_input_grad[0])
        if any(ctx.needs_input_grad):
            ctx.elements = elements
            ctx.save_for_backward(x, weight, action, factor, normaliser, entropy, mean)
        return LN_2 * (chosen - normaliser), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_log_prob: Tensor, by_entropy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, action, factor, normaliser, entropy, mean = ctx.saved_tensors
        active = ((by_log_prob != 0) | (by_entropy != 0)).nonzero()[:, 0]
        if len(active) < len(x):
            x, action, normaliser, entropy, by_log_prob, by_entropy = (
                value[active] for value in (x, action, normaliser, entropy, by_log_prob, by_entropy)
            )
        y = LN_2 * x
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        slope = None  # [m, D] Σ_v ∂/∂z_v · w_v, but for the part of the taken action
        if bool(by_entropy.any()):
            slope = _through_both(x, weight, normaliser, entropy, by_log_prob, by_entropy, y, grad_weight, ctx.elements)
        elif grad_weight is not None:
            _through_log_prob(x, weight, normaliser, -by_log_prob[:, None] * y, grad_weight, ctx.elements)
        if grad_weight is not None:
            grad_weight.index_add_(0, action, by_log_prob[:, None] * y)
        grad_hidden = None
        if ctx.needs_input_grad[0]:
            slope = -by_log_prob[:, None] * mean[active] if slope is None else slope
            slope.addcmul_(by_log_prob[:, None], weight[action]).mul_(LN_2 * factor[active, None])
            grad_hidden = slope.new_zeros(len(factor), slope.shape[1]).index_copy_(0, active, slope)
        return grad_hidden, grad_weight, None, None, None


def _expectations(x: Tensor, weight: Tensor, shift: Tensor, elements: int, differentiate: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """([M] log₂ Σ 2^z, [M] entropy in nats, [M, D] Σ π w or None), starting from sums of 2^(z − shift)."""
    kind = torch.float64 if x.device.type == "cpu" else x.dtype
    shift, total, weighted = shift.to(kind, copy=True), *(torch.zeros(len(x), dtype=kind, device=x.device) for _ in range(2))
    mean = torch.zeros_like(x) if differentiate else None
    for rows, words in _blocks(x, weight, elements):
        z = product(x[rows], weight[words])
        largest = z.amax(1)
        if bool((largest > shift[rows] + SLACK).any()):
            new = torch.maximum(shift[rows], largest)
            fall = shift[rows] - new
            weighted[rows] = (weighted[rows] + fall * total[rows]) * fall.exp2()
            total[rows] *= fall.exp2()
            if differentiate:
                mean[rows] *= fall.exp2().to(x.dtype)[:, None]
            shift[rows] = new
        power = z.sub_(shift[rows, None].to(x.dtype)).exp2()
        total[rows] += power.sum(1)
        weighted[rows] += torch.linalg.vecdot(power, z)
        if differentiate:
            mean[rows] += product(power, weight[words].T)
    if differentiate:
        mean /= total.to(x.dtype)[:, None]
    log_total = total.log2()
    entropy = LN_2 * (log_total - weighted / total).clamp_min(0.0)
    return (shift + log_total).to(x.dtype), entropy.to(x.dtype), mean


def _through_log_prob(x: Tensor, weight: Tensor, normaliser: Tensor, scaled: Tensor, grad_weight: Tensor, elements: int) -> None:
    """Add Σ_i π_i scaled_iᵀ to the weights' gradient."""
    for rows, words in _blocks(x, weight, elements):
        z = product(weight[words], x[rows])  # transposed: as the second product wants it
        grad_weight[words] += product(z.sub_(normaliser[rows]).exp2_(), scaled[rows].T)


def _through_both(
    x: Tensor,
    weight: Tensor,
    normaliser: Tensor,
    entropy: Tensor,
    by_log_prob: Tensor,
    by_entropy: Tensor,
    y: Tensor,
    grad_weight: Tensor | None,
    elements: int,
) -> Tensor:
    """Σ_v q_v w_v [M, D] with q = −π (c + c_H (log π + H)), the slope of both but for the taken action; q yᵀ is added to the weights'."""
    constant, linear = -(by_log_prob + by_entropy * entropy), -LN_2 * by_entropy
    slope = torch.zeros_like(x)
    for rows, words in _blocks(x, weight, elements):
        z = product(weight[words], x[rows]).sub_(normaliser[rows])
        q = torch.addcmul(constant[rows], linear[rows], z).mul_(z.exp2_())
        slope[rows] += product(q.T, weight[words].T)
        if grad_weight is not None:
            grad_weight[words] += product(q, y[rows].T)
    return slope


def _blocks(x: Tensor, weight: Tensor, elements: int) -> Iterator[tuple[slice, slice]]:
    """(rows, words) of each block: the words outside, so that their weights stay in cache."""
    m = max(1, min(len(x), ROWS, elements))
    v = max(1, elements // m)
    for first in range(0, len(weight), v):
        for start in range(0, len(x), m):
            yield slice(start, min(start + m, len(x))), slice(first, min(first + v, len(weight)))
