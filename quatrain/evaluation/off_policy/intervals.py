"""Intervals of a mean of independent contributions [N]: bootstrap, Student, Hoeffding, empirical Bernstein."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from quatrain.errors import QuatrainError, nearest
from quatrain.evaluation.statistics import Interval


def bootstrap(values: Tensor, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean. For a handful of seeds use ``statistics.interval``."""
    n = len(values)
    index = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))
    means = values.double()[index].mean(1)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(float(values.mean()), low, high)


def student(values: Tensor, level: float = 0.95) -> Interval:
    """mean ± t_{(1+level)/2, n−1} s/√n."""
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * float(values.std()) / math.sqrt(len(values))
    return _around(values, half)


def hoeffding(values: Tensor, level: float = 0.95, width: float | None = None) -> Interval:
    """mean ± B √(log(2/δ)/(2n)), δ = 1 − level, for values in an interval of width B.

    width  None takes the sample's own range: then nothing is guaranteed, and with heavy tails it is too short.

    >>> round(hoeffding(torch.tensor([0.0, 1.0] * 50), 0.9).high - 0.5, 4)
    0.1224
    """
    width = float(values.max() - values.min()) if width is None else width
    return _around(values, width * math.sqrt(math.log(2 / (1 - level)) / (2 * len(values))))


def empirical_bernstein(values: Tensor, level: float = 0.95, width: float | None = None) -> Interval:
    """mean ± [√(2 s² log(4/δ)/n) + 7 B log(4/δ)/(3(n−1))] (Maurer & Pontil 2009, theorem 4, for both sides).

    width  B, as in ``hoeffding``.
    """
    n, log = len(values), math.log(4 / (1 - level))
    width = float(values.max() - values.min()) if width is None else width
    return _around(values, math.sqrt(2 * float(values.var()) * log / n) + 7 * width * log / (3 * (n - 1)))


INTERVALS: dict[str, Callable[..., Interval]] = {
    "bootstrap": bootstrap,
    "student": student,
    "hoeffding": hoeffding,
    "bernstein": empirical_bernstein,
}


def find_interval(name: str) -> Callable[..., Interval]:
    """The interval of that name. Raises QuatrainError for an unknown one."""
    if name not in INTERVALS:
        raise QuatrainError(f"unknown interval {name!r}", fix=nearest(name, INTERVALS))
    return INTERVALS[name]


def _around(values: Tensor, half: float) -> Interval:
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)
