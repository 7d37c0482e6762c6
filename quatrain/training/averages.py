"""Weights → their moving average, without the bias towards where it began."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quatrain.errors import QuatrainError
from quatrain.knobs import Knob, resolve
from quatrain.training.state import State


def window_decay(versions: float) -> float:
    """β = W/(W + 2): the mean age β/(1 − β) of what the average holds is W/2, the middle of a window of W versions.

    >>> [window_decay(versions) for versions in (0, 2, 6)]
    [0.0, 0.5, 0.75]
    """
    return versions / (versions + 2)


@dataclass(frozen=True)
class Average:
    """``target`` ← Σ_k β^{t−k} θ_k / Σ_k β^{t−k} over the rounds k ≤ t since it began, θ the weights of ``source``.

    decay  β in [0, 1). 0: a copy.
    reset  not 0: it begins anew, as a copy; a controller may set it.

    How many weights the average holds is ``{target}/averaged`` of the ledger.
    """

    source: str
    target: str
    decay: float | Knob
    reset: float | Knob = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.decay, (int, float)) and not 0 <= self.decay < 1:
            raise QuatrainError("the decay of a moving average is out of range", given=self.decay, expected="from 0 to below 1")

    def check(self, task: Any, models: set[str], stores: dict[str, set[str]]) -> None:
        for name in {self.source, self.target} - models:
            raise QuatrainError("an Average names a model that the recipe does not have", given=name, expected=", ".join(sorted(models)))

    @torch.no_grad()
    def __call__(self, state: State) -> None:
        step, count = resolve(self, state.knobs), f"{self.target}/averaged"
        state.spent[count] = 1 if step.reset else state.spent[count] + 1
        rate = (1 - step.decay) / (1 - step.decay ** state.spent[count])  # one over the sum of the weights β^{t−k}
        source, target = state.models[step.source], state.models[step.target]
        for new, old in zip(source.module.parameters(), target.module.parameters(), strict=True):
            old.lerp_(new.to(old.dtype), rate)
        target.version = source.version
