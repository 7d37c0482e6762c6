"""Action distributions, M at a time: what a statistic reads.

Axes: M action positions, V vocabulary, K support, D action dimensions. Everything is computed in at least fp32.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from quatrain.errors import QuatrainError
from quatrain.models.entries import jsd_entries, total

_NEVER = -1e4  # exp of it is 0 in every precision
KINDS = ("reverse", "forward", "jsd")


class Categorical:
    """π(a) = exp(z_a/T) / Σ_{v∈S} exp(z_v/T): a tempered softmax restricted to a support S.

    logits       [M, V], any float type; −inf is an action that never happens.
    support_ids  [M, K] action id + 1 of what could be sampled (top-k, top-p), 0 for none; a row of zeros is not truncated.
    temperature  [M] above 0. None is 1.

    >>> two = Categorical(torch.tensor([[0.0, 0.0, 5.0]]), support_ids=torch.tensor([[1, 2]]))
    >>> two.log_prob(torch.tensor([0])).exp().item()
    0.5
    >>> two.log_prob(torch.tensor([2])).item()
    -inf
    """

    def __init__(self, logits: Tensor, support_ids: Tensor | None = None, temperature: Tensor | None = None):
        z = logits if logits.dtype == torch.float64 else logits.float()
        self.z = z if temperature is None else z / temperature.to(z.dtype)[:, None]
        self.support_ids = support_ids

    @cached_property
    def _full_logsumexp(self) -> Tensor:
        """[M] over the whole vocabulary."""
        return self.z.logsumexp(-1)

    @cached_property
    def _support(self) -> tuple[Tensor, Tensor, Tensor]:
        """([M, K] z/T on the support and −inf elsewhere, [M] its logsumexp, [M] bool: the row is truncated)."""
        inside = self.support_ids > 0
        truncated = inside.any(-1)
        z = self.z.gather(-1, (self.support_ids - 1).clamp_min(0).long())
        # A row that is not truncated gets zeros instead of −inf everywhere: its logsumexp is unused, its gradient must not be NaN.
        z = z.masked_fill(~inside, -math.inf).masked_fill(~truncated[:, None], 0.0)
        return z, z.logsumexp(-1), truncated

    def log_prob(self, action: Tensor) -> Tensor:
        """[M] log π(a) for action [M]. −inf with zero gradient where π(a) = 0 (outside of the support)."""
        chosen = self.z.gather(-1, action.long()[:, None])[:, 0]
        possible = ~torch.isneginf(chosen)
        if self.support_ids is None:
            log_prob = chosen.masked_fill(~possible, 0.0) - self._full_logsumexp
            return log_prob.masked_fill(~possible, -math.inf)
        _, normaliser, truncated = self._support
        if not bool(truncated.all()):
            normaliser = torch.where(truncated, normaliser, self._full_logsumexp)
        possible = possible & ((self.support_ids == action[:, None] + 1).any(-1) | ~truncated)
        return (chosen.masked_fill(~possible, 0.0) - normaliser).masked_fill(~possible, -math.inf)

    def entropy(self) -> Tensor:
        """[M] −Σ_{v∈S} π(v) log π(v), nats."""
        if self.support_ids is None:
            return _entropy(self.z, self._full_logsumexp)
        z, normaliser, truncated = self._support
        entropy = _entropy(z, normaliser)
        if bool(truncated.all()):
            return entropy
        return torch.where(truncated, entropy, _entropy(self.z, self._full_logsumexp))

    def candidates(self, count: int) -> Tensor:
        """[M] mean of log π over the ``count`` likeliest actions, or over all that are possible if they are fewer.

        >>> mean = Categorical(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()).candidates(2)
        >>> round(mean.exp().square().item(), 6)  # ½ · ¼
        0.125
        """
        whole = _candidates(self.z, self._full_logsumexp, count)
        if self.support_ids is None:
            return whole
        z, normaliser, truncated = self._support
        return torch.where(truncated, _candidates(z, normaliser, count), whole)

    def divergence(self, other: Categorical, kind: str, beta: float = 0.5, cap: float = math.inf, top: int = 0) -> Tensor:
        """[M] divergence to ``other`` (frozen), nats, over the whole tempered vocabulary of both: supports are ignored.

        reverse  Σ π log(π/q);  forward  Σ q log(q/π);  jsd  β KL(q‖m) + (1 − β) KL(π‖m) with m = (1 − β) π + β q, at most log 2;
                 with β = 0 and 1 forward and reverse.
        cap      the most that one action adds to the sum; top: only the other's ``top`` likeliest actions, both normalised over them
                 (0: all).

        Infinite, with zero gradient, where a KL is. Raises QuatrainError for another kind or another vocabulary.
        """
        if self.z.shape != other.z.shape:
            raise QuatrainError(
                "a divergence compares distributions over the same vocabulary",
                given=f"{tuple(self.z.shape)} and {tuple(other.z.shape)}",
                fix="use a teacher with the same tokenizer and vocabulary size",
            )
        if kind not in KINDS:
            raise QuatrainError("unknown kind of divergence", given=kind, expected=", ".join(KINDS))
        theirs = other.z.detach().to(self.z.dtype)
        if 0 < top < self.z.shape[-1]:
            best = theirs.topk(top).indices
            log_p, log_q = self.z.gather(-1, best).log_softmax(-1), theirs.gather(-1, best).log_softmax(-1)
        else:
            log_p, log_q = self.z - self._full_logsumexp[:, None], theirs.log_softmax(-1)
        return total(jsd_entries(log_p, log_q, {"reverse": 1.0, "forward": 0.0, "jsd": beta}[kind]), cap)


class Gaussian:
    """A diagonal Gaussian per position: mean [M, D], std [M, D] above 0 (or anything that broadcasts to them).

    >>> Gaussian(torch.zeros(1, 2), torch.ones(1, 2)).log_prob(torch.zeros(1, 2)).item()
    -1.8378770351409912
    """

    def __init__(self, mean: Tensor, std: Tensor):
        self.mean, self.std = torch.broadcast_tensors(mean, std)

    def log_prob(self, action: Tensor) -> Tensor:
        """[M] log-density of action [M, D], summed over D."""
        z = (action - self.mean) / self.std
        return -(z.square() / 2 + self.std.log() + math.log(2 * math.pi) / 2).sum(-1)

    def entropy(self) -> Tensor:
        """[M] Σ_d log σ_d + ½ log(2πe), nats."""
        return (self.std.log() + (1 + math.log(2 * math.pi)) / 2).sum(-1)

    def candidates(self, count: int) -> Tensor:
        """Refused: of continuous actions none is likelier by its mass."""
        raise QuatrainError("continuous actions have no likeliest candidates", given=f"count={count}", expected="actions to choose from")

    def divergence(self, other: Gaussian, kind: str, beta: float = 0.5, cap: float = math.inf, top: int = 0) -> Tensor:
        """[M] KL to ``other`` (frozen), nats: reverse KL(π‖q), forward KL(q‖π). Raises QuatrainError for jsd (no closed form), cap, top."""
        if cap != math.inf or top:
            raise QuatrainError("continuous actions cannot be taken one by one", given=f"cap={cap} top={top}", expected="neither")
        mean, std = other.mean.detach(), other.std.detach()
        if kind == "reverse":
            return _gaussian_kl(self.mean, self.std, mean, std)
        if kind == "forward":
            return _gaussian_kl(mean, std, self.mean, self.std)
        raise QuatrainError(
            "this divergence between Gaussians has no closed form", given=kind, expected="reverse or forward", fix="kind='reverse'"
        )


class _Entropy(torch.autograd.Function):
    """[M] entropy of softmax(z) for z [M, K] with logsumexp [M], which is a constant here: the slope −p (log p + H) has it in.

    Written out because it is the most expensive statistic of a large vocabulary: four passes over [M, K], and five in backward.
    Entries of −inf count 0: their log p is clamped where p is exactly 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, normaliser: Tensor) -> Tensor:
        log_p = z - normaliser[:, None]
        return -torch.linalg.vecdot(log_p.exp(), log_p.clamp_min(_NEVER))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        z, normaliser, entropy = ctx.saved_tensors
        log_p = z - normaliser[:, None]
        return (log_p.clamp_min(_NEVER) + entropy[:, None]) * (-grad)[:, None] * log_p.exp(), None


def _entropy(z: Tensor, normaliser: Tensor) -> Tensor:
    return _Entropy.apply(z, normaliser.detach())


def _candidates(z: Tensor, normaliser: Tensor, count: int) -> Tensor:
    """[M] mean of z − normaliser over the ``count`` largest z [M, K] that are not −inf."""
    top = z.topk(min(count, z.shape[-1])).values
    possible = ~torch.isneginf(top)
    return torch.where(possible, top - normaliser[:, None], 0.0).sum(-1) / possible.sum(-1)


def _gaussian_kl(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """[M] KL(N(mean, std²) ‖ N(other_mean, other_std²)), summed over D."""
    ratio = std / other_std
    return ((ratio.square() + ((mean - other_mean) / other_std).square() - 1) / 2 - ratio.log()).sum(-1)
