"""Rules: gradients → weights. A rule may ask for the gradient several times: of the same rows, at weights that it has moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.training.masters import MasterAdamW


class Rule(Protocol):
    """What a Fit does with gradients. Frozen; what it carries from update to update is in the optimiser, and is checkpointed there."""

    def start(self, module: nn.Module) -> torch.optim.Optimizer: ...

    def update(self, optimizer: torch.optim.Optimizer, gradient: Callable[[], None]) -> float | None:
        """One update. ``gradient()`` accumulates the gradient of the update's rows at the present weights; it may be called again.

        Returns the norm of the (last) gradient, or None if it was not finite; then, and where ``gradient`` raises, the weights and
        the optimiser are as they were.
        """


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay and clipping of the global gradient norm (Loshchilov & Hutter 2019).

    Weights of 16 bits are stepped through masters of 32.

    clip_norm  the largest gradient norm; 0 leaves it.
    """

    lr: float | Knob = Knob("lr", 1e-6)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float | Knob = 0.0
    clip_norm: float | Knob = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.lr, (int, float)) and not 0 <= self.lr < 10:
            raise QuatrainError("the learning rate is out of range", given=self.lr, expected="a number from 0 to 10")

    def start(self, module: nn.Module) -> MasterAdamW:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            raise QuatrainError("nothing to train: no parameter requires a gradient", given=type(module).__name__)
        return MasterAdamW(parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)

    def update(self, optimizer: torch.optim.Optimizer, gradient: Callable[[], None]) -> float | None:
        """One step on one gradient."""
        gradient()
        return self.step(optimizer)

    def step(self, optimizer: MasterAdamW) -> float | None:
        """Apply the accumulated gradients; the gradient norm before clipping, or None (nothing applied) if it is not finite."""
        optimizer.gather()
        parameters: Sequence[Any] = optimizer.param_groups[0]["params"]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm or float("inf"))
        finite = bool(torch.isfinite(norm))
        if finite:
            for group in optimizer.param_groups:
                group.update(lr=self.lr, weight_decay=self.weight_decay)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(norm) if finite else None
