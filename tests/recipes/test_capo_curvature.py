"""capo-curvature: autograd of the masked surrogate, written plainly; shifts by the optimiser's moments; infinite limits are the base."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch, spread
from quatrain.errors import QuatrainError
from quatrain.models.tables import TablePolicy
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.selections import AtRandom
from quatrain.recipes.estimator.capo_curvature import thinned
from quatrain.training.driver import build, run
from quatrain.training.registry import make
from quatrain.training.rules import AdamW
from quatrain.training.shifts import OBJECTIVE, POLICY, Shifts
from quatrain.training.state import State
from tests.recipes.test_grpo import z_scores
from tests.toy import Case, ToyTask, assert_same, autograd, case, fit_of, gradient

LR, LIMITS = 0.02, (1e-4, 1e-2)


def paper(here: Case, base: str, normaliser: str, rising: bool, clip: float = 0.2) -> Tensor:
    """−mean of the clipped surrogate over the tokens that are kept, row by row."""
    batch, total = here.batch, []
    mean = torch.stack([batch["reward"][batch["prompt"] == key].mean() for key in batch["prompt"]])
    advantages = {"grpo": z_scores(here)[:, 0], "dr-grpo": batch["reward"] - mean, "reinforce": batch["reward"]}[base]
    for i, (mask, a) in enumerate(zip(batch.mask, advantages, strict=True)):
        r, shift = here.ratio()[i], batch[OBJECTIVE][i]
        keep = mask & (batch[POLICY][i] < LIMITS[0]) & (shift < LIMITS[1]) & (shift >= (0.0 if rising else -math.inf))
        value = torch.where(keep, torch.minimum(r * a, r.clamp(1 - clip, 1 + clip) * a), 0.0).sum()
        count = 5 if base == "dr-grpo" else int((mask if normaliser == "all" else keep).sum())
        if normaliser == "all" or keep.any():
            total.append(value / count)
    return -torch.stack(total).mean()


@pytest.mark.parametrize("base", ["grpo", "dr-grpo", "reinforce"])
@pytest.mark.parametrize("normaliser", ["kept", "all"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_gradient(seed: int, normaliser: str, base: str):
    here = case(seed, prompts=8)
    here.batch = replace(here.batch, columns={name: value for name, value in here.batch.columns.items() if name != "rewards"})
    recipe = make("capo-curvature", base=base, normaliser=normaliser, rising=seed == 2, group=4)
    assert_same(gradient(recipe, here, max_actions=5), autograd(paper(here, base, normaliser, seed == 2), here))


def test_with_infinite_limits_it_is_its_base():
    here = case(3)
    for base, plain in (("grpo", make("grpo", kl=0.0)), ("dr-grpo", make("dr-grpo"))):
        found = make("capo-curvature", base=base, policy_limit=math.inf, objective_limit=math.inf)
        assert torch.equal(gradient(found, here, max_actions=5), gradient(plain, here, max_actions=5))


def runs(name: str, **options: object) -> State:
    task = ToyTask()
    state = State(task=task, models={"policy": task.policy()}, knobs={"steps": 4, "prompts": 8, "lr": 0.1, "max_actions": 3})
    recipe = make(name, **options)
    build(recipe, state, {})
    state.models["policy"].module.requires_grad_(True)
    return run(recipe, state)


def test_a_whole_run_with_infinite_limits_is_a_run_of_its_base():
    options = {"epochs": 2, "minibatches": 2, "kl": 0.0}
    free = runs("capo-curvature", policy_limit=math.inf, objective_limit=math.inf, **options)
    assert torch.equal(free.models["policy"].table, runs("grpo", **options).models["policy"].table)
    assert not torch.equal(free.models["policy"].table, runs("capo-curvature", policy_limit=1e-3, **options).models["policy"].table)


@pytest.mark.parametrize("steps", [0, 3])
def test_the_shifts_of_a_table_are_those_of_a_real_step(steps: int):
    """Δ of a copy's optimiser on one action's gradient alone; m_F and m_H of that Δ by autograd."""
    here = case(4, prompts=3, group=2, length=2)
    state = State(task=None, models={"policy": here.policy}, knobs={})
    rule = AdamW(lr=LR, clip_norm=0.0)
    optimizer = state.optimizer("policy", rule)
    for _ in range(steps):
        rule.update(optimizer, lambda: (here.logp() * spread(torch.linspace(-1, 2, 6), here.batch)).sum().neg().backward())
    found = Shifts(GroupRelative(), lr=LR, micro_tokens=7)(state, here.batch)
    advantage, table = GroupRelative()(here.batch), here.policy.table.detach()
    checked = 0
    for i, t in here.batch.mask.nonzero().tolist():
        s, a, weight = here.batch["state"][i, t], here.batch.actions[i, t], advantage[i]

        def objective(w: Tensor, s: Tensor = s, a: Tensor = a, weight: Tensor = weight) -> Tensor:
            return weight * (w[s].log_softmax(-1)[a] - table[s].log_softmax(-1)[a]).exp()

        g = torch.autograd.functional.jacobian(objective, table)
        twin = here.policy.clone()
        twin.module.requires_grad_(True)
        copied = rule.start(twin.module)
        copied.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        twin.table.grad = -g
        rule.step(copied)
        delta = (twin.table.detach() - table) if steps else LR * g
        h = torch.autograd.functional.hessian(objective, table).view(table.numel(), -1)
        expected = (g * delta).sum() + delta.flatten() @ h @ delta.flatten() / 2
        score = torch.nn.functional.one_hot(a, table.shape[1]) - table[s].softmax(-1)
        assert torch.allclose(found[OBJECTIVE][i, t], expected, rtol=1e-7, atol=1e-14)
        assert torch.allclose(found[POLICY][i, t], (score @ delta[s]).square() / 2, rtol=1e-7, atol=1e-14)
        checked += 1
    assert checked > 4


def test_a_temperature_and_a_support_are_part_of_the_model():
    """Half the move at temperature 2; entries outside of the support are as if they were not there."""
    table = torch.tensor([[0.3, -0.2, 0.9]], dtype=torch.float64)
    action, advantage = torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.float64)

    def shifts(values: Tensor, **rows: Tensor) -> tuple[Tensor, Tensor]:
        batch = Batch(torch.ones(2, 1, dtype=torch.bool), action[:, None], {"state": torch.zeros(2, 1, 1, dtype=torch.long), **rows})
        return TablePolicy(values).clone().last_layer(batch).shifts(action, advantage, 0.1, None)

    support = torch.tensor([[[1, 2]], [[0, 0]]])
    cut, two, three = shifts(table, support=support), shifts(table[:, :2]), shifts(table)
    for found, narrow, whole in zip(cut, two, three, strict=True):
        assert torch.allclose(found, torch.stack([narrow[0], whole[1]]), rtol=1e-12)
    warm = shifts(table, temperature=torch.tensor([[2.0], [math.nan]], dtype=torch.float64))
    v = 1 - (table / 2).softmax(-1)[0, 0], (table / 2).softmax(-1)[0, 1:].square().sum()
    assert warm[0][0] == pytest.approx(float((0.1 * (v[0] ** 2 + v[1]) / 4) ** 2 / 2)) and warm[0][1] == three[0][1]


def test_the_control_leaves_out_a_share():
    batch = case(6, prompts=40).batch
    draw = torch.randint(2**62, batch.shape, generator=torch.Generator().manual_seed(0))
    kept = AtRandom(0.92)(batch.with_columns(draw=draw))
    assert float(kept.sum() / batch.mask.sum()) == pytest.approx(0.92, abs=0.04) and not (kept & ~batch.mask).any()
    thinned().check(ToyTask(), {})


def test_what_is_refused():
    with pytest.raises(QuatrainError, match="base"):
        make("capo-curvature", base="ppo")
    with pytest.raises(QuatrainError, match="optimiser"):
        Shifts(GroupRelative(), optimiser="lion")
    with pytest.raises(QuatrainError, match="two entries"):
        Shifts(GroupRelative(), top=1)
    with pytest.raises(QuatrainError, match="last layer"):
        Shifts(GroupRelative())(State(task=None, models={"policy": object()}), case(0).batch)
    with pytest.raises(QuatrainError, match="current_policy_shift"):
        make("capo-curvature").with_fit(edits=()).check(ToyTask())


def test_it_is_scored_before_every_update():
    (edit,) = fit_of(make("capo-curvature"), lr=LR).edits
    assert edit.lr == LR and edit.advantage == GroupRelative() and edit.watch.policy == 1e-4
