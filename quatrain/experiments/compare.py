"""``quatrain compare``: the same weights, items, seeds and budget for every arm; a table with intervals, curves, a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from quatrain.errors import QuatrainError
from quatrain.experiments.arms import Arm, as_arms, parse_seeds
from quatrain.experiments.comparison import Comparison, pick_metric, pick_target, read_numbers
from quatrain.experiments.jobs import Job, digest
from quatrain.experiments.sweep import sweep
from quatrain.training.logging import METRICS, read_records

POINTS = 10  # evaluations along a run, where eval_every is not given
SHARED = ("seed", "out", "resume")  # keys that a comparison sets itself
NETWORKS = ("gym:", "plane:", "tables:", "tool-choice")  # tasks whose policies are small networks and tables, made with each run
QUIET = {"live": False, "tensorboard": False, "report": False, "threads": 1, "keep": 1, "eval_samples": 0}


def compare(
    arms: Sequence[Any] | Mapping[str, Any],
    *,
    seeds: int | str | Sequence[int] = 5,
    metric: str | None = None,
    higher: bool = True,
    reach: float | None = None,
    out: str | Path | None = None,
    workers: int | None = None,
    address: str | None = None,
    live: bool = True,
    report: bool = True,
    **keys: Any,
) -> Comparison:
    """Train every arm with every seed and say how they differ. Run again, it continues where it was.

    arms     texts (``"gspo:minibatches=8"``), Recipes, or label → either, or a named function that returns a Recipe. The first is
             what the others are compared with. Seed k of all arms shares initial weights and items.
    seeds    K for 0 … K−1, "10-19", or a list.
    metric   the held-out number; default accuracy, or return. ``higher`` is better.
    reach    the level that tokens and seconds are counted to; default: nine tenths of the first arm's rise.
    out      the folder; default runs/compare-ARMS-DIGEST, where the digest is of the keys.
    workers  processes with one thread each; default one per core. address: a Ray cluster's.
    keys     for all arms, as in ``quatrain.train``: task, steps, model … ``tokens`` (sampled, per run) makes budgets equal where
             steps do not. By default 10 evaluations and checkpoints along a run, greedy answers only.

    The folder gets ARM/seedK/ for every run, numbers.jsonl (and .parquet where pyarrow is installed): every metric of every step;
    comparison.json: what the table says; report.html.

    Raises QuatrainError for wrong keys, before anything runs.
    """
    began = perf_counter()
    chosen, numbers = as_arms(arms), parse_seeds(seeds)
    if taken := [name for name in SHARED if name in keys or any(name in arm.keys for arm in chosen)]:
        raise QuatrainError("a comparison sets these itself", given=", ".join(taken), fix="seeds=5")
    jobs = jobs_of(chosen, numbers, Path(out) if out else default_folder(chosen, keys), keys)
    folder = jobs[0].folder.parents[1]
    prepare(jobs)
    swept = sweep(jobs, folder, workers=workers, address=address, live=live)
    runs: dict[str, dict[int, Any]] = {arm.label: {} for arm in chosen}
    for outcome in swept.outcomes:
        if outcome.result is not None:
            runs[outcome.job.arm][outcome.job.seed] = read_numbers(outcome.job.folder / "run", outcome.result)
    name = pick_metric(runs, metric)
    found = Comparison(
        folder,
        runs,
        numbers,
        name,
        higher,
        reach if reach is not None else pick_target(runs[chosen[0].label], name, higher),
        [(outcome.job.arm, outcome.job.seed, outcome.message) for outcome in swept.failed],
        swept.interrupted,
        perf_counter() - began,
        settings=keys,
    )
    write_numbers(found, jobs)
    if report and all(runs.values()):
        found = replace(found, report=write_page(found, jobs))
    return found


def jobs_of(arms: Sequence[Arm], seeds: Sequence[int], folder: Path, keys: Mapping[str, Any]) -> list[Job]:
    """One job per seed and arm, seed by seed, so that a cut comparison is a smaller one rather than half of the arms.

    A key that some arms have and others have not (``group`` beside plain imitation) is for those that have it.
    """
    known = [known_keys(arm) for arm in arms]
    own = [{name: value for name, value in keys.items() if name in here or not any(name in other for other in known)} for here in known]
    shared = [run_keys({**mine, **arm.keys}, arm) for arm, mine in zip(arms, own, strict=True)]
    return [
        Job(arm.label, seed, folder / slug(arm.label) / f"seed{seed}", arm.recipe, ready)
        for seed in seeds
        for arm, ready in zip(arms, shared, strict=True)
    ]


def known_keys(arm: Arm) -> set[str]:
    """What the arm may be told: its options, knobs and settings."""
    from quatrain.training.registry import find, make
    from quatrain.training.settings import Settings

    if isinstance(arm.recipe, str):
        options = set(find(arm.recipe).options)
        recipe = make(arm.recipe, **{name: value for name, value in arm.keys.items() if name in options})
    else:
        options, recipe = set(), arm.recipe() if callable(arm.recipe) else arm.recipe
    return {*options, *recipe.knobs(), *Settings.model_fields}


def run_keys(keys: Mapping[str, Any], arm: Arm) -> dict[str, Any]:
    """The keys of one run: what was asked for, and a quiet run with a few evaluations."""
    rounds = Job(arm.label, 0, Path(), arm.recipe, keys).rounds()
    every = max(1, (rounds or 1) // POINTS)
    return {**QUIET, "eval_every": every, "save_every": every, **keys}


def default_folder(arms: Sequence[Arm], keys: Mapping[str, Any]) -> Path:
    names = "-".join(dict.fromkeys(slug(arm.label.partition(":")[0]) for arm in arms))[:60]
    return Path("runs") / f"compare-{names}-{digest([[arm.label for arm in arms], dict(keys)])}"


def slug(label: str) -> str:
    """A label as the name of a folder."""
    plain = "".join(letter if letter.isalnum() or letter in "-_.=" else "-" for letter in label)
    return plain if plain == label else f"{plain}-{digest(label)}"


def prepare(jobs: Sequence[Job]) -> None:
    """Build what all runs share and only one process should: the embedded model, at first use."""
    from quatrain.environments.loading import is_turned
    from quatrain.training.loading import TINY, load_policy, load_run_task, load_tiny
    from quatrain.training.settings import Settings

    asked = {(str(job.keys.get("model", "auto")), str(job.keys.get("task", "letters"))) for job in jobs if not (job.measure or job.done)}
    for name, task in sorted(asked):
        if is_turned(task) and name in TINY:
            load_policy(name, load_run_task(settings := Settings(task=task)), settings)
        elif name.partition(":")[0] in TINY and not task.startswith(NETWORKS):
            load_tiny(name)


def write_numbers(found: Comparison, jobs: Sequence[Job]) -> None:
    """numbers.jsonl (and .parquet): arm, seed, step and every metric of every round; comparison.json: what is said about them."""
    from quatrain.reports.provenance import provenance

    lines = [
        {"arm": job.arm, "seed": job.seed, **record}
        for job in jobs
        if job.done and (job.folder / "run" / METRICS).is_file()
        for record in read_records(job.folder / "run" / METRICS)
    ]
    (found.folder / "numbers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found.folder / "comparison.json").write_text(json.dumps({**found.as_dict(), **provenance()}, indent=1, default=str))
    if lines and find_spec("pyarrow"):
        import pyarrow
        import pyarrow.parquet

        names = list(dict.fromkeys(name for line in lines for name in line))
        pyarrow.parquet.write_table(
            pyarrow.table({name: [line.get(name) for line in lines] for name in names}), found.folder / "numbers.parquet"
        )


def write_page(found: Comparison, jobs: Sequence[Job]) -> Path:
    """The comparison's HTML report."""
    from quatrain.reports import html
    from quatrain.reports.plots import bars_plot
    from quatrain.reports.run import comparison_report

    folders = {arm: [job.folder / "run" for job in jobs if job.arm == arm and job.seed in found.runs[arm]] for arm in found.arms}
    gaps = {arm: found.difference(arm) for arm in found.arms[1:]}
    more = ""
    if gaps:
        title = f"Difference in {found.metric} to {found.arms[0]}, 95 %"
        bars = {found.arms[0]: (0.0, 0.0, 0.0), **{arm: (gap.value, gap.low, gap.high) for arm, gap in gaps.items()}}
        more = html.figures({title: bars_plot(bars, title=title)})
    more += html.heading("What it cost") + html.table(found.spent(), best={})
    failed = "".join(f" {arm}, seed {seed}, failed: {message}." for arm, seed, message in found.failures)
    return comparison_report(
        folders,
        found.folder / "report.html",
        title=" · ".join(found.arms) if len(found.arms) < 5 else f"{len(found.arms)} arms",
        rows=found.rows(),
        best={found.metric: "max" if found.higher else "min", "IQM": "max" if found.higher else "min"},
        note=found.note() + failed,
        more=more,
    )
