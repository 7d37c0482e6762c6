"""Publishing weights to a sampler: when, and how they are rounded."""

from __future__ import annotations

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.recipes.basics.asynchronous import asynchronous
from quatrain.recipes.basics.grpo import grpo
from quatrain.training.driver import build, run
from quatrain.training.publish import Publish, rounded
from quatrain.training.state import State
from quatrain.training.steps import Collect
from tests.toy import ToyTask, plain_logp


def test_eight_digits_are_bfloat16_and_eleven_are_half_precision():
    value = torch.randn(10000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(value, 8), value.bfloat16().float())
    assert torch.equal(rounded(value, 11), value.half().float()) and rounded(value, 0) is value


@pytest.mark.parametrize("fields", [{"every": 0}, {"bits": -1}])
def test_nonsense_is_refused(fields: dict):
    with pytest.raises(QuatrainError, match="out of range"):
        Publish("policy", "sampler", **fields)


def test_an_unknown_model_is_refused():
    with pytest.raises(QuatrainError, match="a Publish names a model"):
        Publish("policy", "engine").check(None, {"policy"}, {})


def test_an_engine_that_is_exact_and_never_late_is_no_simulation():
    assert asynchronous(grpo()) == grpo()


@pytest.mark.parametrize("bits", [0, 4])
def test_a_late_and_rounded_engine(bits: int):
    """Every trajectory is of the version at rounds 0, 2, 4 …; the behaviour is the rounded weights', the old one the exact weights'."""
    task = ToyTask(length=3)
    recipe = asynchronous(grpo(kl=0.0), refresh=2, bits=bits)
    state = State(task=task, models={"policy": task.policy()}, knobs={"steps": 5, "prompts": 8, "lr": 0.1, "max_actions": 3})
    build(recipe, state, {})
    for model in state.models.values():
        model.module.requires_grad_(True)
    weights, ages = [state.models["policy"].table.detach().clone()], []

    def after(state: State, metrics: dict) -> None:
        batch, done = state.stores["fresh"], state.step - 1
        sampled = weights[done - done % 2]
        assert set(batch["version"][batch.mask].tolist()) == {done - done % 2}
        for name, table in (("old_logp", sampled), ("behaviour_logp", rounded(sampled, bits))):
            assert torch.allclose(batch[name][batch.mask], plain_logp(table, batch)[batch.mask], atol=1e-12)
        assert bits == 0 or not torch.allclose(batch["old_logp"], batch["behaviour_logp"])
        weights.append(state.models["policy"].table.detach().clone())
        ages.append(done % 2)

    run(recipe, state, after=after)
    assert ages == [0, 1, 0, 1, 0] and sum(isinstance(step, Collect) for step in recipe.stages[0].steps) == 1
