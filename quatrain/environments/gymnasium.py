"""Gymnasium environments as a task: whole episodes from given starts, or fixed-length segments of living copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.environments.copies import SPLITS, Copies, start_seed
from quatrain.environments.living import Living
from quatrain.environments.record import Record
from quatrain.errors import QuatrainError, nearest
from quatrain.models.networks import NetworkPolicy
from quatrain.protocols import Policy, Sampling

if TYPE_CHECKING:
    from quatrain.environments.recorded import Recorded


class GymTask:
    """A ``quatrain.protocols.Task`` over E copies of a Gymnasium environment. A start is the seed of a reset.

    env_id   as in ``gymnasium.make``.
    copies   E, how many environments ``steps`` keeps alive.
    seed     of every start: 0 ≤ seed < 2²⁹.
    options  keyword arguments of the environment.
    data     a data set of its episodes, made or read when first asked for: ``environments.recorded``.

    Two ways to collect, both with one forward of the policy per step for all copies:

    ``rollout``  a row is an episode. The members of a group begin in the same state.
    ``steps``    a row is a copy that lives on between calls; episodes follow each other inside the row. ``state_dict`` holds
                 what brings the copies back to exactly where they were: each one's episode and its actions since.

    Both return:

    columns [N, T]  rewards, terminated, truncated, behaviour_logp, old_logp, version, origin; ``episode``, its number within the
                    copy's life; ``episode_return``, the sum of an episode's rewards at its last action and NaN elsewhere.
    rows [N]        ``reward``, the sum over the row; ``prompt``, the start (of the episode that the row begins in);
                    ``temperature`` when it is not 1.
    contexts        ``policy.observations`` [N, T+1, D], the state before each action and after the last; zeros beyond an episode.
    """

    provides = frozenset(
        (
            "rewards",
            "terminated",
            "truncated",
            "behaviour_logp",
            "old_logp",
            "version",
            "origin",
            "episode",
            "episode_return",
            "reward",
            "prompt",
        )
    )

    def __init__(
        self,
        env_id: str,
        copies: int = 16,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        data: Callable[[GymTask], Recorded] | None = None,
    ):
        if copies < 1 or not 0 <= seed < 2**29:
            raise QuatrainError(
                "a task has at least one copy and a small seed", given=f"copies={copies}, seed={seed}", expected="0 ≤ seed < 2**29"
            )
        self.name, self.env_id, self.copies, self.seed, self.options = f"gym:{env_id}", env_id, copies, seed, dict(options or {})
        self.has = frozenset({"recordings"} if data else ())  # neither demonstrations nor preference pairs
        self._data = data
        self._resettable: dict[int, Copies] = {}
        self._living: Living | None = None
        first = self._copies(1)
        self.observation_size, self.action_space, self.max_steps = first.observation_size, first.action_space, first.max_steps
        self.defaults = {"lr": 2e-3, "prompts": 16, "max_actions": self.max_steps or 1000}  # what suits small networks

    def network(self, hidden: Sequence[int] = (64, 64), seed: int = 0) -> NetworkPolicy:
        """An untrained policy with this environment's observations and actions."""
        return NetworkPolicy(self.observation_size, self.action_space, hidden, seed)

    # -- starts ----------------------------------------------------------------------------------------------------
    def starts(self, split: str, cursor: int, count: int) -> Sequence[int]:
        """Reset seeds at positions cursor … cursor+count−1 of the split. No two splits, positions or task seeds share one."""
        if split not in SPLITS:
            raise QuatrainError(f"unknown split {split!r}", given=split, fix=nearest(split, SPLITS))
        return [start_seed(self.seed, split, position) for position in range(cursor, cursor + count)]

    # -- collecting ------------------------------------------------------------------------------------------------
    def rollout(self, policy: Policy, starts: Sequence[int], group: int, sampling: Sampling, seed: int) -> Batch:
        """``group`` episodes from each start, rows ordered start by start, padded on the right.

        ``sampling.max_actions`` cuts an episode (truncated). Raises QuatrainError for a sampling that the policy has not.
        """
        self._check(policy, sampling)
        return self._episodes(policy, [start for start in starts for _ in range(group)], sampling, seed)

    def steps(self, policy: Policy, count: int, sampling: Sampling, seed: int) -> Batch:
        """The next ``count`` steps of every living copy: N = copies, T = count. Sampled with noise from ``seed``.

        The step after an episode's last action resets the environment: it is not an action (mask False), and the observation
        before it is the episode's true final one. A row's end cuts no episode: neither terminated nor truncated.
        """
        self._check(policy, sampling)
        return self.living.steps(policy, count, sampling, seed)

    @property
    def living(self) -> Living:
        """The copies that ``steps`` advances; made when first asked for."""
        if self._living is None:
            self._living = Living(Copies(self.env_id, self.copies, self.options), self.seed)
        return self._living

    def state_dict(self) -> dict[str, Tensor]:
        """Where the living copies are, for a checkpoint. Empty before the first ``steps``."""
        return self._living.state_dict() if self._living else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Bring the living copies back to where they were, bit for bit (environments that are deterministic given their reset seed)."""
        self._living = None
        if state:
            self.living.load_state_dict(state)

    @cached_property
    def recorded(self) -> Recorded:
        """Its data set. QuatrainError where it has none."""
        if self._data is None:
            raise QuatrainError(f"{self.name} has no data set", fix=f"task={self.name}?data=FOLDER, or data=0.8*random+0.2*good")
        return self._data(self)

    def demonstrations(self, policy: Policy, starts: Sequence[int]) -> Batch:
        raise QuatrainError(f"{self.name} has no demonstrations", fix="use a recipe without demonstrations, such as ppo, reinforce or grpo")

    def evaluate(
        self, policy: Policy, count: int = 100, samples: int = 1, sampling: Sampling | None = None, seed: int = 0
    ) -> dict[str, float]:
        """Greedy episodes from ``count`` held-out starts, all at once, to the environment's own end.

        ``return``: their mean undiscounted return; ``return/std``; ``length``: mean number of actions. ``samples`` above 1 adds
        ``return/sampled``, the mean over that many sampled episodes per start. ``sampling.max_actions`` counts only where the
        environment has no limit of its own. ``normalised``, where the data set says what a random and a good policy return: the
        mean return in per cent of the way from one to the other.
        """
        sampling = sampling or Sampling()
        limit = Sampling(max_actions=self.max_steps or sampling.max_actions)
        starts = self.starts("heldout", 0, count)
        self._check(policy, limit)
        greedy = self._episodes(policy, starts, limit, seed, greedy=True)
        found = greedy["reward"]
        numbers = {"return": found.mean(), "return/std": found.std(correction=0), "length": greedy.lengths.float().mean()}
        if samples > 1:
            sampled = [start for start in starts for _ in range(samples)]
            numbers["return/sampled"] = self._episodes(policy, sampled, limit, seed)["reward"].mean()
        if self.has and self.recorded.scores:
            numbers["normalised"] = self.recorded.normalised(float(numbers["return"]))
        return {name: float(value) for name, value in numbers.items()}

    def close(self) -> None:
        for copies in (*self._resettable.values(), *([self._living.envs] if self._living else [])):
            copies.close()
        self._resettable, self._living = {}, None

    # -- inside ----------------------------------------------------------------------------------------------------
    def _copies(self, count: int) -> Copies:
        """Copies to reset at will, kept by their number: a run asks for few different ones."""
        if count not in self._resettable:
            self._resettable[count] = Copies(self.env_id, count, self.options)
        return self._resettable[count]

    def _check(self, policy: Policy, sampling: Sampling) -> None:
        ours = (self.observation_size, self.action_space)
        space = getattr(policy, "action_space", None)
        if (theirs := (getattr(policy, "observation_size", None), getattr(space, "executed", space))) != ours:
            raise QuatrainError(
                f"the policy does not fit {self.name}", given=theirs, expected=f"(observation size, actions) = {ours}", fix="task.network()"
            )
        if sampling.top_p != 1.0 or sampling.top_k != 0:
            raise QuatrainError("a network policy samples from its whole distribution", given=sampling, fix="top_p=1.0, top_k=0")
        if sampling.temperature <= 0:
            raise QuatrainError(
                "a greedy trajectory has no log-probability to learn from", given=sampling, fix="temperature=1.0; evaluate() is greedy"
            )

    def _episodes(self, policy: Policy, starts: Sequence[int], sampling: Sampling, seed: int, greedy: bool = False) -> Batch:
        envs, generator = self._copies(len(starts)), torch.Generator().manual_seed(seed)
        envs.begin(np.ones(len(starts), bool), starts)
        record = Record(envs.observation)
        alive = np.ones(len(starts), bool)
        for t in range(sampling.max_actions):
            actions, logp = policy.act(torch.from_numpy(envs.observation), generator, greedy, sampling.temperature)
            reward, terminated, truncated = envs.step(actions.cpu().numpy())
            cut = truncated | (t == sampling.max_actions - 1)
            record.add(alive, actions, logp, reward, terminated, cut & ~terminated, np.where(alive[:, None], envs.observation, 0))
            alive = alive & ~terminated & ~cut
            if not alive.any():
                break
        return record.batch(policy, sampling, starts, np.zeros((len(starts), record.length), np.int64), np.zeros(len(starts)))


def gym_task(spec: str, seed: int = 0, limit: int | None = None) -> GymTask:
    """The task of a text: ``gym:CartPole-v1``, ``gym:Pendulum-v1?data=0.8*random+0.2*good&size=20000``, ``gym:…?data=FOLDER``.

    limit  at most this many transitions of the data set.
    """
    head, _, query = spec.removeprefix("gym:").partition("?")
    options = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
    for name in options:
        if name not in ("data", "size"):
            raise QuatrainError(f"an environment has no option {name!r}", given=spec, fix=nearest(name, ("data", "size")))
    size = options.get("size", "10000")
    if not size.isdigit() or int(size) < 1:
        raise QuatrainError("size is the number of transitions of a data set that is made", given=f"size={size}")
    if not (data := options.get("data")):
        return GymTask(head, seed=seed)

    def recorded(task: GymTask) -> Recorded:
        from quatrain.environments.recorded import record

        return record(task, data, int(size), limit)

    return GymTask(head, seed=seed, data=recorded)
