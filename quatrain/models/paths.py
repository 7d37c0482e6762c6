"""Paths from noise to an action, and how a network's velocity moves a point along them.

Axes: M points, D dimensions; time is [M, 1] in [0, 1], 0 pure noise and 1 the action. Each path is x_t = weight of the action · x₁ +
weight of the noise · x₀.
"""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor


class Path(Protocol):
    def mix(self, noise: Tensor, action: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """(x_t, the velocity to regress on), [M, D] each."""
        ...

    def advance(self, point: Tensor, velocity: Tensor, time: Tensor, step: Tensor) -> Tensor:
        """x_{t+step}, were the velocity right all the way."""
        ...

    def noise_in(self, point: Tensor, velocity: Tensor, time: Tensor) -> Tensor:
        """E[x₀ | x_t] that the velocity implies."""
        ...

    def noise_weight(self, time: Tensor) -> Tensor:
        """What is left of the noise at t."""
        ...


class Straight:
    """Rectified flow: x_t = t·x₁ + (1 − t)·x₀, velocity x₁ − x₀, Euler steps (Liu, Gong & Liu 2023, arXiv 2209.03003, eqs. 1, 2)."""

    def mix(self, noise: Tensor, action: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        return time * action + (1 - time) * noise, action - noise

    def advance(self, point: Tensor, velocity: Tensor, time: Tensor, step: Tensor) -> Tensor:
        return point + step * velocity

    def noise_in(self, point: Tensor, velocity: Tensor, time: Tensor) -> Tensor:
        return point - time * velocity

    def noise_weight(self, time: Tensor) -> Tensor:
        return 1 - time


class Cosine:
    """Diffusion that keeps the variance: x_t = sin φ·x₁ + cos φ·x₀, φ = πt/2; velocity cos φ·x₁ − sin φ·x₀ (Salimans & Ho 2022, arXiv
    2202.00512, appendix D). A step is DDIM's: the rotation x cos δ + v sin δ."""

    def mix(self, noise: Tensor, action: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        sin, cos = (time * math.pi / 2).sin(), (time * math.pi / 2).cos()
        return sin * action + cos * noise, cos * action - sin * noise

    def advance(self, point: Tensor, velocity: Tensor, time: Tensor, step: Tensor) -> Tensor:
        turn = step * math.pi / 2
        return turn.cos() * point + turn.sin() * velocity

    def noise_in(self, point: Tensor, velocity: Tensor, time: Tensor) -> Tensor:
        return (time * math.pi / 2).cos() * point - (time * math.pi / 2).sin() * velocity

    def noise_weight(self, time: Tensor) -> Tensor:
        return (time * math.pi / 2).cos()


PATHS: dict[str, Path] = {"straight": Straight(), "cosine": Cosine()}
