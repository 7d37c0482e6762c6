"""single-stream-po: autograd of the surrogate with a tracked baseline; and a whole run's trackers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quatrain.rollout.value_store import recall
from quatrain.training.driver import build, run
from quatrain.training.registry import make
from quatrain.training.state import State
from tests.toy import Case, ToyTask, assert_same, autograd, case, gradient


def advantages(here: Case, tracked: bool) -> Tensor:
    raw = here.batch["reward"] - (here.batch["tracked_value"] if tracked else 0.0)
    return ((raw - raw.mean()) / (raw.std() + 1e-8))[:, None]


def paper(here: Case, tracked: bool, low: float = 0.2, high: float = 0.28, dual: float = 10.0) -> Tensor:
    r, a, mask = here.ratio(), advantages(here, tracked), here.batch.mask
    surrogate = torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a)
    surrogate = torch.where(a < 0, torch.maximum(surrogate, dual * a), surrogate)
    return -surrogate[mask].mean()


@pytest.mark.parametrize("baseline", ["tracked", "batch"])
@pytest.mark.parametrize(("low", "high", "dual"), [(0.2, 0.28, 10.0), (0.1, 0.4, 1.5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, low: float, high: float, dual: float, baseline: str):
    here = case(seed)
    recipe = make("single-stream-po", baseline=baseline, clip_low=low, clip_high=high, dual=dual)
    assert_same(gradient(recipe, here), autograd(paper(here, baseline == "tracked", low, high, dual), here))


def test_a_prompt_that_is_always_solved_still_says_something():
    """All rewards 1: GRPO has no signal; against the tracked values the surprising successes count more."""
    here = case(2)
    here = replace(here, batch=here.batch.with_rows(reward=torch.ones_like(here.batch["reward"])))
    assert not gradient(make("grpo", kl=0.0), here).any()
    found = advantages(here, True)[:, 0]
    assert_same(gradient(make("single-stream-po"), here), autograd(paper(here, True), here))
    assert found.argmax() == here.batch["tracked_value"].argmin()


def test_the_same_value_everywhere_is_no_baseline_but_the_mean():
    here = case(3)
    here = replace(here, batch=here.batch.with_rows(tracked_value=torch.full_like(here.batch["reward"], 0.3)))
    assert_same(gradient(make("single-stream-po"), here), gradient(make("single-stream-po", baseline="batch"), here), 1e-12)


def test_a_run_tracks_every_prompt_of_its_pool_and_charges_what_it_asked():
    task, recipe = ToyTask(prompts=4, length=3), make("single-stream-po", pool=4, offline=5)
    state = State(task=task, models={"policy": task.policy()}, knobs={"steps": 6, "prompts": 3, "lr": 0.1, "max_actions": 3})
    build(recipe, state, {})
    state.models["policy"].module.requires_grad_(True)
    run(recipe, state)
    known = recall(state.memory)
    assert known["prompt"].tolist() == [0, 1, 2, 3] and state.spent["trajectories"] == 4 * 5 + 6 * 3
    batch = state.stores["fresh"]
    assert len(batch["prompt"].unique()) == len(batch) == 3
    for row in range(3):  # the last response of each prompt is what is kept
        place = int((known["prompt"] == batch["prompt"][row]).nonzero())
        assert torch.equal(known.actions[place], batch.actions[row])
        mine = known["alpha"][place] / (known["alpha"] + known["beta"])[place]
        assert (mine > batch["tracked_value"][row]) == (batch["reward"][row] > batch["tracked_value"][row])
