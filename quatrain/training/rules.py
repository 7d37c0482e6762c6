"""Rules: gradients → weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from quatrain.errors import QuatrainError
from quatrain.knobs import Knob


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay and clipping of the global gradient norm (Loshchilov & Hutter 2019).

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

    def start(self, module: nn.Module) -> torch.optim.Optimizer:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            raise QuatrainError("nothing to train: no parameter requires a gradient", given=type(module).__name__)
        return torch.optim.AdamW(parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)

    def step(self, optimizer: torch.optim.Optimizer) -> float | None:
        """Apply the accumulated gradients; the gradient norm before clipping, or None (nothing applied) if it is not finite."""
        parameters: Sequence[Any] = optimizer.param_groups[0]["params"]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm or float("inf"))
        finite = bool(torch.isfinite(norm))
        if finite:
            for group in optimizer.param_groups:
                group.update(lr=self.lr, weight_decay=self.weight_decay)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(norm) if finite else None
