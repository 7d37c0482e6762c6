"""refine-nsp: autograd of the mixed loss; rewards compared within a document; its limits; whole runs of the fast-weight model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from quatrain.estimator import Objective
from quatrain.parts.advantages import GroupRelative
from quatrain.recipes.estimator.refine_nsp import next_token
from quatrain.rollout.continuations import Continuations
from quatrain.tasks.letters import letters
from quatrain.training.driver import build, run
from quatrain.training.recipe import Recipe
from quatrain.training.registry import make
from quatrain.training.state import State
from tests.models.test_delta_net import delta_policy
from tests.recipes.test_chord import GROUP, rows, shown
from tests.recipes.test_grpo import paper as grpo_loss
from tests.toy import Case, assert_same, autograd, gradient


def paper(here: Case, rl: float, sft: float) -> Tensor:
    """rl of the clipped surrogate, a mean per continuation; sft of the mean cross-entropy of the documents' tokens."""
    own, documents = rows(here, slice(0, 4 * GROUP)), rows(here, slice(4 * GROUP, None))
    return rl * grpo_loss(own) - sft * documents.logp()[documents.batch.mask].mean()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("rl", "sft"), [(0.2, 1.0), (0.4, 0.5), (1.0, 0.0)])
def test_the_gradient(seed: int, rl: float, sft: float):
    here = shown(seed)
    assert_same(gradient(make("refine-nsp", rl=rl, sft=sft, chunks=GROUP), here), autograd(paper(here, rl, sft), here))


def test_without_reinforcement_it_is_next_token_prediction():
    here = shown(2)
    documents = rows(here, slice(4 * GROUP, None))
    assert_same(gradient(make("refine-nsp", rl=0.0), here), gradient(next_token(), documents), 1e-14)


# -- with the model ------------------------------------------------------------------------------------------------------
TASK = letters("letters:recall?levels=1")


def start(recipe: Recipe, seed: int = 0) -> tuple[Recipe, State]:
    state = State(TASK, {"policy": delta_policy()}, seed=seed)
    state.knobs = {"steps": 3, "prompts": 2, "lr": 1e-2}
    build(recipe, state, {})
    return recipe, state


def weights(state: State) -> list[Tensor]:
    return [parameter.detach() for parameter in state.models["policy"].module.parameters()]


def test_equal_data_and_without_reinforcement_the_same_run():
    """The same documents in the same order; with a weight of 0 on the continuations, the same weights at the end."""
    plain, bare, full = (run(*start(recipe)) for recipe in (next_token(), make("refine-nsp", rl=0.0), make("refine-nsp")))
    assert plain.cursors == bare.cursors == full.cursors and plain.spent["demonstrations"] == full.spent["demonstrations"] == 6
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(bare), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(plain), weights(full), strict=True))


def test_rewards_are_compared_within_a_document():
    recipe, state = start(make("refine-nsp", reward="hybrid"))
    recipe.stages[0].steps[0](state)
    batch = state.stores["fresh"]
    advantage = GroupRelative()(batch)
    for key in batch["prompt"].unique():
        own = (batch["prompt"] == key) & ~batch["reward"].isnan()
        assert own.sum() == 8 and ((batch["prompt"] == key) & batch["reward"].isnan()).sum() == 1
        assert advantage[own].mean().abs() < 1e-9 and advantage[own].std() == pytest.approx(1.0, abs=1e-4)


def test_the_first_update_is_on_policy():
    recipe, state = start(make("refine-nsp"))
    seen: list[dict[str, Any]] = []
    state.knobs["lr"] = 0.0
    run(recipe, state, after=lambda state, metrics: seen.append(dict(metrics)))
    assert all(metrics["ratio"] == pytest.approx(1.0, abs=1e-5) and metrics["clipped"] == 0 for metrics in seen)


@pytest.mark.parametrize("choice", ["entropy", "argmin"])
def test_cut_and_resumed_it_is_the_same_run(choice: str):
    saved: list[dict[str, Any]] = []
    recipe = make("refine-nsp", positions=choice, minibatches=2)
    whole = run(*start(recipe), after=lambda state, metrics: saved.append(copy.deepcopy(state.state_dict())))
    _, resumed = start(recipe, seed=9)
    resumed.load_state_dict(saved[1])
    run(recipe, resumed)
    assert resumed.spent == whole.spent
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))


def test_what_its_options_mean():
    (collect, _) = make("refine-nsp", reward="binary", positions="uniform", chunks=4, length=3, temperature=0.5).stages[0].steps
    assert collect.source == Continuations(3, "binary", "uniform", 0.5, whole=collect.source.whole) and collect.source.whole.group == 4
    ((_, fit),) = make("refine-nsp").fits(Objective)
    assert {name: term.weight for name, term in fit.loss.terms.items()} == {"policy": 0.2, "sft": 1.0}
