"""Evaluate a model without training it."""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from quatrain.errors import QuatrainError
from quatrain.protocols import Sampling
from quatrain.training.loading import load_policy, load_run_task
from quatrain.training.settings import parse_settings

SAMPLING = ("temperature", "top_p", "top_k", "max_actions")


def evaluate_model(model: str, **keys: Any) -> dict[str, float]:
    """Held-out performance of a model directory, a run's folder (its final model) or an embedded model.

    keys  task, reward, eval_count, eval_samples, seed … as for training, and temperature, top_p, top_k, max_actions.
    """
    chosen = {name: keys.pop(name) for name in SAMPLING if name in keys}
    settings = parse_settings({**keys, "model": _of_run(model)}, SAMPLING)
    task = load_run_task(settings)
    with closing(task) if hasattr(task, "close") else nullcontext():
        policy = load_policy(settings.model, task, settings)
        suited = {
            name: value for name, value in {**getattr(task, "defaults", {}), **getattr(policy, "defaults", {})}.items() if name in SAMPLING
        }
        return task.evaluate(policy, settings.eval_count, settings.eval_samples, Sampling(**{**suited, **chosen}), settings.seed)


def _of_run(model: str) -> str:
    """The final model's directory where a run's folder is given."""
    folder = Path(model)
    if (folder / "metrics.jsonl").is_file():
        if not (folder / "model").is_dir():
            raise QuatrainError("this run has no final model yet", given=folder, fix="finish it with resume=true")
        return str(folder / "model")
    return model
