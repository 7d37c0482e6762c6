"""Do understanding and generation pull the shared weights the same way? Cosines of the gradients of two sides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.experiments.miniatures.bound_gradients import gradient, similarity
from quatrain.knobs import resolve
from quatrain.training.state import State
from quatrain.training.steps import Fit


def agreement(fit: Fit, policy: Any, batch: Batch) -> float:
    """The cosine of the gradients of ``side`` 0 and ``side`` 1 of a batch, on all of the policy's weights, which they share."""
    return similarity(*(gradient(fit, policy, batch.take(batch["side"] == side)) for side in (0, 1)))


def pair_gradients(fit: Fit, policy: Any, batch: Batch) -> Tensor:
    """[2, P, D] the unit gradient of each side of each pair alone; only pairs both of whose gradients differ from zero."""
    rows = [batch.take(batch["pair"] == pair) for pair in batch["pair"].unique()]
    found = torch.stack([torch.stack([gradient(fit, policy, part.take(part["side"] == side)) for part in rows]) for side in (0, 1)])
    return torch.nn.functional.normalize(found[:, (found != 0).any(2).all(0)], dim=2)


def cosines(
    seed: int, task: Any = "shapes", policy: Any = None, pairs: int = 24, group: int = 16, max_actions: int = 20
) -> dict[str, float]:
    """``aligned``, ``retrieved``, ``random`` → mean cosine of the two sides' gradients, of the embedded model as it is.

    random: every understanding side with every generation side of another pair, so that the items are those of ``aligned``.
    task    a spec of shapes, or a task. policy: None is model=tiny:shapes. pairs, group: of each kind, and samples per side.
    """
    from quatrain.tasks.shapes import shapes
    from quatrain.training.loading import load_tiny
    from quatrain.training.registry import make

    task = shapes(task, seed=seed) if isinstance(task, str) else task
    policy = policy or load_tiny("tiny:shapes")
    knobs, found = {"prompts": 2 * pairs, "max_actions": max_actions, "micro_tokens": 16384}, {}
    for kind in ("aligned", "retrieved"):
        collect, fit = (resolve(step, knobs) for step in make("pairuni", pairs=kind, group=group, power=0.0).stages[0].steps)
        state = State(task, {"policy": policy}, seed, knobs=knobs)
        collect(state)
        understanding, generation = pair_gradients(fit, policy, state.stores["fresh"])
        table = understanding @ generation.T
        found[kind] = float(table.diagonal().mean())
        if kind == "aligned":
            found["random"] = float((table.sum() - table.trace()) / max(table.numel() - len(table), 1))
    return found
