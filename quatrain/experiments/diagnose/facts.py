"""What is known about the common estimators, measured: each fact is a number that a paper or a line of algebra predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.estimator import Objective, Term
from quatrain.experiments.diagnose.chances import chances
from quatrain.experiments.diagnose.expectation import moments
from quatrain.experiments.diagnose.judge import Judgement, Setting, against, judge
from quatrain.experiments.diagnose.problems import Problem, bandit, tree
from quatrain.experiments.diagnose.subject import make_subject
from quatrain.experiments.diagnose.targets import Target, exact_gradient
from quatrain.parts.advantages import KL, GroupRelative, LeaveOneOut
from quatrain.parts.aggregations import sequence_mean, sequence_sum
from quatrain.parts.bounds import unbounded
from quatrain.parts.denominators import Ratio
from quatrain.parts.likelihoods import LogProb
from quatrain.rollout.sources import OnPolicy
from quatrain.training.columns import Score
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.selves import Frozen
from quatrain.training.steps import Collect, Fit

TOLERANCE = 1e-5  # the 1e-6 that GRPO adds to the standard deviation is in it


@dataclass(frozen=True)
class Fact:
    """``predicted`` None: known only to differ from ``but_not``."""

    about: str
    statement: str
    predicted: float | None
    measured: float
    but_not: float = math.nan

    @property
    def holds(self) -> bool:
        if self.predicted is None:
            return abs(self.measured - self.but_not) > 1e-3
        return abs(self.measured - self.predicted) <= TOLERANCE * max(1.0, abs(self.predicted))


def known_facts(group: int = 8) -> list[Fact]:
    """All of them, in about two seconds."""
    return [fact for family in (_baselines, _difficulty, _length, _penalties, _truncation) for fact in family(group)]


def estimator(group: int, edits: tuple[Any, ...] = (), **terms: Term) -> Recipe:
    """A recipe that samples and ascends these terms, with a frozen reference."""
    steps = (Collect(OnPolicy(group=group), edits=edits), Fit(Objective(terms)))
    return Recipe((Stage(steps),), models={"reference": Frozen()}, name="+".join(terms))


def rewarded(advantage: Any, aggregation: Any = sequence_sum, **parts: Any) -> Term:
    return Term(advantage=advantage, aggregation=aggregation, **parts)


def difficulty_weight(p: float, group: int) -> float:
    """w_G(p): what GRPO multiplies the gradient of a question's success rate p by, for one action of two outcomes.

        w_G(p) = √((G−1)/G) · E[√(k(1−k))] / (p(1−p)),  k = K/G,  K ~ Binomial(G, p)

    from A = (r − k)/(√(k(1−k)) √(G/(G−1))). → 1/√(p(1−p)) for large groups: questions that are too easy or too hard weigh more (Liu et
    al. 2025, §3.1). → (G−1)/√G as p → 0.

    >>> round(difficulty_weight(0.5, 3), 4)  # 2/√3
    1.1547
    """
    total = 0.0
    for k in range(1, group):
        log = math.lgamma(group + 1) - math.lgamma(k + 1) - math.lgamma(group - k + 1) + k * math.log(p) + (group - k) * math.log1p(-p)
        total += math.exp(log) * math.sqrt(k / group * (1 - k / group))
    return math.sqrt((group - 1) / group) * total / (p * (1 - p))


def _baselines(group: int) -> list[Fact]:
    problem = tree()
    rloo = judge(estimator(group, policy=rewarded(LeaveOneOut())), problem)
    own = judge(estimator(group, policy=rewarded(GroupRelative(scale="none"))), problem)
    return [
        Fact("RLOO", "bias of a leave-one-out baseline", 0.0, rloo.main.bias),
        Fact("Dr. GRPO", f"scale with the own sample in the baseline, (G−1)/G at G = {group}", (group - 1) / group, own.main.scale),
    ]


def _difficulty(group: int) -> list[Fact]:
    found = []
    for p in (0.02, 0.5, 0.98):
        measured = judge(estimator(group, policy=rewarded(GroupRelative())), bandit((p,), 2)).main.scale
        statement = f"weight of a question solved with p = {p:g} (at G = ∞: {1 / math.sqrt(p * (1 - p)):.2f}; unbiased: 1)"
        found.append(Fact("GRPO", statement, difficulty_weight(p, group), measured))
    return found


def _length(group: int) -> list[Fact]:
    problem = tree()
    subject = make_subject(
        estimator(group, policy=rewarded(GroupRelative(), sequence_mean)), Setting().scene(problem, estimator(group, policy=Term()))
    )
    lengths, wrong = problem.outcomes.lengths, problem.outcomes["reward"] == 0
    short, long = (int((wrong & (lengths == size)).nonzero()[0, 0]) for size in (2, 6))
    right = int((~wrong).nonzero()[0, 0])
    index = torch.tensor([[short, long] + [right] * (group - 2)])
    batch = subject.batch(index)
    with torch.no_grad():
        term = subject.fit.loss(batch, subject.policy.score(batch, [LogProb()])).terms["policy"]
    drift = {name: _length_drift(problem, found.mean) for name, found in _aggregated(group, problem).items()}
    return [
        Fact(
            "GRPO",
            "penalty per token of a wrong answer of 6 tokens, relative to one of 2",
            1 / 3,
            float(term.coefficient[1, 0] / term.coefficient[0, 0]),
        ),
        Fact(
            "GRPO",
            f"growth of wrong answers, tokens per unit step, with 1/|o| (exact gradient: {drift['sum']:.3f})",
            None,
            drift["mean"],
            drift["sum"],
        ),
    ]


def _aggregated(group: int, problem: Problem) -> dict[str, Judgement]:
    return {
        name: judge(estimator(group, policy=rewarded(GroupRelative(scale="none"), aggregation)), problem)
        for name, aggregation in (("mean", sequence_mean), ("sum", sequence_sum))
    }


def _length_drift(problem: Problem, direction: Tensor) -> float:
    """Derivative of E[length | wrong] along a direction of length 1."""
    table = problem.table.clone().requires_grad_()
    chance = chances(problem, table, Setting().scene(problem, estimator(2, policy=Term())).sampling)
    wrong = (problem.outcomes["reward"] == 0).double()
    mean = (chance * wrong * problem.outcomes.lengths).sum() / (chance * wrong).sum()
    (slope,) = torch.autograd.grad(mean, table)
    return float(slope.flatten() @ direction / direction.norm())


def _penalties(group: int) -> list[Fact]:
    """With one action per trajectory the states are frozen anyway, and every scale is 1."""
    problem = bandit((0.6, 0.2), 4)

    def measured(kind: str, target: str, updates: int = 0, weighed: bool = False) -> Any:
        denominator = Ratio("current", "old") if weighed else Ratio()
        recipe = estimator(2, (Score("reference"),), kl=rewarded(KL("reference", kind), denominator=denominator))
        subject = make_subject(recipe, Setting(staleness=updates).scene(problem, recipe))
        exact = exact_gradient(subject.scene, [Target("divergence", -1.0, {"kind": target, "to": "reference"})]).flatten()
        return against(moments(subject).mean, exact, None)

    def size(found: Any) -> float:
        return math.sqrt(max(0.0, found.bias**2 + 2 * found.scale - 1))

    return [
        Fact("k1 as a loss", "size of its mean gradient, relative to the reverse KL's", 0.0, size(measured("k1", "reverse"))),
        Fact("k2 as a loss", "bias against the gradient of the reverse KL(π‖ref)", 0.0, measured("k2", "reverse").bias),
        Fact("k3 as a loss", "bias against the gradient of the forward KL(ref‖π)", 0.0, measured("k3", "forward").bias),
        Fact("k3 as a loss", "bias against the gradient of the reverse KL: not zero", None, measured("k3", "reverse").bias, 0.0),
        Fact(
            "ρ·k3",
            "bias against the reverse KL, ρ differentiable, 16 updates old",
            0.0,
            measured("k2", "reverse", 16, True).bias,
        ),
        Fact("k2, no ρ", "bias against the reverse KL, 16 updates old: not zero", None, measured("k2", "reverse", 16).bias, 0.0),
    ]


@dataclass(frozen=True)
class Untruncated:
    """What other trainers do under top-p: both log-probabilities of the ratio from the whole, tempered distribution."""

    def __call__(self, state: Any, batch: Batch) -> Batch:
        columns = {name: value for name, value in batch.columns.items() if name != "support"}
        bare = replace(batch, columns=columns)
        with torch.no_grad():
            logp = state.models["policy"].score(bare, [LogProb()])[LogProb()]
        return bare.with_columns(old_logp=logp, behaviour_logp=logp)


def _truncation(group: int) -> list[Fact]:
    problem, setting = tree(), Setting(staleness=1, temperature=0.7, top_p=0.9)
    whole = rewarded(LeaveOneOut(), denominator=Ratio("current", "old", "sequence", "sum"), bound=unbounded)
    ours = judge(estimator(group, policy=whole), problem, setting)
    theirs = judge(estimator(group, (Untruncated(),), policy=whole), problem, setting)
    return [
        Fact("top-p 0.9, T 0.7", "bias of importance weights on the truncated distribution, 1 update old", 0.0, ours.main.bias),
        Fact("top-p 0.9, T 0.7", "the same from untruncated log-probabilities: not zero", None, theirs.main.bias, 0.0),
    ]
