"""The demonstration: base, SFT, GRPO and HPT on the embedded default, held-out, at equal sampled tokens where they sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from quatrain.errors import QuatrainError

TASK = "letters"
HELD_OUT = 400  # problems that everything is measured on
ATTEMPTS = 16  # of the base, none of which solves a hard problem
SAMPLES = 8
LONGEST = 32  # characters of an answer
BUDGET = 150_000  # sampled tokens of GRPO and of HPT

ARMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "grpo": ("grpo", {"kl": 0.0, "tokens": BUDGET, "steps": 1000}),
    "hpt": ("hpt", {"tokens": BUDGET, "steps": 1000}),
    "sft": ("sft", {"steps": 100, "lr": 1e-3}),
}
QUIET = {"task": TASK, "eval_every": 50, "eval_count": 200, "eval_samples": 0, "save_every": 0, "live": False, "tensorboard": False}


def run_demo(out: Path, seed: int = 0) -> Path:
    """Train the arms side by side, one process per core, print one table, write one report; its path.

    Raises QuatrainError if an arm fails.
    """
    from rich.console import Console

    from quatrain.experiments.jobs import Job
    from quatrain.experiments.sweep import sweep
    from quatrain.models.loading import load_causal_lm
    from quatrain.reports.run import comparison_report
    from quatrain.reports.table import results_table
    from quatrain.tasks.embedded import tiny
    from quatrain.training.logging import read_metrics

    console = Console()
    base, began = tiny(show=True), perf_counter()
    hard = never_solved(base)
    console.print(f"{len(hard)} of {HELD_OUT} held-out problems are never solved by the base in {ATTEMPTS} attempts", highlight=False)
    rows = [{"model": "base", **measured(base, hard), "tokens": 0, "seconds": perf_counter() - began}]
    jobs = [Job(name, seed, out / name, recipe, {**QUIET, **keys}) for name, (recipe, keys) in ARMS.items()]
    swept = sweep(jobs, out)
    if swept.interrupted:
        raise KeyboardInterrupt
    if swept.failed:
        raise QuatrainError("an arm of the demonstration failed", given="; ".join(f"{one.job.arm}: {one.message}" for one in swept.failed))
    for name in ("sft", "grpo", "hpt"):
        run = out / name / "run"
        spent = {key: float(values[-1]) for key, (_, values) in read_metrics(run).items() if key in ("tokens", "seconds")}
        rows.append(
            {"model": name, **measured(load_causal_lm(run / "model"), hard), "tokens": int(spent["tokens"]), "seconds": spent["seconds"]}
        )
    console.print(results_table(rows, title=f"Held-out {TASK}: {HELD_OUT} problems, {len(hard)} hard ones"))
    note = (
        f"hard: the {len(hard)} problems that the base never solved in {ATTEMPTS} attempts. GRPO and HPT sampled the same number of tokens."
    )
    return comparison_report(
        [out / name / "run" for name in ("sft", "grpo", "hpt")], out / "report.html", title="Quatrain demo", rows=rows, note=note
    )


def never_solved(policy: Any) -> list[int]:
    """Positions of the held-out problems that none of the policy's attempts solves."""
    from quatrain.protocols import Sampling
    from quatrain.tasks.loading import load_task

    task = load_task(TASK)
    outcomes = task.outcomes(policy, task.starts("heldout", 0, HELD_OUT), ATTEMPTS, Sampling(max_actions=LONGEST), seed=1)
    return (outcomes.amax(1) < 1).nonzero()[:, 0].tolist()


def measured(policy: Any, hard: list[int]) -> dict[str, float]:
    """Greedy accuracy, pass@8, and greedy accuracy on the hard problems, in percent."""
    from quatrain.protocols import Sampling
    from quatrain.tasks.loading import load_task
    from quatrain.tasks.text import pass_at_k

    task = load_task(TASK)
    items = task.starts("heldout", 0, HELD_OUT)
    greedy = task.outcomes(policy, items, 1, Sampling(temperature=0.0, max_actions=LONGEST), seed=2)[:, 0]
    sampled = task.outcomes(policy, items, SAMPLES, Sampling(max_actions=LONGEST), seed=3)
    passed = pass_at_k((sampled >= 1).sum(1), SAMPLES, SAMPLES)
    return {
        "accuracy": 100 * float(greedy.mean()),
        f"pass@{SAMPLES}": 100 * float(passed.mean()),
        "hard": 100 * float(greedy[hard].mean()),
    }
