"""Fitting a critic: squared error to returns."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError


class Critic(Protocol):
    """V(s) at every state of a batch's trajectories."""

    def values(self, batch: Batch, role: str = "policy") -> Tensor: ...


def value_loss(
    values: Tensor,
    targets: Tensor,
    mask: Tensor,
    old_values: Tensor | None = None,
    clip: float | None = None,
    count: float | None = None,
) -> Tensor:
    """Mean over the actions of ½(V_θ(s_t) − R_t)², a scalar.

    With ``clip`` ε > 0, the pessimistic form of PPO's code (Huang et al. 2022, "The 37 implementation details of PPO", no. 9):

        ½·max[(V − R)², (V_old + clamp(V − V_old, −ε, ε) − R)²]

    values, targets and old_values are [N, T] in units of return, mask is bool [N, T]. Only positions in the mask count; NaN
    elsewhere is harmless and gets a gradient of exactly zero. ``count`` is the number of actions to divide by when these rows are
    a part of a larger batch; absent, it is the mask's own, and no action at all gives 0. Targets and old values are constants.

    clip = ∞ or None → the plain squared error. QuatrainError for a clip without old values, or one that is not positive.

    >>> value_loss(torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.tensor([[True]])).item()
    2.0
    """
    values, targets = values[mask], targets[mask].detach()
    error = (values - targets).square()
    if clip is not None:
        if old_values is None or clip <= 0:
            given = f"clip={clip}, old_values {'absent' if old_values is None else 'present'}"
            raise QuatrainError(
                "clipping a value needs a positive clip and the old values", given=given, fix="clip=None, or pass old_values"
            )
        old = old_values[mask].detach()
        error = torch.maximum(error, (old + (values - old).clamp(-clip, clip) - targets).square())
    return 0.5 * error.sum() / (max(len(targets), 1) if count is None else count)


def fit_value(
    critic: Critic, batch: Batch, clip: float | None = None, role: str = "policy", count: float | None = None
) -> dict[str, Tensor]:
    """The critic's loss on a batch, as named scalars.

    Reads the columns ``return`` [N, T] (λ-returns, ``quatrain.parts.gae``) and, for ``clip``, ``value`` (what the critic said when
    they were made). ``loss`` is differentiable; ``explained_variance`` = 1 − Var(R − V)/Var(R) is for people: 1 is perfect, 0 is
    no better than a constant; NaN when all returns are equal.
    """
    values, targets, mask = critic.values(batch, role)[:, :-1], batch["return"], batch.mask
    old = batch["value"] if clip is not None else None
    residual, spread = (targets - values.detach())[mask], targets[mask]
    explained = 1 - residual.var(correction=0) / spread.var(correction=0)
    return {
        "loss": value_loss(values, targets, mask, old, clip, count),
        "explained_variance": torch.where(explained.isfinite(), explained, torch.nan),
    }
