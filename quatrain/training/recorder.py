"""What happens after a round besides learning: evaluation, logs, checkpoints, and a clean stop."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any

import torch

from quatrain.protocols import Sampling
from quatrain.seeds import derive
from quatrain.training import checkpoint
from quatrain.training.likelihood import likelihood_measures
from quatrain.training.live import LiveView
from quatrain.training.logging import MetricsLog, SamplesLog, write_tables
from quatrain.training.settings import Settings
from quatrain.training.state import State

SHOWN = 6  # sampled answers kept per evaluation


class Interrupted(Exception):
    """Ctrl-C, after a checkpoint was written."""


class Recorder:
    """Called after every round of the driver. Use it as a context manager: it takes Ctrl-C while it is open."""

    def __init__(self, folder: Path, state: State, settings: Settings, total: int, title: str):
        self.folder, self.settings, self.total = folder, settings, total
        self.metrics, self.samples = MetricsLog(folder, settings.tensorboard), SamplesLog(folder)
        self.live = LiveView(total, title) if settings.live else None
        self.latest: dict[str, float] = {}
        self._stop, self._began, self._tokens = False, perf_counter(), state.spent["tokens"]
        self._saved_at = -1

    def __enter__(self) -> Recorder:
        if self.live:
            self.live.__enter__()
        self._before = signal.getsignal(signal.SIGINT)
        try:
            signal.signal(signal.SIGINT, self._interrupt)
        except ValueError:  # not the main thread: Ctrl-C is somebody else's
            self._before = None
        return self

    def __exit__(self, *error: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self.live:
            self.live.__exit__(*error)
        self.metrics.close()
        self.samples.close()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._stop:
            raise KeyboardInterrupt
        self._stop = True

    def __call__(self, state: State, metrics: Mapping[str, float]) -> None:
        step, last = state.step, state.step >= self.total or self.spent(state)
        found = dict(metrics)
        seconds, self._began = max(perf_counter() - self._began, 1e-9), perf_counter()
        found["tokens"] = state.spent["tokens"]
        found["tokens_per_second"] = (state.spent["tokens"] - self._tokens) / seconds
        found["updates"] = state.spent["updates"]
        found |= {f"rewards/{name}": count for name, count in getattr(getattr(state.task, "reward", None), "counts", {}).items()}
        if "lr" in state.knobs:
            found["lr"] = state.knobs["lr"]
        self._tokens = state.spent["tokens"]
        if last or (self.settings.eval_every and step % self.settings.eval_every == 0):
            found |= self.evaluate(state)
        self.write(state, found)
        if state.tables:
            write_tables(self.folder, state.tables)
        every = self.settings.save_every
        if last or self._stop or (every and step % every == 0):
            self.save(state)
        if self._stop and not last:
            raise Interrupted

    def spent(self, state: State) -> bool:
        """The run's budget, of sampled tokens or of simulated seconds, is spent."""
        limits = {name: getattr(self.settings, name) for name in ("tokens", "simulated_seconds")}
        return any(limit is not None and state.spent[name] >= limit for name, limit in limits.items())

    def write(self, state: State, metrics: Mapping[str, float]) -> None:
        """Log the metrics of one step."""
        self.latest |= metrics
        self.metrics.write(state.step, metrics, stage=str(state.stage))
        if self.live:
            self.live.update(state.step, metrics)

    def save(self, state: State) -> None:
        if self._saved_at != state.step:
            checkpoint.save(self.folder / "checkpoints", state.step, state.state_dict(), self.settings.keep)
            self._saved_at = state.step

    @torch.no_grad()
    def evaluate(self, state: State) -> dict[str, float]:
        """Held-out performance, with the same items and seeds at every step; a few answers are kept for people."""
        began = perf_counter()
        sampling, seed = sampling_of(state.knobs), derive(state.seed, "evaluate")
        policy = state.models["policy"]
        if not getattr(state.task, "judged", True):
            return likelihood_measures(policy, state.task, self.settings.eval_count) | {"seconds/evaluate": perf_counter() - began}
        found = state.task.evaluate(policy, self.settings.eval_count, self.settings.eval_samples, sampling, seed)
        self.samples.write(state.step, shown_answers(state, sampling, seed))
        return {
            ("heldout/reward" if name == "reward" else "heldout/length" if name == "length" else name): value
            for name, value in found.items()
        } | {"seconds/evaluate": perf_counter() - began}


def sampling_of(knobs: Mapping[str, float]) -> Sampling:
    """The distribution that a run samples from; 1.0 and whole where its recipe does not sample."""
    chosen = {name: knobs[name] for name in ("temperature", "top_p", "top_k", "max_actions") if name in knobs}
    return Sampling(**chosen)


def shown_answers(state: State, sampling: Sampling, seed: int) -> list[dict[str, Any]]:
    """A few held-out answers as texts; none where a task's trajectories are no texts."""
    if not hasattr(state.task, "size"):
        return []
    count = min(SHOWN, state.task.size("heldout") or SHOWN)
    batch = state.task.rollout(state.models["policy"], state.task.starts("heldout", 0, count), 1, sampling, seed)
    names = ("prompt", "completion", "answer")
    rows = zip(*(batch.notes[name] for name in names), batch["reward"].tolist(), strict=True)
    return [dict(zip((*names, "reward"), row, strict=True)) for row in rows]
