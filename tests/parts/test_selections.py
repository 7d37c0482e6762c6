"""Selections by hand."""

from __future__ import annotations

import torch

from quatrain.batch import Batch, Origin
from quatrain.parts.needs import needs_of
from quatrain.parts.selections import Finished, demonstrations, every_action, rollouts

MASK = torch.tensor([[True, True, False], [True, True, True]])
BATCH = Batch(
    MASK,
    torch.zeros(2, 3),
    columns={
        "origin": torch.tensor(
            [[Origin.DEMONSTRATION, Origin.POLICY, Origin.POLICY], [Origin.POLICY, Origin.TEACHER, Origin.DEMONSTRATION]]
        ),
        "truncated": torch.tensor([[False, False, True], [False, False, True]]),
    },
)


def test_by_who_chose_the_action():
    """An origin is of an action, not of a row: a demonstrated prefix may be continued."""
    assert torch.equal(every_action(BATCH), MASK)
    assert rollouts(BATCH).tolist() == [[False, True, False], [True, False, False]]
    assert demonstrations(BATCH).tolist() == [[True, False, False], [False, False, True]]
    assert needs_of(rollouts) == needs_of(demonstrations) == ("origin",) and needs_of(every_action) == ()


def test_finished_leaves_out_trajectories_that_were_cut():
    assert Finished()(BATCH).tolist() == [[True, True, False], [False, False, False]]  # what is no action was not cut
    assert needs_of(Finished()) == ("truncated",)
