"""Reaching: go to the goal. One action is right in every state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.environments.plane.world import between, moved, towards


@dataclass(frozen=True)
class Reach:
    """State and observation: hand (2), goal (2), both anywhere in [−1, 1]². Solved within ``radius`` of the goal."""

    radius: float = 0.1
    observation_size: int = 4
    max_steps: int = 40
    modes: int = 1

    def start(self, seeds: Tensor) -> Tensor:
        return between(seeds, 4, -1.0, 1.0)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        return torch.cat([moved(state[:, :2], action), state[:, 2:]], 1)

    def distance(self, state: Tensor) -> Tensor:
        return (state[:, 2:] - state[:, :2]).norm(dim=1)

    def solved(self, state: Tensor) -> Tensor:
        return self.distance(state) < self.radius

    def failed(self, state: Tensor) -> Tensor:
        return torch.zeros(len(state), dtype=torch.bool)

    def way(self, state: Tensor) -> Tensor:
        return torch.where(self.solved(state), 0, -1)

    def expert(self, state: Tensor, way: Tensor) -> Tensor:
        return towards(state[:, 2:] - state[:, :2])
