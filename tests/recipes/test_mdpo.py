"""mdpo: autograd of the unclipped surrogate minus the KL to the old policy; the exact mirror step of a table."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quatrain.batch import Batch
from quatrain.training.driver import build, run
from quatrain.training.registry import make
from quatrain.training.selves import Given
from quatrain.training.state import State
from tests.recipes.test_ppo import credit
from tests.toy import Case, TabularPolicy, ToyTask, assert_same, autograd, case, gradient


def surrogate(here: Case) -> torch.Tensor:
    """[actions] r·A with standardised GAE."""
    mask, advantage = here.batch.mask, credit(here, 0.99, 0.95)
    seen = advantage[mask]
    advantage = (advantage - seen.mean()) / (seen.std(correction=0) + 1e-8)
    return (here.ratio() * advantage)[mask]


def exact_kl(here: Case) -> torch.Tensor:
    state = here.batch["state"][here.batch.mask]
    p, old = here.policy.table[state].softmax(-1), here.others["old"].table.detach()[state].softmax(-1)
    return (p * (p.log() - old.log())).sum(-1)


@pytest.mark.parametrize("t", [1.0, 0.25])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, t: float):
    here = case(seed)
    expected = autograd(-(surrogate(here) - exact_kl(here) / t).mean(), here)
    assert_same(gradient(make("mdpo"), here, step_size=t), expected)
    assert_same(gradient(make("mdpo", step_size=t, anneal=False), here), expected)


@pytest.mark.parametrize("q", [1.0, 1.5, 2.0])
def test_the_gradient_of_the_sampled_divergence(q: float):
    here = case(2)
    w = here.ratio()[here.batch.mask]
    logarithm = w.log() if q == 1 else (w ** (q - 1) - 1) / (q - 1)
    loss = -(surrogate(here) - w * logarithm / 0.5).mean()
    assert_same(gradient(make("mdpo", kl="sampled", q=q), here, step_size=0.5), autograd(loss, here))


def test_with_an_entropy_bonus():
    here = case(3)
    p = here.policy.table.softmax(-1)[here.batch["state"]][here.batch.mask]
    loss = -(surrogate(here) - exact_kl(here)).mean() + 0.01 * (p * p.log()).sum(-1).mean()
    assert_same(gradient(make("mdpo", entropy=0.01), here), autograd(loss, here))


def test_at_the_old_policy_it_is_the_policy_gradient():
    """The KL has no gradient there, whatever its weight."""
    here = case(4)
    here = replace(here, policy=TabularPolicy(here.others["old"].table.detach()))
    expected = autograd(-surrogate(here).mean(), here)
    assert_same(gradient(make("mdpo"), here, step_size=1e-3), expected)
    assert_same(gradient(make("ppo"), here), expected)


@pytest.mark.parametrize("t", [0.3, 2.0])
def test_the_exact_mirror_step_of_a_table(t: float):
    """All actions of one state, weighed by π_k: the objective has its maximum at π_{k+1} ∝ π_k exp(t A), and the gradient is 0 there."""
    g = torch.Generator().manual_seed(0)
    old, advantage = torch.randn(1, 5, dtype=torch.float64, generator=g), torch.randn(5, dtype=torch.float64, generator=g)
    chance = old.softmax(-1)[0]
    batch = Batch(
        mask=torch.ones(5, 1, dtype=torch.bool),
        actions=torch.arange(5)[:, None],
        columns={"state": torch.zeros(5, 1, dtype=torch.long), "old_logp": chance.log()[:, None]},
    )

    def by_chance(batch: Batch, where: torch.Tensor) -> torch.Tensor:
        return chance[:, None]

    for kind in ("exact", "sampled"):
        recipe = (
            make("mdpo", kl=kind).but("policy", advantage=lambda batch: advantage, aggregation=by_chance).but("kl", aggregation=by_chance)
        )
        sizes = []
        for table in (old, old + t * advantage, old + 2 * t * advantage):
            here = Case(batch, TabularPolicy(table), {"old": TabularPolicy(old)})
            sizes.append(float(gradient(recipe, here, step_size=t).abs().max()))
        assert sizes[1] < 1e-14 and min(sizes[0], sizes[2]) > 1e-3


TASK = ToyTask(prompts=4, length=3)


def test_the_step_size_falls_with_the_round_and_the_copy_follows():
    recipe = make("mdpo", epochs=2).with_models(critic=Given("critic"))
    state = State(task=TASK, models={"policy": TASK.policy()}, knobs={"steps": 4, "prompts": 8, "lr": 0.1, "max_actions": 3})
    build(recipe, state, {"critic": TASK.critic()})
    for model in state.models.values():
        model.module.requires_grad_(True)
    begins, sizes = [state.models["policy"].table.detach().clone()], []

    def after(state: State, metrics: dict) -> None:
        assert torch.equal(state.models["old"].table, begins[-1])  # the policy as it was when this batch was collected
        begins.append(state.models["policy"].table.detach().clone())
        sizes.append(state.knobs["step_size"])

    run(recipe, state, after=after)
    assert sizes == [0.75, 0.5, 0.25, 1.0] and state.steered == {"step_size"}


def test_a_cut_run_goes_on_with_the_step_size_it_had(tmp_path):
    """Through the command's own way: what a controller moved is no change of settings."""
    import quatrain

    keys = {"task": "gym:CartPole-v1", "segment": 8, "eval_every": 0, "eval_count": 2, "eval_samples": 0, "live": False}
    keys |= {"tensorboard": False, "report": False, "out": str(tmp_path / "run"), "save_every": 1}
    first = quatrain.train("mdpo", steps=2, **keys)
    assert first.state.knobs["step_size"] == 1.0
    second = quatrain.train("mdpo", steps=4, resume=True, **keys)
    assert second.state.step == 4 and "step_size" in second.state.steered
