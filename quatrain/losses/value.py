"""Fitting a critic: squared error to returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from quatrain.batch import Batch, missing
from quatrain.errors import QuatrainError
from quatrain.parts.advantages import GeneralisedAdvantage


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


@dataclass(frozen=True)
class ValueLoss:
    """The loss of a critic's Fit: squared error to the λ-returns of the values it had when the batch was collected.

    discount γ and trace λ lie in [0, 1]; clip as in ``value_loss``. Measures ``value_loss`` and, for people, ``value_error``: the
    mean square of R − V relative to that of R (0 is perfect).
    """

    discount: float = 0.99
    trace: float = 0.95
    clip: float | None = None
    live: ClassVar[bool] = False

    def models(self) -> set[str]:
        return set()

    def check(self, provided: set[str]) -> None:
        for name in ("reward", "value", "next_value"):
            if name not in provided:
                raise missing(name, provided, "ValueLoss")

    def prepare(self, batch: Batch) -> Batch:
        """Add the column ``return``."""
        advantage = GeneralisedAdvantage(self.discount, self.trace)(batch)
        return batch.with_columns(**{"return": advantage + torch.where(batch.mask, batch["value"], 0.0)})

    def finalise(self, batch: Batch, current: Mapping[Any, Tensor] | None = None) -> Batch:
        """Remember the number of actions of the whole update."""
        return batch.with_rows(actions=batch.mask.sum().expand(len(batch)))

    def active(self, batch: Batch) -> Tensor:
        return batch.mask.any(1)

    def loss(
        self, model: Critic, batch: Batch, others: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor | float | None]]]:
        values, target = model.values(batch)[:, :-1], batch["return"]
        old = batch["value"] if self.clip is not None else None
        loss = value_loss(values, target, batch.mask, old, self.clip, float(batch["actions"][0]))
        error = (values.detach() - target)[batch.mask].square().sum()
        return loss, {"value_loss": (loss.detach(), None), "value_error": (error, target[batch.mask].square().sum())}
