"""treepo: autograd of the whitened surrogate over subtrees, its limits, and a run on a language model that samples trees."""

from __future__ import annotations

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.models.causal_lm import CausalLM
from quatrain.parts.advantages import Centred, GroupRelative
from quatrain.protocols import Item
from quatrain.rollout.edits import OverlongPenalty
from quatrain.rollout.sources import DynamicSampling
from quatrain.tasks.text import TextTask
from quatrain.training.driver import build, run
from quatrain.training.registry import make
from quatrain.training.state import State
from quatrain.training.steps import Collect
from tests.parts.test_trees import plain
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.toy import Case, assert_same, autograd, case, gradient


def paper(here: Case, advantage: torch.Tensor) -> torch.Tensor:
    """The clipped surrogate of the advantage [N], whitened over the batch's tokens, averaged over them."""
    batch = here.batch
    tokens = advantage[:, None].expand(batch.shape)[batch.mask]
    whitened = torch.zeros(batch.shape, dtype=torch.float64)
    whitened[batch.mask] = (tokens - tokens.mean()) / (tokens.var(correction=0).sqrt() + 1e-8)
    ratio = here.ratio()
    surrogate = torch.minimum(ratio * whitened, ratio.clamp(0.8, 1.28) * whitened)
    return -surrogate[batch.mask].mean()


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("levels", ["average", "size"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, levels: str, drop: bool):
    here = case(seed, prompts=6)
    expected = paper(here, plain(here.batch, levels, drop))
    assert_same(gradient(make("treepo", group=4, levels=levels, drop=drop), here), autograd(expected, here))


def test_the_root_alone_is_the_groups_baseline():
    here = case(2, prompts=6)
    reward = here.batch["reward"].view(6, 4)
    found = gradient(make("treepo", group=4, levels="root"), here)
    assert_same(found, autograd(paper(here, (reward - reward.mean(1, keepdim=True)).flatten()), here))
    same = make("dapo", group=4, mean="batch").but(advantage=Centred(GroupRelative(scale="none"), scale=True))
    assert torch.equal(found, gradient(same, here))
    # a tree that parts at the root alone
    rows = torch.arange(len(here.batch))[:, None].expand(here.batch.shape)
    apart = Case(here.batch.with_columns(node=rows), here.policy, here.others)
    for levels in ("average", "size"):
        assert_same(gradient(make("treepo", group=4, levels=levels), apart), found, 1e-12)


def test_what_it_collects():
    (collect,) = (step for step in make("treepo", overlong_cache=8, children=3).stages[0].steps if isinstance(step, Collect))
    assert isinstance(collect.source, DynamicSampling) and isinstance(collect.edits[0], OverlongPenalty)
    assert collect.source.source.through.plan.children == 3
    with pytest.raises(QuatrainError, match="tree has segments"):
        make("treepo", segment=0)


class Digits:
    """The share of digits in the completion."""

    def score(self, completions: list[str], items: list[Item]) -> list[float]:
        return [sum(letter.isdigit() for letter in text) / max(1, len(text)) for text in completions]


def start(**options: object) -> tuple:
    tokenizer = tiny_tokenizer()
    policy = CausalLM(tiny_model(vocabulary=len(tokenizer), scale=3.0, hidden=16, layers=1), tokenizer)
    task = TextTask("words", [Item(1, "ab"), Item(2, "abcd"), Item(3, "b")], None, Digits())
    recipe = make("treepo", group=8, segment=3, first=3, **options)
    state = State(task, {"policy": policy}, knobs={"steps": 3, "prompts": 3, "lr": 1e-2, "max_actions": 10})
    build(recipe, state, {})
    return recipe, state


def test_a_run_samples_trees_pays_for_them_once_and_learns():
    seen: list[dict] = []
    state = run(*start(), after=lambda state, metrics: seen.append(dict(metrics)))
    again = run(*start())
    for one, other in zip(state.models["policy"].module.parameters(), again.models["policy"].module.parameters(), strict=True):
        assert torch.equal(one, other)
    batch = state.stores["fresh"]
    assert len(batch) == 24 and batch["node"].unique().numel() > 24 and 0.3 < seen[-1]["tree/sampled"] < 0.8
    assert all(abs(metrics["ratio"] - 1) < 1e-4 for metrics in seen)
    assert state.spent["trajectories"] == 72 and state.spent["tokens"] < 72 * 10
