"""What a recipe claims to ascend, as a number of the policy's table; its gradient by enumeration is the truth.

Each target is a function (scene, table) → scalar, with gradient. Where a method freezes the states (no gradient through the
sampling), so does its target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError, nearest
from quatrain.estimator import Term
from quatrain.experiments.diagnose.chances import action_logp, allowed, chances, logits_of
from quatrain.experiments.diagnose.problems import Problem
from quatrain.experiments.diagnose.task import EnumeratedTask, observed
from quatrain.models.tables import TablePolicy
from quatrain.parts.advantages import KL, Constant, PairLogistic, one
from quatrain.parts.likelihoods import Divergence, Entropy
from quatrain.parts.needs import needs_of
from quatrain.parts.selections import Both, demonstrations, every_action
from quatrain.protocols import Sampling
from quatrain.training.describe import expression

Selection = Callable[[Batch], Tensor]
OUTCOME = EnumeratedTask.provides | {"origin", "present", "terminated", "truncated"}  # what an outcome says by itself


@dataclass(frozen=True)
class Scene:
    """A problem, the distribution that is sampled from, and who samples.

    table     [S, V] the policy whose gradient is asked for.
    older     [S, V] the policy that sampled: another one when it is stale.
    """

    problem: Problem
    sampling: Sampling
    table: Tensor
    older: Tensor

    def others(self) -> dict[str, TablePolicy]:
        """Frozen models by name; ``old`` is the policy that samples."""
        tables = {"reference": self.problem.reference, "teacher": self.problem.teacher, "old": self.older}
        return {name: TablePolicy(table).clone() for name, table in tables.items()}

    def outcomes(self) -> Batch:
        """Every outcome once, as the policy that samples would return it."""
        return observed(self.problem, TablePolicy(self.older), self.sampling)


WORDS = {
    "kl": "KL to the reference",
    "divergence": "divergence to the teacher",
    "demonstrations": "likelihood of demonstrations",
    "preference": "preference likelihood",
}


@dataclass(frozen=True)
class Target:
    """One thing to ascend: its name (a key of TARGETS), its weight, and what it needs to know."""

    name: str
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        name = WORDS.get(self.name, self.name)
        detail = f" (γ = {self.options['discount']:g})" if self.options.get("discount", 1.0) != 1.0 else ""
        chosen = self.options.get("where", every_action)
        detail += f" of {expression(chosen)}" if chosen is not every_action else ""
        size = "" if abs(self.weight) == 1 else f"{abs(self.weight):g}·"
        return f"{'−' if self.weight < 0 else ''}{size}{name}{detail}"


def reward(scene: Scene, table: Tensor, discount: float = 1.0, where: Selection = every_action) -> Tensor:
    """Σ_τ π(τ) R(τ), R = Σ_t γ^t r_t: the expected (discounted) reward of the distribution that is sampled from.

    where  actions whose choice is differentiated: those of terms that share out a trajectory add up to the whole gradient.
    """
    batch = scene.problem.outcomes
    if "rewards" in batch:
        power = (batch.mask.long().cumsum(1) - 1).clamp(min=0)
        value = torch.where(batch.mask, discount**power * batch["rewards"], 0.0).sum(1)
    else:
        value = batch["reward"] * discount ** (batch.lengths - 1)
    return (chances(scene.problem, table, scene.sampling, where(scene.outcomes())) * value).sum()


def kl(scene: Scene, table: Tensor, to: str = "reference") -> Tensor:
    """Σ_τ π(τ) log π(τ)/π_ref(τ): the KL of whole sequences, its gradient through the states included."""
    support = allowed(logits_of(scene.problem, table), scene.sampling)
    ours = action_logp(scene.problem, table, scene.sampling).sum(1)
    theirs = action_logp(scene.problem, scene.others()[to].table, scene.sampling, support).sum(1)
    chance = chances(scene.problem, table, scene.sampling)
    return torch.where(chance > 0, chance * (ours - theirs).nan_to_num(), 0.0).sum()


def entropy(scene: Scene, table: Tensor) -> Tensor:
    """Mean entropy of the policy's actions, states frozen."""
    return _frozen_mean(scene, table, Entropy())


def divergence(scene: Scene, table: Tensor, **options: Any) -> Tensor:
    """Mean divergence to another model over the policy's own actions, states frozen; ``options``: those of a ``Divergence``."""
    return _frozen_mean(scene, table, Divergence(**options))


def demonstrated(scene: Scene, table: Tensor) -> Tensor:
    """Mean log-probability of the demonstrations' actions."""
    batch = scene.problem.outcomes.take(list(scene.problem.shown))
    logp = table[batch["state"]].sum(2).log_softmax(-1).gather(-1, batch.actions[..., None])[..., 0]
    return torch.where(batch.mask, logp, 0.0).sum() / batch.mask.sum()


def preference(scene: Scene, table: Tensor, beta: float = 0.1, reference: str = "reference") -> Tensor:
    """Mean over pairs of log σ(β·margin): the likelihood of the preferences under the implicit reward (DPO, eq. 7)."""
    gap = _plain(scene.problem.outcomes, table) - _plain(scene.problem.outcomes, scene.others()[reference].table.detach())
    chosen, rejected = torch.tensor(scene.problem.pairs).T
    return torch.nn.functional.logsigmoid(beta * (gap[chosen] - gap[rejected])).mean()


TARGETS: dict[str, Callable[..., Tensor]] = {
    "reward": reward,
    "kl": kl,
    "entropy": entropy,
    "divergence": divergence,
    "demonstrations": demonstrated,
    "preference": preference,
}


def exact_gradient(scene: Scene, targets: list[Target]) -> Tensor:
    """[S, V] gradient of Σ weight · target at the scene's table, through the whole enumeration."""
    table = scene.table.detach().clone().requires_grad_()
    total = sum(target.weight * TARGETS[target.name](scene, table, **target.options) for target in targets)
    return torch.autograd.grad(total, table)[0]


def target_of(term: Term, from_demonstrations: bool = False) -> Target:
    """What a term claims to ascend, read off its parts; its weight is the term's where that is a number."""
    weight = float(term.weight) if isinstance(term.weight, (int, float)) else 1.0
    if isinstance(term.likelihood, Divergence):
        sign = term.advantage.value if isinstance(term.advantage, Constant) else 1.0
        return Target("divergence", weight * sign, asdict(term.likelihood))
    if isinstance(term.likelihood, Entropy):
        return Target("entropy", weight * (term.advantage.value if isinstance(term.advantage, Constant) else 1.0))
    if isinstance(term.advantage, KL):
        return Target("kl", -abs(weight), {"to": term.advantage.to})  # a penalty, unless the recipe declares otherwise
    if isinstance(term.advantage, PairLogistic):
        return Target("preference", weight, {"beta": term.advantage.beta, "reference": term.advantage.reference})
    chosen = term.where.selections if isinstance(term.where, Both) else (term.where,)
    if demonstrations in chosen or (term.advantage is one and from_demonstrations):
        return Target("demonstrations", weight)
    alone = OUTCOME.issuperset(needs_of(term.where))  # a selection within a group is judged against the whole target
    return Target("reward", weight, {"discount": discount_of(term.advantage), "where": term.where if alone else every_action})


def parse_target(text: str) -> list[Target]:
    """``Recipe.target`` as targets: names of TARGETS with signs and weights, "reward - 0.04*kl".

    >>> parse_target("reward - 0.04*kl")[1].weight
    -0.04
    """
    found = []
    for piece in text.replace("-", "+-").split("+"):
        sign, piece = (-1.0, piece.strip()[1:]) if piece.strip().startswith("-") else (1.0, piece.strip())
        if not piece.strip():
            continue
        size, star, name = piece.rpartition("*")
        if (name := name.strip()) not in TARGETS:
            raise QuatrainError(f"unknown target {name!r}", given=text, fix=nearest(name, TARGETS))
        found.append(Target(name, sign * (float(size) if star else 1.0)))
    return found


def discount_of(part: Any) -> float:
    """The discount that an advantage works with, its own or that of the one it wraps; 1 where there is none."""
    if isinstance(found := getattr(part, "discount", None), (int, float)):
        return float(found)
    inner = getattr(part, "of", None)
    return discount_of(inner) if is_dataclass(inner) else 1.0


def _frozen_mean(scene: Scene, table: Tensor, statistic: Any) -> Tensor:
    """E[Σ_t ℓ_t] / E[Σ_t 1] over trajectories of the policy, their probabilities and supports held fixed."""
    policy = TablePolicy(table.detach())
    chance = chances(scene.problem, table.detach(), scene.sampling)
    batch = observed(scene.problem, policy, scene.sampling)
    kept = batch.take(chance > 0)
    policy.module.values.requires_grad_(False)
    alive = _Alive(table)
    value = alive.score(kept, [statistic], others=scene.others())[statistic].sum(1)
    weight = chance[chance > 0]
    return (weight * value).sum() / (weight * kept.lengths).sum()


class _Alive(TablePolicy):
    """A table policy over a tensor that has a graph behind it."""

    def __init__(self, table: Tensor):
        super().__init__(table)
        self._live = table

    @property
    def table(self) -> Tensor:
        return self._live


def _plain(batch: Batch, table: Tensor) -> Tensor:
    """[M] log-probability of every outcome's actions, neither tempered nor truncated."""
    logp = table[batch["state"]].sum(2).log_softmax(-1).gather(-1, batch.actions[..., None])[..., 0]
    return torch.where(batch.mask, logp, 0.0).sum(1)
