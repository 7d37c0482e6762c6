"""Solving a flow's ordinary differential equation with as few evaluations as its straightness allows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Advance = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def step_size(spread: Tensor, time: Tensor, tolerance: float, most: int) -> Tensor:
    """min(max(tolerance/spread, 1/most), 1 − t): Hu et al. 2024 (AdaFlow), algorithm 1. [M] of spread σ ≥ 0 and time, both [M].

    The error of an Euler step is at most step·σ, which this keeps at the tolerance where ``most`` steps allow it. What would be left over
    by rounding is walked as well.

    >>> step_size(torch.tensor([0.0, 0.5, 0.5, 9.0]), torch.tensor([0.0, 0.0, 0.9, 0.0]), 0.1, 20)
    tensor([1.0000, 0.2000, 0.1000, 0.0500])
    """
    left = 1 - time
    step = (tolerance / spread.to(time.dtype)).nan_to_num(0.0, posinf=1.0).clamp(min=1 / most)
    return torch.where(left <= step * (1 + 1e-6), left, step)


@torch.no_grad()
def integrate(field: Field, advance: Advance, point: Tensor, tolerance: float, most: int) -> tuple[Tensor, Tensor]:
    """(the points at t = 1 [M, D], evaluations of the field that each took [M]).

    field    (rows [A], points [A, D], time [A]) → (velocity [A, D], σ [A]) of those of the M points.
    advance  see ``paths.Path.advance``.

    Every point walks at its own pace; the field is evaluated only for those that have not arrived. tolerance = 0 → ``most`` equal
    steps; tolerance = ∞ → one step.
    """
    time = torch.zeros(len(point), dtype=torch.float64)
    count = torch.zeros(len(point), dtype=torch.long)
    going = torch.arange(len(point))
    point = point.clone()
    while len(going):
        now = time[going]
        velocity, spread = field(going, point[going], now)
        step = step_size(spread, now, tolerance, most)
        at, by = now.to(point.dtype)[:, None], step.to(point.dtype)[:, None]
        point[going] = advance(point[going], velocity, at, by)
        count[going] += 1
        time[going] = now + step
        going = going[time[going] < 1]
    return point, count
