from __future__ import annotations

import torch

from quatrain.batch import Batch
from quatrain.experiments.doctor.gradients import soil, with_tool_output

MASK = torch.tensor([[True, True, True, True, True, True], [True, True, False, False, False, False]])


def rows() -> Batch:
    return Batch(
        MASK,
        torch.arange(12).view(2, 6),
        {"old_logp": torch.zeros(2, 6), "version": torch.arange(12).view(2, 6)},
        {"prompt": torch.tensor([0, 1])},
        {"policy": {"tokens": torch.tensor([[1, 2, 3], [1, 0, 0]]), "mask": torch.tensor([[True] * 3, [True, False, False]])}},
    )


def test_soil_changes_padding_and_nothing_else():
    before, after = rows(), soil(rows(), nan=True)
    assert torch.equal(after.actions[MASK], before.actions[MASK]) and not torch.equal(after.actions, before.actions)
    assert torch.equal(after["old_logp"].isnan(), ~MASK)
    assert torch.equal(after["version"][MASK], before["version"][MASK])
    prompt = before.contexts["policy"]["mask"]
    assert torch.equal(after.contexts["policy"]["tokens"][prompt], before.contexts["policy"]["tokens"][prompt])


def test_observations_are_soiled_beyond_the_last_one_that_was_seen():
    seen = Batch(MASK, torch.zeros(2, 6), contexts={"policy": {"observations": torch.zeros(2, 7, 1)}})
    found = soil(seen, nan=True).contexts["policy"]["observations"][..., 0].isnan()
    assert found.tolist() == [[False] * 7, [False] * 3 + [True] * 4]


def test_tool_output_is_present_and_no_action():
    made, mask = with_tool_output(rows())
    assert mask.tolist() == [[True, False, True, True, True, False], MASK[1].tolist()]
    assert torch.equal(made.mask, mask) and torch.equal(made.present, MASK)
