"""What a world of the plane is: pure functions on states, E copies at a time. A state is a value, so a copy of it is a snapshot."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from quatrain.models.draws import uniforms

STEP = 0.1  # how far an action of length 1 moves the hand


class World(Protocol):
    """Axes: E copies, S numbers of a state, D of an observation. Everything is float32 unless said; actions are [E, 2] in [−1, 1].

    max_steps  after which an episode is cut; modes: how many equally good ways there are.
    """

    observation_size: int
    max_steps: int
    modes: int

    def start(self, seeds: Tensor) -> Tensor:
        """[E] int64 → state [E, S]: the same seed always begins in the same state."""
        ...

    def observe(self, state: Tensor) -> Tensor:
        """[E, D]."""
        ...

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """The state after the action [E, 2], clipped to the box."""
        ...

    def distance(self, state: Tensor) -> Tensor:
        """[E] how far from done: its decrease is the reward."""
        ...

    def solved(self, state: Tensor) -> Tensor:
        """[E] bool: the episode has ended well."""
        ...

    def failed(self, state: Tensor) -> Tensor:
        """[E] bool: it has ended badly."""
        ...

    def way(self, state: Tensor) -> Tensor:
        """[E] int64: which of the ``modes`` was taken, −1 while that is open."""
        ...

    def expert(self, state: Tensor, way: Tensor) -> Tensor:
        """[E, 2] a scripted action towards the goal by the way [E] of the two or more that are equally good."""
        ...


def chosen_way(world: World, seeds: Tensor) -> Tensor:
    """[E] int64: the way that the expert takes from a start, all equally often. Not seen in any state before it is taken."""
    return (uniforms(seeds, torch.tensor([99]))[:, 0] * world.modes).long()


def between(seeds: Tensor, count: int, low: float, high: float) -> Tensor:
    """[E, count] float32, uniform, a function of the seeds alone."""
    return (low + (high - low) * uniforms(seeds, torch.arange(count))).float()


def towards(vector: Tensor) -> Tensor:
    """[E, 2] of length at most 1: full speed, and exactly there where one step is enough.

    >>> towards(torch.tensor([[3.0, 4.0]])).tolist() == [[0.6000000238418579, 0.800000011920929]]
    True
    """
    return vector / vector.norm(dim=1, keepdim=True).clamp(min=STEP)


def moved(place: Tensor, action: Tensor) -> Tensor:
    """[E, 2] the hand after an action: at most ``STEP`` in any direction, within the box [−1.5, 1.5]²."""
    action = action.clamp(-1, 1)
    return (place + STEP * action / action.norm(dim=1, keepdim=True).clamp(min=1)).clamp(-1.5, 1.5)
