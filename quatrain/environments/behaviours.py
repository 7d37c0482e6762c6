"""Policies that leave data: uniform, scripted, and of a graded quality between the two."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from quatrain.errors import QuatrainError
from quatrain.models.networks import Box, Discrete


def pendulum(seen: Tensor) -> Tensor:
    """[M, 1] a good torque at observations (cos θ, sin θ, θ̇) [M, 3] of Gymnasium's Pendulum: swing up by energy, then balance.

    With energy E = θ̇²/6 + 5 cos θ (5 at rest upright) the torque pumps in the direction of θ̇ until a linear law can hold it.
    """
    angle, speed = torch.atan2(seen[:, 1], seen[:, 0]), seen[:, 2]
    lacking = 5 - (speed.square() / 6 + 5 * seen[:, 0])
    direction = torch.where(speed.abs() < 1e-3, 1.0, speed.sign())
    torque = torch.where(angle.abs() < 0.6, -12 * angle - 3 * speed, 2 * lacking * direction)
    return torque.clamp(-2, 2)[:, None]


@dataclass(frozen=True)
class Script:
    """A controller that someone wrote for an environment; mean returns of uniform actions and of its own, over 1000 episodes."""

    control: Callable[[Tensor], Tensor]
    random: float
    good: float


SCRIPTS: Mapping[str, Script] = {"Pendulum-v1": Script(pendulum, -1233.0, -150.0)}
QUALITIES = {"random": 0.0, "medium": 0.5, "good": 1.0}


@dataclass(frozen=True)
class Graded:
    """A policy that takes a scripted action with chance ``quality`` at every step, else a uniform one. It gives no log-probabilities.

    Raises QuatrainError for an unbounded box.
    """

    observation_size: int
    action_space: Discrete | Box
    quality: float = 0.0
    control: Callable[[Tensor], Tensor] | None = None
    version: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if isinstance(self.action_space, Box) and not all(map(math.isfinite, (*self.action_space.low, *self.action_space.high))):
            raise QuatrainError("uniform actions need a bounded box", given=self.action_space)

    def act(
        self, observations: Tensor, generator: torch.Generator | None = None, greedy: bool = False, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """(actions [E] or [E, D], NaN [E]) at observations [E, D]."""
        count, space = len(observations), self.action_space
        if isinstance(space, Discrete):
            uniform: Tensor = torch.randint(space.count, (count,), generator=generator)
        else:
            low, half = torch.tensor(space.low), torch.tensor(space.half)
            uniform = low + 2 * half * torch.rand(count, len(low), generator=generator)
        scripted = torch.rand(count, generator=generator) < self.quality
        if self.control is not None:
            uniform = torch.where(scripted.view(-1, *[1] * (uniform.ndim - 1)), self.control(observations).to(uniform), uniform)
        return uniform, torch.full((count,), torch.nan)


def behaviour(name: str, env_id: str, observation_size: int, action_space: Any) -> Any:
    """The policy that a word or a folder means: ``random``, ``medium``, ``good``, or a saved one.

    Raises QuatrainError for another word, and where nobody has written a controller for the environment.
    """
    if name not in QUALITIES:
        from quatrain.models.control import load_control

        return load_control(name)
    script = SCRIPTS.get(env_id)
    if QUALITIES[name] and script is None:
        raise QuatrainError(
            f"nobody has written a {name} controller for {env_id}",
            expected=f"random, a saved policy, or one of {', '.join(SCRIPTS)}",
            fix="data=0.8*random+0.2*FOLDER with the model folder of a run",
        )
    return Graded(observation_size, action_space, QUALITIES[name], script.control if script else None)
