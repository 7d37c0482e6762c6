"""What is wrong with a set-up, whatever it claims: invariants that every healthy recipe keeps on problems whose truth is known.

A finding is a fault, not a property: a biased estimator that says so is none. Each check reads one batch of enumerated outcomes, or
the exact expectation; nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.estimator import NonFiniteError
from quatrain.experiments.diagnose.chances import action_logp
from quatrain.experiments.diagnose.expectation import random_groups
from quatrain.experiments.diagnose.judge import Against, Judgement, Setting, judge_subject
from quatrain.experiments.diagnose.problems import Problem, bandit, loops, tree, turns
from quatrain.experiments.diagnose.subject import WHOLE, Subject, make_subject
from quatrain.parts.advantages import LeaveOneOut, Return
from quatrain.parts.aggregations import PerGroup, sequence_sum
from quatrain.parts.likelihoods import LogProb
from quatrain.parts.selections import every_action
from quatrain.rollout.sources import OnPolicy
from quatrain.training.recipe import Recipe

CLOSE = 1e-9
SETTINGS = (Setting(), Setting(temperature=0.7, top_p=0.9), Setting(staleness=4, temperature=0.7))


@dataclass(frozen=True)
class Finding:
    """kind: a word for it; seen: the number; why it matters; what to do."""

    kind: str
    seen: str
    why: str
    fix: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.seen}\n    why    {self.why}\n    to do  {self.fix}"


def findings(recipe: Recipe, problems: tuple[Problem, ...] | None = None, seed: int = 0) -> list[Finding]:
    """All faults found, each kind once. None on a healthy recipe."""
    problems = problems or (tree(4), turns(), loops(4))
    found: dict[str, Finding] = {}
    for finding in _all(recipe, problems, seed):
        found.setdefault(finding.kind, finding)
    return list(found.values())


def _all(recipe: Recipe, problems: tuple[Problem, ...], seed: int) -> Iterator[Finding]:
    for problem in problems:
        for setting in SETTINGS:
            subject = make_subject(recipe, setting.scene(problem, recipe))
            index = random_groups(subject, 4, seed, varied=True)
            if not subject.kept(index).any():
                continue
            batch = subject.edited(subject.batch(index[subject.kept(index)]))
            where = f"{problem.name}, temperature {setting.temperature:g}, top-p {setting.top_p:g}, {setting.staleness} updates old"
            try:
                for check in CHECKS:
                    yield from check(subject, batch, where)
            except NonFiniteError as error:
                yield _not_finite(error, where)
    for setting in (Setting(), Setting(temperature=0.7, top_p=0.9)):
        for problem in (bandit((0.85, 0.4)), turns()):
            subject = make_subject(recipe, setting.scene(problem, recipe))
            try:
                found = judge_subject(subject, setting, seed, sampled=1200)
            except NonFiniteError as error:
                yield _not_finite(error, problem.name)
                continue
            yield from direction(subject, found)
            yield from promise(subject, found)


# -- on one batch ------------------------------------------------------------------------------------------------------
def recorded(subject: Subject, batch: Batch, where: str) -> Iterator[Finding]:
    """Recorded log-probabilities are those of the distribution really sampled from."""
    if subject.kind != "rollouts":
        return
    own, outcome, mask = _own(subject, batch)
    truth = action_logp(subject.scene.problem, subject.scene.older, subject.scene.sampling)[outcome]
    for name in ("behaviour_logp", "old_logp"):
        if name in batch and (gap := _gap(batch[name][own], truth, mask)) > CLOSE:
            yield Finding(
                f"recorded {name}",
                f"{name} differs by up to {gap:.3g} nats from the distribution sampled from ({where})",
                "every ratio is wrong from the first update on: by temperature, truncation, version or position",
                "record the log-probability at sampling time, of the tempered and truncated distribution, with those weights",
            )


def scored(subject: Subject, batch: Batch, where: str) -> Iterator[Finding]:
    """The policy scores an action as it was sampled: the same temperature, the same support; then the ratio starts at 1."""
    if subject.kind != "rollouts" or not _fresh(subject):
        return
    own, outcome, mask = _own(subject, batch)
    truth = action_logp(subject.scene.problem, subject.scene.table, subject.scene.sampling)[outcome]
    with torch.no_grad():
        score = subject.policy.score(batch, [LogProb()])[LogProb()][own]
    if (gap := _gap(score, truth, mask & batch.mask[own])) > CLOSE:
        yield Finding(
            "scorer",
            f"the policy scores its own actions up to {gap:.3g} nats away from how it sampled them ({where})",
            "the gradient is of another distribution than the one that acted: a bias that no ratio repairs",
            "keep the columns temperature and support in the batch",
        )


def ratio(subject: Subject, batch: Batch, where: str) -> Iterator[Finding]:
    """Before the first update the ratio of the current to the sampling policy is 1 on every action; later it is not upside down."""
    terms = _estimate(subject, batch)
    for name, term in subject.fit.loss.terms.items():
        read = set(getattr(term.denominator, "needs", ()))
        if not read or not read <= {"current_logp", "old_logp", "behaviour_logp"}:
            continue
        log_ratio = torch.where(terms[name].where, terms[name].log_ratio, 0.0)
        off = float(log_ratio.abs().max())
        if _fresh(subject) and not off <= CLOSE:
            yield Finding(
                "ratio",
                f"the ratio of term {name!r} is up to {math.exp(min(700.0, off)):.4g} before the first update ({where})",
                "importance weights and clipping act on a difference that is not there",
                "score and sample under the same temperature, support, weights and positions",
            )
        elif not _fresh(subject) and "current_logp" in read and float((log_ratio * _moved(subject, batch)).sum()) < 0:
            yield Finding(
                "ratio upside down",
                f"the ratio of term {name!r} falls where the current policy became likelier than the one that sampled ({where})",
                "old data is weighed the wrong way round, more so with every update",
                "the current policy is the numerator: Ratio('current', 'old')",
            )


def masks(subject: Subject, batch: Batch, where: str) -> Iterator[Finding]:
    """Exactly the policy's own actions are trained on: neither an environment's tokens nor padding, and none left out."""
    own, _, truth = _own(subject, batch)
    mask = batch.mask[own]
    pushed = sum(term.coefficient.abs() for term in _estimate(subject, batch).values())[own] > 0
    foreign = int(((mask | pushed) & ~truth).sum())
    missing = int((truth & ~mask).sum())
    if foreign or missing:
        yield Finding(
            "mask",
            f"{foreign} positions that are no actions of the policy are trained on, {missing} actions are left out ({where})",
            "the policy learns to write the environment's tokens or padding, or never learns to stop",
            "shift nothing: mask[t] belongs to actions[t]",
        )


def order(subject: Subject, batch: Batch, where: str) -> Iterator[Finding]:
    """The gradient does not depend on the order of the rows, nor is a row's reward another's."""
    before = subject.rows(batch)
    turned = torch.arange(len(batch)).flip(0)
    after = subject.rows(batch.take(turned))
    if any(not _same(after[name].flip(0), before[name]) for name in before):
        yield Finding(
            "order",
            f"the gradient changes when the rows of a batch are turned round ({where})",
            "something is read by position in the batch in place of by key",
            "use group keys",
        )


def rows_and_rewards(subject: Subject, batch: Batch, where: str) -> Iterator[Finding]:
    """Edited in whatever order, a trajectory keeps its reward."""
    if subject.kind != "rollouts" or not subject.collect.edits:
        return
    index = torch.arange(len(subject.table)).repeat(2)[: 2 * subject.draws].view(2, -1)
    index = subject.drawn[0][index % len(subject.drawn[0])]
    made = subject.batch(index)
    turned = made.take(torch.arange(len(made)).flip(0))
    values = [_by_place(subject.edited(rows), "reward") for rows in (made, turned)]
    if not _same(values[1], values[0]):
        yield Finding(
            "rewards",
            f"a trajectory's reward depends on its row in the batch ({where})",
            "trajectories are praised for what others did",
            "match rewards by key or seed, not by position",
        )


def micro_batching(subject: Subject, batch: Batch, where: str) -> Iterator[Finding]:
    """The Fit's gradient is that of the objective, however the batch is cut."""
    wanted = -sum(subject.rows(batch).values()).sum(0)
    for tokens in (WHOLE, 5):
        found = _fit_gradient(subject, batch, tokens)
        if not _same(found, wanted):
            size = float(found.norm() / wanted.norm().clamp(min=1e-300))
            yield Finding(
                "micro-batches",
                f"the gradient is {size:.4g} times the objective's, computed {'whole' if tokens == WHOLE else 'in parts'} ({where})",
                "the step then depends on memory or on the number of processes",
                "normalise on the whole batch of an update, then add up the parts",
            )
            return


CHECKS: tuple[Callable[[Subject, Batch, str], Iterator[Finding]], ...] = (
    recorded,
    scored,
    ratio,
    masks,
    order,
    rows_and_rewards,
    micro_batching,
)


# -- on the expectation ------------------------------------------------------------------------------------------------
def direction(subject: Subject, found: Judgement) -> Iterator[Finding]:
    """On its own samples every term points towards what it claims to ascend, and points somewhere."""
    for name, (target, judged) in found.terms.items():
        if math.isnan(judged.scale):
            continue
        unsure = 4 * judged.error
        if judged.scale < -max(unsure, CLOSE):
            yield Finding(
                "direction",
                f"term {name!r} descends what it claims to ascend ({target}): cosine {judged.cosine:.3f} on {found.problem}",
                "training makes it worse",
                "the sign of the advantage, or rewards that belong to other rows",
            )
        gated = callable(subject.fit.loss.terms[name].weight)  # a gate may be shut
        if not gated and not judged.error and _size(judged) < 1e-7:  # a sampled mean is never quite zero
            yield Finding(
                "no signal",
                f"the mean gradient of term {name!r} is zero; that of its target ({target}) is not, on {found.problem}",
                "what moves the policy is noise",
                "another group key, a larger group; k1 as a loss has mean zero: use k2, or k1 in the reward",
            )


def promise(subject: Subject, found: Judgement) -> Iterator[Finding]:
    """An estimator whose every part promises to add no bias has none."""
    if not claims_unbiased(subject) or found.total is None:
        return
    if found.total.bias > max(1e-7, 4 * found.total.error):
        g, scale = found.draws, found.total.scale
        shrunk = abs(scale - (g - 1) / g) < 1e-6
        cause = f": shrunk by (G−1)/G = {(g - 1) / g:.4g}, so a baseline contains its own sample" if shrunk else ""
        yield Finding(
            "bias",
            f"off by {found.total.bias:.4g} of the gradient, scale {scale:.4g}{cause} ({found.problem}, {found.how})",
            "it does not ascend what it claims, or only in part",
            "leave the own sample out of the baseline" if shrunk else "compare the parts one by one with quatrain diagnose --beside rloo",
        )


def claims_unbiased(subject: Subject) -> bool:
    """Do all parts promise to add no bias on the policy's own samples (leave-one-out or plain returns, summed, unweighted)?"""
    if not isinstance(subject.collect.source, OnPolicy) or set(subject.fit.loss.terms) != {"policy"}:
        return False
    term = subject.fit.loss.terms["policy"]
    summed = term.aggregation is sequence_sum or (
        isinstance(term.aggregation, PerGroup) and (term.aggregation.actions, term.aggregation.rows) == ("sum", "mean")
    )
    plain = term.where is every_action and term.weight == 1 and isinstance(term.likelihood, LogProb)
    undiscounted = not isinstance(term.advantage, Return) or term.advantage.discount == 1
    return isinstance(term.advantage, (LeaveOneOut, Return)) and undiscounted and summed and plain


# -- helpers -----------------------------------------------------------------------------------------------------------
def _own(subject: Subject, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """([N] bool rows of the source, their outcomes, [.., T] bool true mask). Outcomes are found by what was written and answered."""
    if subject.kind == "pairs":
        own = torch.ones(len(batch), dtype=torch.bool)
    else:
        own = ~batch["place"].isnan()
    outcome = batch["outcome"][own].long()
    return own, outcome, subject.scene.problem.outcomes.mask[outcome]


def _moved(subject: Subject, batch: Batch) -> Tensor:
    """[N, T] true log-ratio of the current to the sampling policy; 0 where it is not defined."""
    own, outcome, mask = _own(subject, batch)
    scene = subject.scene
    now, then = (action_logp(scene.problem, table, scene.sampling)[outcome] for table in (scene.table, scene.older))
    moved = torch.zeros(batch.shape, dtype=torch.float64)
    moved[own] = torch.where(mask, now - then, 0.0).nan_to_num(0.0, 0.0, 0.0)
    return moved


def _not_finite(error: NonFiniteError, where: str) -> Finding:
    return Finding(
        "not finite", f"{error.what}: {error.given} ({where})", "such an update is skipped, and its batch is lost", str(error.fix)
    )


def _gap(found: Tensor, truth: Tensor, where: Tensor) -> float:
    gap = torch.where(where, (found - truth).abs(), 0.0)
    return float(gap.nan_to_num(nan=math.inf).max()) if gap.numel() else 0.0


def _same(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= CLOSE * max(float(wanted.abs().max()), 1e-9)) if wanted.numel() else True


def _size(judged: Against) -> float:
    """|m|/|g| from bias and scale: |m − g|² = |m|² − 2⟨m, g⟩ + |g|²."""
    return math.sqrt(max(0.0, judged.bias**2 + 2 * judged.scale - 1))


def _fresh(subject: Subject) -> bool:
    return bool(torch.equal(subject.scene.table, subject.scene.older))


def _by_place(batch: Batch, name: str) -> Tensor:
    own = ~batch["place"].isnan()
    return batch[name][own].double()[batch["place"][own].argsort()]


def _estimate(subject: Subject, batch: Batch) -> Any:
    objective = subject.fit.loss
    with torch.no_grad():
        scores = subject.policy.score(
            batch, list({*objective.statistics(), *subject.extra_statistics()}), others=subject.others_of(objective)
        )
    return objective(batch, scores).terms


def _fit_gradient(subject: Subject, batch: Batch, tokens: int) -> Tensor:
    """[D] through the Fit's own accumulation."""
    policy = subject.policy
    policy.module.values.grad = None
    step = replace(subject.fit, micro_tokens=tokens)
    for _ in step.gradient_parts(policy, subject.others_of(step.loss), step.loss.prepare(batch)):
        pass
    grad = policy.module.values.grad
    return torch.zeros_like(policy.table).flatten() if grad is None else grad.flatten().clone()
