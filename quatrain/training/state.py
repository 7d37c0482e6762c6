"""Everything that a run is, between two steps: what a checkpoint holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.estimator import Measure
from quatrain.protocols import Task
from quatrain.seeds import derive


class Store(Protocol):
    """What outlives a round: rows that are put there and drawn again."""

    def add(self, batch: Batch) -> None: ...

    def sample(self, count: int, seed: int) -> Batch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class State:
    """A run between two steps.

    task        where trajectories begin and how they are judged.
    models      by name; ``policy`` is the one that a recipe improves.
    optimizers  by model name.
    stores      what was collected, by name: each Collect fills its own anew.
    kept        stores that the recipe names: what a Collect puts there stays, and is in the checkpoint.
    knobs       numbers set from outside; ``steered``: the names of those that a controller has moved.
    spent       the ledger: tokens, updates, trajectories, seconds …, since the start.
    cursors     position in each split: what was trained on.
    memory      what controllers, sources and edits remember from round to round, by name: plain values and tensors, replaced and
                never changed in place.
    stage, round, step   number of the stage, of the round within it, and of all rounds together.
    metrics     of the present round.
    tables      title → rows of results for people, of the latest round that measured any: texts, numbers and Intervals.
    """

    task: Task
    models: dict[str, Any]
    seed: int = 0
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    stores: dict[str, Batch] = field(default_factory=dict)
    kept: dict[str, Store] = field(default_factory=dict)
    knobs: dict[str, float] = field(default_factory=dict)
    steered: set[str] = field(default_factory=set)
    spent: Counter[str] = field(default_factory=Counter)
    cursors: Counter[str] = field(default_factory=Counter)
    memory: dict[str, Any] = field(default_factory=dict)
    stage: int = 0
    round: int = 0
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _tally: dict[str, tuple[float, float]] = field(default_factory=dict)
    _drawn: Counter[str] = field(default_factory=Counter)
    _saved_optimizers: dict[str, Any] = field(default_factory=dict)  # resumed, and not yet asked for

    def draw(self, name: str) -> int:
        """The next seed of that name. The same run draws the same seeds, resumed or not."""
        self._drawn[name] += 1
        return derive(self.seed, name, self._drawn[name])

    def next_starts(self, count: int, split: str = "train") -> list[Any]:
        """The next ``count`` starts of the task; the position is remembered."""
        starts = list(self.task.starts(split, self.cursors[split], count))
        self.cursors[split] += count
        return starts

    def put(self, name: str, batch: Batch) -> None:
        """Add to the kept store of that name; where there is none, be what was collected under it."""
        if name in self.kept:
            self.kept[name].add(batch)
        else:
            self.stores[name] = batch

    def measure(self, measures: dict[str, Measure]) -> None:
        """Add (total, count) measures to the round's; a name that ends in "/max" keeps its maximum."""
        for name, (total, count) in measures.items():
            before = self._tally.get(name, (float("-inf"), 1.0) if name.endswith("/max") else (0.0, 0.0))
            if name.endswith("/max"):
                self._tally[name] = (max(before[0], float(total)), 1.0)
            else:
                self._tally[name] = (before[0] + float(total), before[1] + float(count))

    def spend_seconds(self, name: str, began: float) -> None:
        """Write down the wall-clock since ``began`` (``perf_counter``) as ``seconds/{name}`` of this round."""
        self.metrics[f"seconds/{name}"] = self.metrics.get(f"seconds/{name}", 0.0) + perf_counter() - began

    def close_round(self) -> dict[str, float]:
        """The round's metrics, measures averaged; begins a new round."""
        means = {name: total / count for name, (total, count) in self._tally.items() if count > 0}
        self.metrics |= means
        self._tally.clear()
        closed, self.metrics = self.metrics, {}
        return closed

    # -- keeping ---------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Nested plain values and tensors: all that a resumed run needs, but the recipe and the settings.

        Of the stores only those that are kept: every other one is filled anew before a Fit reads it.
        """
        return {
            "models": {name: {"weights": _weights(model), "version": model.version} for name, model in self.models.items()},
            "optimizers": {**self._saved_optimizers, **{name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}},
            "kept": {name: store.state_dict() for name, store in self.kept.items()},
            "task": self.task.state_dict() if hasattr(self.task, "state_dict") else {},
            "knobs": dict(self.knobs),
            "steered": sorted(self.steered),
            "spent": dict(self.spent),
            "cursors": dict(self.cursors),
            "drawn": dict(self._drawn),
            "memory": dict(self.memory),
            "seed": self.seed,
            "stage": self.stage,
            "round": self.round,
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``; models are already built, their weights are replaced."""
        for name, saved in state["models"].items():
            if differing := set(_weights(self.models[name])) ^ set(saved["weights"]):
                told = ", ".join(sorted(differing)[:3])
                raise QuatrainError(
                    f"the checkpoint is of another {name}", given=f"weights that only one has: {told}", fix="resume with the same model"
                )
            self.models[name].module.load_state_dict(saved["weights"], strict=False)  # tied weights are in it once
            self.models[name].version = saved["version"]
        for name, saved in state.get("kept", {}).items():  # absent in a checkpoint of an earlier version
            self.kept[name].load_state_dict(saved)
        if hasattr(self.task, "load_state_dict"):
            self.task.load_state_dict(state["task"])
        self.knobs, self.steered = dict(state["knobs"]), set(state["steered"])
        self.spent, self.cursors, self._drawn = Counter(state["spent"]), Counter(state["cursors"]), Counter(state["drawn"])
        self.memory = dict(state.get("memory", {}))  # absent in a checkpoint of an earlier version
        self.seed, self.stage, self.round, self.step = state["seed"], state["stage"], state["round"], state["step"]
        self._saved_optimizers = dict(state["optimizers"])

    def optimizer(self, name: str, rule: Any) -> torch.optim.Optimizer:
        """The optimiser of that model, made by its rule on first use, restored if the run was resumed."""
        if name not in self.optimizers:
            self.optimizers[name] = rule.start(self.models[name].module)
            if name in self._saved_optimizers:
                self.optimizers[name].load_state_dict(self._saved_optimizers.pop(name))
        return self.optimizers[name]


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """The module's tensors without aliases (tied weights are kept once)."""
    seen: dict[int, str] = {}
    return {
        name: value
        for name, value in model.module.state_dict(keep_vars=False).items()
        if seen.setdefault(value.data_ptr() if value.numel() else -len(seen) - 1, name) == name
    }
