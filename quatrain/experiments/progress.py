"""How far a sweep is: a bar per running job in a terminal, one line per finished job elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from quatrain.errors import QuatrainError
from quatrain.experiments.jobs import Job
from quatrain.experiments.workers import Outcome
from quatrain.training.live import duration

TAIL = 16384  # bytes of a log that are read to find its last line
SHOWN = ("accuracy", "return", "reward")


class Progress:
    """Written to standard error. Use it as a context manager; with ``live`` False it is silent."""

    def __init__(self, jobs: Sequence[Job], live: bool = True):
        self.count, self.live = len(jobs), live
        self.done = sum(job.done for job in jobs)
        self._tasks: dict[Job, Any] = {}
        self._began = perf_counter()
        self._bars: Any = None

    def __enter__(self) -> Progress:
        if not self.live:
            return self
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self.console = Console(stderr=True)
        if self.done:
            self.console.print(f"{self.done} of {self.count} runs are done already", highlight=False)
        if self.console.is_terminal and self.done < self.count:
            columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
            self._bars = Bars(*columns, TimeElapsedColumn(), console=self.console, transient=True)
            self._bars.start()
            self._all = self._bars.add_task("[bold]runs", total=self.count, completed=self.done, note="")
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars:
            self._bars.stop()

    def started(self, job: Job) -> None:
        if self._bars:
            try:
                rounds = job.rounds()
            except QuatrainError:
                rounds = None
            self._tasks[job.folder] = (job, self._bars.add_task(f"{job.arm} · seed {job.seed}", total=rounds, note=""))

    def look(self) -> None:
        """Read how far the running jobs are."""
        for job, task in self._tasks.values():
            if line := last_line(job.folder / "run" / "metrics.jsonl"):
                self._bars.update(task, completed=line["step"], note=_note(line))

    def finished(self, outcome: Outcome) -> None:
        self.done += 1
        if not self.live:
            return
        if self._bars:
            _, task = self._tasks.pop(outcome.job.folder)
            self._bars.remove_task(task)
            self._bars.update(self._all, completed=self.done)
        how = f"failed: {outcome.message}" if outcome.message else _note(outcome.result or {})
        place = f"[{self.done}/{self.count}]"
        line = f"{place} {outcome.job.arm} · seed {outcome.job.seed}  {how}  ({duration(perf_counter() - self._began)})"
        self.console.print(line, markup=False, highlight=False)

    def stopping(self, count: int) -> None:
        if self.live:
            self.console.print(f"interrupted: {count} running jobs save themselves; the same command continues", highlight=False)


def last_line(file: Path) -> dict[str, Any] | None:
    """The last whole line of a log of JSON lines, None if there is none yet."""
    try:
        with open(file, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL))
            lines = log.read().split(b"\n")[:-1]
        return json.loads(lines[-1]) if lines else None
    except (OSError, ValueError):
        return None


def _note(numbers: dict[str, Any]) -> str:
    return "  ".join(f"{name} {numbers[name]:.3g}" for name in SHOWN if isinstance(numbers.get(name), float))
