"""The same jobs on a Ray cluster: one core each, results through the shared folder and the object store."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from quatrain.errors import QuatrainError
from quatrain.experiments.jobs import Job
from quatrain.experiments.workers import THREADS, Outcome, attempt


def on_cluster(jobs: list[Job], address: str, poll: float, look: Callable[[], None]) -> Iterator[Outcome]:
    """Outcomes as they come. Ctrl-C cancels what runs: it continues from its last checkpoint.

    Raises QuatrainError if Ray is not installed or the cluster does not answer.
    """
    try:
        import ray
    except ImportError:
        raise QuatrainError("a sweep on a cluster needs Ray", given=f"address={address}", fix='pip install "quatrain[ray]"') from None
    try:
        ray.init(address=address, runtime_env={"env_vars": dict.fromkeys(THREADS, "1")}, ignore_reinit_error=True)
    except ConnectionError as error:
        raise QuatrainError("no Ray cluster answers", given=f"address={address}: {error}", fix="ray start --head") from error
    remote = ray.remote(num_cpus=1, max_retries=0)(attempt)
    running = {remote.remote(job): job for job in jobs}
    try:
        while running:
            ready, _ = ray.wait(list(running), num_returns=1, timeout=poll)
            for reference in ready:
                job = running.pop(reference)
                try:
                    result, message = ray.get(reference)
                except ray.exceptions.RayError as error:
                    result, message = None, f"its worker ended: {error}"
                yield Outcome(job, result, message)
            look()
    except KeyboardInterrupt:
        for reference in running:
            ray.cancel(reference)
        raise
