"""hpt: autograd of eqs. 8–13 in all variants, the instances that the paper unifies, and the common objective J_μ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.estimator import Objective, Term
from quatrain.parts.advantages import Return
from quatrain.parts.aggregations import PerGroup, sequence_sum
from quatrain.parts.selections import demonstrations, rollouts
from quatrain.training.registry import make
from tests.toy import Case, TabularPolicy, assert_same, autograd, case, gradient

PROMPTS, GROUP, LONGEST = 4, 4, 5
# By number of solved rollouts, from the released code.
SOFT = {0: (0.0, 1.0), 1: (0.0, 1.0), 2: (0.125, 0.5), 3: (0.25, 0.25), 4: (0.5, 0.125), 5: (1.0, 0.0)}


def with_demonstrations(seed: int = 0, **options) -> Case:
    return case(seed, prompts=options.pop("prompts", PROMPTS), group=options.pop("group", GROUP), demonstrations=True, **options)


def paper(
    here: Case, gate: float = 0.0, code: bool = False, soft: bool = False, sft: float = 1.0, clip: float = 0.2, group: int = GROUP
) -> Tensor:
    """The loss, prompt by prompt. Rows: ``group`` rollouts of each prompt, prompt by prompt, then one demonstration of each."""
    logp, mask, prompts = here.logp(), here.batch.mask, len(here.batch) // (group + 1)
    total = torch.zeros((), dtype=torch.float64)
    for q in range(prompts):
        rows = slice(q * group, (q + 1) * group)
        reward = here.batch["reward"][rows]
        advantage = reward - reward.mean()
        if not code:
            advantage = advantage / (reward.std() + 1e-6)
        ratio = (logp[rows] - torch.where(mask[rows], here.batch["old_logp"][rows], 0.0)).exp()
        surrogate = ratio * advantage[:, None]
        if not code:
            surrogate = torch.minimum(surrogate, ratio.clamp(1 - clip, 1 + clip) * advantage[:, None])
        loss_rl = -torch.where(mask[rows], surrogate, 0.0).sum(1).mean()
        if code:
            loss_rl = loss_rl / LONGEST
        shown = prompts * group + q
        loss_sft = -logp[shown].sum() / mask[shown].sum()
        if soft:
            alpha, beta = SOFT[min(int(reward.sum()), 5)]
        else:
            alpha, beta = (1.0, 0.0) if reward.mean() > gate else (0.0, 1.0)
        total = total + (alpha * loss_rl + sft * beta * loss_sft) / prompts
    return total


@pytest.mark.parametrize("gate", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_papers_configuration(seed: int, gate: float):
    here = with_demonstrations(seed)
    assert_same(gradient(make("hpt", group=GROUP, gate=gate), here), autograd(paper(here, gate), here))


@pytest.mark.parametrize(("gate", "sft"), [(0.0, 1.0), (0.25, 0.3)])
def test_the_codes_configuration(gate: float, sft: float):
    here = with_demonstrations(2)
    recipe = make("hpt", group=GROUP, version="code", gate=gate, sft=sft)
    assert_same(gradient(recipe, here, max_actions=LONGEST), autograd(paper(here, gate, code=True, sft=sft), here))


@pytest.mark.parametrize("version", ["paper", "code"])
def test_graded_weights(version: str):
    here = with_demonstrations(3, group=8, prompts=6)
    solved = here.batch["reward"][:48].view(6, 8).sum(1)
    assert len({min(int(k), 5) for k in solved}) >= 4  # several rows of the table are used
    expected = paper(here, code=version == "code", soft=True, group=8)
    assert_same(gradient(make("hpt", version=version, soft=True), here, max_actions=LONGEST), autograd(expected, here))


def test_with_an_entropy_bonus():
    here = with_demonstrations(4)
    seen = here.batch.mask & (here.batch["origin"] == 0)
    p = here.policy.table.softmax(-1)[here.batch["state"]][seen]
    loss = paper(here, code=True) + 0.001 * (p * p.log()).sum(-1).mean()
    recipe = make("hpt", group=GROUP, version="code", entropy=0.001)
    assert_same(gradient(recipe, here, max_actions=LONGEST), autograd(loss, here))


def test_all_four_cases_of_sign_and_side():
    """One prompt, four one-action rollouts: solved and not, ratio above and below the clip. Two of them carry no gradient."""
    table = torch.zeros(5, 2, dtype=torch.float64)
    old = torch.tensor([0.5 / 1.5, 0.5 / 0.5, 0.5 / 1.5, 0.5 / 0.5, 0.5], dtype=torch.float64).log()[:, None]
    batch = Batch(
        mask=torch.ones(5, 1, dtype=torch.bool),
        actions=torch.zeros(5, 1, dtype=torch.long),
        columns={"state": torch.arange(5)[:, None], "old_logp": old, "origin": torch.tensor([[0]] * 4 + [[1]])},
        rows={"prompt": torch.zeros(5, dtype=torch.long), "reward": torch.tensor([1.0, 1.0, 0.0, 0.0, float("nan")], dtype=torch.float64)},
    )
    here = Case(batch, TabularPolicy(table))
    found = gradient(make("hpt", group=4), here)[:, 0]
    a = 0.5 / ((1 / 3) ** 0.5 + 1e-6)  # z-score: deviation ½, Bessel-corrected standard deviation √(1/3)
    # A > 0, r = 1.5: clipped; A > 0, r = 0.5: passes; A < 0, r = 1.5: passes; A < 0, r = 0.5: clipped; ∇log π of action 0 is ½.
    expected = torch.tensor([0.0, -0.5 * a / 4 / 2, 1.5 * a / 4 / 2, 0.0, 0.0], dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)
    assert_same(gradient(make("hpt", group=4), here), autograd(paper(here), here))


def test_the_gate_is_per_prompt():
    """Nothing solved: the demonstration alone. One solved at gate 0: the rollouts alone."""
    here = with_demonstrations(0)
    moved = gradient(make("hpt", group=GROUP), here).abs().sum(1).view(here.batch.shape).sum(1) > 0
    unsolved, once = 0, 2
    assert not moved[unsolved * GROUP : (unsolved + 1) * GROUP].any() and moved[PROMPTS * GROUP + unsolved]
    assert moved[once * GROUP : (once + 1) * GROUP].any() and not moved[PROMPTS * GROUP + once]


# -- the instances that the paper unifies ------------------------------------------------------------------------------
def test_with_a_gate_of_one_it_is_supervised_fine_tuning():
    here = with_demonstrations(1)
    shown = here.batch.take(torch.arange(PROMPTS * GROUP, len(here.batch)))
    per_prompt = make("sft").but(aggregation=PerGroup(actions="mean"))
    assert_same(gradient(make("hpt", gate=1.0), here), gradient(per_prompt, Case(shown, here.policy)))


def test_with_every_prompt_solved_it_is_grpo_with_summed_tokens():
    here = with_demonstrations(1)
    reward = here.batch["reward"].clone()
    reward[: PROMPTS * GROUP : GROUP], reward[1 : PROMPTS * GROUP : GROUP] = 1.0, 0.0
    here = Case(here.batch.with_rows(reward=reward), here.policy)
    sampled = Case(here.batch.take(torch.arange(PROMPTS * GROUP)), here.policy)
    assert_same(gradient(make("hpt"), here), gradient(make("grpo", kl=0.0).but(aggregation=sequence_sum), sampled))


def test_the_gradient_of_the_common_objective_is_a_term_of_each():
    """∇J_μ, J_μ = E_π[r] − μ·KL(π_β‖π_θ), with every trajectory of two actions enumerated."""
    mu, g = 0.3, torch.Generator().manual_seed(0)
    actions = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    state = torch.stack([torch.zeros(9, dtype=torch.long), 1 + actions[:, 0]], 1)
    policy, teacher = (TabularPolicy(torch.randn(4, 3, dtype=torch.float64, generator=g)) for _ in range(2))
    reward = torch.randn(9, dtype=torch.float64, generator=g)

    def probability(model: TabularPolicy) -> Tensor:
        return model.table[state].log_softmax(-1).gather(-1, actions[..., None]).sum((1, 2)).exp()

    p, beta = probability(policy), probability(teacher).detach()
    j = (p * reward).sum() - mu * (beta * (beta.log() - p.log())).sum()
    expected = torch.autograd.grad(j, policy.table)[0]
    batch = Batch(
        mask=torch.ones(18, 2, dtype=torch.bool),
        actions=actions.repeat(2, 1),
        columns={"state": state.repeat(2, 1), "origin": torch.tensor([0, 1]).repeat_interleave(9)[:, None].expand(18, 2)},
        rows={"reward": reward.repeat(2), "chance": torch.cat([p.detach(), beta])},
    )
    summed = {"aggregation": lambda batch, where: where.double(), "weight": lambda batch: batch["chance"]}
    rl, imitation = Term(Return(), where=rollouts, **summed), Term(where=demonstrations, **summed)
    both = make("sft").with_fit(loss=Objective({"rl": rl, "sft": imitation}))
    weighed = both.but("sft", weight=lambda batch: mu * batch["chance"])
    assert_same(-gradient(weighed, Case(batch, policy)), expected)
