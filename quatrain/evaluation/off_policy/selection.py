"""How good an estimator is at choosing policies: errors, ranks, and what one gets and risks by trying its k best.

Kiyohara et al. 2024, arXiv:2311.18206 and 2311.18207. Axis: P candidate policies; ``estimate`` and ``true`` are [P].
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan

import torch
from torch import Tensor

from quatrain.errors import QuatrainError


@dataclass(frozen=True)
class Portfolio:
    """The k policies that are estimated best, by their true values.

    best, worst, mean; std, the sample standard deviation (k − 1; NaN for k = 1); violations, the share below a threshold; sharpe,
    max(best − baseline, 0)/std, ∞ where std is 0 and best is above the baseline, NaN where both are 0.
    """

    best: float
    worst: float
    mean: float
    std: float
    violations: float
    sharpe: float


def squared_error(estimate: Tensor, true: Tensor) -> float:
    """Mean over policies of (Ĵ − J)²."""
    return float((estimate - true).square().mean())


def rank_correlation(estimate: Tensor, true: Tensor) -> float:
    """Spearman's correlation, ties at their mean rank; NaN where one of the two is constant."""
    from scipy.stats import rankdata

    a, b = (torch.as_tensor(rankdata(side.tolist())) for side in (estimate, true))
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float((a * b).sum()) / scale if scale else nan


def regret(estimate: Tensor, true: Tensor, k: int = 1) -> float:
    """max J − max over the k policies estimated best: what choosing by estimates, then by truth among k, costs."""
    return float(true.max() - true[top(estimate, k)].max())


def wrong_calls(estimate: Tensor, true: Tensor, threshold: float) -> tuple[float, float]:
    """(type I, type II error): the share of bad policies (J < threshold) called good, and of good ones called bad.

    NaN where there are none.
    """
    good, called = true >= threshold, estimate >= threshold
    return (
        float((called & ~good).sum() / (~good).sum()) if (~good).any() else nan,
        float((~called & good).sum() / good.sum()) if good.any() else nan,
    )


def portfolio(estimate: Tensor, true: Tensor, k: int, baseline: float, safe: float | None = None) -> Portfolio:
    """What trying the k policies estimated best brings and risks.

        SharpeRatio@k = (best@k − J(π_b)) / std@k

    baseline  J(π_b), what one has already; safe: the threshold of a violation, the baseline if None.

    >>> portfolio(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([4.0, 2.0, 9.0]), 2, baseline=1.0).sharpe  # (4 − 1)/√2
    2.1213203435596424
    """
    values = true[top(estimate, k)].double()
    best, std = float(values.max()), float(values.std()) if k > 1 else nan
    gain = max(best - baseline, 0.0)
    sharpe = gain / std if std else (inf if gain else nan)
    threshold = baseline if safe is None else safe
    return Portfolio(best, float(values.min()), float(values.mean()), std, float((values < threshold).double().mean()), sharpe)


def top(estimate: Tensor, k: int) -> Tensor:
    """[k] the policies estimated best, best first; of equals the first. Raises QuatrainError for a k that is not 1 … P."""
    if not 1 <= k <= len(estimate):
        raise QuatrainError("the best k of some policies", given=f"k={k} of {len(estimate)}")
    return torch.argsort(estimate, descending=True, stable=True)[:k]
