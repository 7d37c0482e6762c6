"""copg: autograd of the squared differences, the paper's ℓ with the half penalty, its optimum, RLOO and IPO."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.estimator import Objective
from quatrain.experiments.diagnose.judge import judge
from quatrain.experiments.diagnose.problems import tree
from quatrain.parts.baselines import Affine
from quatrain.parts.denominators import Ratio
from quatrain.parts.selections import every_action
from quatrain.training.registry import make
from tests.toy import Case, TabularPolicy, assert_same, autograd, case, gradient


def log_ratio(here: Case) -> Tensor:
    return (here.logp() - here.clean("reference_logp")).sum(1)


def regression(here: Case, beta: float, group: int = 4) -> Tensor:
    """1/(β N (k−1)) Σ_{i>j} ½ (R_i − R_j)², nothing detached."""
    value = here.batch["reward"] - beta * log_ratio(here)
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(here.batch), group):
        for i, j in combinations(range(start, start + group), 2):
            total = total + (value[i] - value[j]) ** 2 / 2
    return total / (beta * len(here.batch) * (group - 1))


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, beta: float):
    here = case(seed)
    assert_same(gradient(make("copg", group=4, beta=beta), here), autograd(regression(here, beta), here))


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_papers_form_with_the_half_penalty_is_maximised(beta: float):
    """ℓ = (R' − R'')·log π/π_ref(y) + (R'' − R')·log π/π_ref(y'), R' = r − β/2 log π/π_ref, summed over pairs; −ℓ is descended."""
    here = case(2, group=2, prompts=8)
    ratio = log_ratio(here)
    half = here.batch["reward"] - beta / 2 * ratio
    first, second = slice(0, None, 2), slice(1, None, 2)
    ell = (half[first] - half[second]) * ratio[first] + (half[second] - half[first]) * ratio[second]
    assert_same(gradient(make("copg", group=2, beta=beta), here), autograd(-ell.sum() / len(here.batch), here))


def test_at_the_regularised_optimum_every_pair_is_content():
    """π ∝ π_ref·exp(r/β): the advantage of every trajectory is 0, whatever was sampled."""
    beta, g = 0.7, torch.Generator().manual_seed(0)
    reward, reference = (torch.randn(6, dtype=torch.float64, generator=g) for _ in range(2))
    batch = Batch(
        mask=torch.ones(6, 1, dtype=torch.bool),
        actions=torch.arange(6)[:, None],
        columns={"state": torch.zeros(6, 1, dtype=torch.long), "reference_logp": reference.log_softmax(0)[:, None]},
        rows={"reward": reward, "prompt": torch.zeros(6)},
    )
    best = TabularPolicy((reference + reward / beta)[None])
    worse = TabularPolicy(reference[None])
    assert gradient(make("copg", beta=beta), Case(batch, best)).abs().max() < 1e-14
    assert gradient(make("copg", beta=beta), Case(batch, worse)).abs().max() > 0.1


def bandit(policy: TabularPolicy, reward: Tensor, behaviour: Tensor, draws: int = 64) -> Case:
    """Groups of two of a bandit's arms, each ordered pair as often as the behaviour policy draws it (in 64ths²)."""
    counts = (behaviour * draws).round().long()
    arms = torch.arange(len(reward)).repeat_interleave(counts)
    pairs = torch.cartesian_prod(arms, arms)
    actions = pairs.flatten()[:, None]
    columns = {"state": torch.zeros_like(actions), "reference_logp": torch.full(actions.shape, 1 / len(reward), dtype=torch.float64).log()}
    rows = {"reward": reward[actions[:, 0]], "prompt": torch.arange(len(pairs)).repeat_interleave(2)}
    return Case(Batch(torch.ones_like(actions, dtype=torch.bool), actions, columns, rows), policy)


def test_from_skewed_data_it_finds_the_optimum_and_a_policy_gradient_without_weights_does_not():
    """The paper's three-armed bandit in kind: exact expected gradients under a behaviour policy that prefers the worst arm."""
    beta, reward = 0.5, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    behaviour = torch.tensor([0.75, 0.125, 0.125], dtype=torch.float64)
    best = (reward / beta).softmax(0)
    distance = {}
    plain = make("rloo")
    for name, recipe in (("copg", make("copg", beta=beta)), ("rloo", plain)):
        here = bandit(TabularPolicy(torch.zeros(1, 3, dtype=torch.float64)), reward, behaviour, draws=8)
        for _ in range(400):
            slope = gradient(recipe, here)
            with torch.no_grad():
                here.policy.table.sub_(4 * slope)
        ours = here.policy.table.detach().softmax(-1)[0]
        distance[name] = float((best * (best / ours).log()).sum())
    assert distance["copg"] < 1e-6 and distance["rloo"] > 0.1


def test_on_policy_it_is_rloo_with_the_penalty_in_the_reward():
    here = case(3)
    beta = 0.3
    shaped = here.batch["reward"] - beta * log_ratio(here).detach()
    rloo = replace(here, batch=here.batch.with_rows(reward=shaped))
    assert_same(gradient(make("copg", beta=beta), here), gradient(make("rloo"), rloo), 1e-12)


def test_its_mean_on_policy_is_exactly_the_gradient_of_reward_minus_the_kl():
    """By enumeration: no bias against ∇(E r − β KL of whole sequences), which it declares as its target."""
    found = judge(make("copg", group=2, beta=0.5), tree(3))
    assert found.target == "reward − 0.5·KL to the reference"
    assert found.total.bias < 1e-9 and found.total.scale == pytest.approx(1.0)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_on_preference_pairs_it_is_ipo(beta: float):
    """(margin − 1/(2τ))² with τ = β/4, times β/4."""
    here = case(4)
    margin = log_ratio(here).view(-1, 2) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    tau = beta / 4
    ipo = (margin - 1 / (2 * tau)).square().mean()
    assert_same(gradient(make("copg", data="pairs", beta=beta), here), autograd(ipo * beta / 4, here))


def test_it_needs_the_current_policy_on_whole_groups_and_no_ratio():
    ((_, fit),) = make("copg").fits(Objective)
    term = fit.loss.terms["policy"]
    assert fit.loss.live and term.denominator == Ratio() and term.where is every_action
    assert not {"old_logp", "behaviour_logp"} & fit.loss.needs()


def test_the_constant_1_denominator_is_not_the_current_one():
    """π_θ/1 ascends Σ A π_θ, π_θ/π_θ ascends Σ A log π_θ: other gradients, that agree only where π_θ = 1."""
    here = case(5)
    signed = 2 * here.batch["reward"][:, None] - 1
    plain = make("reinforce", baseline=False).but(advantage=Affine(2.0, -1.0))
    ones = plain.but(denominator=Ratio("current", "one"))
    probability = torch.where(here.batch.mask, here.logp().exp(), 0.0)
    expected = autograd(-(signed * probability).sum(1).mean(), here)
    assert_same(gradient(ones, here), expected)
    assert_same(gradient(plain, here), autograd(-(signed * here.logp()).sum(1).mean(), here))
    assert float((gradient(plain, here) - expected).abs().max()) > 0.01
