"""A table as a Task: ordinary recipes train on it, and what they reach is known exactly.

Axes: N trajectories, T actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quatrain.batch import Batch, Origin
from quatrain.environments.tables.exact import optimal, values
from quatrain.environments.tables.generators import find_table
from quatrain.environments.tables.mdp import TableMDP
from quatrain.environments.tables.returns import return_distribution
from quatrain.errors import QuatrainError
from quatrain.models.draws import draw, inverse_cdf, uniforms
from quatrain.models.tables import TablePolicy
from quatrain.protocols import Sampling


class Begin(NamedTuple):
    """A start: the key of its group and the state that an episode begins in."""

    key: int
    state: int


class TableTask:
    """A ``quatrain.protocols.Task`` over one table. The policy is a table with a row per step and state.

    skill, blur  of the policy that ``network`` makes, as one finds it: logits skill · (Q* − V*)/σ + blur · noise, σ the standard deviation
                 of Q* − V*. Both 0: uniform.
    limit        actions of an episode where the table has no horizon; such an episode is truncated.

    Its batches have

    columns [N, T]  rewards, terminated, truncated, behaviour_logp, old_logp, version, origin, ``node`` (the policy's row), ``state``
                    [N, T, 1] (the same, as a TablePolicy reads it).
    rows [N]        ``reward``, the sum; ``prompt``, the start's key.
    contexts        ``policy.states`` [N, T+1], the row before every action and after the last.
    """

    provides = frozenset({"reward", "rewards", "state", "node", "present"})
    has: frozenset[str] = frozenset()

    def __init__(self, mdp: TableMDP, seed: int = 0, skill: float = 1.0, blur: float = 0.5, limit: int = 100, name: str = ""):
        if mdp.transition.ndim != 3:
            raise QuatrainError("a task is one table", given=f"leading axes {tuple(mdp.transition.shape[:-3])}")
        self.mdp, self.seed, self.skill, self.blur = mdp, seed, skill, blur
        self.length = mdp.horizon or limit
        self.actions, self.name = mdp.actions, name or f"tables:{mdp.name}"
        self.defaults = {"lr": 0.1, "prompts": 32, "max_actions": self.length}

    def network(self, hidden: Sequence[int] = (), seed: int = 0) -> TablePolicy:
        """The policy as one finds it, before training."""
        best = optimal(self.mdp)
        gap = (best.q - best.v.unsqueeze(-1)).flatten(0, -2)
        noise = torch.randn(gap.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return TablePolicy(self.skill * gap / gap.std().clamp(min=1e-9) + self.blur * noise)

    def starts(self, split: str, cursor: int, count: int) -> list[Begin]:
        at = torch.arange(cursor, cursor + count)
        uniform = uniforms(torch.tensor([self.seed + (1 << 40) * (split != "train")]), at)[0]
        states = inverse_cdf(self.mdp.start.expand(count, -1), uniform)
        return [Begin(key, state) for key, state in zip(at.tolist(), states.tolist(), strict=True)]

    @torch.no_grad()
    def rollout(self, policy: TablePolicy, starts: Sequence[Begin], group: int, sampling: Sampling, seed: int) -> Batch:
        """``group`` episodes from each start, all at once. Raises QuatrainError for a policy with other rows."""
        self._check(policy)
        keys = torch.tensor([start.key for start in starts]).repeat_interleave(group)
        state = torch.tensor([start.state for start in starts]).repeat_interleave(group)
        n, length = len(state), min(self.length, sampling.max_actions)
        random = uniforms(seed + torch.arange(n), torch.arange(2 * length))
        rows, actions, rewards, logp, supports = [], [], [], [], []
        for t in range(length):
            rows.append(self._row(state, t))
            chosen, found, support = draw(policy.table.detach()[rows[-1]], random[:, 2 * t], sampling)
            then = inverse_cdf(self.mdp.transition[state, chosen], random[:, 2 * t + 1])
            actions.append(chosen), logp.append(found), rewards.append(self.mdp.reward[state, chosen, then]), supports.append(support)
            state = then
        rows.append(self._row(state, min(length, (self.mdp.horizon or length + 1) - 1)))  # beyond the horizon no value is asked for
        states, mask = torch.stack(rows, 1), torch.ones(n, length, dtype=torch.bool)
        last = torch.zeros_like(mask)
        last[:, -1] = True
        ends = self.mdp.horizon == length
        columns = {
            "rewards": torch.stack(rewards, 1),
            "behaviour_logp": torch.stack(logp, 1),
            "old_logp": torch.stack(logp, 1),
            "terminated": last & ends,
            "truncated": last & (not ends),
            "version": torch.full(mask.shape, policy.version),
            "origin": torch.full(mask.shape, Origin.POLICY),
            "node": states[:, :-1],
            "state": states[:, :-1, None],
            "present": mask,
        }
        if supports[0] is not None:
            columns["support"] = torch.stack(supports, 1)
        found = {"reward": columns["rewards"].sum(1), "prompt": keys, "seed": seed + torch.arange(n)}
        if sampling.temperature != 1:
            found["temperature"] = torch.full((n,), sampling.temperature, dtype=torch.float64)
        return Batch(mask, torch.stack(actions, 1), columns, found, {"policy": {"states": states}})

    def demonstrations(self, policy: TablePolicy, starts: Sequence[Begin]) -> Batch:
        raise QuatrainError(f"{self.name} has no demonstrations", fix="a recipe without demonstrations, such as ppo, reinforce or grpo")

    def evaluate(
        self, policy: TablePolicy, count: int = 0, samples: int = 0, sampling: Sampling | None = None, seed: int = 0
    ) -> dict[str, float]:
        """``return``: J(π), exactly. Nothing is sampled."""
        return {"return": self.value(policy)}

    def value(self, policy: TablePolicy) -> float:
        """J(π) of the policy at temperature 1, exactly."""
        self._check(policy)
        return float(values(self.mdp, policy.table.detach().softmax(-1)).value)

    def returns(self, policy: TablePolicy) -> tuple[Tensor, Tensor]:
        """(support [R], chance [R]) of the undiscounted return, exactly; see ``return_distribution``."""
        self._check(policy)
        return return_distribution(self.mdp, policy.table.detach().softmax(-1))

    def _row(self, state: Tensor, t: int) -> Tensor:
        return state if self.mdp.horizon is None else t * self.mdp.states + state

    def _check(self, policy: Any) -> None:
        ours = (self.mdp.rows, self.mdp.actions)
        theirs = tuple(policy.table.shape) if hasattr(policy, "table") else type(policy).__name__
        if theirs != ours:
            raise QuatrainError(f"the policy does not fit {self.name}", given=theirs, expected=f"a table {ours}", fix="task.network()")


def table_task(name: str, options: Mapping[str, Any], seed: int = 0) -> TableTask:
    """The task ``tables:NAME`` with options of the table and of the task; a table's seed is 0 unless it is among them."""
    own = {key: options[key] for key in ("skill", "blur", "limit") if key in options}
    table = find_table(name, **{key: value for key, value in options.items() if key not in own})
    return TableTask(table, seed, **own)
