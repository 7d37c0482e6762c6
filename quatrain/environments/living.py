"""Environments that live on between collects, and come back exactly after an interruption."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.environments.copies import Copies, start_seed
from quatrain.environments.record import Record
from quatrain.errors import QuatrainError
from quatrain.protocols import Policy, Sampling


class Living:
    """E copies, each going from episode to episode; every episode is begun from a seed of its own.

    episode [E]  how many episodes each copy has begun, less one: with the copy it gives the seed of the reset.
    age [E]      actions since the episode began; ``history`` holds the last max(age) of them.
    so_far [E]   the episode's rewards until now.
    over [E]     the episode has ended: the next step resets.
    """

    def __init__(self, envs: Copies, seed: int):
        self.envs, self.seed = envs, seed
        self._place(np.zeros(envs.count, np.int64))
        self.history: list[np.ndarray] = []

    def steps(self, policy: Policy, count: int, sampling: Sampling, seed: int) -> Batch:
        """A batch of the next ``count`` steps: see ``GymTask.steps``."""
        generator = torch.Generator().manual_seed(seed)
        record, first, earlier, episodes = Record(self.envs.observation), self._starts(), np.where(self.over, 0.0, self.so_far), []
        for _ in range(count):
            resetting = self.over
            actions, logp = policy.act(torch.from_numpy(self.envs.observation), generator, False, sampling.temperature)
            executed = actions.cpu().numpy()
            reward, terminated, truncated = self.envs.step(executed)
            if resetting.any():
                self.episode = self.episode + resetting
                self.envs.begin(resetting, self._starts()[resetting].tolist())
            record.add(~resetting, actions, logp, reward, terminated, truncated & ~terminated, self.envs.observation)
            episodes.append(self.episode)
            self.history.append(executed)
            self.age = np.where(resetting, 0, self.age + 1)
            self.so_far = np.where(resetting, 0.0, self.so_far + reward)
            self.over = (terminated | truncated) & ~resetting
        self.history = self.history[len(self.history) - int(self.age.max()) :]
        return record.batch(policy, sampling, first.tolist(), np.stack(episodes, 1), earlier)

    def state_dict(self) -> dict[str, Tensor]:
        """Where each copy is: its episode, its age and its actions since."""
        actions = np.stack(self.history) if self.history else np.zeros((0, len(self.age)))
        arrays = {"episode": self.episode, "age": self.age, "so_far": self.so_far, "actions": actions}
        return {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replay each copy's episode from its reset, all copies together, aligned at the end."""
        arrays = {name: value.numpy().copy() for name, value in state.items()}
        if len(arrays["episode"]) != len(self.age):
            raise QuatrainError("the checkpoint has another number of copies", given=len(self.age), expected=len(arrays["episode"]))
        age, self.history = arrays["age"], list(arrays["actions"])
        self._place(arrays["episode"])
        ended = np.zeros(len(age), bool)
        for left, executed in zip(range(len(self.history), 0, -1), self.history, strict=True):
            self._begin_those(age == left)
            _, terminated, truncated = self.envs.step(executed)
            ended = terminated | truncated
        self._begin_those(age == 0)
        self.age, self.so_far, self.over = age, arrays["so_far"], ended & (age > 0)

    def _place(self, episode: np.ndarray) -> None:
        """Every copy at the beginning of that episode of its."""
        copies = len(episode)
        self.episode, self.age, self.so_far = episode, np.zeros(copies, np.int64), np.zeros(copies)
        self.over = np.zeros(copies, bool)
        self._begin_those(np.ones(copies, bool))

    def _begin_those(self, rows: np.ndarray) -> None:
        if rows.any():
            self.envs.begin(rows, self._starts()[rows].tolist())

    def _starts(self) -> np.ndarray:
        """[E] the reset seed of each copy's present episode."""
        return start_seed(self.seed, "living", self.episode * self.envs.count + np.arange(self.envs.count))
