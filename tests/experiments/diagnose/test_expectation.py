"""The expectation of an estimator, held against a sum over every sequence of draws, each through the Fit and autograd."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from quatrain.experiments.diagnose.expectation import chance_of, compositions, mode_of, moments, random_groups
from quatrain.experiments.diagnose.judge import Setting
from quatrain.experiments.diagnose.problems import Problem, bandit, loops, tree, turns
from quatrain.experiments.diagnose.subject import APART, TOGETHER, WHOLE, Subject, make_subject
from quatrain.training.registry import make


def subject_of(name: str, problem: Problem, draws: int, setting: Setting = Setting(), **options) -> Subject:  # noqa: B008
    recipe = make(name, **options)
    return make_subject(recipe, setting.scene(problem, recipe), draws)


def fitted(subject: Subject, index: Tensor) -> Tensor:
    """[D] minus the gradient of one batch, by the Fit's own backward passes."""
    from dataclasses import replace

    batch = subject.edited(subject.batch(index[None]))
    subject.policy.module.values.grad = None
    step = replace(subject.fit, micro_tokens=WHOLE)
    for _ in step.gradient_parts(subject.policy, subject.others_of(step.loss), step.loss.prepare(batch)):
        pass
    grad = subject.policy.module.values.grad
    return torch.zeros_like(subject.policy.table).flatten() if grad is None else -grad.flatten().clone()


def brute_force(subject: Subject) -> tuple[Tensor, float]:
    """(E[ĝ], tr Cov) over every *sequence* of draws, question by question."""
    units, chance = subject.drawn
    question = torch.zeros_like(units) if subject.single else subject.scene.problem.outcomes["question"][units]
    mean, second = 0.0, 0.0
    for number in question.unique():
        here = units[question == number]
        p = chance[question == number]
        for places in product(range(len(here)), repeat=subject.draws):
            weight = float((p / p.sum())[list(places)].prod() * p.sum())
            gradient = fitted(subject, here[list(places)])
            mean, second = mean + weight * gradient, second + weight * float(gradient.square().sum())
    return mean, second - float(mean.square().sum())


FULL = [
    ("rloo", tree(2), 2, {}),
    ("grpo", tree(2), 2, {}),
    ("gspo", turns(), 2, {}),
    ("dr-grpo", bandit((0.7,), 3), 3, {}),
    ("hpt", bandit((0.7, 0.2), 3), 3, {}),
    ("dapo", tree(2), 2, {"mean": "batch", "tries": 1}),
    ("reinforce", tree(2), 2, {}),
    ("opd", tree(2), 2, {}),
    ("ppo", bandit((0.6,), 3), 3, {}),
    ("sft", tree(2), 2, {}),
]


@pytest.mark.parametrize(("name", "problem", "draws", "options"), FULL, ids=[f"{row[0]}-{row[1].name}" for row in FULL])
@pytest.mark.parametrize("staleness", [0, 4])
def test_it_is_the_sum_over_every_sequence_of_draws(name: str, problem: Problem, draws: int, options: dict, staleness: int):
    subject = subject_of(name, problem, draws, Setting(staleness=staleness, temperature=0.8, top_p=0.95), **options)
    found = moments(subject)
    assert found.error is None, found.how
    mean, variance = brute_force(subject)
    if name == "dapo":  # batches without signal are drawn again: conditional on one
        kept, _ = kept_share(subject)
        variance = (variance + float(mean.square().sum())) / kept - float((mean / kept).square().sum())
        mean = mean / kept
    torch.testing.assert_close(found.mean, mean, atol=1e-12, rtol=1e-9)
    assert found.variance == pytest.approx(variance, rel=1e-9, abs=1e-12)


def kept_share(subject: Subject) -> tuple[float, int]:
    units, p = subject.drawn
    pairs = list(product(range(len(units)), repeat=subject.draws))
    kept = subject.kept(units[torch.tensor(pairs)])
    weight = p[torch.tensor(pairs)].prod(1)
    return float(weight[kept].sum()), len(pairs)


@pytest.mark.parametrize("name", ["rloo", "grpo", "hpt", "gspo"])
def test_sampling_agrees_within_its_error_bar(name: str):
    subject = subject_of(name, tree(4), 4)
    exact, sampled = moments(subject), moments(subject, most=0, sampled=2000)
    assert exact.error is None and sampled.error is not None
    away = (sampled.mean - exact.mean).norm() / sampled.error.norm()
    assert away < 3.0  # |error vector| has mean square 1 in these units
    assert sampled.variance == pytest.approx(exact.variance, rel=0.25)
    assert sampled.tokens == pytest.approx(exact.tokens, rel=0.1)


def test_the_trees_of_the_command_line_are_exact():
    found = moments(subject_of("grpo", tree(), 8, kl=0.0))
    assert found.how == "exact: 9 compositions by reward"  # 0 to 8 solved


@pytest.mark.parametrize(
    ("name", "mode"), [("grpo", TOGETHER), ("rloo", TOGETHER), ("hpt", TOGETHER), ("reinforce", "edited"), ("ppo", "edited")]
)
def test_groups_are_computed_together_only_where_that_is_right(name: str, mode: str):
    subject = subject_of(name, tree(4), 4)
    assert mode_of(subject) == mode
    index = random_groups(subject, 5, 3)
    slow, fast = subject.gradients(index, APART), subject.gradients(index, mode)
    for term in slow:
        for part in (0, 1):
            torch.testing.assert_close(fast[term][part], slow[term][part], atol=1e-13, rtol=1e-10)


def test_compositions_are_counted_and_their_chances_sum_to_one():
    counts = compositions(8, 3)
    assert len(counts) == 45 and bool((counts.sum(1) == 8).all())
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    assert float(chance_of(counts, p).sum()) == pytest.approx(1.0, abs=1e-14)
    assert float(chance_of(torch.tensor([[1, 1, 0]]), p)) == pytest.approx(2 * 0.2 * 0.5)


def test_tokens_of_groups_that_are_thrown_away_are_paid_for():
    """One arm solved with p = 1/2, two draws: half of all groups have a signal, so a batch costs two groups."""
    found = moments(subject_of("dapo", bandit((0.5,), 2), 2, tries=1))
    assert found.tokens == pytest.approx(4.0)


def test_rewards_per_action_are_enumerated_as_well():
    found = moments(subject_of("rloo", loops(3), 3))
    assert found.error is None


def test_a_copy_that_follows_the_policy_is_who_samples_and_one_that_never_moves_is_the_reference():
    made = {name: subject_of(name, bandit((0.6,)), 8, Setting(staleness=4)) for name in ("ppo-ewma-async", "grpo")}
    follower, frozen = made["ppo-ewma-async"].others["proxy"].table, made["grpo"].others["reference"].table
    assert torch.equal(follower, made["ppo-ewma-async"].scene.older) and not torch.equal(follower, made["ppo-ewma-async"].scene.table)
    assert torch.equal(frozen, made["grpo"].scene.problem.reference) and not torch.equal(frozen, made["grpo"].scene.older)
