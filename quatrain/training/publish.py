"""Weights → the model that samples, as an inference engine would have them: some rounds late, and rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.errors import QuatrainError
from quatrain.knobs import Knob, resolve
from quatrain.training.state import State


def rounded(value: Tensor, bits: int) -> Tensor:
    """Every number to ``bits`` significant binary digits, ties to even; 8 is bfloat16, 11 is half precision. 0 leaves them.

    >>> rounded(torch.tensor([1.0, 1.26, -0.3, 0.0]), 3).tolist()
    [1.0, 1.25, -0.3125, 0.0]
    """
    if not bits:
        return value
    digits, exponent = torch.frexp(value)  # digits are 0 or from ½ to 1 in size
    return torch.ldexp((digits * 2**bits).round() / 2**bits, exponent)


@dataclass(frozen=True)
class Publish:
    """``target`` ← ``source``, rounded, before a stage's first round and every ``every`` rounds after it. It stands before the Collect.

    every  rounds; trajectories of ``target`` are then from 0 to every − 1 rounds old.
    bits   significant binary digits that each weight keeps; 0: all of them.
    """

    source: str
    target: str
    every: int | Knob = 1
    bits: int | Knob = 0

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("bits", 0)):
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise QuatrainError(f"Publish's {name} is out of range", given=value, expected=f"{least} or more")

    def check(self, task: Any, models: set[str], stores: dict[str, set[str]]) -> None:
        for name in {self.source, self.target} - models:
            raise QuatrainError("a Publish names a model that the recipe does not have", given=name, expected=", ".join(sorted(models)))

    @torch.no_grad()
    def __call__(self, state: State) -> None:
        step = resolve(self, state.knobs)
        if state.round % step.every:
            return
        source, target = state.models[step.source], state.models[step.target]
        for new, old in zip(source.module.parameters(), target.module.parameters(), strict=True):
            old.copy_(rounded(new, step.bits))
        target.version = source.version
