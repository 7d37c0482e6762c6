"""What happened in an environment, step by step, until it becomes a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from quatrain.batch import Batch, Origin
from quatrain.protocols import Policy, Sampling


class Record:
    """Steps of E copies. A value where a copy did not act is 0, and its observation as given."""

    def __init__(self, observation: np.ndarray):
        self.observations, self.rest = [observation], []

    @property
    def length(self) -> int:
        return len(self.rest)

    def add(
        self,
        acted: np.ndarray,
        actions: Tensor,
        logp: Tensor,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        after: np.ndarray,
    ) -> None:
        self.rest.append((acted, actions.cpu(), logp.cpu(), reward, terminated, truncated))
        self.observations.append(after)

    def batch(self, policy: Policy, sampling: Sampling, starts: Sequence[int], episode: np.ndarray, earlier: np.ndarray) -> Batch:
        """earlier [N]: what the episodes that the rows begin in had already returned before them."""
        acted, actions, logp, reward, terminated, truncated = zip(*self.rest, strict=True)
        mask, reward, terminated, truncated = (torch.from_numpy(np.stack(part, 1)) for part in (acted, reward, terminated, truncated))
        rewards = torch.where(mask, reward, 0.0)
        terminated, truncated = terminated & mask, truncated & mask
        actions, logp = torch.stack(actions, 1), torch.where(mask, torch.stack(logp, 1), 0.0)
        columns = {
            "rewards": rewards,
            "terminated": terminated,
            "truncated": truncated,
            "behaviour_logp": logp,
            "old_logp": logp,
            "version": torch.full(mask.shape, policy.version),
            "origin": torch.full(mask.shape, Origin.POLICY),
            "episode": torch.from_numpy(episode),
            "episode_return": returns(rewards, terminated | truncated, torch.from_numpy(earlier)),
        }
        rows = {"reward": rewards.sum(1), "prompt": torch.tensor(starts)}
        if sampling.temperature != 1.0:
            rows["temperature"] = torch.full((len(mask),), float(sampling.temperature))
        return Batch(
            mask=mask,
            actions=torch.where(mask.reshape(*mask.shape, *[1] * (actions.ndim - 2)), actions, 0),
            columns=columns,
            rows=rows,
            contexts={"policy": {"observations": torch.from_numpy(np.stack(self.observations, 1))}},
        )


def returns(rewards: Tensor, ends: Tensor, earlier: Tensor) -> Tensor:
    """[N, T]: at the last action of an episode the sum of its rewards, ``earlier`` [N] included for a row's first; NaN elsewhere.

    >>> returns(torch.tensor([[1.0, 1.0, 0.0, 5.0]]), torch.tensor([[False, True, False, True]]), torch.tensor([10.0]))
    tensor([[nan, 12., nan,  5.]])
    """
    total, index = rewards.double().cumsum(1) + earlier[:, None], torch.arange(rewards.shape[1])
    last_end = torch.where(ends, index, -1).cummax(1).values.roll(1, 1)
    last_end[:, 0] = -1
    before = torch.where(last_end < 0, 0.0, total.gather(1, last_end.clamp_min(0)))
    return torch.where(ends, total - before, torch.nan).float()
