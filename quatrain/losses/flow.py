"""Fitting a flow: the velocity is regressed on, and how far it is off is estimated as it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from quatrain.batch import Batch, missing
from quatrain.errors import QuatrainError
from quatrain.models.draws import normals, stream, uniforms
from quatrain.models.paths import PATHS

Fitted = Literal["both", "velocity", "spread"]


def flow_loss(error: Tensor, log_std: Tensor) -> Tensor:
    """‖u − v‖²/(2σ²) + log σ, [M], of squared errors [M] (summed over the action's dimensions) and log σ [M].

    Hu et al. 2024 (AdaFlow, arXiv 2402.04292), eq. 9. For a given point it is least at σ² = E‖u − v‖²: where v is the mean of u, that is
    the conditional variance of u, and 0 where the flow is straight. log σ = 0 → half the squared error, plain flow matching.

    >>> flow_loss(torch.tensor([4.0]), torch.tensor([0.0]))
    tensor([2.])
    """
    return error * (-2 * log_std).exp() / 2 + log_std


@dataclass(frozen=True)
class FlowMatching:
    """The loss of a flow policy's Fit: ``flow_loss``, the mean over the batch's actions, which are imitated.

    fit  ``both`` heads at once; ``velocity``: plain flow matching, σ is not touched; ``spread``: σ alone, of a velocity that stays
         (together the two-stage variant).

    The time t ~ U[0, 1] and the noise x₀ ~ N(0, I) of each action come from its seed in the column ``draw``, so that any split of the
    batch, and any model, sees the same ones. Measures: ``flow/error``, mean ‖u − v‖²; ``flow/spread``, mean σ.
    """

    fit: Fitted = "both"
    live: ClassVar[bool] = False

    def models(self) -> set[str]:
        return set()

    def check(self, provided: set[str]) -> None:
        if "draw" not in provided:
            raise missing("draw", provided, "FlowMatching")

    def prepare(self, batch: Batch) -> Batch:
        """Add ``flow_time`` [N, T] and ``flow_noise`` [N, T, A]."""
        seeds, size = batch["draw"].flatten(), batch.actions.shape[2]
        time = uniforms(seeds, torch.zeros(1, dtype=torch.long, device=seeds.device)).view(batch.shape).float()
        noise = normals(stream(seeds, "flow noise"), size).view(*batch.shape, size)
        return batch.with_columns(flow_time=time, flow_noise=noise)

    def finalise(self, batch: Batch, current: Mapping[Any, Tensor] | None = None) -> Batch:
        """Remember the number of actions of the whole update."""
        return batch.with_rows(actions=batch.mask.sum().expand(len(batch)))

    def active(self, batch: Batch) -> Tensor:
        return batch.mask.any(1)

    def current(self, model: Any, batch: Batch, others: Mapping[str, Any]) -> dict[Any, Tensor]:
        return {}

    def loss(self, model: Any, batch: Batch, others: Mapping[str, Any]) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor | float | None]]]:
        if not hasattr(model, "field"):
            raise QuatrainError("flow matching fits a flow policy", given=type(model).__name__, fix="model=flow")
        mask = batch.mask
        seen = batch.contexts["policy"]["observations"][:, : batch.shape[1]][mask]
        action = model.action_space.unit(batch.actions[mask])
        time, noise = batch["flow_time"][mask].to(action), batch["flow_noise"][mask].to(action)
        point, target = PATHS[model.path].mix(noise, action, time[:, None])
        velocity, log_std = model.field(seen, point, time, shared=self.fit == "both")
        error = (target - velocity).square().sum(1)
        if self.fit == "velocity":
            found = flow_loss(error, torch.zeros_like(log_std))
        else:
            found = flow_loss(error if self.fit == "both" else error.detach(), log_std)
        loss = found.sum() / float(batch["actions"][0])
        count = mask.sum()
        return loss, {
            "loss": (loss.detach(), None),
            "flow/error": (error.detach().sum(), count),
            "flow/spread": (log_std.detach().exp().sum(), count),
        }
