"""oprl: both gradients against autograd, log 2 at the start, GRPO for α = 0, what is read has no coefficient, the two that alternate."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from quatrain.batch import Batch
from quatrain.experiments.diagnose.checks import findings
from quatrain.experiments.diagnose.judge import judge
from quatrain.experiments.diagnose.problems import bandit
from quatrain.parts.advantages import PairLogistic
from quatrain.parts.likelihoods import LogProb
from quatrain.rollout.pairs import OrdersPairs, RankedPairs
from quatrain.training.driver import build, run
from quatrain.training.registry import make
from quatrain.training.rules import AdamW
from quatrain.training.selves import Twin
from quatrain.training.state import State
from tests.environments.test_text import policy as shared_model
from tests.environments.test_text import task as echo
from tests.recipes.test_grpo import paper as grpo_loss
from tests.toy import Case, TabularPolicy, ToyTask, assert_same, autograd, case, fit_of, gradient

PAIRED = case(3, prompts=4, group=2)
language_model = shared_model.__wrapped__  # one of its own for every run: it is trained


def z(values: Tensor) -> Tensor:
    return (values - values.mean()) / (values.std() + 1e-6)


def paper(
    here: Case, alpha: float, beta: float, turns: bool = True, merged: bool = False, mixed: bool = False, clip: float = 0.2
) -> Tensor:
    """The clipped loss with A^E + α A^S, written out group by group, episode by episode, turn by turn."""
    batch, ratio, total = here.batch, here.ratio(), torch.zeros((), dtype=torch.float64)
    for prompt in batch["prompt"].unique():
        rows = (batch["prompt"] == prompt).nonzero()[:, 0].tolist()
        episode = z(torch.stack([batch["reward"][row].double() for row in rows]))
        found: list[tuple[int, int, list[int], Tensor]] = []
        for number, row in enumerate(rows):
            acts = batch.mask[row].nonzero()[:, 0].tolist()
            keys = [int(batch["turn"][row, t]) if turns else t for t in acts]
            for key in dict.fromkeys(keys):
                inside = [t for t, own in zip(acts, keys, strict=True) if own == key]
                worth = beta * sum(batch["prm_logp"][row, t] - batch["old_logp"][row, t] for t in inside)
                found.append((number, row, inside, alpha * worth + batch["reward"][row] if merged else worth))
        for (number, row, inside, _), step in zip(found, z(torch.stack([value for *_, value in found])), strict=True):
            weight = 0.0 if mixed and not episode.any() else alpha
            advantage = step if merged else episode[number] + weight * step
            r = ratio[row][inside]
            total = total + torch.minimum(r * advantage, r.clamp(1 - clip, 1 + clip) * advantage).sum() / batch.mask[row].sum()
    return -total / len(batch)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, {}),
        ({"alpha": 0.3, "beta": 0.5}, {"alpha": 0.3, "beta": 0.5}),
        ({"level": "action"}, {"turns": False}),
        ({"where": "mixed"}, {"mixed": True}),
        ({"fuse": "reward", "alpha": 2.0}, {"merged": True, "alpha": 2.0}),
    ],
)
def test_the_policys_gradient(seed: int, options: dict, said: dict):
    here = case(seed)
    assert_same(gradient(fit_of(make("oprl", **options)), here), autograd(paper(here, **{"alpha": 1.0, "beta": 0.05, **said}), here))


def test_without_the_step_advantage_it_is_grpo_exactly():
    for seed in (0, 1):
        here = case(seed)
        assert torch.equal(gradient(fit_of(make("oprl", alpha=0.0)), here), gradient(make("grpo", kl=0.0), here))
        assert_same(gradient(fit_of(make("oprl", alpha=0.0, kl=0.3)), here), autograd(grpo_loss(here, kl=0.3), here))


def dpo(here: Case, beta: float) -> Tensor:
    """−log σ of the margin, the mean over pairs: rows come chosen, rejected, chosen, rejected …"""
    score = beta * (here.logp() - here.clean("old_logp")).sum(1)
    return -logsigmoid(score[::2] - score[1::2]).mean()


@pytest.mark.parametrize("beta", [0.05, 2.0])
def test_the_process_rewards_gradient(beta: float):
    step = fit_of(make("oprl", beta=beta), "prm")
    assert step.source == "pairs" and step.loss.models() == set()
    assert_same(gradient(step, PAIRED), autograd(dpo(PAIRED, beta), PAIRED))
    reward = PAIRED.batch["reward"]
    score = beta * (PAIRED.logp() - PAIRED.clean("old_logp")).sum(1)
    cross_entropy = -(reward * logsigmoid(score) + (1 - reward) * logsigmoid(-score)).mean()
    assert_same(gradient(fit_of(make("oprl", beta=beta, prm="outcomes"), "prm"), PAIRED), autograd(cross_entropy, PAIRED))


def test_as_the_policy_that_acted_its_loss_is_log_2_and_every_coefficient_half_of_beta():
    here = replace(PAIRED, batch=PAIRED.batch.with_columns(old_logp=PAIRED.logp().detach()))
    assert dpo(here, 0.7).item() == pytest.approx(0.6931471805599453, rel=1e-12)
    advantage = PairLogistic(0.7, "old")(here.batch.with_columns(current_logp=here.logp().detach()))
    assert advantage.tolist() == pytest.approx([0.35, -0.35] * 4)
    far = here.batch.with_columns(current_logp=here.logp().detach() - 100.0)
    assert (PairLogistic(0.7, "old")(far).abs() <= 0.7).all()  # a step's gradient is bounded by β


def test_its_return_orders_trajectories_as_the_true_one():
    """Fitted to Bradley–Terry preferences between the four ways through a tree of two choices, in their true frequencies."""
    true = torch.tensor([0.0, 2.0, 1.0, -1.0], dtype=torch.float64)
    ways, states = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), torch.tensor([[0, 1], [0, 1], [0, 2], [0, 2]])
    rows = [way for a in range(4) for b in range(4) if a != b for way in [a, b] * round(float(20 * (true[a] - true[b]).sigmoid()))]
    old = torch.tensor([[0.3, 0.0], [-1.0, 0.5], [0.0, 0.2]], dtype=torch.float64)
    pair, preference = torch.arange(len(rows)) // 2, torch.tensor([1.0, -1.0]).repeat(len(rows) // 2)
    mask = torch.ones(len(rows), 2, dtype=torch.bool)
    batch = Batch(mask, ways[rows], {"state": states[rows]}, {"pair": pair, "preference": preference})
    prm, snapshot = TabularPolicy(old), TabularPolicy(old)
    with torch.no_grad():
        batch = batch.with_columns(old_logp=snapshot.score(batch, [LogProb()])[LogProb()])
    step = replace(fit_of(make("oprl", beta=0.5), "prm"), rule=AdamW(lr=0.2, clip_norm=0.0))
    state = State(None, {"prm": prm}, stores={"pairs": batch})
    for _ in range(80):
        step(state)
    with torch.no_grad():
        found = 0.5 * (prm.score(batch, [LogProb()])[LogProb()] - batch["old_logp"]).sum(1)
    learnt = torch.stack([found[rows.index(way)] for way in range(4)])
    assert torch.allclose(learnt - learnt.mean(), true - true.mean(), atol=0.25)


# -- whole runs --------------------------------------------------------------------------------------------------------
def started(**options: object) -> tuple:
    """On episodes of three turns whose answers are read, with a language model."""
    recipe = make("oprl", group=4, **options)
    state = State(
        echo(), {"policy": language_model()}, knobs={"lr": 1e-3, "steps": 2, "prompts": 6, "max_actions": 12, "micro_tokens": 128}
    )
    build(recipe, state, {})
    return recipe, state


def test_both_learn_in_turn_and_their_numbers_are_apart():
    recipe, state = started()
    policy, prm = (state.models[name].module for name in ("policy", "prm"))
    assert all(a.requires_grad and torch.equal(a, b) and a is not b for a, b in zip(policy.parameters(), prm.parameters(), strict=True))
    seen: list[dict] = []
    run(recipe, state, after=lambda state, metrics: seen.append(dict(metrics)))
    assert state.spent["updates"] == state.spent["prm/updates"] == 2 and state.spent["trajectories"] == 48
    assert any(not torch.equal(a, b) for a, b in zip(policy.parameters(), prm.parameters(), strict=True))
    for metrics in seen:
        assert {"loss", "prm/loss", "prm/coefficient", "pairs", "gradient_norm", "prm/gradient_norm"} <= set(metrics)
        assert metrics["pairs"] > 0 and metrics["prm/accuracy"] > 0.5 and metrics["ratio"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("level", ["turn", "action"])
def test_what_is_read_has_no_coefficient(level: str):
    recipe, state = started(level=level)
    state.knobs["steps"] = 1
    run(recipe, state)
    batch, prm = state.stores["fresh"], state.models["prm"]
    assert int(batch["turn"].max()) > 0 and (batch.present & ~batch.mask).any()
    for step, model, rows in ((fit_of(recipe), state.models["policy"], batch), (fit_of(recipe, "prm"), prm, state.stores["pairs"])):
        objective = step.loss
        estimate = objective(rows, model.score(rows, objective.statistics()))
        for term in estimate.terms.values():
            assert not term.coefficient[~rows.mask].any() and term.coefficient[rows.mask].any()
    turn = torch.where(batch.mask, batch["turn"], -1)
    advantage = fit_of(recipe).loss.terms["policy"].advantage(batch)
    for row in range(len(batch)):
        for number in range(int(turn[row].max()) + 1):
            shared = advantage[row][turn[row] == number].unique()
            assert len(shared) == 1 or level == "action"


def test_groups_without_both_outcomes_make_no_pairs_and_the_round_goes_on():
    state = State(None, {})
    here = case(0).batch  # the first group is never solved, the second always, the third once
    found = RankedPairs()(state, here)
    assert set(found["prompt"].tolist()) <= {here["prompt"][8].item(), here["prompt"][12].item()} and len(found) >= 2
    assert (found["reward"][::2] > found["reward"][1::2]).all() and found["preference"].tolist() == [1.0, -1.0] * (len(found) // 2)
    none = RankedPairs()(state, here.take(torch.arange(8)))
    assert len(none) == 0
    OrdersPairs(lambda batch: batch["value"])(state, here.take(torch.arange(8)))
    assert "prm/accuracy" not in state.close_round()
    task = ToyTask(reward=lambda row, p: 0.0)
    state = State(task, {"policy": task.policy()}, knobs={"lr": 0.1, "steps": 2, "prompts": 4, "max_actions": 3})
    recipe = make("oprl")
    build(recipe, state, {})
    run(recipe, state)
    assert state.spent["prm/updates"] == 0 and torch.equal(state.models["prm"].table, task.policy().table)


def test_a_twin_learns_where_the_original_does():
    policy = language_model()
    first = next(policy.module.parameters()).requires_grad_(False)
    twin = Twin()({"policy": policy}, {})
    moves = [parameter.requires_grad for parameter in twin.module.parameters()]
    first.requires_grad_(True)
    assert not moves[0] and all(moves[1:]) and twin.module.training == policy.module.training


def test_cut_and_resumed_with_both_models_and_their_optimisers():
    saved: list[dict] = []
    recipe, whole = started()
    run(recipe, whole, after=lambda state, metrics: saved.append(copy.deepcopy(state.state_dict())))
    recipe, resumed = started()
    resumed.load_state_dict(saved[0])
    run(recipe, resumed)
    assert set(saved[0]["optimizers"]) == {"policy", "prm"} and resumed.spent == whole.spent
    for name in ("policy", "prm"):
        ours, theirs = (here.models[name].module.state_dict() for here in (resumed, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_diagnose_judges_the_update_on_the_rows_that_are_read_again():
    assert findings(make("oprl")) == []
    alone, grpo = (judge(make(name, **options), bandit()) for name, options in (("oprl", {"alpha": 0.0}), ("grpo", {"kl": 0.0})))
    assert_same(alone.mean, grpo.mean, 1e-12)
