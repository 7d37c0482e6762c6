"""poise: autograd of the clipped surrogate with crossed predictions; its limits; whole runs of a language model, cut and resumed."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quatrain.errors import QuatrainError
from quatrain.parts.aggregations import token_mean
from quatrain.parts.baselines import Affine
from quatrain.training.driver import build, run
from quatrain.training.probe import MEMORY
from quatrain.training.registry import make
from quatrain.training.state import State
from tests.toy import Case, ToyTask, assert_same, autograd, case, gradient


def advantages(here: Case, baseline: str, group: int) -> Tensor:
    """Twin by twin, written out."""
    r, g = (here.batch[name].double().tolist() for name in ("reward", "probe_value"))
    found = []
    for i in range(len(r)):
        others = [j for j in range(i // group * group, i // group * group + group) if j != i]
        source = r if baseline == "others" else g
        found.append(r[i] - (g[i] if baseline == "self" else sum(source[j] for j in others) / len(others)))
    return torch.tensor(found, dtype=torch.float64)[:, None]


def paper(here: Case, baseline: str, group: int, clip: float) -> Tensor:
    r, a = here.ratio(), advantages(here, baseline, group)
    return -torch.minimum(r * a, r.clamp(1 - clip, 1 + clip) * a)[here.batch.mask].mean()


@pytest.mark.parametrize("baseline", ["probe", "self", "others"])
@pytest.mark.parametrize(("group", "clip"), [(2, 0.2), (2, 0.05), (4, 0.2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, group: int, clip: float, baseline: str):
    here = case(seed, prompts=5, group=group)
    recipe = make("poise", group=group, baseline=baseline, clip=clip)
    assert_same(gradient(recipe, here), autograd(paper(here, baseline, group, clip), here))


def test_a_constant_probe_is_reinforce_with_a_constant_baseline():
    here = case(2, prompts=6, group=2)
    here = replace(here, batch=here.batch.with_rows(probe_value=torch.full_like(here.batch["reward"], 0.4)))
    plain = make("grpo", group=2, kl=0.0).but(advantage=Affine(shift=-0.4), aggregation=token_mean)
    assert_same(gradient(make("poise"), here), gradient(plain, here), 1e-12)


def test_a_prompt_whose_rollouts_all_succeed_still_says_something():
    here = case(3, prompts=6, group=2)
    here = replace(here, batch=here.batch.with_rows(reward=torch.ones_like(here.batch["reward"])))
    assert not gradient(make("poise", baseline="others"), here).any()
    assert gradient(make("poise"), here).abs().max() > 1e-3


def test_a_single_rollout_has_no_twin():
    with pytest.raises(QuatrainError, match="sibling"):
        make("poise", group=1)
    assert make("poise", baseline="others").stages[0].steps[0].edits == ()


def test_advantages_are_fixed_before_the_probe_learns():
    """Within a round of several updates every one has the first's advantages; the pairs of this round are in the memory only after."""
    task, recipe = ToyTask(prompts=4, length=3), make("poise", epochs=2, minibatches=2, window=64)
    state = State(task=task, models={"policy": task.policy()}, knobs={"steps": 4, "prompts": 8, "lr": 0.1, "max_actions": 3})
    build(recipe, state, {})
    state.models["policy"].module.requires_grad_(True)
    sizes, values = [], []

    def look(state: State, metrics: dict) -> None:
        sizes.append(len(state.memory[MEMORY]["targets"]))
        values.append(state.stores["fresh"]["probe_value"])

    run(recipe, state, after=look)
    assert sizes == [16, 32, 48, 64] and values[0].tolist() == [0.5] * 16 and values[1].std() > 0
    assert state.spent["updates"] == 16


@pytest.mark.slow
def test_a_language_model_is_cut_and_resumed_bit_for_bit():
    from quatrain.tasks.letters import letters
    from quatrain.training.loading import load_tiny

    def start() -> State:
        knobs = {"steps": 3, "prompts": 4, "lr": 1e-3, "max_actions": 12}
        state = State(letters("letters", seed=1), {"policy": load_tiny("tiny")}, knobs=knobs)
        build(recipe, state, {})
        return state

    recipe, saved = make("poise", layers=2), []
    whole = run(recipe, start(), after=lambda state, metrics: saved.append(copy.deepcopy(state.state_dict())))
    resumed = start()
    resumed.load_state_dict(saved[1])
    run(recipe, resumed)
    for one, other in zip(whole.models["policy"].module.parameters(), resumed.models["policy"].module.parameters(), strict=True):
        assert torch.equal(one, other)
    width = whole.models["policy"].backbone.head.weight.shape[1]
    assert whole.memory[MEMORY]["features"].shape == (24, 4 * width + 5)
