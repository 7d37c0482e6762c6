"""How a bug comes into a set-up, and what is noted of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.parts.likelihoods import LogProb
from tests.experiments.doctor.ward.setups import Setup, text

Plant = Callable[[Setup], Any]


class Bug(NamedTuple):
    """kind: what happened to users of the peers; the check that finds it; the healthy set-up that it is planted in."""

    kind: str
    plant: Plant
    check: str
    make: Callable[[], Setup]


def bugs(kind: str, planted: dict[str, tuple]) -> dict[str, Bug]:
    """name → (plant, check), or (plant, check, set-up) where it is another than ``text``."""
    return {name: Bug(kind, plant, check, *(make or (text,))) for name, (plant, check, *make) in planted.items()}


def both(*plants: Plant) -> Plant:
    return lambda setup: [plant(setup) for plant in plants]


def keys(**changes: Any) -> Plant:
    return lambda setup: setup.keys.update(changes)


def after(method: str, change: Callable[[Any, Batch], Batch]) -> Plant:
    """(policy, batch) → batch on what a method of the policy returns."""

    def plant(setup: Setup) -> None:
        policy, true = setup.policy, getattr(setup.policy, method)
        setattr(policy, method, lambda *given, **named: change(policy, true(*given, **named)))

    return plant


def before(method: str, change: Callable[..., tuple]) -> Plant:
    """Arguments → arguments of a method of the policy."""

    def plant(setup: Setup) -> None:
        true = getattr(setup.policy, method)
        setattr(setup.policy, method, lambda *given, **named: true(*change(*given), **named))

    return plant


def stale(method: str) -> Plant:
    """A method that keeps the first weights."""
    return lambda setup: setattr(setup.policy, method, getattr(setup.policy.clone(), method))


def recorded(batch: Batch, logp: Tensor) -> Batch:
    return batch.with_columns(behaviour_logp=logp, old_logp=logp)


@torch.no_grad()
def rescored(policy: Any, batch: Batch) -> Tensor:
    return policy.score(batch, [LogProb()])[LogProb()]


def masked(batch: Batch, mask: Tensor) -> Batch:
    """With another mask; the end is the last action of it."""
    last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    moved = {name: last & batch[name].any(1, keepdim=True) for name in ("terminated", "truncated") if name in batch}
    return replace(batch, mask=mask, columns={**batch.columns, **moved})
