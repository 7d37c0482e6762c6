"""From logits and a number in [0, 1) to an action: truncation, inverse CDF, and counter-based randomness.

Axes: B rows, V vocabulary, K candidates. Nothing here has a state: the draw of a row at a step is a function of the
row's seed and the step, so a row regenerates whatever else is in its batch.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from quatrain.protocols import Sampling

CANDIDATES = 1024  # top_p without top_k looks no further than this many likeliest actions
BLOCK = 512  # the inverse CDF first finds a block of this many actions, then the action in it

# SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"), as signed 64-bit integers.
_GOLDEN, _MIX1, _MIX2 = -7046029254386353131, -4658895280553007687, -7723592293110705685
_STEP = 2685821657736338717


def uniforms(seeds: Tensor, steps: Tensor) -> Tensor:
    """[N, T] float64 in [0, 1) for seeds [N] and steps [T], both int64: the same pair always gives the same number.

    >>> one = uniforms(torch.tensor([7, 8]), torch.arange(3))
    >>> bool((one[1] == uniforms(torch.tensor([8]), torch.arange(3))[0]).all())
    True
    """
    state = _mix(seeds.long() * _GOLDEN + _STEP)[:, None] + steps.long()[None, :] * _GOLDEN
    return _shift(_mix(state), 12).double() * 2.0**-52


def stream(seeds: Tensor, name: str) -> Tensor:
    """Seeds of another use of the same draws: what two names give is independent.

    >>> bool((stream(torch.tensor([1, 2]), "a") != stream(torch.tensor([1, 2]), "b")).all())
    True
    """
    return _mix(seeds.long() + (zlib.crc32(name.encode()) << 20))


def normals(seeds: Tensor, count: int) -> Tensor:
    """[N, count] standard normal numbers, float32, of seeds [N]: the same seed always gives the same numbers."""
    uniform = uniforms(seeds, torch.arange(count, device=seeds.device))
    return torch.special.ndtri(uniform + 2.0**-53).float()


def kept(seeds: Tensor, count: int, rate: float) -> Tensor:
    """[N, count] dropout: 0 with chance ``rate``, else 1/(1 − rate); float32, of seeds [N].

    Sixteen bits decide each: four units share a number.
    """
    words = -(-count // 4)
    bits = _mix(_mix(seeds.long() * _GOLDEN + _STEP)[:, None] + torch.arange(words, device=seeds.device)[None, :] * _GOLDEN)
    chance = torch.stack([_shift(bits, 16 * k) & 0xFFFF for k in range(4)], -1).flatten(1)[:, :count]
    return (chance >= rate * 65536).float() / (1 - rate)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (``>>`` keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def inverse_cdf(weight: Tensor, uniform: Tensor) -> Tensor:
    """[B] the first index whose cumulative weight exceeds uniform · total; never one of weight 0.

    weight [B, V] at least 0, not necessarily summing to 1; uniform [B] float64. Sums are in float64.
    """
    size = weight.shape[1]
    if size <= 2 * BLOCK:
        # A 52-bit number below 1 times the total is below the total, so some index is above, and it has weight.
        total = weight.cumsum(-1, dtype=torch.float64)
        return torch.searchsorted(total, (uniform * total[:, -1]).unsqueeze(1), right=True).squeeze(1)
    padded = torch.nn.functional.pad(weight, (0, -size % BLOCK)).unflatten(1, (-1, BLOCK))
    blocks = padded.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniform[:, None] * blocks[:, -1:]
    block = _first_above(blocks, target)
    rows = torch.arange(len(weight), device=weight.device)
    before = torch.where(block > 0, blocks[rows, (block - 1).clamp_min(0)], 0.0)
    return block * BLOCK + _first_above(padded[rows, block].cumsum(-1, dtype=torch.float64), target - before[:, None])


def _first_above(total: Tensor, target: Tensor) -> Tensor:
    """[B] first index where total [B, K] exceeds target [B, 1], or else (rounding) where it reaches its last value."""
    first = torch.searchsorted(total, target, right=True)
    return torch.minimum(first, torch.searchsorted(total, total[:, -1:].contiguous()))[:, 0]


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor | None]:
    """One action per row: (action [B] int64, its log-probability [B], support [B, K] id + 1 and 0 for none, or None).

    The order is temperature, top-k, top-p. The log-probability is of the distribution sampled from, at least fp32.
    Temperature 0 takes the likeliest action; its log-probability is then that at temperature 1 without truncation,
    which is the one that a later score can be compared with (a point mass has none).
    """
    z = logits if logits.dtype == torch.float64 else logits.float()
    size = z.shape[-1]
    if sampling.temperature == 0:
        best, action = z.max(-1)
        return action, best - z.logsumexp(-1), None
    if sampling.temperature != 1:
        z = z / sampling.temperature
    if not truncates(sampling, size):
        log_probs = z.log_softmax(-1)
        action = inverse_cdf(log_probs.exp(), uniform)
        return action, log_probs.gather(-1, action.unsqueeze(1)).squeeze(1), None
    count = min(size, sampling.top_k or CANDIDATES)
    z_top, candidate = z.topk(count, -1)
    if sampling.top_p < 1:
        normaliser = z_top.logsumexp(-1) if sampling.top_k else z.logsumexp(-1)
        weight = (z_top - normaliser[:, None]).exp()
        # A candidate stays while the mass before it has not reached top_p, so the likeliest always does.
        outside = weight.cumsum(-1, dtype=torch.float64) - weight >= sampling.top_p
        z_top, candidate = z_top.masked_fill(outside, -math.inf), (candidate + 1).masked_fill(outside, 0)
        count = int((~outside).sum(-1).max())
        z_top, candidate = z_top[:, :count], candidate[:, :count]
    else:
        candidate = candidate + 1
    log_probs = z_top.log_softmax(-1)
    chosen = inverse_cdf(log_probs.exp(), uniform)[:, None]
    return candidate.gather(-1, chosen)[:, 0] - 1, log_probs.gather(-1, chosen)[:, 0], candidate.int()


def truncates(sampling: Sampling, vocabulary: int) -> bool:
    """Whether some actions can never be sampled (top-k or top-p is on)."""
    return sampling.temperature != 0 and (0 < sampling.top_k < vocabulary or sampling.top_p < 1)
