"""What one action's update of a softmax's last layer does, to second order. Nothing of size V×D per action is ever held.

With logits z = W h, π = softmax(z), the gradient of an action's objective A·π_W(a)/π(a) is g = A v hᵀ, v = e_a − π. An update
Δ = η G of W moves the logits by η u, u = G h, and u is all that a second-order model needs: ⟨g, G⟩ = A v·u.

Axes: M actions, K of the V entries of the vocabulary, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError

ELEMENTS = 2**22  # entries of gradients held at once


@dataclass(frozen=True)
class Moments:
    """What Adam knows of a matrix of weights: running means of the gradient (ascent) and of its square, [V, D], after ``steps`` updates."""

    mean: Tensor
    square: Tensor
    steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def direction(self, gradient: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """The step that Adam would make next on ``gradient`` […, K, D] of those rows, over its learning rate: Kingma & Ba 2015.

        → sign(gradient) at the first update.
        """
        (b1, b2), after = self.betas, self.steps + 1
        mean = b1 * self.mean[rows] + (1 - b1) * gradient
        square = b2 * self.square[rows] + (1 - b2) * gradient.square()
        return mean / (1 - b1**after) / ((square / (1 - b2**after)).sqrt() + self.eps)


def score_of_logits(logits: Tensor, action: Tensor, top: int = 0) -> tuple[Tensor | slice, Tensor, Tensor]:
    """(which entries [M, K], their π [M, K], v = e_a − π [M, K]) for logits [M, V] and action [M].

    top  the ``top`` likeliest entries, the action among them, normalised over themselves; 0, or V and more: all, as they are.

    >>> entries, p, v = score_of_logits(torch.tensor([[0.0, 0.0, -9.0]]), torch.tensor([1]), top=2)
    >>> p.tolist(), v.gather(1, (entries == 1).long().argmax(1)[:, None]).item()
    ([[0.5, 0.5]], 0.5)
    """
    if not 0 < top < logits.shape[-1]:
        p = logits.softmax(-1)
        return slice(None), p, torch.nn.functional.one_hot(action, p.shape[-1]) - p
    entries = logits.scatter(-1, action[:, None], torch.inf).topk(top).indices
    p = logits.gather(-1, entries).softmax(-1)
    return entries, p, (entries == action[:, None]).to(p.dtype) - p


def logit_motion(
    v: Tensor,
    hidden: Tensor,
    advantage: Tensor,
    moments: Moments | None = None,
    entries: Tensor | slice = slice(None),
    most: int = ELEMENTS,
) -> Tensor:
    """u = G h [M, K]: how the K logits move per unit of learning rate, were this action the whole batch.

    v [M, K]; hidden [M, D]; advantage [M]; ``entries``: the rows [M, K] of the weights that K stands for, all by default.
    moments  None: gradient ascent, G = g, u = A |h|² v. Else Adam's next step on g; ``most`` entries of it are held at once.
    """
    if moments is None:
        return advantage[:, None] * hidden.square().sum(-1, keepdim=True) * v
    (m, k), d = v.shape, hidden.shape[-1]
    wide = min(k, max(1, most // d))
    out = torch.empty_like(v)
    slope = advantage[:, None] * v
    for rows in torch.arange(m, device=v.device).split(max(1, most // (wide * d))):
        for first in range(0, k, wide):
            part = slice(first, first + wide)
            chosen = part if isinstance(entries, slice) else entries[rows, part]
            g = slope[rows, part, None] * hidden[rows, None, :]
            out[rows, part] = (moments.direction(g, chosen) @ hidden[rows, :, None])[..., 0]
    return out


def policy_shift(v: Tensor, motion: Tensor, lr: float) -> Tensor:
    """m_F = ½ η² (v·u)² [M]: the Fisher form; its mean over a ~ π at one Δ is the KL of the move to second order.

    >>> round(policy_shift(torch.tensor([[0.5, -0.5]]), torch.tensor([[1.0, -1.0]]), 0.1).item(), 6)
    0.005
    """
    return (lr * (v * motion).sum(-1)).square() / 2


def objective_shift(p: Tensor, v: Tensor, motion: Tensor, advantage: Tensor, lr: float) -> Tensor:
    """m_H = ⟨g, Δ⟩ + ½ ΔᵀHΔ [M], H the Hessian of A·π_W(a)/π(a):  η A v·u + ½ η² A [(v·u)² − uᵀ(diag π − ππᵀ)u]."""
    along = (v * motion).sum(-1)
    spread = (p * (motion - (p * motion).sum(-1, keepdim=True)).square()).sum(-1)
    return advantage * (lr * along + lr**2 / 2 * (along.square() - spread))


@dataclass(frozen=True)
class WithinShifts:
    """Actions whose predicted shifts are small: m_F < policy and |m_H| < objective (Melo et al. 2025, CAPO; 2510.00819).

    rising  0 ≤ m_H < objective in place of |m_H|: actions whose update is predicted to harm are left out too.

    → every action for infinite limits.
    """

    policy: float
    objective: float
    rising: bool = False
    needs = ("current_policy_shift", "current_objective_shift")

    def __post_init__(self) -> None:
        for name in ("policy", "objective"):
            if isinstance(limit := getattr(self, name), (int, float)) and not limit > 0:
                raise QuatrainError(f"the limit of the {name}'s shift is out of range", given=limit, expected="above 0; infinite is off")

    def __call__(self, batch: Batch) -> Tensor:
        shift = batch["current_objective_shift"]
        small = (shift >= 0) & (shift < self.objective) if self.rising else shift.abs() < self.objective
        return batch.mask & small & (batch["current_policy_shift"] < self.policy)
