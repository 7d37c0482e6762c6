"""The part of a recipe that is diagnosed: its Collect, the Fit of its policy, its other models. Nothing of it is replaced.

Batches made of enumerated outcomes go through the recipe's own edits, columns and Objective; what comes out is what every
drawn trajectory adds to the gradient. Axes: K groups, G draws per group, D = S·V weights, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.estimator import Objective
from quatrain.experiments.diagnose.chances import chances
from quatrain.experiments.diagnose.policies import NodeCritic
from quatrain.experiments.diagnose.targets import Scene, Target, discount_of, parse_target, target_of
from quatrain.experiments.diagnose.task import EnumeratedTask, handed, observed, paired, shown
from quatrain.knobs import resolve
from quatrain.models.tables import TablePolicy
from quatrain.parts.advantages import action_rewards
from quatrain.parts.gae import gae
from quatrain.parts.likelihoods import Entropy, LogProb
from quatrain.rollout.pairs import Again
from quatrain.rollout.sources import Demonstrations, OnPolicy, Pairs
from quatrain.training.columns import Score, Values
from quatrain.training.recipe import Recipe
from quatrain.training.selves import Critic, Frozen, Given, Twin
from quatrain.training.state import State
from quatrain.training.steps import Collect, Fit

WHOLE = 1 << 40  # positions of one micro-batch: everything at once
TOGETHER, EDITED, APART = "together", "edited", "apart"


@dataclass(frozen=True)
class Subject:
    """A recipe on one scene.

    collect, fit  its steps, knobs resolved.
    draws         independent draws in one batch: G of one question, or that many starts where a group is a single trajectory.
    single        a draw is a group of its own (the recipe compares across the batch, or not at all).
    """

    recipe: Recipe
    scene: Scene
    collect: Collect
    fit: Fit
    draws: int
    single: bool
    policy: TablePolicy
    others: Mapping[str, Any]

    @cached_property
    def asks(self) -> bool:
        """May an edit ask where a trajectory began? Those that only add columns do not; notes of thousands of rows are slow."""
        return not all(isinstance(edit, (Score, Values)) for edit in self.collect.edits)  # edits of the Fit only add columns

    # -- what is drawn ---------------------------------------------------------------------------------------------
    @property
    def kind(self) -> str:
        """rollouts, demonstrations or pairs."""
        source = self.collect.source
        return "demonstrations" if isinstance(source, Demonstrations) else "pairs" if isinstance(source, Pairs) else "rollouts"

    @cached_property
    def drawn(self) -> tuple[Tensor, Tensor]:
        """([M] units that can be drawn, [M] their probabilities): outcomes; for pairs, the number of the pair."""
        problem = self.scene.problem
        if self.kind == "demonstrations":
            rows = torch.tensor(problem.shown)
            return rows, torch.full((len(rows),), 1.0 / len(rows), dtype=torch.float64)
        if self.kind == "pairs":
            return torch.arange(len(problem.pairs)), torch.full((len(problem.pairs),), 1.0 / len(problem.pairs), dtype=torch.float64)
        chance = chances(problem, self.scene.older, self.scene.sampling)
        return chance.nonzero()[:, 0], chance[chance > 0]

    @cached_property
    def table(self) -> Batch:
        """Every outcome once, as the (possibly older) policy that samples would return it."""
        return observed(self.scene.problem, TablePolicy(self.scene.older, version=self.policy.version), self.scene.sampling)

    @cached_property
    def tokens(self) -> Tensor:
        """[all outcomes or pairs] the policy's own actions in it."""
        lengths = self.scene.problem.outcomes.lengths.double()
        return lengths[torch.tensor(self.scene.problem.pairs)].sum(1) if self.kind == "pairs" else lengths

    def batch(self, index: Tensor) -> Batch:
        """Groups [K, G] of units as the recipe's source returns them; ``place`` numbers the draws, ``outcome`` says what they are."""
        k, g = index.shape
        flat, place = index.flatten(), torch.arange(k * g)
        keys = place if self.single else place // g
        if self.kind == "pairs":
            rows = torch.tensor(self.scene.problem.pairs)[flat].flatten()
            made = paired(self.scene.problem, rows, keys.repeat_interleave(2))
            return made.with_rows(place=place.repeat_interleave(2).double(), outcome=rows.double())
        made = shown(self.scene.problem, flat, keys) if self.kind == "demonstrations" else handed(self.table, flat, keys, self.asks)
        return made.with_rows(place=place.double(), outcome=flat.double())

    def edited(self, batch: Batch) -> Batch:
        """The recipe's own edits: of what was collected, and of what is updated on."""
        state = self.state() if self.collect.edits else None
        for edit in self.collect.edits:
            batch = edit(state, batch)
        return self.fit.edited(self.state(self.policy), batch) if self.fit.edits else batch

    def state(self, policy: TablePolicy | None = None) -> State:
        """With that policy; with the one that samples by default."""
        models = {"policy": policy or self.sampler, **self.others}
        return State(task=EnumeratedTask(self.scene.problem), models=models, knobs=self.knobs)

    @property
    def sampler(self) -> TablePolicy:
        """The policy that a Collect sees: the one that sampled."""
        return TablePolicy(self.scene.older, version=self.policy.version)

    @property
    def knobs(self) -> dict[str, float]:
        return knobs_for(self.recipe, self.scene)

    def kept(self, index: Tensor) -> Tensor:
        """[K] bool: groups that the source does not throw away (dynamic sampling)."""
        keep = getattr(self.collect.source, "keep", None)
        if keep is None:
            return torch.ones(len(index), dtype=torch.bool)
        return keep(self.batch(index)).view(index.shape).any(1)

    # -- what it adds to the gradient ------------------------------------------------------------------------------
    def gradients(self, index: Tensor, mode: str = APART) -> dict[str, tuple[Tensor, Tensor]]:
        """Term → ([K, G, D] what each draw adds to the gradient of its batch, [K, D] what else is in the batch adds).

        index  [K, G] units. Each group is a batch of its own.
        mode   TOGETHER: one batch of K groups, scaled by K, which is right where the objective is a mean over groups. EDITED: the
               edits run once on all of them, the objective group by group. APART: everything group by group.
        """
        if mode != APART:
            return self._gradients(index, mode)
        parts = [self._gradients(group[None], TOGETHER) for group in index]
        return {name: (torch.cat([part[name][0] for part in parts]), torch.cat([part[name][1] for part in parts])) for name in parts[0]}

    def _gradients(self, index: Tensor, mode: str) -> dict[str, tuple[Tensor, Tensor]]:
        k, g = index.shape
        batch = self.edited(self.batch(index))
        place = batch["place"]
        own = ~place.isnan()
        group = batch["prompt"] // g if self.single else batch["prompt"]
        cuts = [slice(None)] if mode == TOGETHER else [(group == number).nonzero()[:, 0] for number in range(k)]
        found = {}
        for name, value in self.rows(batch, cuts).items():
            value, size = value * (k if mode == TOGETHER else 1), value.shape[1]
            drawn = value.new_zeros(k * g, size).index_add_(0, place[own].long(), value[own])
            other = value.new_zeros(k, size).index_add_(0, group[~own], value[~own])
            found[name] = (drawn.view(k, g, size), other)
        return found

    def rows(self, batch: Batch, cuts: Sequence[Any] = (slice(None),)) -> dict[str, Tensor]:
        """Term → [N, D]: minus the gradient of the loss, row by row, through the Objective's own three steps on each of the cuts."""
        objective = self.fit.loss
        # Every position gets a table row of its own: one backward pass then gives each ∂ℓ_t/∂logits_t.
        n, t = batch.shape
        private = TablePolicy(self.policy.logits(batch).detach().flatten(0, 1))
        apart = {name: TablePolicy(self.others[name].logits(batch).detach().flatten(0, 1)) for name in objective.models()}
        alone = batch.with_columns(state=torch.arange(n * t).view(n, t, 1))
        read = list(dict.fromkeys([*objective.statistics(), *self.extra_statistics()]))
        statistics = private.score(alone, read, others=apart)
        bare = replace(batch, notes={})
        coefficients = {name: torch.zeros(n, t, dtype=torch.float64) for name in objective.terms}
        for cut in cuts:
            part = bare if isinstance(cut, slice) else bare.take(cut)
            here = {statistic: value.detach()[cut] for statistic, value in statistics.items()}
            final = objective.finalise(objective.prepare(part), here if objective.live else None)
            for name, term in objective.estimate(final, here).terms.items():
                coefficients[name][cut] = term.coefficient
        features = torch.nn.functional.one_hot(batch["state"], len(self.policy.table)).sum(2).double()
        found = {}
        for name, term in objective.terms.items():
            coefficient, statistic = coefficients[name], statistics[term.likelihood]
            picked = torch.where(coefficient != 0, coefficient * statistic, 0.0).sum()
            (slope,) = torch.autograd.grad(picked, private.table, retain_graph=True, allow_unused=True, materialize_grads=True)
            found[name] = torch.einsum("nts,ntv->nsv", features, slope.view(n, t, -1)).flatten(1)
        return found

    def extra_statistics(self) -> tuple[Any, ...]:
        """What parts read of the current policy besides what is differentiated."""
        return (LogProb(), Entropy())

    def others_of(self, objective: Objective) -> dict[str, Any]:
        """The models that the objective's statistics read."""
        return {name: self.others[name] for name in objective.models()}

    # -- what it claims --------------------------------------------------------------------------------------------
    def term_targets(self) -> dict[str, Target]:
        """Term → what it claims to ascend: read off its parts, its sign and weight as the recipe declares them, if it does."""
        declared = {target.name: target.weight for target in parse_target(self.recipe.target)}
        inferred = {name: target_of(term, self.kind == "demonstrations") for name, term in self.fit.loss.terms.items()}
        return {name: replace(target, weight=declared.get(target.name, target.weight)) for name, target in inferred.items()}

    def targets(self) -> list[Target]:
        """What the recipe as a whole claims to ascend: what it declares, else the sum over its terms."""
        inferred = list(self.term_targets().values())
        options = {target.name: target.options for target in inferred}
        return [replace(target, options=options.get(target.name, {})) for target in parse_target(self.recipe.target)] or inferred


def make_subject(recipe: Recipe, scene: Scene, draws: int | None = None) -> Subject:
    """The recipe's last Fit of the policy, the Collect before it, and its other models on this problem.

    draws  overrides the group size (or, where a group is one trajectory, how many are compared).
    Raises QuatrainError for a recipe without an objective on the policy.
    """
    found = [(stage, step) for stage, step in recipe.fits(Objective) if step.model == "policy"]
    if not found:
        raise QuatrainError("there is nothing to diagnose: no Fit of the policy has an objective of terms", given=recipe.name or "a recipe")
    stage, step = found[-1]
    knobs = knobs_for(recipe, scene)
    fit = resolve(step, knobs)
    collect = resolve(collected([other for other in stage.all_steps() if isinstance(other, Collect)], step.source), knobs)
    source = on_policy(collect.source) if collect else None
    if source is None and not isinstance(getattr(collect, "source", None), (Demonstrations, Pairs)):
        raise QuatrainError(
            "diagnose enumerates what a Collect samples from the policy, demonstrations and pairs",
            given=repr(collect.source) if collect else f"no Collect into {step.source!r} in the stage of the policy's Fit",
            fix="diagnose its objective on such a source: recipe.with_collect(source=OnPolicy(group=8))",
        )
    group = int(source.group) if source is not None else 1
    single = group == 1
    policy = TablePolicy(scene.table)
    late = {getattr(step, "target", None) for stage in recipe.stages for step in stage.all_steps()} - {"reference"} | {"old"}
    # A table has one context: a self that teaches because it is told more is the problem's teacher.
    specs = {name: Given(name) if name == "teacher" else spec for name, spec in recipe.models.items()}
    others = {name: other_model(spec, scene, fit, name in late) for name, spec in specs.items()}
    size = draws or (group if not single else 1 if isinstance(collect.source, Pairs) else 8)
    return Subject(recipe, scene, collect, fit, size, single, policy, others)


def collected(steps: Sequence[Collect], store: str) -> Collect | None:
    """The last Collect into a store. Rows that it reads once more are those of the Collect before it, with the edits of both."""
    edits: tuple[Any, ...] = ()
    for step in reversed(steps):
        if step.into == store:
            edits = (*step.edits, *edits)
            if not isinstance(step.source, Again):
                return replace(step, edits=edits)
            store = step.source.store
    return None


def on_policy(source: Any) -> OnPolicy | None:
    """The source that samples, also within another one."""
    while not isinstance(source, OnPolicy):
        source = getattr(source, "source", None) or getattr(source, "whole", None)
        if source is None:
            return None
    return source


def knobs_for(recipe: Recipe, scene: Scene) -> dict[str, float]:
    """The longest trajectory is the problem's; nothing is cut into micro-batches."""
    known = {"max_actions": scene.problem.longest, "micro_tokens": WHOLE}
    return {name: value for name, value in known.items() if name in recipe.knobs()}


def other_model(spec: Any, scene: Scene, fit: Fit, late: bool) -> Any:
    """A frozen self is the problem's reference, and so is a twin, as it began; a ``late`` one, which a step of the recipe keeps up with the
    policy (an old self, a moving average), is the policy that samples. A given model is its teacher, a critic the exact values."""
    if isinstance(spec, Critic):
        return exact_critic(scene, max(discount_of(term.advantage) for term in fit.loss.terms.values()))
    if isinstance(spec, (Frozen, Twin, Given)):
        return scene.others()["teacher" if isinstance(spec, Given) else "old" if late else "reference"]
    raise QuatrainError("diagnose does not know how to make this model on an enumerated problem", given=repr(spec))


def exact_critic(scene: Scene, discount: float) -> NodeCritic:
    """V(history) = E[what is still to come | history] under the policy that samples."""
    batch, chance = scene.problem.outcomes, chances(scene.problem, scene.older, scene.sampling)
    rewards, ended = action_rewards(batch)
    zero = torch.zeros_like(rewards)
    to_go = gae(rewards, zero, zero, ended, torch.zeros_like(ended), batch.present, discount, 1.0)
    node, weight = batch["node"], torch.where(batch.present, chance[:, None], 0.0)
    count = int(node.max()) + 1
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, node.flatten(), (weight * to_go).flatten())
    mass = torch.zeros(count, dtype=torch.float64).index_add_(0, node.flatten(), weight.flatten())
    return NodeCritic(total / mass.clamp(min=1e-300))
