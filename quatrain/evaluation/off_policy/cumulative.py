"""The distribution of the return under a policy, from another's trajectories: a CDF, and the numbers that are read off it.

Huang et al. 2021 (arXiv:2104.08977), Chandak et al. 2021 (arXiv:2104.12820). Axes: N trajectories, M grid points.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quatrain.errors import QuatrainError
from quatrain.evaluation.off_policy.ratios import normalised


class Summary(NamedTuple):
    """Of a distribution on a grid: mean, variance, CVaR_α of the lower tail, lower quantile, median, upper quantile."""

    mean: float
    variance: float
    cvar: float
    low: float
    median: float
    high: float


def importance_cdf(weight: Tensor, returns: Tensor, grid: Tensor, normalise: bool = False) -> Tensor:
    """F̂(m) = 1/N Σ_i w_i 1[G_i ≤ m], [M] (TIS).

    weight  w_{0:T−1} [N]; returns G [N]; grid [M] ascending. ``normalise``: Σ w in place of N → the last point is 1 where the grid reaches
            the largest return, and F̂ is a CDF.

    >>> importance_cdf(torch.ones(4), torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([0.0, 1.0, 2.0, 5.0])).tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    weight = normalised(weight[:, None])[:, 0] if normalise else weight
    return (weight[:, None] * (returns[:, None] <= grid).to(weight.dtype)).mean(0)


def doubly_robust_cdf(weight: Tensor, returns: Tensor, grid: Tensor, model: Tensor, expected: Tensor, normalise: bool = False) -> Tensor:
    """F̂(m) = 1/N Σ_i [Ĝ^π(m; s_0) + w_i (1[G_i ≤ m] − Ĝ(m; s_0, a_0))], [M] (TDR).

    model     Ĝ(m; s_0, a_0) [N, M], a model of Pr(G ≤ m | s_0, a_0) under the policy.
    expected  Ĝ^π(m; s_0) = Σ_a π(a|s_0) Ĝ(m; s_0, a) [N, M].

    Unbiased whatever the model is; it need not be monotone (``as_cdf``). model = expected = 0 → ``importance_cdf``; weights that are not
    related to the model (w = 0) → the direct method.
    """
    weight = normalised(weight[:, None])[:, 0] if normalise else weight
    indicator = (returns[:, None] <= grid).to(weight.dtype)
    return (expected + weight[:, None] * (indicator - model)).mean(0)


def as_cdf(values: Tensor) -> Tensor:
    """The nearest simple CDF: running maximum, cut to [0, 1], the last point 1."""
    found = values.clamp(0, 1).cummax(-1).values.clone()
    found[..., -1] = 1.0
    return found


def summary(cdf: Tensor, grid: Tensor, alpha: float = 0.25) -> Summary:
    """What a CDF [M] on a grid [M] says; masses are its steps, the first one that of the first point.

        CVaR_α = 1/α ∫_0^α F⁻¹(u) du: the mean of the worst share α; quantiles F⁻¹(α), F⁻¹(½), F⁻¹(1 − α)

    alpha in (0, 1]; 1 → the mean. A CDF that does not end at 1 (importance weights that do not average 1) keeps its mass for mean and
    variance; of quantiles and CVaR it is that of ``as_cdf``.
    """
    if not 0 < alpha <= 1:
        raise QuatrainError("a tail is a share", given=alpha, expected="a number above 0, at most 1")
    mass = cdf.diff(prepend=cdf.new_zeros(1))
    mean = (mass * grid).sum()
    variance = (mass * (grid - mean).square()).sum()
    proper = as_cdf(cdf)
    tail = proper.clamp(max=alpha).diff(prepend=cdf.new_zeros(1))
    quantiles = [float(grid[int(torch.searchsorted(proper, torch.tensor(level, dtype=proper.dtype)))]) for level in (alpha, 0.5, 1 - alpha)]
    return Summary(float(mean), float(variance), float((tail * grid).sum() / alpha), *quantiles)
