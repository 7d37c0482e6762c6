"""Where the time of a run goes: by phase, from the start of the process to the report, in one process with one thread.

Shares are of processor time, which others on the machine disturb least. What is inside of a phase counts there alone: sampling
within an evaluation is evaluation.

    python benchmarks/phases.py                                # the main run of the demonstration, shorter
    python benchmarks/phases.py --recipe hpt --steps 50
    python benchmarks/phases.py --recipe gspo --steps 100 --evaluations 10     # a run of ``compare``, with its evaluations
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import arguments, report

BEGAN, SPENT = perf_counter(), process_time()  # before anything heavy is imported
WHOLE = ("evaluation", "report and saving")  # nothing is looked at inside


class Phases:
    """Wall-clock and processor seconds by phase; the innermost one that is open gets them."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {"start: imports": perf_counter() - BEGAN}
        self.processor: dict[str, float] = {"start: imports": process_time() - SPENT}
        self.open = ["start: task, model, checks"]
        self.at = perf_counter(), process_time()

    def switch(self) -> None:
        now, name = (perf_counter(), process_time()), self.open[-1]
        self.wall[name] = self.wall.get(name, 0.0) + now[0] - self.at[0]
        self.processor[name] = self.processor.get(name, 0.0) + now[1] - self.at[1]
        self.at = now

    def within(self, owner: Any, method: str, name: str) -> None:
        """From now on ``owner.method`` is that phase."""
        function: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.open[-1] in WHOLE:
                return function(*args, **kwargs)
            self.switch()
            self.open.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch()
                self.open.pop()

        setattr(owner, method, timed)


def main() -> None:
    args = arguments(
        __doc__,
        recipe=("grpo", "a recipe"),
        task=("letters", "a task"),
        steps=(100, "rounds"),
        evaluations=(2, "evaluations, and one before"),
    )
    import torch

    from quatrain import make
    from quatrain.models.causal_lm import CausalLM
    from quatrain.tasks.loading import load_task
    from quatrain.training import run
    from quatrain.training.recorder import Recorder
    from quatrain.training.rules import AdamW
    from quatrain.training.steps import Collect, Fit

    task = load_task(args.task)
    make(args.recipe)  # its module is imported, with all others
    phases = Phases()
    for owner, method, name in (
        (CausalLM, "sample", "sampling"),
        (CausalLM, "encode", "texts to tokens and back"),
        (CausalLM, "decode", "texts to tokens and back"),
        (type(task.reward), "score", "rewards"),
        (CausalLM, "score", "update: scores, forward"),
        (torch.Tensor, "backward", "update: backward"),
        (AdamW, "step", "update: optimiser"),
        (Collect, "__call__", "collecting: the rest"),
        (Fit, "__call__", "update: the rest"),
        (Recorder, "evaluate", "evaluation"),
        (Recorder, "write", "report and saving"),
        (Recorder, "save", "report and saving"),
        (CausalLM, "save", "report and saving"),
        (run, "write_report", "report and saving"),
    ):
        phases.within(owner, method, name)
    with tempfile.TemporaryDirectory() as folder:
        done = run.train(
            args.recipe, task=args.task, steps=args.steps, out=f"{folder}/run", eval_every=max(1, args.steps // max(1, args.evaluations)),
            eval_count=200, eval_samples=0, save_every=0, live=False, tensorboard=False, threads=args.threads,
        )  # fmt: skip
    phases.switch()
    wall, processor, total = phases.wall, phases.processor, sum(phases.processor.values())
    names = sorted(wall, key=lambda name: (not name.startswith("start"), -processor[name]))
    rows = [(name, f"{processor[name]:.2f} s", f"{100 * processor[name] / total:.0f} %", f"{wall[name]:.2f} s") for name in names]
    rows.append(("all", f"{total:.1f} s", "100 %", f"{sum(wall.values()):.1f} s"))
    notes = [f"`{args.recipe}` on {args.task}, embedded model, {args.steps} rounds, {int(done.state.spent['tokens'])} sampled tokens."]
    report(f"phases {args.recipe}", args.threads, ("phase", "processor time", "share", "wall clock"), rows, notes)


if __name__ == "__main__":
    main()
