"""pairuni: autograd of pair-GRPO written plainly; weights and groups by hand; both sides in one update; the cosine of their gradients."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.experiments.miniatures.pair_gradients import agreement, pair_gradients
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.aggregations import PerGroup, sequence_mean
from quatrain.parts.sides import PerSide, Powered, pair_mean
from quatrain.rollout.sides import BothSides, Sides
from quatrain.rollout.sources import OnPolicy
from quatrain.tasks.shapes import shapes
from quatrain.training.registry import make
from quatrain.training.state import State
from tests.recipes.test_grpo import paper as grpo_loss
from tests.toy import Case, ToyTask, assert_same, autograd, case, fit_of, gradient


def paired(seed: int = 0, similarity: Tensor | None = None) -> Case:
    """Six prompts of four rows: three pairs, whose understanding side is the first prompt."""
    here = case(seed, prompts=6, stale=0.4)
    prompt = torch.arange(24) // 4
    similarity = torch.tensor([0.64, 1.0, 0.7], dtype=torch.float64) if similarity is None else similarity
    rows = {"pair": prompt // 2 * 5, "side": prompt % 2, "similarity": similarity[prompt // 2]}
    return replace(here, batch=here.batch.with_rows(**rows))


def paper(here: Case, power: float = 0.5, clip: float = 0.2, sides: tuple[int, ...] = (0, 1)) -> Tensor:
    """Pair by pair and side by side, in loops."""
    batch, ratio, total = here.batch, here.ratio(), torch.zeros((), dtype=torch.float64)
    pairs = batch["pair"].unique()
    for pair in pairs:
        for side in sides:
            rows = ((batch["pair"] == pair) & (batch["side"] == side)).nonzero()[:, 0].tolist()
            reward = batch["reward"][rows]
            for row, own in zip(rows, reward, strict=True):
                advantage = (own - reward.mean()) / (reward.std() + 1e-6) * batch["similarity"][row] ** power
                mask = batch.mask[row]
                here_ratio = ratio[row][mask]
                total = total + torch.minimum(here_ratio * advantage, here_ratio.clamp(1 - clip, 1 + clip) * advantage).mean() / len(rows)
    return -total / len(pairs)


@pytest.mark.parametrize(("power", "clip"), [(0.5, 0.2), (0.0, 0.2), (1.0, 0.05)])
def test_the_gradient(power: float, clip: float):
    for seed in (0, 1):
        here = paired(seed)
        assert_same(gradient(make("pairuni", group=4, power=power, clip=clip), here), autograd(paper(here, power, clip), here))


def test_with_similarity_one_it_is_pair_grpo_without_weights():
    same = paired(similarity=torch.ones(3, dtype=torch.float64))
    assert torch.equal(gradient(make("pairuni"), same), gradient(make("pairuni", power=0.0), same))
    assert torch.equal(gradient(make("pairuni", power=0.0), paired()), gradient(make("pairuni", power=0.0), same))
    assert_same(gradient(make("pairuni"), same), 2 * autograd(grpo_loss(same), same))
    weighed = gradient(make("pairuni"), paired())
    assert not torch.allclose(weighed, gradient(make("pairuni"), same))


def test_without_pairs_it_is_grpo():
    here = paired(1)
    alone = replace(here, batch=here.batch.with_rows(pair=here.batch["prompt"], side=torch.zeros(24), similarity=torch.ones(24)))
    assert_same(gradient(make("pairuni"), alone), gradient(make("grpo", kl=0.0), alone), 1e-13)


def test_the_weight_is_the_root_and_is_on_both_sides():
    batch = paired().batch
    weight = Powered("similarity", 0.5)(batch)
    assert weight[:4].tolist() == weight[4:8].tolist() == pytest.approx([0.8] * 4) and weight[8:16].tolist() == [1.0] * 8
    assert (Powered("similarity", 0.0)(batch) == 1).all()
    assert make("pairuni").stages[0].steps[1].loss.terms["policy"].weight == Powered("similarity", 0.5)
    with pytest.raises(QuatrainError, match="a power of 0 or more"):
        Powered("similarity", -0.5)
    with pytest.raises(QuatrainError, match="no weight"):
        Powered("similarity")(batch.with_rows(similarity=torch.full((24,), -0.1)))


def test_normalisation_never_mixes_the_sides():
    """Both sides under one prompt key: what is seen on one is nothing to the other."""
    reward = torch.tensor([1.0, 5.0, 0.0, 7.0])
    batch = Batch(torch.ones(4, 1, dtype=torch.bool), torch.zeros(4, 1), rows={"prompt": torch.zeros(4), "reward": reward})
    batch = batch.with_rows(side=torch.tensor([0, 1, 0, 1]))
    part = PerSide(GroupRelative(scale="none"))
    assert part(batch).tolist() == [0.5, -1.0, -0.5, 1.0]
    assert part(batch.with_rows(reward=torch.tensor([1.0, 50.0, 0.0, 70.0])))[[0, 2]].tolist() == [0.5, -0.5]
    assert set(part.needs) == {"side", "prompt", "reward"}
    here = paired()
    assert torch.equal(part(here.batch), GroupRelative(scale="none")(here.batch))


def test_pairs_are_averaged_and_sides_summed():
    batch = paired().batch
    assert torch.allclose(pair_mean(batch, batch.mask), 2 * sequence_mean(batch, batch.mask))
    assert float(pair_mean(batch, batch.mask).sum()) == pytest.approx(2.0)
    uneven = batch.take(torch.arange(2, 24))  # a side with two rows counts as much as one with four
    found = pair_mean(uneven, uneven.mask).sum(1)
    assert found.tolist() == pytest.approx([1 / 6] * 2 + [1 / 12] * 20)
    alone = batch.with_rows(pair=batch["prompt"])
    assert torch.allclose(pair_mean(alone, batch.mask), PerGroup(actions="mean")(alone, batch.mask))


# -- what is drawn -----------------------------------------------------------------------------------------------------
class Recorded:
    """A task of shapes whose rollouts are only written down."""

    provides = frozenset({"reward", "prompt"})

    def __init__(self):
        self.task = shapes("shapes?train=64&pool=16")
        self.splits, self.starts = self.task.splits, self.task.starts

    def rollout(self, policy, starts, group, sampling, seed) -> Batch:
        n = len(starts) * group
        ones = torch.ones(n, 1, dtype=torch.bool)
        columns = {name: torch.zeros(n, 1) for name in ("behaviour_logp", "old_logp")} | {"truncated": ~ones}
        ids = torch.tensor([start.id for start in starts]).repeat_interleave(group)
        return Batch(ones, torch.zeros(n, 1, dtype=torch.long), columns, {"prompt": ids, "reward": torch.zeros(n)})


def test_both_sides_of_a_pair_are_in_one_batch():
    state = State(Recorded(), {"policy": SimpleNamespace()})
    batch = BothSides(OnPolicy(group=3, prompts=8, temperature=1.0, top_p=1.0, top_k=0, max_actions=4), "retrieved")(state)
    batch = Sides()(state, batch)
    assert len(batch) == 24 and state.cursors == {"retrieved": 4} and len(batch["prompt"].unique()) == 8
    for pair in batch["pair"].unique():
        rows = batch.take(batch["pair"] == pair)
        assert rows["side"].tolist() == [0] * 3 + [1] * 3 and len(rows["similarity"].unique()) == 1
        assert 0.6 <= float(rows["similarity"][0]) <= 1
        assert [start.data["kind"] for start in rows.notes["start"]] == ["understanding"] * 3 + ["generation"] * 3


def test_a_task_without_pairs_is_learnt_from_item_by_item():
    task = ToyTask()
    state = State(task, {"policy": task.policy()})
    source = BothSides(OnPolicy(group=2, prompts=4, temperature=1.0, top_p=1.0, top_k=0, max_actions=3), "related")
    batch = Sides()(state, source(state))
    assert torch.equal(batch["pair"], batch["prompt"]) and not batch["side"].any() and (batch["similarity"] == 1).all()
    assert source.provides(task) == source.source.provides(task)


# -- how much the sides agree ------------------------------------------------------------------------------------------
def shared(seed: int = 0) -> Case:
    """The states of all rows are those of four rows, so that the sides share weights."""
    here = paired(seed)
    return replace(here, batch=here.batch.with_columns(state=here.batch["state"] % 20))


def test_the_cosine_is_that_of_autograd():
    here, fit = shared(), fit_of(make("pairuni", group=4), micro_tokens=7)
    sides = [autograd(paper(here, sides=(side,)), here) for side in (0, 1)]
    expected = float((sides[0] * sides[1]).sum() / sides[0].norm() / sides[1].norm())
    assert agreement(fit, here.policy, here.batch) == pytest.approx(expected, rel=1e-10) and abs(expected) > 1e-3


def test_the_gradients_of_single_pairs():
    here, fit = shared(3), fit_of(make("pairuni", group=4, power=0.0), micro_tokens=1000)
    found = pair_gradients(fit, here.policy, here.batch)
    reward = here.batch["reward"].view(3, 2, 4)
    mixed = (reward.std(2) > 0).all(1)
    assert found.shape[:2] == (2, int(mixed.sum())) and found.shape[1] > 0
    assert torch.allclose(found.norm(dim=2), torch.ones(found.shape[:2], dtype=found.dtype))
    first = here.batch["pair"] == here.batch["pair"].unique()[mixed][0]
    alone = replace(here, batch=here.batch.take(first))
    one = autograd(paper(alone, 0.0, sides=(1,)), alone).flatten()
    assert torch.allclose(found[1, 0], one / one.norm())
