"""``quatrain reproduce``: run claims in miniature, judge them by one rule, record what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from quatrain.errors import QuatrainError, nearest
from quatrain.evaluation.statistics import Interval
from quatrain.experiments.arms import as_arms, parse_seeds
from quatrain.experiments.claims import CLAIMS, SMOKE, SMOKE_SEEDS, Claim
from quatrain.experiments.compare import jobs_of, prepare
from quatrain.experiments.jobs import Job, digest
from quatrain.experiments.records import record
from quatrain.experiments.sweep import sweep
from quatrain.experiments.verdicts import Numbers, Verdict, judge


@dataclass(frozen=True)
class Reproduction:
    """What came of a claim.

    verdict    None where runs failed or were interrupted.
    blocks     with fresh seeds: the verdict of each block of as many seeds as the claim has.
    recorded   the file that was written, if it was.
    """

    claim: Claim
    verdict: Verdict | None
    numbers: Numbers
    failures: Sequence[tuple[str, int, str]] = ()
    interrupted: bool = False
    blocks: Sequence[Verdict] = ()
    recorded: Path | None = None
    seconds: float = 0.0


def claims_of(name: str) -> list[Claim]:
    """The claims of a recipe, of a family, of a glob, or of ``all``. Raises QuatrainError if there are none."""
    from quatrain.training.registry import entries

    families = {entry.name: entry.family for entry in entries()}  # importing the recipes registers their claims
    found = [claim for claim in CLAIMS.values() if name in ("all", claim.system, families.get(claim.system)) or fnmatch(claim.id, name)]
    if not found:
        why = "this recipe has no claim yet" if name in families else f"no claim, recipe or family is called {name!r}"
        raise QuatrainError(why, fix=nearest(name, [*CLAIMS, *(families[claim.system] for claim in CLAIMS.values()), "all"]))
    return sorted(found, key=lambda claim: claim.id)


def reproduce(
    claim: Claim,
    *,
    seeds: int | str | Sequence[int] | None = None,
    scale: Literal["full", "smoke"] = "full",
    out: str | Path = "runs/reproduce",
    results: str | Path | None = None,
    workers: int | None = None,
    address: str | None = None,
    live: bool = True,
) -> Reproduction:
    """Run a claim's miniature and judge it. Run again, it continues where it was.

    seeds    None: the claim's own, and the verdict is recorded in ``results`` (default: the repository's results/).
             Others are fresh ones: nothing is recorded; ``blocks`` says how often the verdict agrees.
    scale    "smoke" runs the machinery in seconds; its word means nothing and is not recorded.
    out      where the runs go; workers, address, live: as for ``compare``.
    """
    began = perf_counter()
    chosen = parse_seeds(SMOKE_SEEDS if scale == "smoke" else claim.seeds) if seeds is None else parse_seeds(seeds)
    if scale == "smoke":
        claim = small(claim)
    jobs = jobs_for(claim, chosen, Path(out))
    prepare(jobs)
    swept = sweep(jobs, jobs[0].folder.parents[1], workers=workers, address=address, live=live)
    failures = [(outcome.job.arm, outcome.job.seed, outcome.message) for outcome in swept.failed]
    numbers: dict[str, dict[int, float]] = {label: {} for label in claim.labels}
    for outcome in swept.outcomes:
        if outcome.result is not None:
            for label, value in measured(claim, outcome.job, outcome.result).items():
                numbers[label][outcome.job.seed] = value
    found = Reproduction(claim, None, numbers, failures, swept.interrupted, seconds=perf_counter() - began)
    if failures or swept.interrupted:
        return found
    found = replace(found, verdict=judge(claim, numbers, chosen))
    if seeds is not None:
        parts = [chosen[start : start + claim.seeds] for start in range(0, len(chosen), claim.seeds)]
        return replace(found, blocks=[judge(claim, numbers, part) for part in parts if len(part) == claim.seeds])
    if scale == "smoke":
        return found
    spent = {name: sum(outcome.result.get(name, 0.0) for outcome in swept.outcomes) for name in ("run_seconds", "tokens", "updates")}
    return replace(found, recorded=record(claim, found.verdict, numbers, found.seconds, spent, results))


def small(claim: Claim) -> Claim:
    """The claim with settings that take seconds; an arm's own keys give way to them."""
    less = {**(SMOKE if claim.measure is None else {}), **(claim.smoke or {})}
    arms = claim.arms
    if claim.measure is None:
        kept = [replace(arm, keys={name: value for name, value in arm.keys.items() if name not in less}) for arm in as_arms(arms)]
        arms = {arm.label: arm for arm in kept}
    return replace(claim, settings={**claim.settings, **less}, arms=arms)


def jobs_for(claim: Claim, seeds: Sequence[int], out: Path) -> list[Job]:
    """Its runs. A run's folder is named by what it does, so that claims share the runs in which nothing differs."""
    if claim.measure:
        folder = out / f"{claim.id}-{digest(dict(claim.settings))}" / "measure"
        return [Job(claim.id, seed, folder / f"seed{seed}", keys=claim.settings, measure=claim.measure) for seed in seeds]
    jobs = jobs_of(as_arms(claim.arms), seeds, out / "runs", claim.settings)
    jobs = [replace(job, folder=out / "runs" / digest(job.work(), 8) / f"seed{job.seed}") for job in jobs]
    if len({job.folder for job in jobs}) < len(jobs):
        raise QuatrainError(f"two arms of claim {claim.id!r} do the same", given=", ".join(claim.labels))
    return jobs


def measured(claim: Claim, job: Job, result: Mapping[str, float]) -> dict[str, float]:
    """The numbers that a job gave to the claim. Raises QuatrainError if one is missing."""
    wanted = {label: label for label in claim.labels} if claim.measure else {job.arm: claim.metric}
    for name in wanted.values():
        if name not in result:
            raise QuatrainError(f"claim {claim.id!r} is about a number that was not measured", given=name, fix=nearest(name, result))
    return {label: result[name] for label, name in wanted.items()}


def told(found: Reproduction) -> dict[str, Any]:
    """One row for the terminal."""
    if found.verdict is None:
        state = "interrupted" if found.interrupted else f"{len(found.failures)} runs failed"
        return {"claim": found.claim.id, "kind": found.claim.kind, "verdict": state, "measured": "", "seconds": found.seconds}
    return {
        "claim": found.claim.id,
        "kind": found.claim.kind,
        "verdict": found.verdict.word,
        "measured": "; ".join(describe(label, gap, found.claim) for label, gap in found.verdict.intervals.items()),
        "seconds": found.seconds,
    }


def describe(label: str, gap: Interval, claim: Claim) -> str:
    """An interval in words: of what, its value and its ends."""
    if claim.kind == "equal":
        return f"largest error {claim.tolerance - gap.value:.2g}, tolerance {claim.tolerance:.2g}"
    if claim.kind in ("correlates", "detects"):
        return f"{label} {'' if not claim.chance else f'above {claim.chance:g} by '}{gap.value:.3f} [{gap.low:.3f}, {gap.high:.3f}]"
    return f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] against {label}"
