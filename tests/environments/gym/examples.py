"""Environments that say what happened in them, and what their batches are compared by."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from quatrain.batch import Batch
from quatrain.environments.gymnasium import GymTask
from quatrain.models.networks import NetworkPolicy
from quatrain.protocols import Sampling


class Counter(gymnasium.Env):
    """Shows [episode's seed-drawn key, steps so far]; pays the action; ends for good at step ``key`` (3 … 6)."""

    observation_space = spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 2.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.key, self.count = int(self.np_random.integers(3, 7)), 0
        return np.array([self.key, 0], np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.count += 1
        return np.array([self.key, self.count], np.float32), float(action[0]), self.count >= self.key, False, {}


class Pictures(gymnasium.Env):
    observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = spaces.Discrete(2)


class Named(gymnasium.Env):
    observation_space = spaces.Dict({"x": spaces.Box(0.0, 1.0, (2,))})
    action_space = spaces.Discrete(2)


class Several(gymnasium.Env):
    observation_space = spaces.Box(0.0, 1.0, (2,))
    action_space = spaces.MultiDiscrete([2, 3])


for environment in (Counter, Pictures, Named, Several):
    gymnasium.register(f"Quatrain{environment.__name__}-v0", environment, disable_env_checker=True)
gymnasium.register("QuatrainCut-v0", Counter, max_episode_steps=4, disable_env_checker=True)

CARTPOLE, COUNTER, LAKE = "CartPole-v1", "QuatrainCounter-v0", "FrozenLake-v1"
FREE = Sampling(max_actions=500)


def states(batch: Batch) -> torch.Tensor:
    return batch.contexts["policy"]["observations"]


def equal(a: Batch, b: Batch) -> bool:
    parts = [(a.mask, b.mask), (a.actions, b.actions), (states(a), states(b))]
    parts += [(a.columns[name], b.columns[name]) for name in a.columns] + [(a.rows[name], b.rows[name]) for name in a.rows]
    return a.columns.keys() == b.columns.keys() and all(torch.equal(x.nan_to_num(-7), y.nan_to_num(-7)) for x, y in parts)


def certain(env_id: str) -> NetworkPolicy:
    """A policy whose actions do not depend on the draws."""
    policy = GymTask(env_id).network(seed=4)
    with torch.no_grad():
        policy.module.trunk[-1].weight *= 1e12
        policy.module.log_std.fill_(-30.0)
    return policy
