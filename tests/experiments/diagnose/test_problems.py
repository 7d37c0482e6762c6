"""Enumerated problems: their chances, their task, their exact gradients."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Origin
from quatrain.errors import QuatrainError
from quatrain.experiments.diagnose.chances import allowed, chances, sampled_logp
from quatrain.experiments.diagnose.problems import PROBLEMS, bandit, find_problem, tree, turns
from quatrain.experiments.diagnose.subject import exact_critic
from quatrain.experiments.diagnose.targets import TARGETS, Scene, Target, exact_gradient, parse_target, target_of
from quatrain.experiments.diagnose.task import EnumeratedTask, observed
from quatrain.models.tables import TablePolicy
from quatrain.parts.control import after_first, first_action
from quatrain.protocols import Sampling
from quatrain.training.driver import build, run
from quatrain.training.registry import make
from quatrain.training.state import State

SAMPLINGS = [Sampling(), Sampling(0.7, 0.9), Sampling(1.3, 1.0, 2)]
every_problem = pytest.mark.parametrize("problem", [make_() for make_ in PROBLEMS.values()], ids=list(PROBLEMS))


@every_problem
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_probabilities_sum_to_one_and_are_those_that_the_library_records(problem, sampling):
    chance = chances(problem, problem.table, sampling)
    assert float(chance.sum()) == pytest.approx(1.0, abs=1e-12)
    batch = observed(problem, TablePolicy(problem.table), sampling)
    recorded = batch["behaviour_logp"].masked_fill(~batch.mask, 0.0).sum(1).exp() * problem.nature / problem.questions
    torch.testing.assert_close(recorded, chance, atol=1e-14, rtol=1e-12)


def test_truncation_by_hand():
    """Chances .5, .3, .2 at temperature 1: top-p 0.7 keeps two (0.5 has not reached it), renormalised to 5/8 and 3/8."""
    logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    assert allowed(logits, Sampling(top_p=0.7)).tolist() == [True, True, False]
    torch.testing.assert_close(sampled_logp(logits, Sampling(top_p=0.7)).exp(), torch.tensor([0.625, 0.375, 0.0], dtype=torch.float64))
    assert allowed(logits, Sampling(top_k=1)).tolist() == [True, False, False]
    squares = torch.tensor([0.25, 0.09, 0.04], dtype=torch.float64)
    torch.testing.assert_close(sampled_logp(logits, Sampling(temperature=0.5)).exp(), squares / squares.sum())


def test_the_sizes():
    sizes = {name: len(find_problem(name).outcomes) for name in PROBLEMS}
    assert sizes == {"bandit": 12, "noisy": 6, "tree": 255, "loops": 63, "turns": 25}
    assert find_problem("bandit").questions == 3


def test_the_environments_token_is_present_and_no_action():
    batch = turns().outcomes
    long = batch.lengths == 2
    assert bool((batch.present.sum(1)[long] == 3).all()) and not bool(batch.mask[:, 1].any())


def test_rollouts_have_the_enumerated_frequencies():
    problem, sampling = tree(2), Sampling(0.8, 0.9)
    task = EnumeratedTask(problem)
    batch = task.rollout(TablePolicy(problem.table), task.starts("train", 0, 2), 3000, sampling, seed=0)
    assert batch["prompt"].unique().tolist() == [0, 1]
    solved = float((chances(problem, problem.table, sampling) * problem.outcomes["reward"]).sum())
    assert float(batch["reward"].mean()) == pytest.approx(solved, abs=4 * (solved / 6000) ** 0.5)


def test_a_recipe_trains_on_an_enumerated_task():
    problem = bandit((0.3, 0.2))
    state = State(task=EnumeratedTask(problem), models={"policy": TablePolicy(problem.table)}, knobs={"steps": 40, "lr": 0.1, "prompts": 4})
    recipe = make("grpo")
    build(recipe, state, {})
    before = state.task.evaluate(state.models["policy"], 1, 1, Sampling(), 0)["reward"]
    run(recipe, state)
    assert before == pytest.approx(0.25)
    assert state.task.evaluate(state.models["policy"], 1, 1, Sampling(), 0)["reward"] > 0.8


def test_the_exact_gradient_of_a_bandit_by_hand():
    """∂/∂z_a Σ π r = π_a (r_a − π·r)."""
    problem = bandit((0.6,), 3)
    scene = Scene(problem, Sampling(), problem.table, problem.table)
    p = torch.tensor([0.6, 0.4 * 2 / 3, 0.4 / 3], dtype=torch.float64)
    reward = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(exact_gradient(scene, [Target("reward")])[0], p * (reward - p @ reward))


@pytest.mark.parametrize("name", ["reward", "kl", "demonstrations", "preference"])
def test_gradients_are_the_slopes_of_their_targets(name: str):
    problem = tree(3)
    sampling = Sampling(0.8, 0.95)
    scene = Scene(problem, sampling, problem.table, problem.table)
    g = torch.Generator().manual_seed(1)
    way = torch.randn(problem.table.shape, generator=g, dtype=torch.float64)
    step = 1e-5
    up, down = (float(TARGETS[name](scene, problem.table + sign * step * way)) for sign in (1, -1))
    assert float((exact_gradient(scene, [Target(name)]) * way).sum()) == pytest.approx((up - down) / (2 * step), rel=1e-6)


def test_frozen_states_leave_only_the_slope_of_the_distributions():
    """On a bandit nothing is frozen but the question: the divergence's slope is that of the whole."""
    problem = bandit((0.6,), 3)
    scene = Scene(problem, Sampling(), problem.table, problem.table)
    frozen = exact_gradient(scene, [Target("divergence", 1.0, {"kind": "reverse", "to": "reference"})])
    torch.testing.assert_close(frozen, exact_gradient(scene, [Target("kl")]))


def test_the_critic_knows_the_value_of_the_beginning():
    for name in ("tree", "loops", "turns"):
        problem = find_problem(name)
        scene = Scene(problem, Sampling(), problem.table, problem.table)
        start = float(exact_critic(scene, 1.0).values(problem.outcomes)[0, 0].detach())
        assert start == pytest.approx(float(TARGETS["reward"](scene, problem.table)), rel=1e-9)


def test_terms_that_share_out_a_trajectory_add_up_to_the_whole_target():
    """And the gradient of the first action's share is where the trajectory starts, and nowhere else."""
    problem = turns()
    scene = Scene(problem, Sampling(), problem.table, problem.table)
    first, rest = (exact_gradient(scene, [Target("reward", 1.0, {"where": where})]) for where in (first_action, after_first))
    torch.testing.assert_close(first + rest, exact_gradient(scene, [Target("reward")]))
    assert first[0].any() and not first[1:].any() and rest[1:].any() and not rest[0].any()


def test_targets_are_read_off_the_terms():
    found = {
        name: [
            str(target_of(term, name == "sft"))
            for _, step in make(name).fits()
            if step.model == "policy"
            for term in step.loss.terms.values()
        ]
        for name in ("grpo", "opd", "sft", "dpo", "hpt", "ppo", "dagrpo")
    }
    assert found == {
        "grpo": ["reward", "−0.04·KL to the reference"],
        "opd": ["−divergence to the teacher"],
        "sft": ["likelihood of demonstrations"],
        "dpo": ["preference likelihood"],
        "hpt": ["reward of rollouts", "likelihood of demonstrations"],
        "ppo": ["reward (γ = 0.99)"],
        "dagrpo": ["reward", "likelihood of demonstrations"],  # which rows are selected is a matter of their group
    }


def test_a_declared_target_is_parsed_and_used():
    first, second = parse_target("reward - 0.5*kl")
    assert (first.name, first.weight, second.name, second.weight) == ("reward", 1.0, "kl", -0.5)
    with pytest.raises(QuatrainError, match="unknown target 'rewrd'"):
        parse_target("rewrd")
    from dataclasses import replace

    from quatrain.experiments.diagnose.judge import judge

    declared = replace(make("grpo"), target="reward")  # the penalty is then a bias, not a claim
    assert judge(declared, find_problem("turns")).target == "reward"
    assert judge(declared, find_problem("turns")).total != judge(make("grpo"), find_problem("turns")).total


def test_an_unknown_problem_is_refused_with_the_nearest():
    with pytest.raises(QuatrainError, match="did you mean 'tree'"):
        find_problem("tre")


def test_demonstrations_are_no_rollouts():
    problem = bandit()
    task = EnumeratedTask(problem)
    shown = task.demonstrations(TablePolicy(problem.table), task.starts("train", 0, 3))
    assert bool((shown["origin"] == Origin.DEMONSTRATION).all()) and "old_logp" not in shown
    assert shown.actions[:, 0].tolist() == [0, 0, 0]
