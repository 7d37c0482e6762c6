"""The numbers of a comparison: what each run of each arm reached, and what may be said about the arms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.errors import QuatrainError
from quatrain.evaluation.statistics import (
    Interval,
    area_under_curve,
    detectable,
    first_reach,
    interquartile_mean,
    interval,
    median_reach,
    paired_interval,
    probability_of_improvement,
)
from quatrain.reports.table import Estimate
from quatrain.training.logging import METRICS, read_records

METRIC_NAMES = ("accuracy", "success", "return", "heldout/reward", "reward")
CLIMB = 0.9  # of the first arm's rise: the target where none is given


@dataclass(frozen=True)
class Numbers:
    """One run: its last metrics, and its evaluations as a curve of K points."""

    final: Mapping[str, float]
    steps: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray
    values: Mapping[str, np.ndarray]


def read_numbers(run_folder: Path, final: Mapping[str, float]) -> Numbers:
    """The curve of held-out evaluations of a run; without a log (a function of a seed) it has no points."""
    file = run_folder / METRICS
    records = [record for record in read_records(file) if "seconds/evaluate" in record] if file.is_file() else []

    def column(name: str, absent: float = np.nan) -> np.ndarray:
        return np.array([absent if record.get(name) is None else record[name] for record in records], dtype=float)

    names = {name for record in records for name in record} & set(final)
    values = {name: column(name) for name in names}
    return Numbers(final, column("step"), column("tokens", 0.0), column("seconds"), values)


@dataclass(frozen=True)
class Comparison:
    """Arms side by side, the first of which the others are compared with.

    runs      label → seed → what that run reached; failed and unfinished ones are absent.
    metric    the held-out number that is compared; ``higher`` is better or not.
    target    the level of the metric that tokens and seconds are counted to, None where there is none.
    failures  (arm, seed, message) of runs that failed.
    """

    folder: Path
    runs: Mapping[str, Mapping[int, Numbers]]
    seeds: Sequence[int]
    metric: str
    higher: bool = True
    target: float | None = None
    failures: Sequence[tuple[str, int, str]] = ()
    interrupted: bool = False
    seconds: float = 0.0
    report: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arms(self) -> list[str]:
        return list(self.runs)

    @property
    def complete(self) -> bool:
        """Every arm has every seed."""
        return all(set(self.seeds) == set(found) for found in self.runs.values())

    def final(self, arm: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        """[S] the metric at the end of the arm's runs, in the order of the seeds."""
        found = self.runs[arm]
        return np.array([found[seed].final[self.metric] for seed in (seeds if seeds is not None else self.seeds) if seed in found])

    def paired(self, arm: str, other: str) -> tuple[np.ndarray, np.ndarray]:
        """([S], [S]) the metric of both arms over the seeds that both have."""
        seeds = [seed for seed in self.seeds if seed in self.runs[arm] and seed in self.runs[other]]
        return self.final(arm, seeds), self.final(other, seeds)

    def difference(self, arm: str, other: str | None = None) -> Interval:
        """The arm's mean less the other's (default: the first arm's), over their common seeds, with its 95 % interval."""
        one, two = self.paired(arm, other or self.arms[0])
        if len(one) < 2:
            return Interval(float((one - two).mean()) if len(one) else float("nan"), float("nan"), float("nan"))
        return paired_interval(one, two)

    def better(self, arm: str, other: str | None = None) -> float:
        """Probability that a run of the arm is better than one of the other: NaN without runs."""
        one, two = self.final(arm), self.final(other or self.arms[0])
        if not len(one) or not len(two):
            return float("nan")
        return probability_of_improvement(one, two) if self.higher else probability_of_improvement(two, one)

    def rows(self) -> list[dict[str, Any]]:
        """What the arms reached: one row each."""
        return [self._row(arm) for arm in self.arms]

    def spent(self) -> list[dict[str, Any]]:
        """What the arms cost: one row each, means over seeds."""
        rows = []
        for arm, runs in self.runs.items():
            found = [run for run in runs.values() if "run_seconds" in run.final]
            row: dict[str, Any] = {"arm": arm}
            if self.target is not None:
                row[f"reached {self.target:.3g}"] = "{}/{}".format(*self._reach(runs.values(), "tokens")[1:])
            for name in ("updates", "tokens", "seconds"):
                values = [run.final["run_seconds" if name == "seconds" else name] for run in found]
                row[name] = round(float(np.mean(values))) if values else None
            if self.target is not None:
                for name in ("tokens", "seconds"):
                    middle = self._reach(runs.values(), name)[0]
                    row[f"{name} to it"] = (round(middle) if name == "tokens" else middle) if np.isfinite(middle) else None
            rows.append(row)
        return rows

    def note(self) -> str:
        """What the columns mean, and what so many seeds could have found."""
        first = self.arms[0]
        parts = [
            f"{self.metric} after the last update, on held-out items; [low, high] and ±: stretched bootstrap 95 % intervals over seeds, "
            "paired by seed for differences; IQM: interquartile mean; area: mean height of the learning curve."
        ]
        if len(self.arms) > 1:
            parts.append(f"Difference and P(better), the chance that one run beats another, are against {first}.")
        pairs = [np.subtract(*self.paired(arm, first)) for arm in self.arms[1:]]
        spreads = [float(pair.std(ddof=1)) for pair in pairs if len(pair) > 1]
        if spreads and max(spreads) > 0:
            count = min(len(pair) for pair in pairs if len(pair) > 1)
            size = detectable(count) * max(spreads)
            parts.append(f"With {count} seeds and the spread seen here, a difference of {size:.2g} is found in four of five comparisons.")
        if self.target is not None:
            parts.append(
                f"Tokens and seconds to {self.target:.3g}: medians over seeds of the first evaluation that reaches it, if more than half "
                "of them do. Seconds include evaluation, with as many runs at once as there are workers."
            )
        return " ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "metric": self.metric,
            "higher": self.higher,
            "seeds": list(self.seeds),
            "target": self.target,
            "arms": {
                arm: {
                    "final": {str(seed): run.final.get(self.metric) for seed, run in found.items()},
                    "tokens": {str(seed): run.final.get("tokens") for seed, run in found.items()},
                    "updates": {str(seed): run.final.get("updates") for seed, run in found.items()},
                    "seconds": {str(seed): run.final.get("run_seconds") for seed, run in found.items()},
                    "iqm": float(interquartile_mean(self.final(arm))) if found else None,
                    "difference": _triple(self.difference(arm)) if arm != self.arms[0] else None,
                    "probability_of_improvement": _number(self.better(arm)) if arm != self.arms[0] else None,
                    "area_under_curve": {str(seed): _number(self._area(run)) for seed, run in found.items()},
                }
                for arm, found in self.runs.items()
            },
            "failures": [list(failure) for failure in self.failures],
            "settings": dict(self.settings),
            "seconds": round(self.seconds, 1),
        }

    # -- inside ----------------------------------------------------------------------------------------------------
    def _row(self, arm: str) -> dict[str, Any]:
        final, found = self.final(arm), list(self.runs[arm].values())
        row: dict[str, Any] = {"arm": arm, "seeds": len(final), self.metric: _estimate(final)}
        row["IQM"] = float(interquartile_mean(final)) if len(final) else None
        if len(self.arms) > 1:
            other = arm != self.arms[0]
            gap = self.difference(arm) if other else None
            row["difference"] = Estimate(gap.value, gap.low, gap.high) if gap else None
            row["P(better)"] = self.better(arm) if other and len(final) > 1 else None
        row["area"] = float(np.mean([self._area(run) for run in found])) if found else None
        return row

    def _area(self, run: Numbers) -> float:
        return area_under_curve(run.steps, run.values[self.metric]) if self.metric in run.values else float("nan")

    def _reach(self, found: Iterable[Numbers], axis: str) -> tuple[float, int, int]:
        """(median tokens or seconds to the target, how many runs reached it, of how many)."""
        sign = 1.0 if self.higher else -1.0
        curves = [(getattr(run, axis), sign * run.values[self.metric]) for run in found if self.metric in run.values]
        return *median_reach([first_reach(x, y, sign * self.target) for x, y in curves]), len(curves)


def pick_metric(runs: Mapping[str, Mapping[int, Numbers]], wanted: str | None) -> str:
    """The metric that is compared. Raises QuatrainError if the runs have not measured it."""
    known = {name for found in runs.values() for run in found.values() for name in run.final}
    for name in (wanted,) if wanted else METRIC_NAMES:
        if name in known or not known:
            return name
    from quatrain.errors import nearest

    raise QuatrainError(f"the runs did not measure {wanted or 'a metric to compare'}", fix=nearest(wanted or "accuracy", known))


def pick_target(runs: Mapping[int, Numbers], metric: str, higher: bool) -> float | None:
    """Nine tenths of the way that the first arm went, on average; None where it went the wrong way or nowhere."""
    curves = [run.values[metric] for run in runs.values() if metric in run.values and len(run.values[metric]) > 1]
    if not curves:
        return None
    start, end = float(np.mean([curve[0] for curve in curves])), float(np.mean([curve[-1] for curve in curves]))
    return start + CLIMB * (end - start) if (end - start) * (1 if higher else -1) > 0 else None


def _estimate(values: np.ndarray) -> Any:
    if len(values) < 2:
        return float(values[0]) if len(values) else None
    found = interval(values)
    return Estimate(found.value, found.low, found.high)


def _triple(found: Interval) -> dict[str, float | None]:
    return {"mean": _number(found.value), "low": _number(found.low), "high": _number(found.high)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
