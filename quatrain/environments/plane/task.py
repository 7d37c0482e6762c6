"""The plane as a task: reaching, navigation, pushing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor

from quatrain.batch import Batch, group_sum
from quatrain.environments.copies import SPLITS, start_seed
from quatrain.environments.plane.episodes import batch_of, demonstrations, episodes
from quatrain.environments.plane.push import Push
from quatrain.environments.plane.reach import Reach
from quatrain.environments.plane.route import Route
from quatrain.errors import QuatrainError, nearest
from quatrain.models.networks import Box, NetworkPolicy
from quatrain.protocols import Policy, Sampling

WORLDS = {"reach": Reach, "route": Route, "push": Push}


class PlaneTask:
    """A ``quatrain.protocols.Task`` over a world of the plane. A start is the seed of its first state.

    kind            ``reach``, ``route`` (an obstacle with two ways round it) or ``push`` (a disc to a goal).
    demonstrations  how many training starts there are, each with one demonstration; they come again and again.
    disturbance     of the expert while it demonstrates: see ``episodes.demonstrations``.
    seed            of every start: 0 ≤ seed < 2²⁹.

    ``rollout`` and ``demonstrations`` return batches whose context is ``policy.observations`` [N, T+1, D]; the rows also have ``way``
    and, of a rollout, ``solved``. The reward is the decrease of the distance to the goal, and 1 at it.
    """

    provides = frozenset(("rewards", "terminated", "truncated", "behaviour_logp", "old_logp", "version", "origin", "reward", "prompt"))
    has = frozenset({"demonstrations"})

    def __init__(self, kind: str = "route", demonstrations: int = 2000, disturbance: float = 0.15, seed: int = 0):
        if kind not in WORLDS:
            raise QuatrainError(f"there is no world {kind!r} in the plane", expected=", ".join(WORLDS), fix=nearest(kind, WORLDS))
        if demonstrations < 1 or disturbance < 0 or not 0 <= seed < 2**29:
            given = f"demonstrations={demonstrations}, disturbance={disturbance}, seed={seed}"
            raise QuatrainError("a plane has a demonstration or more, and a small seed", given=given, expected="0 ≤ seed < 2**29")
        self.name, self.world, self.size_train, self.disturbance, self.seed = (
            f"plane:{kind}",
            WORLDS[kind](),
            demonstrations,
            disturbance,
            seed,
        )
        self.observation_size, self.action_space = self.world.observation_size, Box((-1.0, -1.0), (1.0, 1.0))
        self.defaults = {"lr": 1e-3, "prompts": 64, "max_actions": self.world.max_steps}  # what suits small networks

    def network(self, hidden: Sequence[int] = (64, 64), seed: int = 0) -> NetworkPolicy:
        """An untrained Gaussian policy with this world's observations and actions."""
        return NetworkPolicy(self.observation_size, self.action_space, hidden, seed)

    def starts(self, split: str, cursor: int, count: int) -> list[int]:
        """Seeds at positions cursor … cursor+count−1 of the split; those of training repeat after ``demonstrations``."""
        if split not in SPLITS:
            raise QuatrainError(f"unknown split {split!r}", given=split, fix=nearest(split, SPLITS))
        positions = (position % self.size_train if split == "train" else position for position in range(cursor, cursor + count))
        return [start_seed(self.seed, split, position) for position in positions]

    def rollout(self, policy: Policy, starts: Sequence[int], group: int, sampling: Sampling, seed: int) -> Batch:
        """``group`` episodes from each start, rows ordered start by start; ``sampling.max_actions`` counts decisions."""
        self._check(policy, sampling)
        seeds = torch.tensor(starts).repeat_interleave(group)
        return batch_of(*episodes(self.world, policy, seeds, min(sampling.max_actions, self.world.max_steps), seed), seeds, policy.version)

    def demonstrations(self, policy: Policy, starts: Sequence[int]) -> Batch:
        """The expert's episode from each start of the training split."""
        return self._shown.take([self._place[start] for start in starts]).trim()

    def evaluate(
        self, policy: Policy, count: int = 100, samples: int = 1, sampling: Sampling | None = None, seed: int = 0
    ) -> dict[str, float]:
        """``samples`` greedy episodes from each of ``count`` held-out starts, all at once, to the world's own end.

        ``success``: share that is solved; ``return``: mean undiscounted return; ``length``: mean number of decisions;
        ``evaluations``: mean number of forward passes per decision; where several ways are equally good, ``coverage``: the entropy
        of the way taken from one start, in units of its maximum, mean over the starts. A policy without noise in it covers nothing.
        """
        self._check(policy, sampling or Sampling())
        seeds = torch.tensor(self.starts("heldout", 0, count)).repeat_interleave(max(samples, 1))
        here, made = episodes(self.world, policy, seeds, self.world.max_steps, seed, greedy=True)
        acted = torch.stack(here.acted)
        passes = torch.stack([decision.evaluations for decision in made])
        numbers: dict[str, Any] = {
            "success": here.solved.float().mean(),
            "return": torch.stack(here.rewards).sum(0).mean(),
            "length": acted.sum(0).float().mean(),
            "evaluations": passes[acted].float().mean(),
        }
        if self.world.modes > 1:
            numbers["coverage"] = coverage(self.world.way(here.state), count, self.world.modes)
        return {name: float(value) for name, value in numbers.items()}

    # -- inside ----------------------------------------------------------------------------------------------------
    @cached_property
    def _place(self) -> dict[int, int]:
        return {start: place for place, start in enumerate(self.starts("train", 0, self.size_train))}

    @cached_property
    def _shown(self) -> Batch:
        """Every demonstration, made when first asked for."""
        return demonstrations(self.world, torch.tensor(list(self._place)), self.disturbance, self.seed)

    def _check(self, policy: Policy, sampling: Sampling) -> None:
        ours = (self.observation_size, self.action_space)
        if (theirs := tuple(getattr(policy, name, None) for name in ("observation_size", "action_space"))) != ours:
            raise QuatrainError(
                f"the policy does not fit {self.name}", given=theirs, expected=f"(observation size, actions) = {ours}", fix="task.network()"
            )
        if (sampling.temperature, sampling.top_p, sampling.top_k) != (1.0, 1.0, 0):
            raise QuatrainError("continuous actions are sampled as they are", given=sampling, fix="temperature=1, top_p=1, top_k=0")


def coverage(way: Tensor, starts: int, modes: int) -> Tensor:
    """Mean over the starts of the entropy of the way taken, 0 … 1: way [starts·samples], −1 for none (not counted).

    >>> coverage(torch.tensor([0, 1, 1, 1]), starts=2, modes=2)
    tensor(0.5000)
    """
    start = torch.arange(starts).repeat_interleave(len(way) // starts)
    chosen = way >= 0
    count = group_sum(chosen.float(), start * modes + way.clamp(min=0), starts * modes).view(starts, modes)
    share = count / count.sum(1, keepdim=True).clamp(min=1)
    return -torch.special.xlogy(share, share).sum(1).mean() / math.log(modes)


def plane(spec: str, seed: int = 0) -> PlaneTask:
    """The task of a text: ``plane:route``, ``plane:push?demonstrations=50&disturbance=0.1&seed=3``."""
    name, _, query = spec.partition("?")
    options: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        known = {"demonstrations": int, "disturbance": float, "seed": int}
        if key not in known:
            raise QuatrainError(f"the plane has no option {key!r}", given=spec, fix=nearest(key, known))
        try:
            options[key] = known[key](value)
        except ValueError:
            raise QuatrainError(f"option {key!r} of the plane is a number", given=f"{key}={value}") from None
    return PlaneTask(name.partition(":")[2] or "route", **{"seed": seed, **options})
