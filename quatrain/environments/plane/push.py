"""Pushing: move a disc to the goal with the hand; go behind it first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.environments.plane.world import STEP, between, moved, towards


@dataclass(frozen=True)
class Push:
    """A disc that moves only where the hand touches it: out of the hand's way, along the line of centres (no friction, no inertia).

    State and observation: hand (2), disc (2), goal (2). Solved with the disc within ``radius`` of the goal. ``contact``: the sum of
    the two radii.
    """

    contact: float = 0.18
    radius: float = 0.1
    observation_size: int = 6
    max_steps: int = 80
    modes: int = 1

    def start(self, seeds: Tensor) -> Tensor:
        u = between(seeds, 6, -1.0, 1.0)
        disc = 0.6 * u[:, 2:4]
        hand = 0.9 * u[:, :2]
        # A hand that would begin on the disc begins beside it.
        gap = hand - disc
        hand = torch.where(gap.norm(dim=1, keepdim=True) < 2 * self.contact, disc + 2 * self.contact * unit(gap), hand)
        return torch.cat([hand, disc, 0.6 * u[:, 4:]], 1)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        hand, disc = moved(state[:, :2], action), state[:, 2:4]
        gap = disc - hand
        overlap = (self.contact - gap.norm(dim=1, keepdim=True)).clamp(min=0)
        return torch.cat([hand, disc + overlap * unit(gap), state[:, 4:]], 1)

    def distance(self, state: Tensor) -> Tensor:
        """The disc's, and a fifth of the hand's to the place behind it."""
        return self._left(state) + 0.2 * (self._behind(state) - state[:, :2]).norm(dim=1)

    def solved(self, state: Tensor) -> Tensor:
        return self._left(state) < self.radius

    def failed(self, state: Tensor) -> Tensor:
        return torch.zeros(len(state), dtype=torch.bool)

    def way(self, state: Tensor) -> Tensor:
        return torch.where(self.solved(state), 0, -1)

    def expert(self, state: Tensor, way: Tensor) -> Tensor:
        """Around the disc on a circle until behind it as seen from the goal; then push, correcting sideways."""
        hand, disc, goal = state[:, :2], state[:, 2:4], state[:, 4:]
        ahead = unit(goal - disc)
        gap = hand - disc
        angle = torch.atan2(ahead[:, 0] * gap[:, 1] - ahead[:, 1] * gap[:, 0], -(gap * ahead).sum(1))  # 0: behind, ±π: in front
        aligned = angle.abs() < 0.3
        turn = (angle.abs() - 0.5).clamp(min=0) * angle.sign()  # the next place on the circle, half a radian on
        cos, sin = turn.cos()[:, None], turn.sin()[:, None]
        side = torch.stack([-ahead[:, 1], ahead[:, 0]], 1)
        circle = disc + 1.5 * self.contact * (-ahead * cos + side * sin)
        off = (gap * side).sum(1, keepdim=True)
        pushing = hand + STEP * unit(ahead - 4 * off * side)
        return towards(torch.where(aligned[:, None], pushing, circle) - hand)

    def _left(self, state: Tensor) -> Tensor:
        return (state[:, 4:] - state[:, 2:4]).norm(dim=1)

    def _behind(self, state: Tensor) -> Tensor:
        return state[:, 2:4] - self.contact * unit(state[:, 4:] - state[:, 2:4])


def unit(vector: Tensor) -> Tensor:
    """[E, 2] of length 1; (0, 0) stays."""
    return vector / vector.norm(dim=1, keepdim=True).clamp(min=1e-9)
