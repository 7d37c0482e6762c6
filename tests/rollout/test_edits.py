"""Edits by hand."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch, Origin
from quatrain.errors import QuatrainError
from quatrain.rollout.edits import AddDemonstrations, OverlongPenalty
from quatrain.rollout.sources import OnPolicy
from quatrain.training.state import State
from tests.toy import ToyTask


def test_every_start_gets_its_demonstration_once():
    task = ToyTask()
    here = State(task=task, models={"policy": task.policy()})
    batch = OnPolicy(group=3, prompts=4, max_actions=3)(here)
    both = AddDemonstrations()(here, batch)
    assert len(both) == 12 + 3 and both["prompt"][12:].tolist() == [0, 1, 2]  # the last problem has none
    assert (both["origin"][12:] == Origin.DEMONSTRATION).all() and (both["origin"][:12] == Origin.POLICY).all()
    assert both["reward"][12:].isnan().all() and both["old_logp"][12:].isnan().all() and not both["truncated"][12:].any()
    assert torch.equal(both["reward"][:12], batch["reward"]) and here.spent["demonstrations"] == 3


def test_without_any_demonstration_the_batch_stays():
    task = ToyTask(prompts=1)
    here = State(task=task, models={"policy": task.policy()})
    batch = OnPolicy(group=2, prompts=1, max_actions=3)(here)
    assert torch.equal(AddDemonstrations()(here, batch).actions, batch.actions)


def test_the_overlong_penalty():
    """DAPO, eq. 13, with a limit of 10 and a cache of 4: nothing to 6, then a quarter per action, −1 at 10."""
    lengths = torch.tensor([3, 6, 7, 8, 10, 12])
    mask = torch.arange(12) < lengths[:, None]
    batch = Batch(mask, torch.zeros(6, 12), rows={"reward": torch.ones(6)})
    found = OverlongPenalty(10, 4)(None, batch)["reward"]
    assert found.tolist() == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.0, 0.0])


@pytest.mark.parametrize("cache", [0, 11])
def test_a_cache_out_of_range(cache: int):
    with pytest.raises(QuatrainError, match="overlong cache"):
        OverlongPenalty(10, cache)
