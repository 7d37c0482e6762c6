"""rpg: autograd of the paper's four losses, in both forms and under the clips; enumerated, they are the gradient of E[R] − β D."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.advantages import KL, GroupRelative
from quatrain.parts.aggregations import token_mean
from quatrain.parts.bounds import Clip, unbounded
from quatrain.parts.denominators import Ratio
from quatrain.parts.divergences import SLOPES, FDivergence, log_q
from quatrain.training.registry import make
from tests.toy import Case, TabularPolicy, assert_same, autograd, case, gradient

KINDS = list(SLOPES)
every_kind = pytest.mark.parametrize("kind", KINDS)


def surrogate(kind: str, w: Tensor, logp: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The paper's losses to differentiate."""
    return {
        "forward": -w * reward - beta * logp,
        "reverse": w * (-reward + beta * w.log()),
        "unnormalised-forward": -w * reward + beta * (w - w.log() - 1),
        "unnormalised-reverse": -w * reward + beta * (w * w.log() - w),
    }[kind]


def score(kind: str, w: Tensor, reward: Tensor, beta: float) -> Tensor:
    """c of the stop-gradient form −SG(c) log π."""
    return {
        "forward": w * reward + beta,
        "reverse": w * (reward - beta * (w.log() + 1)),
        "unnormalised-forward": w * reward - beta * (w - 1),
        "unnormalised-reverse": w * (reward - beta * w.log()),
    }[kind].detach()


def centred(here: Case, group: int = 4) -> Tensor:
    reward = here.batch["reward"].view(-1, group)
    return (reward - reward.mean(1, keepdim=True)).view(-1, 1).expand(here.batch.shape)


@every_kind
@pytest.mark.parametrize("beta", [1e-4, 0.5])
@pytest.mark.parametrize("form", ["differentiable", "reinforce"])
def test_the_gradient_of_both_forms(kind: str, beta: float, form: str):
    here = case(0)
    w, logp, mask, reward = here.ratio(), here.logp(), here.batch.mask, centred(here)
    each = surrogate(kind, w, logp, reward, beta) if form == "differentiable" else -score(kind, w, reward, beta) * logp
    assert_same(gradient(make("rpg", kl=kind, beta=beta, clip="none"), here), autograd(each[mask].mean(), here))


@every_kind
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_under_the_dual_clip(seed: int, kind: str):
    here, beta = case(seed, stale=1.0), 1.0
    w, mask, reward = here.ratio(), here.batch.mask, centred(here)
    bracket = (score(kind, w, reward, beta) / w).detach()  # the regularised advantage
    clipped = torch.maximum(-w * bracket, -w.clamp(0.8, 1.28) * bracket)
    each = torch.where(bracket >= 0, clipped, torch.minimum(clipped, -3.0 * bracket))
    assert (mask & (w > 3) & (bracket < 0)).any() and (mask & (bracket * reward < 0)).any()
    assert_same(gradient(make("rpg", kl=kind, beta=beta), here), autograd(each[mask].mean(), here))


@every_kind
def test_the_released_codes_clamp(kind: str):
    here, beta = case(2, stale=1.0), 0.3
    w, mask = here.ratio(), here.batch.mask
    c = score(kind, w.clamp(0.8, 1.28), centred(here), beta)
    assert_same(gradient(make("rpg", kl=kind, beta=beta, clip="clamp"), here), autograd(-(c * here.logp())[mask].mean(), here))
    unclamped = gradient(make("rpg", kl=kind, beta=beta, clip="none"), here)
    assert (gradient(make("rpg", kl=kind, beta=beta, clip="clamp"), here) - unclamped).abs().max() > 1e-4


# -- enumerated --------------------------------------------------------------------------------------------------------
def bandit(actions: int = 5, anchor: bool = False) -> tuple[Case, Tensor, Tensor]:
    """(every action once, its reward, its probability under the old policy), under a policy that has moved on."""
    g = torch.Generator().manual_seed(3)
    table, old, reference = (torch.randn(1, actions, dtype=torch.float64, generator=g) for _ in range(3))
    reward, chance = torch.randn(actions, dtype=torch.float64, generator=g), old.softmax(-1)[0]
    columns = {"state": torch.zeros(actions, 1, dtype=torch.long), "old_logp": chance.log()[:, None]}
    columns["reference_logp"] = reference.log_softmax(-1)[0][:, None]
    batch = Batch(
        mask=torch.ones(actions, 1, dtype=torch.bool),
        actions=torch.arange(actions)[:, None],
        columns=columns,
        rows={"reward": reward, "prompt": torch.arange(actions)},
    )
    return Case(batch, TabularPolicy(table)), reward, chance


@every_kind
def test_in_expectation_it_ascends_the_regularised_reward(kind: str):
    """E_old of each is exactly ∇(E_π[R] − β D), D between normalised distributions whatever the kind."""
    here, reward, chance = bandit()
    by_chance = {"aggregation": lambda batch, where: chance[:, None], "advantage": lambda batch: batch["reward"]}
    recipe = make("rpg", kl=kind, beta=0.7, clip="none")
    regularised = recipe.stages[0].steps[1].loss.terms["policy"].advantage
    by_chance["advantage"] = type(regularised)(by_chance["advantage"], regularised.by, regularised.weight)
    p = here.policy.table.softmax(-1)[0]
    divergence = (p * (p / chance).log()).sum() if "reverse" in kind else (chance * (chance / p).log()).sum()
    exact = autograd((p * reward).sum() - 0.7 * divergence, here)
    assert_same(-gradient(recipe.but(**by_chance), here), exact)


def test_k3_without_its_weight_is_biased():
    """Samples of the old policy, KL to a reference: w·k3 has the gradient of KL(π_θ‖π_ref); GRPO's k3 has another."""
    here, _, chance = bandit()
    p, reference = (lambda: here.policy.table.softmax(-1)[0]), here.batch["reference_logp"][:, 0].exp()
    exact = autograd(-(p() * (p() / reference).log()).sum(), here)
    common = {"aggregation": lambda batch, where: chance[:, None], "bound": unbounded}
    right = make("rpg").but(advantage=KL("reference", "k2"), denominator=Ratio("current", "old"), **common)
    assert_same(-gradient(right, here), exact)
    wrong = -gradient(make("rpg").but(advantage=KL("reference", "k3"), denominator=Ratio(), **common), here)
    assert (wrong - exact).abs().max() / exact.abs().max() > 0.5
    w, gap = p() / chance, reference.log() - p().log()
    assert_same(-gradient(right, here), autograd(-(chance * w * (gap.exp() - gap - 1)).sum(), here))


# -- limits ------------------------------------------------------------------------------------------------------------
def test_at_a_ratio_of_one_it_is_the_policy_gradient_and_a_constant():
    here = case(1)
    here = Case(here.batch.with_columns(old_logp=here.logp().detach()), here.policy)
    for kind, constant in zip(("unnormalised-reverse", "unnormalised-forward", "reverse", "forward"), (0, 0, -1, 1), strict=True):
        loss = -((centred(here)[here.batch.mask] + 0.3 * constant) * here.logp()[here.batch.mask]).mean()
        assert_same(gradient(make("rpg", kl=kind, beta=0.3), here), autograd(loss, here))


def test_without_a_penalty_it_is_dapo_with_a_centred_advantage():
    here = case(3)
    dapo = make("dapo", mean="batch").but(advantage=GroupRelative(scale="none"), bound=Clip(0.2, 0.28, dual=3.0))
    assert_same(gradient(make("rpg", beta=0.0), here), gradient(dapo, here), 1e-13)
    assert make("rpg").stages[0].steps[1].loss.terms["policy"].aggregation is token_mean


def test_it_needs_no_pass_before_the_update():
    loss = make("rpg").stages[0].steps[1].loss
    assert not loss.live


@pytest.mark.parametrize("q", [1.0, 1.5, 2.0])
def test_the_slope_of_tsallis_divergence(q: float):
    """w f′(w) of f = w log_q w by autograd; q = 1 is the KL."""
    here, w = case(4), case(4).ratio().detach().requires_grad_()
    f = w * (w.log() if q == 1 else (w ** (q - 1) - 1) / (q - 1))
    slope = torch.autograd.grad(f.sum(), w)[0]
    batch = here.batch.with_columns(current_logp=here.logp().detach())
    found = FDivergence("tsallis", q=q)(batch)
    assert torch.allclose(found[here.batch.mask], -slope[here.batch.mask], rtol=1e-10)
    if q == 1:
        assert torch.equal(found, FDivergence("reverse")(batch))
    assert log_q(torch.zeros(()), q).item() == 0.0


def test_an_unknown_divergence():
    with pytest.raises(QuatrainError, match="wrong type"):
        make("rpg", kl="k3")
    with pytest.raises(QuatrainError, match="unknown f-divergence"):
        FDivergence("k3")
