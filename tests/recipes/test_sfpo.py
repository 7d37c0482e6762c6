"""sfpo: whole updates beside the paper's procedure, written plainly on autograd of GRPO's loss."""

from __future__ import annotations

import copy

import pytest
import torch

from quatrain.training.driver import build, run
from quatrain.training.registry import make
from quatrain.training.state import State
from tests.recipes.test_grpo import paper
from tests.toy import Case, ToyTask, assert_same, autograd, case, fit_of, gradient


def fitted(recipe, here: Case, **knobs: float) -> torch.Tensor:
    """How far one whole update moves the table, through the Fit."""
    here = copy.deepcopy(here)
    state = State(ToyTask(), {"policy": here.policy}, stores={"fresh": here.batch}, knobs=knobs)
    before = here.policy.table.detach().clone()
    fit_of(recipe, **knobs)(state)
    return here.policy.table.detach() - before


def procedure(here: Case, fast: int, alpha: float, moments: str, kl: float, lr: float) -> torch.Tensor:
    here = copy.deepcopy(here)
    table = here.policy.table
    start = table.detach().clone()
    peer = torch.optim.AdamW([table], lr=lr, weight_decay=0.0)

    def step() -> None:
        table.grad = autograd(paper(here, kl=kl), here)
        torch.nn.utils.clip_grad_norm_([table], 1.0)
        peer.step()

    for _ in range(fast if alpha else 0):
        step()
    with torch.no_grad():
        table.copy_(start + alpha * (table - start))
    if moments == "rewound":
        peer.state.clear()
    step()
    return table.detach() - start


@pytest.mark.parametrize("moments", ["kept", "rewound"])
@pytest.mark.parametrize(("fast", "alpha", "kl"), [(3, 0.8, 0.04), (2, 0.3, 0.0), (1, 1.0, 0.04), (3, 0.0, 0.04)])
def test_one_update(fast: int, alpha: float, kl: float, moments: str):
    here = case(fast)
    found = fitted(make("sfpo", group=4, fast=fast, alpha=alpha, kl=kl, moments=moments), here, lr=0.05)
    assert_same(found, procedure(here, fast, alpha, moments, kl, 0.05), 1e-9)  # Adam divides by small roots


@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_is_grpos(seed: int):
    here = case(seed)
    assert_same(gradient(make("sfpo", group=4), here), autograd(paper(here, kl=0.04), here))


def test_without_fast_steps_it_is_grpo():
    here = case(1)
    expected = fitted(make("grpo"), here, lr=0.05)
    assert torch.equal(fitted(make("sfpo", alpha=0.0), here, lr=0.05), expected)
    assert torch.equal(fitted(make("sfpo", fast=0), here, lr=0.05), expected)
    assert not torch.equal(fitted(make("sfpo"), here, lr=0.05), expected)


def test_the_exit_turns_it_into_grpo():
    """The knob falls to 0 when the entropy leaves its window; from there on a round makes one gradient in place of four."""
    task = ToyTask()
    recipe = make("sfpo", window=2, threshold=1e-9)
    state = State(task, {"policy": task.policy()}, knobs={"steps": 4, "prompts": 8, "lr": 0.05, "max_actions": 3})
    build(recipe, state, {})
    seen = []

    def after(state: State, metrics: dict) -> None:
        (memory,) = state.optimizers["policy"].state.values()
        seen.append((state.knobs.get("alpha"), int(memory["step"])))

    run(recipe, state, after)
    assert seen == [(None, 4), (None, 8), (0.0, 12), (0.0, 13)]
    assert make("sfpo", leave="never").controllers == ()
