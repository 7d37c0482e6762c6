"""Importance ratios of logged actions: per action, cumulative, self-normalised, and smoothed by a kernel for continuous actions.

Axes: N trajectories, T actions, D dimensions of an action.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from quatrain.errors import QuatrainError


def action_ratio(target_logp: Tensor, behaviour_logp: Tensor, mask: Tensor) -> Tensor:
    """ρ_t = π(a_t|s_t)/π_b(a_t|s_t), [N, T]; 1 where there is no action (whatever is there, NaN included).

    π = π_b → all ones.
    """
    return torch.where(mask, target_logp - behaviour_logp, 0.0).exp()


def cumulative(ratio: Tensor) -> Tensor:
    """w_{0:t} = Π_{k≤t} ρ_k, [N, T].

    >>> cumulative(torch.tensor([[2.0, 0.5, 3.0]])).tolist()
    [[2.0, 1.0, 3.0]]
    """
    return ratio.cumprod(1)


def before(weight: Tensor) -> Tensor:
    """w_{0:t−1}, [N, T]: 1 before the first action."""
    return torch.cat([torch.ones_like(weight[:, :1]), weight[:, :-1]], 1)


def normalised(weight: Tensor) -> Tensor:
    """The weights divided by their mean over trajectories, at each action: they then average 1, and the estimate is a weighted mean.

    Weights that are all zero stay so.
    """
    mean = weight.mean(0, keepdim=True)
    return torch.where(mean > 0, weight / mean.clamp(min=torch.finfo(weight.dtype).tiny), 0.0)


def effective_size(weight: Tensor) -> Tensor:
    """(Σ w)²/Σ w² over the first axis: how many trajectories of equal weight carry as much (Kish). N where all are alike."""
    return weight.sum(0).square() / weight.square().sum(0).clamp(min=torch.finfo(weight.dtype).tiny)


def spectrum(ratio: Tensor, marginal: Tensor, steps: int, of: str = "state_action") -> Tensor:
    """SOPE's weights [N, T] (Yuan et al. 2021, arXiv:2111.03936): marginal up to ``steps`` actions ago, per-decision since.

        t < k: Π_{j≤t} ρ_j;   t ≥ k: d(s_{t−k}, a_{t−k}) · Π_{j=t−k+1}^{t} ρ_j     (of state–action ratios)
                              t ≥ k: d(s_{t−k}) · Π_{j=t−k}^{t} ρ_j               (of state ratios)

    steps = 0 → marginal importance sampling; steps ≥ T → per-decision importance sampling.
    Raises QuatrainError for negative steps or another kind of ratio.
    """
    if steps < 0 or of not in ("state", "state_action"):
        raise QuatrainError("a spectrum has k ≥ 0 steps of state or state–action ratios", given=f"steps={steps}, of={of}")
    length = ratio.shape[1]
    found = cumulative(ratio)
    if steps >= length:
        return found
    first = steps if of == "state" else steps - 1  # ratios before t that are multiplied in, besides ρ_t
    own = torch.ones_like(ratio[:, steps:])
    for back in range(first + 1):
        own = own * ratio[:, steps - back : length - back]
    return torch.cat([found[:, :steps], marginal[:, : length - steps] * own], 1)


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda u: (-0.5 * u.square()).exp() / math.sqrt(2 * math.pi),
    "epanechnikov": lambda u: 0.75 * (1 - u.square()).clamp(min=0),
    "triangular": lambda u: (1 - u.abs()).clamp(min=0),
    "cosine": lambda u: torch.where(u.abs() <= 1, math.pi / 4 * (math.pi / 2 * u).cos(), 0.0),
    "uniform": lambda u: torch.where(u.abs() <= 1, 0.5, 0.0).to(u.dtype),
}


def kernel_ratio(
    target_action: Tensor, action: Tensor, behaviour_logp: Tensor, mask: Tensor, bandwidth: float, kernel: str = "gaussian"
) -> Tensor:
    """ρ_t = Π_d K((a_t − π(s_t))_d / h) / h / π_b(a_t|s_t), [N, T], for a deterministic policy of continuous actions; 1 outside the mask.

    target_action  [N, T, D] what the policy would have done; action [N, T, D] what was done. bandwidth h > 0, in units of an action.
    kernel         gaussian, epanechnikov, triangular, cosine or uniform; each integrates to 1.

    Kallus & Zhou 2018 (arXiv:1802.06037): h → 0 has no bias and no bound on its variance.
    """
    if bandwidth <= 0 or kernel not in KERNELS:
        raise QuatrainError(
            "kernel smoothing needs a known kernel and a positive width", given=f"{kernel}, {bandwidth}", expected=[*KERNELS]
        )
    density = (KERNELS[kernel]((action - target_action) / bandwidth) / bandwidth).prod(-1)
    return torch.where(mask, density / behaviour_logp.exp(), 1.0)
