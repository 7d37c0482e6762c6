"""The verdict rule, and nothing else: an interval above zero reproduces, one below contradicts, one across is inconclusive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from quatrain.evaluation.statistics import Interval, interval, paired_interval, probability_of_improvement
from quatrain.experiments.claims import Claim

Word = Literal["reproduced", "contradicted", "inconclusive"]
Numbers = Mapping[str, Mapping[int, float]]  # label → seed → number


@dataclass(frozen=True)
class Verdict:
    """The word, and what it rests on.

    intervals   label → the interval that decided: of the difference of arms[0] to that arm (positive is better), of the measured number
                less chance, or (equal) the tolerance less the largest error, without width.
    better      label → probability that a run of arms[0] beats one of that arm.
    """

    word: Word
    seeds: Sequence[int]
    intervals: Mapping[str, Interval]
    better: Mapping[str, float]


def judge(claim: Claim, numbers: Numbers, seeds: Sequence[int]) -> Verdict:
    """The verdict of a claim on these seeds. Against several arms, the weakest comparison decides.

    Raises QuatrainError for fewer than 2 seeds where an interval is needed.
    """

    def values(label: str) -> np.ndarray:
        return np.array([numbers[label][seed] for seed in seeds], dtype=float)

    sign, (first, *others) = (1.0 if claim.higher else -1.0), claim.labels
    if claim.kind == "equal":
        worst = max(float(np.abs(values(label)).max()) for label in claim.labels)
        room = claim.tolerance - worst
        word: Word = "reproduced" if room >= 0 else "contradicted"  # false for an error that is not a number
        return Verdict(word, seeds, {first: Interval(room, room, room)}, {})
    if claim.kind in ("correlates", "detects"):
        found = {first: interval(sign * (values(first) - claim.chance))}
        return Verdict(weakest(found.values()), seeds, found, {})
    found = {label: paired_interval(sign * values(first), sign * values(label)) for label in others}
    better = {label: probability_of_improvement(sign * values(first), sign * values(label)) for label in others}
    return Verdict(weakest(found.values()) if claim.kind == "beats" else nearness(found.values(), claim.margin), seeds, found, better)


def weakest(intervals: Sequence[Interval]) -> Word:
    """Of differences.

    >>> weakest([Interval(0.2, 0.1, 0.3), Interval(0.1, -0.1, 0.3)])
    'inconclusive'
    """
    intervals = list(intervals)
    if any(found.below for found in intervals):
        return "contradicted"
    return "reproduced" if all(found.above for found in intervals) else "inconclusive"


def nearness(intervals: Sequence[Interval], margin: float) -> Word:
    """Of differences that should be small: within ±margin, outside of it, or partly both.

    >>> nearness([Interval(0.01, -0.02, 0.04)], 0.05), nearness([Interval(0.1, 0.06, 0.14)], 0.05)
    ('reproduced', 'contradicted')
    """
    intervals = list(intervals)
    if any(found.low > margin or found.high < -margin for found in intervals):
        return "contradicted"
    return "reproduced" if all(found.within(margin) for found in intervals) else "inconclusive"
