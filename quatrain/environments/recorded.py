"""Episodes that others have left: made on the spot by policies of a graded quality, or read from a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from quatrain.batch import Batch
from quatrain.environments.behaviours import SCRIPTS, behaviour
from quatrain.errors import QuatrainError
from quatrain.protocols import Sampling
from quatrain.training.state import derive

EPISODES = 16  # begun at once
KEPT = ("rewards", "terminated", "truncated")


@dataclass(frozen=True)
class Recorded:
    """A data set of episodes.

    episodes  rows are episodes: ``actions``, columns ``rewards``, ``terminated``, ``truncated``, context ``policy.observations``.
    scores    (a random policy's mean return, a good one's): 0 and 100 of a normalised return; None where nobody has said.
    name      of the data set.
    """

    episodes: Batch
    scores: tuple[float, float] | None = None
    name: str = ""

    def __len__(self) -> int:
        """How many transitions there are."""
        return int(self.episodes.mask.sum())

    def normalised(self, value: float) -> float:
        """A return as a percentage of the way from the random policy's to the good one's (D4RL; Fu et al. 2020, section 5)."""
        low, high = self.scores or (0.0, 100.0)
        return 100 * (value - low) / (high - low)

    def first(self, count: int) -> Recorded:
        """The first ``count`` transitions; the last episode may be cut, and is then neither terminated nor truncated there."""
        return replace(self, episodes=first(self.episodes, count))


def first(batch: Batch, count: int) -> Batch:
    """The first ``count`` actions, row by row; rows without any are left out."""
    kept = batch.mask & (batch.mask.flatten().cumsum(0).view(batch.shape) <= count)
    columns = {name: torch.where(kept, value, torch.zeros_like(value)) for name, value in batch.columns.items()}
    found = replace(batch, mask=kept, columns=columns).take(kept.any(1)).trim()
    return found.with_context("policy", observations=found.contexts["policy"]["observations"][:, : found.shape[1] + 1])


def parse_mixture(text: str) -> tuple[tuple[float, str], ...]:
    """(share, policy) for every part of a sum, shares adding up to 1.

    >>> parse_mixture("0.8*random+0.2*good"), parse_mixture("medium")
    (((0.8, 'random'), (0.2, 'good')), ((1.0, 'medium'),))
    """
    parts = [re.fullmatch(r"(?:(\d*\.?\d+)\*)?(.+)", part.strip()) for part in text.split("+")]
    found = tuple((float(part[1] or 1.0), part[2]) for part in parts if part)
    if len(found) < len(parts) or abs(sum(share for share, _ in found) - 1) > 1e-6:
        raise QuatrainError(
            "a mixture of data is a sum of shares", given=f"data={text}", expected="0.8*random+0.2*good, shares adding to 1"
        )
    return found


def generate(task: Any, mixture: str, transitions: int, seed: int) -> Recorded:
    """A share of the transitions by each policy of the mixture, in whole episodes but for the last of each policy.

    task   a GymTask: its environment is used, from starts of training.
    """
    parts = []
    for number, (share, name) in enumerate(parse_mixture(mixture)):
        policy, found, wanted = behaviour(name, task.env_id, task.observation_size, task.action_space), [], round(share * transitions)
        sampling = Sampling(max_actions=task.max_steps or 1000)
        while sum(int(batch.mask.sum()) for batch in found) < wanted:
            starts = task.starts("train", (number << 20) + EPISODES * len(found), EPISODES)
            found.append(task.rollout(policy, starts, 1, sampling, derive(seed, "data", number, len(found))))
        parts += [first(Batch.cat(found), wanted)] if wanted else []
    if not parts:
        raise QuatrainError("a data set has a transition at least", given=f"size={transitions}")
    whole = Batch.cat(parts)
    episodes = Batch(whole.mask, whole.actions, {name: whole[name] for name in KEPT}, contexts=whole.contexts)
    script = SCRIPTS.get(task.env_id)
    return Recorded(episodes, (script.random, script.good) if script else None, mixture)


def record(task: Any, data: str, size: int, limit: int | None) -> Recorded:
    """The data set that ``data`` names for a GymTask: a folder in Minari's layout, or a mixture of ``size`` transitions.

    limit  at most this many transitions, from the beginning.

    Raises QuatrainError where the folder's observations or actions are not the environment's.
    """
    if is_folder(data):
        from quatrain.environments.minari import read_minari

        found = read_minari(data)
        seen, actions = found.episodes.contexts["policy"]["observations"], found.episodes.actions
        ours = (task.observation_size, len(getattr(task.action_space, "low", ())))
        if (theirs := (seen.shape[2], actions.shape[2] if actions.ndim == 3 else 0)) != ours:
            what = "numbers per observation and action (0: discrete)"
            raise QuatrainError(f"this data set is not of {task.env_id}", given=f"{theirs} {what}", expected=f"{ours}")
    else:
        found = generate(task, data, size, task.seed)
    return found.first(limit) if limit else found


def is_folder(data: str) -> bool:
    """Whether this names a folder rather than a mixture of policies."""
    return "*" not in data and "+" not in data and (data.startswith((".", "/", "~")) or Path(data).expanduser().is_dir())


def stack(episodes: list[dict[str, torch.Tensor]]) -> Batch:
    """Rows of episodes, padded on the right with zeros: observations [T+1, D], actions [T, …], rewards, terminated, truncated [T] each."""
    made = [
        Batch(
            torch.ones(1, len(episode["rewards"]), dtype=torch.bool),
            episode["actions"][None],
            {name: episode[name][None] for name in KEPT},
            contexts={"policy": {"observations": episode["observations"][None]}},
        )
        for episode in episodes
    ]
    return Batch.cat(made)
