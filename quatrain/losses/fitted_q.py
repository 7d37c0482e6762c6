"""Fitted Q evaluation: action values of policies that did not collect the data. A loss that is no policy gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from quatrain.batch import Batch, missing
from quatrain.parts.advantages import action_rewards


class ChoiceValues(Protocol):
    """Q(s, ·) of K policies at every state of a batch's trajectories: [N, T+1, K, V]."""

    def values(self, batch: Batch, role: str = "policy") -> Tensor: ...


def expected_values(q: Tensor, probabilities: Tensor, mask: Tensor) -> Tensor:
    """V(s_t) = Σ_a π(a|s_t) Q(s_t, a), […, V] and […, V] → […]; 0 outside the mask [N, T], whatever is there."""
    wide = mask.view(*mask.shape, *[1] * (q.ndim - 2))
    return torch.where(wide, probabilities * q, 0.0).sum(-1)


def following(mask: Tensor) -> Tensor:
    """[N, T] the position of the row's next action after t; T where there is none.

    >>> following(torch.tensor([[True, False, True]])).tolist()
    [[2, 2, 3]]
    """
    length = mask.shape[1]
    place = torch.where(mask, torch.arange(length, device=mask.device), length)
    after = torch.cat([place[:, 1:], torch.full_like(place[:, :1], length)], 1)
    return after.flip(1).cummin(1).values.flip(1)


@dataclass(frozen=True)
class FittedQ:
    """½ (Q_θ(s_t, a_t) − r_t − γ V̄(s_{t+1}))², the mean over actions, the sum over policies; V̄ = Σ_a π(a|s) Q_θ(s, a) is constant.

    Le et al. 2019 (arXiv:1903.08738) fit to the end before they move the target; here it moves with every update. The fixed point is the
    same. The value after an action that ends the episode is 0; an action whose next state has no action in the batch (an episode that
    was cut) is left out.

    discount γ in [0, 1]. Reads the column ``target_probs`` [N, T, K, V] (the edit TargetProbabilities).
    """

    discount: float = 1.0
    live: ClassVar[bool] = False

    def models(self) -> set[str]:
        return set()

    def check(self, provided: set[str]) -> None:
        for name in ("reward", "target_probs"):
            if name not in provided:
                raise missing(name, provided, "FittedQ")

    def prepare(self, batch: Batch) -> Batch:
        """Add per action its reward, whether the episode ends with it, and where the next one stands."""
        rewards, terminated = action_rewards(batch)
        after = following(batch.mask)
        known = batch.mask & (terminated | (after < batch.shape[1]))
        return batch.with_columns(rewards=rewards, ends=terminated, after=after, known=known)

    def finalise(self, batch: Batch, current: Mapping[Any, Tensor] | None = None) -> Batch:
        """Remember the number of actions of the whole update."""
        return batch.with_rows(actions=batch["known"].sum().expand(len(batch)))

    def active(self, batch: Batch) -> Tensor:
        return batch["known"].any(1)

    def loss(
        self, model: ChoiceValues, batch: Batch, others: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor | float | None]]]:
        q, known = model.values(batch)[:, :-1], batch["known"]
        chosen = q.gather(-1, batch.actions[..., None, None].expand(*q.shape[:-1], 1))[..., 0]
        with torch.no_grad():
            v = expected_values(q, batch["target_probs"].to(q.dtype), batch.mask)
            v = torch.cat([v, torch.zeros_like(v[:, :1])], 1)
            # Where a batch was cut to a shorter length, "no next action" stands beyond its end.
            onward = v.gather(1, batch["after"].clamp(max=batch.shape[1])[..., None].expand_as(chosen))
            target = batch["rewards"][..., None] + self.discount * torch.where(batch["ends"][..., None], 0.0, onward)
        error = (chosen - target.to(q.dtype))[known].square().sum()
        loss = 0.5 * error / max(float(batch["actions"][0]), 1.0)
        return loss, {"value_loss": (loss.detach(), None), "value_error": (error.detach(), target[known].square().sum())}
