"""Losses of Fits that are no policy's: critics of actions, and densities of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from quatrain.batch import Batch, missing
from quatrain.losses.td import clipped_double_q, smoothed
from quatrain.models.draws import normals, stream
from quatrain.models.networks import observations


class PerAction:
    """A loss that is a mean over the update's actions, and reads the columns ``needs``; it does not look at the model before."""

    live: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    def models(self) -> set[str]:
        return set()

    def check(self, provided: set[str]) -> None:
        for name in self.needs:
            if name not in provided:
                raise missing(name, provided, type(self).__name__)

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def finalise(self, batch: Batch, current: Mapping[Any, Tensor] | None = None) -> Batch:
        """Remember the number of actions of the whole update."""
        return batch.with_rows(actions=batch.mask.sum().expand(len(batch)))

    def active(self, batch: Batch) -> Tensor:
        return batch.mask.any(1)


@dataclass(frozen=True)
class TwinQ(PerAction):
    """The loss of TD3's critics: Σ_k mean (Q_k(s, a) − y)², y by the frozen ``policy`` and ``critic`` named here.

    discount  γ in [0, 1]. noise, limit: of the target's action, in fractions of half the box's width.
    """

    discount: float = 0.99
    noise: float = 0.2
    limit: float = 0.5
    policy: str = "target_policy"
    critic: str = "target_critic"
    needs = ("rewards", "terminated", "draw")

    def models(self) -> set[str]:
        return {self.policy, self.critic}

    def loss(self, model: Any, batch: Batch, others: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        seen, acted = observations(batch, "policy", model.observation_size), batch.mask
        before, after = seen[:, :-1][acted], seen[:, 1:][acted]
        with torch.no_grad():
            action = others[self.policy].distribution(after).mean
            low, high = action.new_tensor(model.box.low), action.new_tensor(model.box.high)
            noise = normals(stream(batch["draw"][acted], "target"), action.shape[1]).to(action)
            q = others[self.critic].q(after, smoothed(action, noise, low, high, self.noise, self.limit))
            target = clipped_double_q(batch["rewards"][acted], batch["terminated"][acted], q, self.discount)
        found = model.q(before, batch.actions[acted])
        loss = (found - target).square().sum() / batch["actions"][0]
        return loss, {"td_loss": (loss.detach(), None), "q": (found.detach().sum(), found.numel())}


@dataclass(frozen=True)
class NegativeLogDensity(PerAction):
    """The loss of a density: −mean log π_β(a|s), by its own bound."""

    needs = ("draw",)

    def loss(self, model: Any, batch: Batch, others: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        seen, acted = observations(batch, "policy", model.observation_size), batch.mask
        found = model.log_density(seen[:, :-1][acted], batch.actions[acted], batch["draw"][acted])
        return -found.sum() / batch["actions"][0], {"log_density": (found.detach().sum(), len(found))}
