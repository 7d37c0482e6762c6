"""Processes that do one job after the other, each with one thread: at small sizes many runs side by side beat many threads in one."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import Any

from quatrain.errors import QuatrainError
from quatrain.experiments.jobs import Job

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with a result, with a message (why it failed), or with neither (interrupted)."""

    job: Job
    result: dict[str, float] | None = None
    message: str = ""


class Worker:
    """A spawned process with one thread. It is alone in its process group, so that Ctrl-C reaches it only through ``interrupt``, and it
    ends with its parent, however that ends."""

    def __init__(self) -> None:
        spawn = get_context("spawn")
        self.pipe, far = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(far,), name="quatrain-worker")
        with _single_threaded():
            self.process.start()
        far.close()
        self.job: Job | None = None

    def give(self, job: Job) -> None:
        """Raises QuatrainError if the job cannot be sent."""
        try:
            self.pipe.send(job)
        except (TypeError, AttributeError, ValueError) as error:
            raise QuatrainError(
                f"arm {job.arm!r} cannot be sent to another process",
                given=str(error),
                fix="named functions in place of lambdas, or workers=0",
            ) from error
        self.job = job

    def collect(self) -> Outcome:
        """The outcome of its job, once its pipe or its end says that there is one."""
        job, self.job = self.job, None
        try:
            result, message = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            how = f"signal {-code} ({signal.strsignal(-code)})" if code and code < 0 else f"exit code {code}"
            return Outcome(job, message=f"its process ended with {how}")
        return Outcome(job, result, message)

    def interrupt(self) -> None:
        """Ask the running job to save and stop."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGINT)

    def close(self) -> None:
        self.pipe.close()
        self.process.join(2.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def attempt(job: Job) -> tuple[dict[str, float] | None, str]:
    """(result, message) of a job: whatever goes wrong in one must not end the others, so it becomes a message."""
    try:
        return job.run(), ""
    except KeyboardInterrupt:
        return None, ""
    except QuatrainError as error:
        return None, str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        with suppress(OSError):
            (job.folder / "error.txt").write_text(traceback.format_exc())
        return (
            None,
            f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno}; all of it in {job.folder}/error.txt)",
        )


def wait(workers: list[Worker], seconds: float) -> list[Worker]:
    """Those that have an outcome, after at most that long."""
    ready = connection.wait([worker.pipe for worker in workers], timeout=seconds)
    return [worker for worker in workers if worker.pipe in ready]


def _serve(pipe: Any) -> None:
    """The process: jobs come in, (result, message) go out, until the pipe is closed."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  a run's own lines belong to nobody here
    while True:
        try:
            job = pipe.recv()
            pipe.send(attempt(job))
        except KeyboardInterrupt:
            continue
        except (EOFError, OSError):
            return


def _end_with_parent() -> None:
    from multiprocessing import parent_process

    connection.wait([parent_process().sentinel])
    os._exit(1)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """A process that starts meanwhile uses one thread."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
