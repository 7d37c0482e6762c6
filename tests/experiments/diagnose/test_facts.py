"""Known facts, with numbers that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from quatrain.experiments.diagnose.facts import difficulty_weight, estimator, known_facts, rewarded
from quatrain.experiments.diagnose.judge import Setting, judge
from quatrain.experiments.diagnose.problems import PROBLEMS, bandit, find_problem, tree
from quatrain.experiments.diagnose.subject import make_subject
from quatrain.parts.advantages import KL, GroupRelative, LeaveOneOut
from quatrain.parts.bounds import unbounded
from quatrain.parts.denominators import Ratio
from quatrain.parts.likelihoods import LogProb
from quatrain.training.columns import Score
from quatrain.training.registry import make


def test_all_of_them_hold_and_none_is_forgotten():
    facts = known_facts()
    assert [fact.statement for fact in facts if not fact.holds] == []
    assert {"RLOO", "Dr. GRPO", "GRPO", "k1 as a loss", "k2 as a loss", "k3 as a loss", "ρ·k3", "top-p 0.9, T 0.7"} <= {
        fact.about for fact in facts
    }


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("setting", [Setting(), Setting(draws=2), Setting(temperature=0.7, top_p=0.9)], ids=str)
def test_rloo_is_unbiased_everywhere(problem: str, setting: Setting):
    found = judge(make("rloo"), find_problem(problem), setting)
    assert found.total.bias < 1e-12 and found.total.error == 0.0
    assert found.total.scale == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("group", [2, 4, 8])
def test_the_own_sample_in_the_baseline_shrinks(group: int):
    found = judge(make("reinforce"), bandit((0.7,)), Setting(draws=group))
    assert found.total.scale == pytest.approx((group - 1) / group, abs=1e-12)
    assert found.total.cosine == pytest.approx(1.0, abs=1e-12)


def test_dr_grpo_is_the_gradient_times_a_constant():
    """(G−1)/G for the baseline, 1/L for the longest answer: 7/8 · 1/7 = 1/8 on the tree of 7."""
    found = judge(make("dr-grpo"), tree())
    assert found.total.scale == pytest.approx(1 / 8, abs=1e-12)
    assert found.total.cosine == pytest.approx(1.0, abs=1e-12)


def test_weights_of_questions_by_hand():
    """G = 2: only one right and one wrong have a signal, A = ±1/√2, so w = 2p(1−p)·½·(1/√2)/(p(1−p)) = 1/√2 whatever p.

    G = 3, p = ½: two of three times in four K is 1 or 2, k(1−k) = 2/9, so w = √(2/3) · ¾ · √2/3 / ¼ = 2/√3 = 1.1547.
    """
    for p in (0.1, 0.5, 0.97):
        assert difficulty_weight(p, 2) == pytest.approx(1 / math.sqrt(2))
    assert difficulty_weight(0.5, 3) == pytest.approx(2 / math.sqrt(3))
    assert difficulty_weight(1e-9, 8) == pytest.approx(7 / math.sqrt(8), rel=1e-6)  # (G−1)/√G
    assert difficulty_weight(0.1, 4000) == pytest.approx(1 / math.sqrt(0.1 * 0.9), rel=2e-3)


@pytest.mark.parametrize(("p", "group"), [(0.1, 2), (0.5, 3), (0.05, 8), (0.95, 8), (0.5, 8)])
def test_grpo_weighs_questions_by_how_often_they_are_solved(p: float, group: int):
    """The measured scale of the recipe itself; the 1e-6 beside the deviation is worth at most 1e-5."""
    found = judge(make("grpo", kl=0.0, group=group), bandit((p,), 2))
    assert found.total.scale == pytest.approx(difficulty_weight(p, group), rel=1e-5)


def test_too_hard_and_too_easy_questions_weigh_more_and_alike():
    hard, middle, easy = (judge(make("grpo", kl=0.0), bandit((p,), 2)).total.scale for p in (0.02, 0.5, 0.98))
    assert hard == pytest.approx(easy, rel=1e-9)
    assert hard / middle == pytest.approx(2.40699 / 1.73581, rel=1e-4)


def test_the_aggregation_causes_the_length_bias_of_grpo():
    from quatrain.experiments.diagnose.causes import causes

    before = judge(make("grpo", kl=0.0), tree())
    after = {cause.part: cause.after for cause in causes(make("grpo", kl=0.0), make("rloo"), tree())}
    assert before.total.cosine < 0.85 and after["aggregation"].total.cosine > 0.99
    assert abs(after["advantage"].total.cosine - before.total.cosine) < 0.02
    assert after["bound"].total == after["denominator"].total  # on fresh samples neither does anything


def test_k3_under_a_differentiable_weight_is_per_sample_rho_times_l():
    """∇[ρ·k3] = −ρ·l·∇log π with k3 = e^l − 1 − l, l = log π_ref/π, ρ = π/π_old: autograd, action by action."""
    g = torch.Generator().manual_seed(0)
    logp = torch.randn(6, generator=g, dtype=torch.float64).requires_grad_()
    old, reference = torch.randn(2, 6, generator=g, dtype=torch.float64)
    ratio, gap = (logp - old).exp(), reference - logp
    (slope,) = torch.autograd.grad((ratio * (gap.exp() - 1 - gap)).sum(), logp)
    torch.testing.assert_close(slope, -(ratio * gap).detach())
    recipe = estimator(2, (Score("reference"),), kl=rewarded(KL("reference", "k2"), denominator=Ratio("current", "old")))
    subject = make_subject(recipe, Setting(staleness=4).scene(bandit((0.6,)), recipe))
    batch = subject.edited(subject.batch(subject.drawn[0][:4].view(2, 2)))
    with torch.no_grad():
        logp = subject.policy.score(batch, [LogProb()])[LogProb()]
        term = subject.fit.loss(batch, {LogProb(): logp}).terms["kl"]
    want = (logp - batch["old_logp"]).exp() * (batch["reference_logp"] - logp) / 4  # per sequence, four of them
    torch.testing.assert_close(term.coefficient, want)


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_sequence_weights_are_unbiased_on_old_samples_and_no_weights_are_not(staleness: int):
    weighed = rewarded(LeaveOneOut(), denominator=Ratio("current", "old", "sequence", "sum"), bound=unbounded)
    for problem in (tree(5), find_problem("turns")):
        assert judge(estimator(4, policy=weighed), problem, Setting(staleness=staleness)).total.bias < 1e-12
        bare = judge(estimator(4, policy=rewarded(LeaveOneOut())), problem, Setting(staleness=staleness)).total.bias
        assert (bare < 1e-12) == (staleness == 0)


def test_a_discount_in_the_return_alone_is_not_the_discounted_gradient():
    """Without the factor γ^t the sum of G_t ∇log π is no gradient of the discounted return (Nota & Thomas 2020)."""
    recipe = make("reinforce", discount=0.5, baseline=False)
    found = judge(recipe, find_problem("loops"), Setting(draws=1))
    assert found.target == "reward (γ = 0.5)" and found.total.error == 0.0
    assert found.total.bias > 0.1
    assert judge(make("reinforce", baseline=False), find_problem("loops"), Setting(draws=1)).total.bias < 1e-12


def test_a_zscore_does_nothing_to_the_direction_of_one_question():
    found = judge(estimator(4, policy=rewarded(GroupRelative())), bandit((0.3,)))
    assert found.total.cosine == pytest.approx(1.0, abs=1e-12)
