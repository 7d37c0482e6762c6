"""One ``grpo`` recipe, unchanged, on policies of different kinds: it asks of a policy only that it samples and scores."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quatrain.environments.plane.task import PlaneTask
from quatrain.models.causal_lm import CausalLM
from quatrain.models.flow import FlowPolicy
from quatrain.training.driver import build, run
from quatrain.training.registry import make
from quatrain.training.state import State
from tests.tiny_diffusion import diffusion
from tests.tiny_models import tiny_model, tiny_tokenizer


def texts() -> Any:
    """Letter problems, rewarded for an even length: a random model has both."""
    from quatrain.tasks.letters import Problems
    from quatrain.tasks.text import TextTask

    items = Problems("train", kinds=("reverse",), levels=(1, 2), size=64)
    even = SimpleNamespace(score=lambda completions, items: [float(len(text) % 2 == 0) for text in completions])
    return TextTask("reverse", items, items, even)


# what it is → (task, policy), made anew
KINDS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "causal-lm": lambda: (texts(), CausalLM(tiny_model(), tiny_tokenizer())),
    "masked-diffusion-lm": lambda: (texts(), diffusion(canvas=8, block=4)),
    "gaussian": lambda: (PlaneTask("reach"), PlaneTask("reach").network((16, 16))),
    "flow": lambda: (
        PlaneTask("route"),
        FlowPolicy(PlaneTask("route").observation_size, PlaneTask("route").action_space, (16, 16), chain=2),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_recipe_trains_it(kind: str):
    """Before the first update the ratio to itself and to the reference is 1; then the weights move, by finite numbers."""
    task, policy = KINDS[kind]()
    recipe = make("grpo", group=4)
    state = State(task, {"policy": policy}, 0, knobs={**recipe.knobs(), "steps": 2, "prompts": 4, "lr": 1e-3, "max_actions": 8})
    build(recipe, state, {})
    before = [parameter.clone() for parameter in policy.module.parameters()]
    seen: list[dict[str, float]] = []
    run(recipe, state, after=lambda state, metrics: seen.append(dict(metrics)))
    assert abs(seen[0]["ratio"] - 1) < 1e-4 and seen[0]["clipped"] == 0 and seen[0]["skipped"] == 0
    assert state.spent["updates"] == 2 and all(seen[k]["gradient_norm"] > 0 for k in range(2))
    assert any(not torch.equal(one, other) for one, other in zip(before, policy.module.parameters(), strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in policy.module.parameters())
