"""Processes or threads for a comparison: the same runs by one process with one thread, one with two, and two with one each.

What is repeated, in turn, is a small ``compare``: two recipes × seeds on the embedded model, start-up of the processes included.
Wall clock is what a person waits for; processor time says what was paid for it.

    python benchmarks/threads.py --seeds 2 --steps 20
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import arguments, median, report, spread

RECIPES = ("grpo", "gspo")
SIDES = {"1 process × 1 thread": (1, 1), "1 process × 2 threads": (1, 2), "2 processes × 1 thread": (2, 1)}


def jobs(folder: Path, args: Any, threads: int) -> list[Any]:
    from quatrain.experiments.compare import QUIET
    from quatrain.experiments.jobs import Job

    keys = {**QUIET, "task": "letters", "steps": args.steps, "eval_every": 0, "save_every": 0, "eval_count": 64, "threads": threads}
    return [Job(recipe, seed, folder / recipe / f"seed{seed}", recipe, keys) for seed in range(args.seeds) for recipe in RECIPES]


def side(processes: int, threads: int, args: Any) -> Callable[[], None]:
    from quatrain.experiments.sweep import sweep

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            # A worker's environment says one thread, and its job says how many torch takes.
            done = sweep(jobs(Path(folder), args, threads), Path(folder), workers=processes, live=False)
            if done.failed:
                raise SystemExit(done.failed[0].message)

    return run


def spent() -> float:
    """Processor seconds of this process and of those that have ended."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


def main() -> None:
    args = arguments(__doc__, seeds=(2, "seeds of each of two recipes"), steps=(20, "rounds of a run"))
    from quatrain.tasks.embedded import tiny

    tiny()
    runs = {name: side(*shape, args) for name, shape in SIDES.items()}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            began, before = perf_counter(), spent()
            run()
            wall[name].append(perf_counter() - began)
            processor[name].append(spent() - before)
    first = wall["1 process × 1 thread"]
    rows = [
        (name, spread(wall[name]), f"{median([a / b for a, b in zip(first, wall[name], strict=True)]):.2f}×", spread(processor[name]))
        for name in runs
    ]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    notes = [
        f"{len(RECIPES)} recipes × {args.seeds} seeds, {args.steps} rounds each, on the embedded model; {args.repeats} repeats in turn; "
        f"the ratio is the median over them. Load of the machine over 1, 5 and 15 minutes at the end: {load}."
    ]
    report("threads", args.threads, ("side", "wall clock", "faster", "processor time"), rows, notes)


if __name__ == "__main__":
    main()
