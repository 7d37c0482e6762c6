"""adaflow: what its spread learns, how far it steps; and grpo and ppo, unchanged, on the policy that it leaves."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import quatrain
from quatrain.batch import Batch
from quatrain.estimator import Objective
from quatrain.knobs import resolve
from quatrain.losses.flow import FlowMatching
from quatrain.models.flow import FlowPolicy
from quatrain.models.networks import Box
from quatrain.parts.gae import gae
from quatrain.protocols import Sampling
from quatrain.training.batching import micro_batches
from quatrain.training.columns import Values
from quatrain.training.driver import run
from quatrain.training.recipe import Recipe
from quatrain.training.registry import make
from quatrain.training.selves import Critic
from quatrain.training.state import State
from tests.recipes.laboratories import FLOWS, started

TASK = FLOWS.task()


def policy() -> FlowPolicy:
    return FLOWS.policy(TASK)


def start(recipe: Recipe, seed: int = 0, **knobs: float) -> tuple[Recipe, State]:
    return started(recipe, FLOWS, seed, **knobs)


def weights(state: State) -> dict[str, Tensor]:
    return {f"{name}.{key}": value.clone() for name, model in state.models.items() for key, value in model.module.state_dict().items()}


# -- what is learnt ----------------------------------------------------------------------------------------------------
def fitted(actions: Tensor, steps: int = 400, fit: tuple[str, ...] = ("both",)) -> FlowPolicy:
    """A one-dimensional flow fitted to these actions [K], in one state, all equally often."""
    made = FlowPolicy(1, Box((-1.0,), (1.0,)), (64, 64), seed=0)
    g, n = torch.Generator().manual_seed(0), 256
    for part in fit:
        optimizer, loss = torch.optim.Adam(made.module.parameters(), lr=5e-3), FlowMatching(part)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
            shown = actions[torch.randint(len(actions), (n, 1), generator=g)][..., None]
            draw = torch.randint(2**62, (n, 1), generator=g)
            seen = {"policy": {"observations": torch.zeros(n, 2, 1)}}
            batch = loss.finalise(loss.prepare(Batch(torch.ones(n, 1, dtype=torch.bool), shown, {"draw": draw}, contexts=seen)))
            optimizer.zero_grad()
            loss.loss(made, batch, {})[0].backward()
            optimizer.step()
    return made


@pytest.mark.slow
def test_one_action_per_state_takes_one_step():
    made = fitted(torch.tensor([0.4]))
    point = torch.randn(500, 1, generator=torch.Generator().manual_seed(1))
    spread = made.field(torch.zeros(500, 1), point, torch.zeros(500))[1].exp()
    assert spread.mean() < 0.15
    end, count = made.solve(torch.zeros(500, 1), point)
    assert (count == 1).float().mean() > 0.95 and (end - 0.4).abs().mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("fit", [("both",), ("velocity", "spread")])
def test_two_actions_have_the_analytic_spread(fit: tuple[str, ...]):
    """x₁ = ±1. At t = 0 u given x₀ is ±1 − x₀: variance 1. At t = ½ and x_t = 0 it is ±2: variance 4."""
    made = fitted(torch.tensor([-1.0, 1.0]), fit=fit)
    seen = torch.zeros(200, 1)
    first = made.field(seen, torch.randn(200, 1, generator=torch.Generator().manual_seed(1)), torch.zeros(200))[1].exp()
    middle = made.field(seen[:1], torch.zeros(1, 1), torch.full((1,), 0.5))[1].exp()
    assert first.mean().item() == pytest.approx(1.0, abs=0.3) and middle.item() > 1.5 * first.mean().item()
    end, count = made.solve(seen, torch.randn(200, 1, generator=torch.Generator().manual_seed(2)))
    assert count.float().mean() > 3 and ((end.abs() - 1).abs() < 0.3).float().mean() > 0.6
    assert 0.3 < (end > 0).float().mean() < 0.7


# -- which part learns -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("variant", "heads"), [("one-stage", {"velocity", "log_std"}), ("plain", {"velocity"})])
def test_the_heads_that_are_fitted_move_and_no_other(variant: str, heads: set[str]):
    recipe, state = start(make("adaflow", variant=variant))
    before = weights(state)
    moved = {name.split(".")[1] for name, value in weights(run(recipe, state)).items() if not torch.equal(value, before[name])}
    assert moved == {"trunk", *heads}


def test_the_second_stage_leaves_the_velocity_where_it_is():
    recipe, state = start(make("adaflow", variant="two-stage"))
    seen: list[dict[str, Tensor]] = []
    run(recipe, state, after=lambda state, metrics: seen.append(weights(state)))
    assert len(seen) == 6
    for name, value in seen[2].items():
        assert torch.equal(value, seen[-1][name]) == ("log_std" not in name)


# -- grpo and ppo as they are ------------------------------------------------------------------------------------------
RL = {"grpo": {"group": 4, "kl": 0.0}, "ppo": {"epochs": 2, "minibatches": 2}}


@pytest.mark.parametrize("name", RL)
def test_an_unchanged_recipe_moves_it_and_is_the_same_when_cut(name: str):
    saved, seen = [], []

    def after(state: State, metrics: dict) -> None:
        saved.append(copy.deepcopy(state.state_dict()))
        seen.append(dict(metrics))

    whole = run(*start(make(name, **RL[name])), after=after)
    before = weights(start(make(name, **RL[name]))[1])
    moved = {key for key, value in weights(whole).items() if not torch.equal(value, before[key])}
    assert any("policy.velocity" in key for key in moved) and not any("log_std" in key for key in moved)
    assert all(metrics["skipped"] == 0 for metrics in seen)
    recipe, resumed = start(make(name, **RL[name]), seed=77)
    resumed.load_state_dict(saved[0])
    run(recipe, resumed)
    assert all(torch.equal(value, weights(resumed)[key]) for key, value in weights(whole).items())


@pytest.mark.parametrize("name", RL)
def test_without_a_learning_rate_the_ratio_is_one(name: str):
    recipe, state = start(make(name, **RL[name]), lr=0.0)
    seen: list[dict] = []
    run(recipe, state, after=lambda state, metrics: seen.append(dict(metrics)))
    assert all(abs(metrics["ratio"] - 1) < 1e-5 and abs(metrics["ratio/max"] - 1) < 1e-3 and metrics["clipped"] == 0 for metrics in seen)


def rollout(made: FlowPolicy, group: int = 4) -> Batch:
    return TASK.rollout(made, TASK.starts("train", 0, 3), group, Sampling(max_actions=5), seed=1)


def test_grpos_gradient_is_that_of_its_loss_over_denoising_steps():
    """Autograd of the clipped surrogate, each trajectory a mean over its env steps × K transitions, with a stale policy."""
    made = policy()
    batch = rollout(made)
    stale = batch["old_logp"] + 0.3 * torch.randn(batch.shape, generator=torch.Generator().manual_seed(0))
    batch = batch.with_columns(old_logp=torch.where(batch.mask, stale, 0.0).double())
    batch = replace(batch, actions=batch.actions.double()).with_columns(latent=batch["latent"].double())
    made.module.double()
    (step,) = (resolve(fit, {}) for _, fit in make("grpo", **RL["grpo"]).fits(Objective))
    whole = step.loss.finalise(step.loss.prepare(batch))
    for part in micro_batches(whole, 30):
        step.loss.loss(made, part, {})[0].backward()
    found = {name: value.grad.clone() for name, value in made.module.named_parameters() if value.grad is not None}
    made.module.zero_grad()

    reward = batch["reward"].double().view(3, 4)
    advantage = ((reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)).flatten()
    total = torch.zeros(()).double()
    for i in range(12):
        terms = []
        for t in range(int(batch.lengths[i])):
            k = t % 3
            seen, point, after = (
                batch.contexts["policy"]["observations"][i, t],
                batch["latent"][i, t].double(),
                batch.actions[i, t].double(),
            )
            velocity = made.field(seen[None], point[None], torch.tensor([k / 3], dtype=torch.float64))[0][0]
            mean = point + velocity / 3 - 0.5**2 / 2 / 3 * (point - k / 3 * velocity)
            std = 0.5 * math.sqrt((1 - k / 3) / 3)
            logp = sum(-((after[d] - mean[d]) ** 2) / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi)) for d in range(2))
            ratio = (logp - batch["old_logp"][i, t]).exp()
            terms.append(torch.minimum(ratio * advantage[i], ratio.clamp(0.8, 1.2) * advantage[i]))
        total = total - sum(terms) / len(terms) / 12
    total.backward()
    for name, value in made.module.named_parameters():
        if value.grad is not None:
            assert (found[name] - value.grad).abs().max() <= 1e-9 * max(float(value.grad.abs().max()), 1e-6), name


def test_ppos_advantages_are_those_of_whole_decisions():
    """Every denoising step of a decision has the decision's advantage; discount and trace count the environment's steps."""
    made = policy()
    batch = rollout(made)
    critic = Critic()({"policy": made}, {})
    batch = resolve(Values("critic"), {})(SimpleNamespace(models={"critic": critic}), batch)
    objective = resolve(next(make("ppo", discount=0.9, trace=0.7).fits(Objective))[1], {}).loss
    advantage = objective.terms["policy"].advantage.of(batch).view(12, -1, 3)
    assert torch.allclose(advantage[..., 0], advantage[..., 2], atol=1e-6) and torch.allclose(
        advantage[..., 1], advantage[..., 2], atol=1e-6
    )
    reward, value, after = (batch[name].view(12, -1, 3)[..., 2] for name in ("rewards", "value", "next_value"))
    ends = (part.view(12, -1, 3)[..., 2] for part in (batch["terminated"], batch["truncated"], batch.mask))
    assert torch.allclose(advantage[..., 2], gae(reward, value, after, *ends, 0.9, 0.7), atol=1e-5)


# -- as a user runs it -------------------------------------------------------------------------------------------------
def test_imitate_save_and_go_on_by_reward(tmp_path: Path):
    quiet = {"live": False, "tensorboard": False, "report": False, "eval_every": 0, "eval_count": 4, "eval_samples": 2, "save_every": 0}
    flow = quatrain.train("adaflow", task="plane:reach", model="flow?steps=4&chain=2", steps=3, prompts=4, out=str(tmp_path / "a"), **quiet)
    assert flow.metrics["evaluations"] <= 4 and "success" in flow.metrics
    for name in RL:
        go_on = quatrain.train(
            name, task="plane:reach", model=str(tmp_path / "a/model"), steps=2, prompts=2, out=str(tmp_path / name), **quiet, **RL[name]
        )
        assert isinstance(go_on.state.models["policy"], FlowPolicy) and go_on.metrics["updates"] > 0
    with pytest.raises(quatrain.errors.QuatrainError, match="model=flow"):
        quatrain.train("adaflow", task="plane:reach", steps=1, out=str(tmp_path / "b"), **quiet)
