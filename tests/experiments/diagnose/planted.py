"""Deliberately broken parts, edits and objectives: each is a mistake that a trainer has shipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum
from quatrain.estimator import Estimate, Objective
from quatrain.parts.advantages import KL, GroupRelative, LeaveOneOut, Return
from quatrain.parts.denominators import Ratio
from quatrain.parts.likelihoods import LogProb
from quatrain.training.columns import Score
from quatrain.training.recipe import Recipe
from quatrain.training.registry import make
from quatrain.training.steps import Collect
from tests.toy import without


# -- parts -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class OwnSample(LeaveOneOut):
    """The baseline is the mean of the whole group, the own sample included."""

    def __call__(self, batch: Batch) -> Tensor:
        index, count = group_index(batch, self.by)
        value = batch[self.of].double()
        size = group_sum(torch.ones_like(value), index, count)
        return value - (group_sum(value, index, count) / size)[index]


@dataclass(frozen=True)
class Late(Return):
    """Each action gets the return that belongs to the one after it."""

    def __call__(self, batch: Batch) -> Tensor:
        return super().__call__(batch).roll(-1, 1)


@dataclass(frozen=True)
class Negated:
    """Cost taken for reward."""

    of: Any

    @property
    def needs(self) -> tuple[str, ...]:
        return self.of.needs

    def __call__(self, batch: Batch) -> Tensor:
        return -self.of(batch)


@dataclass(frozen=True)
class FirstRow:
    """The first trajectory of the batch is everybody's baseline."""

    needs = ("reward",)

    def __call__(self, batch: Batch) -> Tensor:
        return batch["reward"].double() - batch["reward"].double()[0]


# -- edits -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Edited:
    """An edit from a function of (state, batch)."""

    change: Callable[[Any, Batch], Batch]

    def __call__(self, state: Any, batch: Batch) -> Batch:
        return self.change(state, batch)


def rescored(state: Any, batch: Batch, bare: Batch) -> Batch:
    """``batch`` with both recorded log-probabilities as the policy scores ``bare``."""
    logp = state.models["policy"].score(bare, [LogProb()])[LogProb()].detach()
    return batch.with_columns(old_logp=logp, behaviour_logp=logp)


def cold_ratio(state: Any, batch: Batch) -> Batch:
    return rescored(state, batch, without(batch, "temperature"))


def no_temperature(state: Any, batch: Batch) -> Batch:
    return without(batch, "temperature")


def untruncated(state: Any, batch: Batch) -> Batch:
    bare = without(batch, "support")
    return rescored(state, bare, bare)


def truncated_sampler_only(state: Any, batch: Batch) -> Batch:
    return without(batch, "support")


def mask_off_by_one(state: Any, batch: Batch) -> Batch:
    return replace(batch, mask=batch.mask.roll(1, 1))


def environment_tokens(state: Any, batch: Batch) -> Batch:
    return replace(batch, mask=batch.present)


def padding(state: Any, batch: Batch) -> Batch:
    return replace(batch, mask=torch.ones_like(batch.mask))


def never_the_end(state: Any, batch: Batch) -> Batch:
    return replace(batch, mask=batch.mask & ~batch["terminated"])


def rewards_shifted(state: Any, batch: Batch) -> Batch:
    return batch.with_rows(reward=batch["reward"].roll(1))


def half_precision(state: Any, batch: Batch) -> Batch:
    return batch.with_columns(old_logp=batch["old_logp"].bfloat16().double())


def shifted_logp(state: Any, batch: Batch) -> Batch:
    return batch.with_columns(old_logp=batch["old_logp"].roll(1, 1))


# -- objectives --------------------------------------------------------------------------------------------------------
class LocalMean(Objective):
    """Normalises on each micro-batch in place of the whole update."""

    def estimate(self, batch: Batch, statistics: Mapping[Any, Tensor]) -> Estimate:
        return super().estimate(self.finalise(batch, statistics), statistics)


class Accumulated(Objective):
    """Forgets to share the loss among processes: it counts twice."""

    def loss(self, policy: Any, batch: Batch, others: Mapping[str, Any]) -> tuple[Tensor, dict]:
        loss, measures = super().loss(policy, batch, others)
        return 2 * loss, measures


def with_edit(recipe: Recipe, change: Callable[[Any, Batch], Batch]) -> Recipe:
    (collect,) = (step for stage in recipe.stages for step in stage.steps if isinstance(step, Collect))
    return recipe.with_collect(edits=(*collect.edits, Edited(change)))


def with_objective(recipe: Recipe, kind: type) -> Recipe:
    ((_, fit),) = recipe.fits(Objective)
    return recipe.swap(fit, replace(fit, loss=kind(fit.loss.terms)))


def grpo() -> Recipe:
    return make("grpo", kl=0.0)


# name → (the broken recipe, kinds of finding of which at least one must be there)
PLANTED: dict[str, tuple[Callable[[], Recipe], set[str]]] = {
    "baseline contains its own sample": (lambda: make("rloo").but(advantage=OwnSample()), {"bias"}),
    "advantage sign": (lambda: grpo().but(advantage=Negated(GroupRelative())), {"direction"}),
    "return one action late": (lambda: make("reinforce", baseline=False).but(advantage=Late()), {"bias"}),
    "baseline read by position": (lambda: grpo().but(advantage=FirstRow()), {"order"}),
    "group of one": (lambda: make("rloo").but(advantage=LeaveOneOut(by="seed")), {"no signal"}),
    "temperature left out of the ratio": (lambda: with_edit(grpo(), cold_ratio), {"recorded old_logp"}),
    "temperature left out of the score": (lambda: with_edit(grpo(), no_temperature), {"ratio"}),
    "top-p left out of both": (lambda: with_edit(grpo(), untruncated), {"scorer"}),
    "top-p left out of the score": (lambda: with_edit(make("gspo"), truncated_sampler_only), {"ratio"}),
    "mask off by one": (lambda: with_edit(grpo(), mask_off_by_one), {"mask"}),
    "environment's tokens trained on": (lambda: with_edit(make("rloo"), environment_tokens), {"mask"}),
    "padding trained on": (lambda: with_edit(make("dapo"), padding), {"mask"}),
    "end of sequence left out": (lambda: with_edit(make("dr-grpo"), never_the_end), {"mask"}),
    "rewards of the row before": (lambda: with_edit(make("rloo"), rewards_shifted), {"rewards"}),
    "log-probabilities in half precision": (lambda: with_edit(grpo(), half_precision), {"recorded old_logp"}),
    "log-probabilities one position off": (lambda: with_edit(grpo(), shifted_logp), {"recorded old_logp"}),
    "old_logp of another version": (
        lambda: make("grpo").with_collect(edits=(Score("reference"), Score("reference", name="old_logp"))),
        {"ratio"},
    ),
    "ratio upside down": (lambda: grpo().but(denominator=Ratio("old", "current")), {"ratio upside down"}),
    "mean over each micro-batch": (lambda: with_objective(grpo(), LocalMean), {"micro-batches"}),
    "loss once per process": (lambda: with_objective(make("rloo"), Accumulated), {"micro-batches"}),
    "division by a deviation of zero": (lambda: grpo().but(advantage=GroupRelative(eps=0.0)), {"not finite"}),
    "k1 as a loss": (
        lambda: make("grpo").but("kl", advantage=KL("reference", "k1")),
        {"no signal"},
    ),
    "the first action alone pushed the wrong way": (
        lambda: make("thinkless-degrpo", alpha=1.0).but("control", advantage=Negated(GroupRelative(scale="none"))),
        {"direction"},
    ),
    "KL pushed the wrong way": (lambda: make("grpo").but("kl", weight=-0.04), {"direction"}),
}
