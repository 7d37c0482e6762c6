"""How much better an action was: [N] per trajectory or [N, T] per action, signed. Statistics are taken in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum, spread
from quatrain.errors import QuatrainError
from quatrain.parts.gae import gae
from quatrain.parts.needs import needs_of


def one(batch: Batch) -> Tensor:
    """A = 1: imitate. With the log-probability this is supervised fine-tuning."""
    return torch.ones(batch.shape, device=batch.device)


@dataclass(frozen=True)
class Constant:
    """A = value everywhere. −1 descends a divergence."""

    value: float

    def __call__(self, batch: Batch) -> Tensor:
        return torch.full(batch.shape, float(self.value), device=batch.device)


@dataclass(frozen=True)
class GroupRelative:
    """A_i = (r_i − mean of the group) / (scale + eps): Shao et al. 2024 (GRPO), §4.1.2.

    by     group key.
    scale  ``group``: the group's standard deviation (Bessel-corrected); ``batch``: that of the whole batch; ``none``: 1
           (Dr. GRPO; Liu et al. 2025).
    of     the row value that is compared.
    eps    added to the standard deviation.

    Trajectories whose value is NaN (absent: demonstrations) take no part, and get NaN. A group of one gets 0.
    → LeaveOneOut·(G−1)/G for ``scale="none"``.
    """

    by: str = "prompt"
    scale: Literal["group", "batch", "none"] = "group"
    of: str = "reward"
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.scale not in ("group", "batch", "none"):
            raise QuatrainError("unknown scale of a group advantage", given=self.scale, expected="group, batch or none")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by, self.of)

    def __call__(self, batch: Batch) -> Tensor:
        index, count = group_index(batch, self.by)
        value = batch[self.of].double()
        size, centred = _centre(value, index, count)
        if self.scale == "none":
            return centred
        if self.scale == "batch":
            known = value[~value.isnan()]
            return centred / ((known - known.mean()).square().sum().div(max(len(known) - 1, 1)).sqrt() + self.eps)
        square = group_sum(centred.nan_to_num().square(), index, count)
        return centred / ((square / (size - 1).clamp(min=1)).sqrt()[index] + self.eps)


@dataclass(frozen=True)
class LeaveOneOut:
    """A_i = r_i − mean of the *other* trajectories of the group: Kool et al. 2019; Ahmadian et al. 2024 (RLOO), eq. 6.

    Unbiased, because the baseline does not contain its own sample. A group of one gets 0.
    """

    by: str = "prompt"
    of: str = "reward"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by, self.of)

    def __call__(self, batch: Batch) -> Tensor:
        index, count = group_index(batch, self.by)
        size, centred = _centre(batch[self.of].double(), index, count)
        return centred * (size / (size - 1).clamp(min=1))[index]


@dataclass(frozen=True)
class Return:
    """G_t = Σ_{k≥t} γ^{k−t} r_k within its episode: the reward still to come. Williams 1992; Sutton et al. 1999.

    Without per-action ``rewards`` the trajectory's ``reward`` comes with its last action.
    """

    discount: float = 1.0
    needs = ("reward",)

    def __call__(self, batch: Batch) -> Tensor:
        rewards, ended = action_rewards(batch)
        zero, cut = torch.zeros_like(rewards), batch["truncated"] if "truncated" in batch else torch.zeros_like(ended)
        return gae(rewards, zero, zero, ended, cut, batch.mask, self.discount, 1.0, batch.columns.get("duration"))


@dataclass(frozen=True)
class Centred:
    """Another advantage minus its mean over the batch's actions; divided by their standard deviation if ``scale``."""

    of: Callable[[Batch], Tensor]
    scale: bool = False
    eps: float = 1e-8

    @property
    def needs(self) -> tuple[str, ...]:
        return needs_of(self.of)

    def __call__(self, batch: Batch) -> Tensor:
        value = spread(self.of(batch), batch)
        seen = value[batch.mask]
        centred = value - seen.mean()
        return centred / (seen.std(correction=0) + self.eps) if self.scale else centred


@dataclass(frozen=True)
class GeneralisedAdvantage:
    """A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V(s_{t+1}) − V(s_t): Schulman et al. 2016 (GAE), eq. 16."""

    discount: float = 0.99
    trace: float = 0.95
    needs = ("reward", "value", "next_value")

    def __call__(self, batch: Batch) -> Tensor:
        rewards, terminated = action_rewards(batch)
        truncated = batch["truncated"] if "truncated" in batch else torch.zeros_like(batch.mask)
        values, duration = (batch["value"], batch["next_value"]), batch.columns.get("duration")
        return gae(rewards, *values, terminated, truncated, batch.mask, self.discount, self.trace, duration)


@dataclass(frozen=True)
class KL:
    """The penalty KL(π_θ, π_to) as an advantage of the sampled log-probability; the weight of its term is β, positive.

    With l = log π_to/π_θ (Schulman 2020, "Approximating KL divergence") the gradient of each estimator of the KL with
    respect to θ is, per action, −A_t ∇log π_θ with
      k1 = −l            A = −1         mean zero under π_θ
      k2 = l²/2          A = l          the gradient of KL(π_θ‖π_to) with the states frozen
      k3 = e^l − 1 − l   A = e^l − 1    the gradient of KL(π_to‖π_θ) with the states frozen
    None is the gradient of the sequence KL: that is return-to-go k1 in the reward. It reads the current policy action by action,
    so that no pass before the update's own is needed.
    """

    to: str = "reference"
    kind: Literal["k1", "k2", "k3"] = "k3"
    action_by_action: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in ("k1", "k2", "k3"):
            raise QuatrainError("unknown estimator of a KL", given=self.kind, expected="k1, k2 or k3")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("current_logp", f"{self.to}_logp")

    def __call__(self, batch: Batch) -> Tensor:
        log_ratio = torch.where(batch.mask, batch[f"{self.to}_logp"] - batch["current_logp"], 0.0)
        if self.kind == "k1":
            return torch.full_like(log_ratio, -1.0)
        return log_ratio if self.kind == "k2" else log_ratio.expm1()


@dataclass(frozen=True)
class PairLogistic:
    """±β·σ(−β·margin): the residual of a logistic regression on pairs. Rafailov et al. 2023 (DPO), eq. 7.

    margin = Σ_t log π_θ/π_ref of the chosen trajectory minus that of the rejected one. Live: it reads the current policy, and
    both sides of a pair. The reference sits here; the term's own ratio is 1.
    """

    beta: float = 0.1
    reference: str = "reference"
    by: str = "pair"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("current_logp", f"{self.reference}_logp", self.by, "preference")

    def __call__(self, batch: Batch) -> Tensor:
        index, count = group_index(batch, self.by)
        log_ratio = torch.where(batch.mask, batch["current_logp"] - batch[f"{self.reference}_logp"], 0.0).sum(1)
        preference = batch["preference"].to(log_ratio.dtype)
        margin = group_sum(preference * log_ratio, index, count)
        return preference * self.beta * torch.sigmoid(-self.beta * margin)[index]


def action_rewards(batch: Batch) -> tuple[Tensor, Tensor]:
    """(rewards [N, T], terminated [N, T] bool). An outcome reward comes with the last action, which then terminates."""
    if "rewards" in batch:
        return batch["rewards"], batch["terminated"]
    position = torch.arange(batch.shape[1], device=batch.device)
    last = batch.mask & (position == torch.where(batch.mask, position, -1).amax(1, keepdim=True))
    return torch.where(last, spread(batch["reward"], batch), 0.0), last


def _centre(value: Tensor, index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(group sizes [groups], value minus its group's mean [N]) over the values that are not NaN."""
    known = ~value.isnan()
    size = group_sum(known.to(value.dtype), index, count)
    return size, value - (group_sum(torch.where(known, value, 0.0), index, count) / size.clamp(min=1))[index]
