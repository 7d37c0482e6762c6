"""Navigation: a corridor where one action is right, then an obstacle with two routes around it that are equally good."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.environments.plane.world import STEP, between, moved, towards


@dataclass(frozen=True)
class Route:
    """From the corridor (x < 0, |y| ≤ ``corridor``: its walls stop) around the block to the goal at (1.2, 0).

    The block is ``block`` = (left, right, half its height): touching it fails. Below it (way 0) and above it (way 1) are as far. The
    expert chooses at the corridor's end, where nothing in the state tells which; a step later the state does.

    State: hand (2), way taken (−1 open, 0, 1). Observation: the hand in units of a quarter, so that a small network sees a step.
    """

    corridor: float = 0.15
    block: tuple[float, float, float] = (0.45, 0.75, 0.3)
    radius: float = 0.12
    observation_size: int = 2
    max_steps: int = 40
    modes: int = 2

    def start(self, seeds: Tensor) -> Tensor:
        x, y = between(seeds, 2, 0.0, 1.0).unbind(1)
        return torch.stack([-0.6 + 0.2 * x, 0.1 * (2 * y - 1), torch.full_like(x, -1.0)], 1)

    def observe(self, state: Tensor) -> Tensor:
        return 4 * state[:, :2]

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        x, y = moved(state[:, :2], action).unbind(1)
        y = torch.where(x < 0, y.clamp(-self.corridor, self.corridor), y)
        left, right, height = self.block
        beside = (x >= left) & (x <= right) & (y.abs() > height)
        return torch.stack([x, y, torch.where(beside, (y > 0).float(), state[:, 2])], 1)

    def distance(self, state: Tensor) -> Tensor:
        return (state[:, :2] - torch.tensor([1.2, 0.0])).norm(dim=1)

    def solved(self, state: Tensor) -> Tensor:
        return self.distance(state) < self.radius

    def failed(self, state: Tensor) -> Tensor:
        left, right, height = self.block
        return (state[:, 0] >= left) & (state[:, 0] <= right) & (state[:, 1].abs() <= height)

    def way(self, state: Tensor) -> Tensor:
        return state[:, 2].long()

    def expert(self, state: Tensor, way: Tensor) -> Tensor:
        x, y = state[:, :2].unbind(1)
        left, right, height = self.block
        side = torch.where(y.abs() > STEP / 2, y.sign(), 2.0 * way - 1)  # once on a side, stay
        high = side * (height + STEP)
        # Along the corridor's middle; up or down before the block; beside it; to the goal.
        target_x = torch.where(x < 0, x + 2 * STEP, torch.where(x < left - STEP, torch.full_like(x, left - STEP), x + 2 * STEP))
        target_y = torch.where(x < 0, torch.zeros_like(y), high)
        past = x > right
        target = torch.stack([torch.where(past, 1.2, target_x), torch.where(past, 0.0, target_y)], 1)
        climbing = (x >= 0) & (x < left) & (y.abs() < height)
        target = torch.where((climbing & (x >= left - STEP))[:, None], torch.stack([x - STEP / 4, high], 1), target)
        return towards(target - state[:, :2])
