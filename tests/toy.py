"""A policy that is a table, on problems small enough to enumerate; random batches that are as nasty as real ones.

Everything in float64 unless told otherwise. Axes: S states, V actions, N trajectories, T actions per trajectory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.batch import Batch, Origin
from quatrain.knobs import resolve
from quatrain.models.distributions import Categorical
from quatrain.models.last_layer import LastLayer
from quatrain.protocols import Sampling
from quatrain.training.recipe import Recipe
from quatrain.training.steps import Fit

NAN = float("nan")


class Table(nn.Module):
    def __init__(self, values: Tensor):
        super().__init__()
        self.values = nn.Parameter(values.clone())


class TabularPolicy:
    """softmax of a row of a table [S, V]; the row is the batch's column ``state``. ``leaky``: scores what is no action as well."""

    def __init__(self, logits: Tensor, leaky: bool = False):
        self.module, self.version, self.leaky = Table(logits), 0, leaky

    @property
    def table(self) -> Tensor:
        return self.module.values

    def distribution(self, batch: Batch, where: Tensor) -> Categorical:
        temperature = batch["temperature"][where] if "temperature" in batch else None
        return Categorical(self.table[batch["state"][where]], None, temperature)

    def score(self, batch: Batch, statistics: Sequence[Any], role: str = "policy", others: Mapping[str, Any] | None = None) -> dict:
        where = torch.ones_like(batch.mask) if self.leaky else batch.mask
        own = self.distribution(batch, where)
        with torch.no_grad():
            frozen = {name: other.distribution(batch, where) for name, other in (others or {}).items()}
        values = {statistic: statistic(own, batch.actions[where], frozen) for statistic in statistics}
        return {statistic: value.new_zeros(batch.shape).masked_scatter(where, value) for statistic, value in values.items()}

    def last_layer(self, batch: Batch) -> LastLayer:
        own, temperature = self.distribution(batch, batch.mask), batch["temperature"][batch.mask] if "temperature" in batch else 1.0
        features = nn.functional.one_hot(batch["state"][batch.mask], len(self.table)).to(self.table.dtype) / temperature
        return LastLayer(self.table, features, lambda rows: own, transposed=True)

    def clone(self) -> TabularPolicy:
        twin = copy.deepcopy(self)
        twin.module.requires_grad_(False)
        return twin


class TabularCritic:
    """V(s) from a table [S]; the state after the last action is worth 0."""

    def __init__(self, values: Tensor):
        self.module, self.version = Table(values), 0

    def values(self, batch: Batch, role: str = "policy") -> Tensor:
        value = self.module.values[batch["state"]]
        return torch.cat([value, value.new_zeros(len(batch), 1)], 1)

    def clone(self) -> TabularCritic:
        return copy.deepcopy(self)


class TabularChoices:
    """Q(s, ·) of K policies from a table [K, S, V]; the state after the last action is worth 0."""

    def __init__(self, values: Tensor):
        self.module, self.version = Table(values), 0

    def values(self, batch: Batch, role: str = "policy") -> Tensor:
        value = self.module.values[:, batch["state"]].permute(1, 2, 0, 3)
        return torch.cat([value, torch.zeros_like(value[:, :1])], 1)

    def clone(self) -> TabularChoices:
        return copy.deepcopy(self)


# -- random batches ----------------------------------------------------------------------------------------------------
@dataclass
class Case:
    """A batch, the policy to be trained on it and the models that its statistics may read."""

    batch: Batch
    policy: TabularPolicy
    others: dict[str, TabularPolicy] = field(default_factory=dict)

    def logp(self) -> Tensor:
        """[N, T] log π_θ, with gradient, 0 where there is no action: written without the library."""
        return torch.where(self.batch.mask, plain_logp(self.policy.table, self.batch), 0.0)

    def clean(self, name: str) -> Tensor:
        """A column, 0 where there is no action."""
        return torch.where(self.batch.mask, self.batch[name], 0.0)

    def ratio(self, name: str = "old_logp") -> Tensor:
        return (self.logp() - self.clean(name)).exp()


def without(batch: Batch, name: str) -> Batch:
    """The batch without a column or row value."""
    kept = [{key: value for key, value in part.items() if key != name} for part in (batch.columns, batch.rows)]
    return replace(batch, columns=kept[0], rows=kept[1])


def plain_logp(table: Tensor, batch: Batch) -> Tensor:
    return table[batch["state"]].log_softmax(-1).gather(-1, batch.actions[..., None])[..., 0]


def case(
    seed: int = 0,
    prompts: int = 4,
    group: int = 4,
    length: int = 5,
    actions: int = 4,
    stale: float = 0.5,
    demonstrations: bool = False,
    dtype: torch.dtype = torch.float64,
    holes: float = 0.2,
) -> Case:
    """Rollouts of uneven length with holes in them, several groups, stale policies; every float that nobody set is NaN.

    The first group is never solved, the second always, the third once, the others as it comes. With ``demonstrations`` one more
    row per prompt, without reward or old log-probabilities. ``stale`` is how far the other policies are.
    """
    g = torch.Generator().manual_seed(seed)
    n = prompts * group + (prompts if demonstrations else 0)
    shape = (n, length)

    def logits() -> Tensor:
        return torch.randn(n * length, actions, generator=g, dtype=torch.float64)

    table = logits()
    lengths = torch.randint(1, length + 1, (n,), generator=g)
    lengths[0] = length
    extent = torch.arange(length) < lengths[:, None]
    mask = extent & ((torch.rand(shape, generator=g) >= holes) | (torch.arange(length) == 0))
    chosen = torch.randint(actions, shape, generator=g)
    state = torch.arange(n * length).view(shape)
    bare = Batch(mask=mask, actions=chosen, columns={"state": state})
    selves = {name: table + stale * logits() for name in ("old", "behaviour", "reference")}
    columns = {f"{name}_logp": plain_logp(self, bare) for name, self in selves.items()}
    columns |= {name: torch.randn(shape, generator=g, dtype=torch.float64) for name in ("value", "next_value", "rewards")}
    aside = torch.Generator().manual_seed(seed + 2)
    log_old = selves["old"].log_softmax(-1)[state]
    columns["old_entropy"] = -(log_old.exp() * log_old).sum(-1)
    columns["corrupted_logp"] = plain_logp(table + stale * torch.randn(table.shape, generator=aside, dtype=torch.float64), bare)
    proxy = torch.randn(table.shape, generator=torch.Generator().manual_seed(seed + 3), dtype=torch.float64)
    columns["proxy_logp"] = plain_logp(table + stale * proxy, bare)
    prm = torch.randn(table.shape, generator=torch.Generator().manual_seed(seed + 7), dtype=torch.float64)
    columns["prm_logp"] = plain_logp(table + stale * prm, bare)
    columns = {name: torch.where(mask, value, NAN).to(dtype) for name, value in columns.items()}
    aside = torch.Generator().manual_seed(seed + 7)
    for name, size in (("current_policy_shift", 1.5e-4), ("current_objective_shift", 1.5e-2)):  # about a third beyond CAPO's limits
        shift = size * torch.rand(shape, generator=aside, dtype=torch.float64)
        columns[name] = torch.where(mask, shift, NAN).to(dtype)
    others = torch.randn(*shape, 2, actions, generator=torch.Generator().manual_seed(seed + 6), dtype=torch.float64).softmax(-1)
    columns["target_probs"] = torch.where(mask[..., None, None], others, NAN).to(dtype)
    last = mask & (torch.arange(length) == torch.where(mask, torch.arange(length), -1).amax(1, keepdim=True))
    row = torch.arange(n)[:, None]
    node = torch.where(torch.arange(length) < 2, n + row // 2, row)  # pairs of rows share two actions
    origin = torch.full(shape, Origin.POLICY)
    prompt = torch.arange(prompts).repeat_interleave(group)
    solved = (torch.rand(n, generator=g) < 0.5).to(dtype)
    solved[:group], solved[group : 2 * group], solved[2 * group : 3 * group] = 0.0, 1.0, 0.0
    solved[2 * group] = 1.0
    if demonstrations:
        prompt = torch.cat([prompt, torch.arange(prompts)])
        origin[prompts * group :], solved[prompts * group :] = Origin.DEMONSTRATION, NAN
        for name in ("old_logp", "behaviour_logp"):
            columns[name][prompts * group :] = NAN
    batch = Batch(
        mask=mask,
        actions=chosen,
        columns={
            "state": state,
            "present": extent,
            "node": node,
            "turn": torch.arange(length).expand(shape) // 2,
            "origin": origin,
            "terminated": last,
            "truncated": mask & False,
            **columns,
        },
        rows={
            "reward": solved,
            "prompt": prompt * 7 + 3,  # keys need not be consecutive
            "pair": torch.arange(n) // 2,
            "side": torch.arange(n) % 2,
            "similarity": torch.rand(n, generator=torch.Generator().manual_seed(seed + 8), dtype=torch.float64).to(dtype),
            "tracked_value": torch.rand(n, generator=torch.Generator().manual_seed(seed + 4), dtype=torch.float64).to(dtype),
            "probe_value": torch.rand(n, generator=torch.Generator().manual_seed(seed + 8), dtype=torch.float64).to(dtype),
            "mode": torch.arange(n) % 2,
            "trajectory": torch.arange(n),
            "block": prompt // 3,
            "role": torch.arange(n) % 2,  # every planner called one worker
            "episode": torch.arange(n) // 2 * 5 + 1,
            "bundle": prompt // 3 * group + torch.arange(n) % group,  # the k-th samples of three prompts
            "answer": torch.where(solved == 1, 0, 1 + torch.randint(3, (n,), generator=torch.Generator().manual_seed(seed + 1))),
            "preference": torch.tensor([1.0, -1.0], dtype=dtype).repeat(n // 2 + 1)[:n],
        },
    )
    teacher = table + stale * logits()
    batch = batch.with_columns(teacher_logp=torch.where(mask, plain_logp(teacher, bare), NAN).to(dtype))
    others = {"teacher": TabularPolicy(teacher.to(dtype))}
    others |= {name: TabularPolicy(self.to(dtype)) for name, self in selves.items()}
    return Case(batch, TabularPolicy(table.to(dtype)), others)


def fit_of(recipe: Recipe, model: str = "policy", **knobs: float) -> Fit:
    """The Fit of that model, its knobs resolved."""
    (step,) = (step for _, step in recipe.fits() if step.model == model)
    return resolve(step, knobs)


def gradient(recipe: Recipe | Fit, here: Case, model: Any = None, **knobs: float) -> Tensor:
    """The gradient [S, V] of one update of the recipe on the whole batch, through its Fit."""
    step = recipe if isinstance(recipe, Fit) else fit_of(recipe, **knobs)
    model = model or here.policy
    model.module.values.grad = None
    others = {name: here.others[name] for name in step.loss.models()}
    for _ in step.gradient_parts(model, others, step.loss.prepare(here.batch)):
        pass
    found = model.module.values.grad
    return torch.zeros_like(model.module.values) if found is None else found.clone()


def autograd(loss: Tensor, here: Case) -> Tensor:
    return torch.autograd.grad(loss, here.policy.table)[0]


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal relative to the largest entry; the expected gradient must not be trivial."""
    size = float(expected.abs().max())
    assert size > 1e-6, "a gradient of zero proves nothing"
    worst = float((found - expected).abs().max()) / size
    assert worst <= tolerance, f"relative difference {worst:.2e}"


# -- a task ------------------------------------------------------------------------------------------------------------
@dataclass
class ToyTask:
    """``prompts`` problems of at most ``length`` actions; 0 ends. Solved if as many actions were odd as the problem's number says.

    The state is (problem, place), so that a table of ``prompts · length`` rows is a policy.
    """

    prompts: int = 4
    length: int = 3
    actions: int = 4
    reward: Callable[[Tensor, int], float] | None = None
    name: str = "toy"
    provides = frozenset({"reward", "state"})
    has = frozenset({"demonstrations", "pairs"})

    def policy(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> TabularPolicy:
        g = torch.Generator().manual_seed(seed)
        return TabularPolicy(torch.randn(self.prompts * self.length, self.actions, generator=g, dtype=torch.float64).to(dtype))

    def critic(self) -> TabularCritic:
        return TabularCritic(torch.zeros(self.prompts * self.length, dtype=torch.float64))

    def choices(self, heads: int) -> TabularChoices:
        return TabularChoices(torch.zeros(heads, self.prompts * self.length, self.actions, dtype=torch.float64))

    def starts(self, split: str, cursor: int, count: int) -> list[int]:
        return [position % self.prompts for position in range(cursor, cursor + count)]

    def rollout(self, policy: TabularPolicy, starts: Sequence[int], group: int, sampling: Sampling, seed: int) -> Batch:
        g, length = torch.Generator().manual_seed(seed), min(self.length, sampling.max_actions)
        prompt = torch.tensor(starts).repeat_interleave(group)
        state = prompt[:, None] * self.length + torch.arange(length)
        actions = torch.distributions.Categorical(logits=policy.table.detach()[state]).probs.flatten(0, 1)
        actions = torch.multinomial(actions, 1, generator=g).view(state.shape)
        return self._batch(policy, actions, prompt, Origin.POLICY)

    def demonstrations(self, policy: TabularPolicy, starts: Sequence[int]) -> Batch:
        """p odd actions, then the end: for every problem but the last."""
        shown = [start for start in starts if start < self.prompts - 1]
        actions = torch.tensor([[1] * min(p, self.length) + [0] * (self.length - p) for p in shown]).view(-1, self.length)
        batch = self._batch(policy, actions, torch.tensor(shown, dtype=torch.long), Origin.DEMONSTRATION)
        kept = {name: batch.columns[name] for name in ("state", "origin", "present")}
        return Batch(mask=batch.mask, actions=batch.actions, columns=kept, rows={"prompt": batch["prompt"]})

    def pairs(self, policy: TabularPolicy, starts: Sequence[int]) -> Batch:
        prompt = torch.tensor(starts).repeat_interleave(2)
        actions = torch.tensor([[1, 2, 0], [3, 0, 0]] * len(starts))
        batch = self._batch(policy, actions, prompt, Origin.DEMONSTRATION)
        pair = torch.arange(len(starts)).repeat_interleave(2)
        return batch.with_rows(pair=pair, preference=torch.tensor([1.0, -1.0] * len(starts)))

    def evaluate(self, policy: TabularPolicy, count: int, samples: int, sampling: Sampling, seed: int) -> dict[str, float]:
        return {"accuracy": float(self.rollout(policy, self.starts("heldout", 0, count), samples, sampling, seed)["reward"].mean())}

    def _batch(self, policy: TabularPolicy, actions: Tensor, prompt: Tensor, origin: int) -> Batch:
        ended = (actions == 0).long().cumsum(1)
        mask = (ended == 0) | ((ended == 1) & (actions == 0))
        state = prompt[:, None] * self.length + torch.arange(actions.shape[1])
        judge = self.reward or (lambda row, p: float((row % 2).sum() == p))
        reward = torch.tensor([judge(row[m], int(p)) for row, m, p in zip(actions, mask, prompt, strict=True)])
        bare = Batch(mask=mask, actions=torch.where(mask, actions, 0), columns={"state": state})
        logp = torch.where(mask, plain_logp(policy.table.detach(), bare), 0.0)
        last = mask & (mask.sum(1, keepdim=True) == torch.arange(1, actions.shape[1] + 1))
        columns = {"behaviour_logp": logp, "old_logp": logp, "terminated": last & (actions == 0), "truncated": last & (actions != 0)}
        columns |= {"origin": torch.full(actions.shape, origin), "version": torch.full(actions.shape, policy.version), "present": mask}
        rows = {"reward": reward, "prompt": prompt, "seed": torch.arange(len(prompt))}
        return bare.with_columns(**columns).with_rows(**rows)
