"""Many jobs over the cores of a machine, or over a Ray cluster. Finished ones are not repeated, half-done ones are continued."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quatrain.errors import QuatrainError
from quatrain.experiments.jobs import Job
from quatrain.experiments.progress import Progress
from quatrain.experiments.workers import Outcome, Worker, attempt, wait

POLL = 0.5  # seconds between two looks at how far the runs are


@dataclass(frozen=True)
class Swept:
    """The outcomes in the order of the jobs (those that were not begun are left out), and whether Ctrl-C ended it early."""

    outcomes: tuple[Outcome, ...]
    repeated: int
    interrupted: bool

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.message]


def sweep(jobs: Sequence[Job], folder: Path, *, workers: int | None = None, address: str | None = None, live: bool = True) -> Swept:
    """Do all jobs. One that fails does not end the others; Ctrl-C lets the running ones save themselves.

    folder   the sweep's own; only one sweep works in it at a time.
    workers  processes, each with one thread; None: one per core that this process may use; 0: here, one after the other.
    address  of a Ray cluster ("auto" for the one that this machine belongs to), whose machines see the same folder.
    live     show progress.
    Raises QuatrainError for wrong keys of any job, a folder in use, or no Ray.
    """
    for job in jobs:
        if job.measure is None and not job.done:
            job.plan()  # every key is checked before anything runs
    with _alone_in(folder), Progress(jobs, live) as progress:
        for job in jobs:
            job.claim_folder()
        waiting = [job for job in jobs if not job.done]
        found = {job.folder: Outcome(job, job.run()) for job in jobs if job.done}
        repeated = len(jobs) - len(found)
        interrupted = False
        try:
            for outcome in _outcomes(waiting, workers, address, progress):
                found[outcome.job.folder] = outcome
                progress.finished(outcome)
        except KeyboardInterrupt:
            interrupted = True
    return Swept(tuple(found[job.folder] for job in jobs if job.folder in found), repeated, interrupted)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _outcomes(jobs: list[Job], workers: int | None, address: str | None, progress: Progress) -> Iterator[Outcome]:
    if address is not None:
        from quatrain.experiments.ray_cluster import on_cluster

        yield from on_cluster(jobs, address, POLL, progress.look)
    elif workers == 0:
        for job in jobs:
            progress.started(job)
            result, message = attempt(job)
            if result is None and not message:
                raise KeyboardInterrupt
            yield Outcome(job, result, message)
    else:
        yield from _on_cores(jobs, min(workers or cores(), len(jobs)), progress)


def _on_cores(jobs: list[Job], count: int, progress: Progress) -> Iterator[Outcome]:
    waiting = jobs[::-1]
    pool = [Worker() for _ in range(count)]
    try:
        while waiting or any(worker.job for worker in pool):
            for index, worker in enumerate(pool):
                if waiting and worker.job is None:
                    if not worker.process.is_alive():
                        worker.close()
                        worker = pool[index] = Worker()
                    worker.give(waiting[-1])
                    progress.started(waiting.pop())
            for worker in wait([worker for worker in pool if worker.job], POLL):
                yield worker.collect()
            progress.look()
    except KeyboardInterrupt:
        busy = [worker for worker in pool if worker.job]
        progress.stopping(len(busy))
        for worker in busy:
            worker.interrupt()
        for worker in busy:
            worker.collect()
        raise
    finally:
        for worker in pool:
            worker.close()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. It goes with the process, however that ends."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise QuatrainError("another process works in this folder", given=folder, fix="wait for it, or out=ANOTHER") from None
        yield
