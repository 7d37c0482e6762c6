"""Trackers of prompts' values: the recursion, what is forgotten, what is known before and after, and that a checkpoint holds it."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.protocols import Sampling
from quatrain.rollout.prioritised import Prioritised, StartValues, WholePool, undecided
from quatrain.rollout.sources import OnPolicy
from quatrain.rollout.value_store import recall
from quatrain.training import checkpoint
from quatrain.training.state import State
from quatrain.training.value_tracker import TrackValue
from tests.toy import TabularPolicy, ToyTask, plain_logp

TASK = ToyTask(prompts=4, length=3)


def state() -> State:
    return State(task=TASK, models={"policy": TASK.policy()})


def rollout(here: State, prompts: list[int], rewards: list[float], seed: int = 0) -> Batch:
    """One response of the present policy to each prompt, with rewards by hand."""
    batch = TASK.rollout(here.models["policy"], prompts, 1, Sampling(max_actions=3), seed)
    return batch.with_rows(reward=torch.tensor(rewards, dtype=torch.float64))


def tracker(**fields: float) -> TrackValue:
    return TrackValue(**fields, micro_tokens=64)


def move(here: State, shift: float) -> None:
    with torch.no_grad():
        here.models["policy"].table[:, 0] += shift


def test_without_forgetting_the_value_is_the_running_mean():
    """The prior counts as one observation of ½. Each value is the one before its own reward."""
    here, edit = state(), tracker(least=1.0, most=1.0, start=0.0)
    rewards, seen = [1.0, 0.0, 0.0, 1.0, 1.0], []
    for reward in rewards:
        seen.append(float(edit(here, rollout(here, [2], [reward]))["tracked_value"]))
        move(here, 0.3)
    assert seen == pytest.approx([(0.5 + sum(rewards[:n])) / (1 + n) for n in range(5)], rel=1e-12)


def test_the_count_converges_to_one_over_what_is_forgotten():
    here, edit = state(), tracker(least=0.9, most=0.9)
    for _ in range(200):
        edit(here, rollout(here, [1], [1.0]))
    known = recall(here.memory)
    assert float(known["alpha"] + known["beta"]) == pytest.approx(10.0, rel=1e-6) and float(known["beta"]) < 1e-6


def test_what_is_forgotten_depends_on_how_far_the_policy_has_moved():
    """D = D_half: half; beyond ρ_min's D: ρ_min; unmoved, or never met: ρ_max."""
    here = state()
    first = rollout(here, [0, 3], [1.0, 0.0])
    tracker(most=0.96)(here, first)
    assert recall(here.memory)["alpha"].tolist() == pytest.approx([0.96 * 4 + 1, 0.96 * 4])
    before = here.models["policy"].table.detach().clone()
    move(here, 0.5)
    gap = (plain_logp(before, first) - plain_logp(here.models["policy"].table.detach(), first)).abs()
    moved = torch.where(first.mask, gap, 0.0).sum(1) / first.mask.sum(1)
    assert (moved > 0.01).all()
    alpha = recall(here.memory)["alpha"].clone()
    memory = dict(here.memory)
    tracker(half=float(moved[0]), least=0.0, most=1.0)(here, rollout(here, [0], [0.0]))
    known = recall(here.memory)
    assert float(known["alpha"][0]) == pytest.approx(0.5 * float(alpha[0]), rel=1e-9) and known["alpha"][1] == alpha[1]
    here.memory = memory
    tracker(half=1e-6)(here, rollout(here, [0, 3], [0.0, 0.0]))
    assert torch.allclose(recall(here.memory)["alpha"], 0.875 * alpha, rtol=1e-12)


def test_two_rows_of_one_prompt_see_one_value_and_forget_once():
    here, edit = state(), tracker()
    batch = edit(here, rollout(here, [3, 0, 3], [1.0, 0.0, 0.0]))
    assert batch["tracked_value"].tolist() == [0.5] * 3
    known = recall(here.memory)
    assert known["prompt"].tolist() == [0, 3]
    assert known["alpha"].tolist() == pytest.approx([3.84, 4.84]) and known["beta"].tolist() == pytest.approx([4.84, 4.84])
    assert torch.equal(known.actions[1], batch.actions[2])  # the last of the two is kept


def test_offline_responses_begin_a_tracker():
    """3 of 4 solved: α = 8·3.5/5, β = 8·1.5/5; the value is 0.7."""
    here = state()
    StartValues()(here, rollout(here, [1, 1, 1, 1], [1.0, 0.0, 1.0, 1.0]))
    assert float(recall(here.memory)["alpha"]) == pytest.approx(5.6) and float(recall(here.memory)["beta"]) == pytest.approx(2.4)
    assert float(tracker()(here, rollout(here, [1], [0.0]))["tracked_value"]) == pytest.approx(0.7)


@pytest.mark.parametrize("fields", [{"least": 0.97}, {"most": 1.1}, {"half": 0.0}, {"start": 1.0}])
def test_nonsense_is_refused(fields: dict):
    with pytest.raises(QuatrainError, match="out of range"):
        TrackValue(**fields)
    with pytest.raises(QuatrainError, match="above 0"):
        Prioritised(OnPolicy(), 4, floor=0.0)


def test_undecided_prompts_are_drawn_more_often():
    """Each draw of one prompt of four is as likely as its weight; nothing is drawn twice in one batch."""
    here = state()
    WholePool(OnPolicy(group=1, max_actions=3), 4)(here)
    StartValues()(here, rollout(here, [0, 0, 1, 1, 2, 2, 3, 3], [0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]))
    value = recall(here.memory)["alpha"] / 8
    assert value.tolist() == pytest.approx([1 / 6, 1 / 2, 5 / 6, 1 / 6])
    weight = undecided(value, 0.05)
    assert weight.argmax() == 1 and torch.allclose(weight[0], weight[2])
    draw = Prioritised(OnPolicy(prompts=1, max_actions=3), 4)
    drawn = torch.cat([draw(here)["prompt"] for _ in range(2000)])
    assert torch.allclose(drawn.bincount(minlength=4) / 2000, (weight / weight.sum()).float(), atol=0.04)
    whole = Prioritised(OnPolicy(prompts=4, max_actions=3), 4)(here)
    assert sorted(whole["prompt"].tolist()) == [0, 1, 2, 3]


def test_a_checkpoint_holds_the_trackers(tmp_path):
    here = state()
    tracker()(here, rollout(here, [0, 2], [1.0, 0.0]))
    there = State(task=TASK, models={"policy": TabularPolicy(torch.zeros_like(TASK.policy().table))})
    there.load_state_dict(checkpoint.load(checkpoint.save(tmp_path, 1, here.state_dict())))
    move(here, 0.2)
    move(there, 0.2)
    for run in (here, there):
        tracker()(run, rollout(run, [0, 1], [1.0, 1.0], seed=3))
    ours, theirs = recall(here.memory), recall(there.memory)
    assert torch.equal(ours["alpha"], theirs["alpha"]) and ours["prompt"].tolist() == [0, 1, 2]
    assert all(torch.equal(value.nan_to_num(), theirs[name].nan_to_num()) for name, value in ours.columns.items())
