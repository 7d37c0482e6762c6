"""The edit that probes: what it predicts before it has learnt, crossed targets, the closed form, the window, cut and resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.models.features import row_statistics
from quatrain.models.probes import fit_probe
from quatrain.protocols import Sampling
from quatrain.training.entropies import ScoreEntropy
from quatrain.training.probe import MEMORY, ProbeValue
from quatrain.training.state import State
from tests.toy import ToyTask

TASK = ToyTask(prompts=4, length=3)


def state() -> State:
    return State(task=TASK, models={"policy": TASK.policy()})


def rollout(here: State, seed: int, group: int = 2) -> Batch:
    batch = TASK.rollout(here.models["policy"], [0, 1, 2, 3], group, Sampling(max_actions=3), seed)
    return ScoreEntropy(micro_tokens=64)(here, batch)


def edit(**fields: float) -> ProbeValue:
    return ProbeValue(**{"penalty": 0.5, **fields}, micro_tokens=64)


def test_first_a_constant_then_the_closed_form_of_earlier_batches():
    here, probe = state(), edit()
    first, second = rollout(here, 1), rollout(here, 2)
    assert probe(here, first)["probe_value"].tolist() == [0.5] * 8 and "probe/explained" not in here._tally
    found = probe(here, second)["probe_value"]
    z = [row_statistics(batch["old_entropy"], batch.mask).float() for batch in (first, second)]
    crossed = first["reward"].double().view(4, 2).flip(1).flatten()
    assert torch.allclose(found, fit_probe(z[0], crossed, 32, 0.5)(z[1])) and found.std() > 0
    assert "probe/explained" in here._tally


def test_it_has_not_seen_the_batch_that_it_judges():
    """Other rewards in the batch leave its own predictions, and change the next ones."""
    values = []
    for flip in (False, True):
        here, probe = state(), edit()
        probe(here, rollout(here, 1))
        batch = rollout(here, 2)
        if flip:
            batch = batch.with_rows(reward=1 - batch["reward"])
        values.append((probe(here, batch)["probe_value"], probe(here, rollout(here, 3))["probe_value"]))
    assert torch.equal(values[0][0], values[1][0]) and not torch.equal(values[0][1], values[1][1])


def test_targets_are_the_others_mean_and_the_oldest_are_forgotten():
    here = state()
    batch = rollout(here, 1, group=3)
    edit(window=10)(here, batch)
    reward = batch["reward"].double().view(4, 3)
    others = ((reward.sum(1, keepdim=True) - reward) / 2).flatten()
    assert torch.allclose(here.memory[MEMORY]["targets"], others[-10:])
    kept = here.memory[MEMORY]["targets"]
    edit(window=10)(here, rollout(here, 2))
    assert here.memory[MEMORY]["targets"] is not kept and torch.equal(here.memory[MEMORY]["targets"][:2], kept[-2:])
    alone = state()
    edit()(alone, rollout(alone, 1, group=1))
    assert MEMORY not in alone.memory


def test_hidden_states_come_in_the_batchs_order_whatever_the_micro_batches():
    here = state()
    here.models["policy"].features = lambda part, layers: torch.stack([part["prompt"] * layers, part["seed"], part.lengths], 1).float()
    batch = rollout(here, 1)
    whole, cut = (replace(edit(layers=2), micro_tokens=size).features(here.models["policy"], batch) for size in (10**6, 4))
    assert torch.equal(whole, cut) and whole[:, 0].tolist() == (2 * batch["prompt"]).tolist() and whole.shape[1] == 3 + 5


def test_a_checkpoint_holds_it():
    here, probe = state(), edit()
    probe(here, rollout(here, 1))
    kept = here.state_dict()
    expected = probe(here, rollout(here, 2))["probe_value"]
    other = state()
    other.load_state_dict(kept)
    assert torch.equal(probe(other, rollout(other, 2))["probe_value"], expected)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"components": 0}, {"window": 0}, {"penalty": 0.0}])
def test_settings_out_of_range_are_refused(wrong: dict):
    with pytest.raises(QuatrainError, match="probe's setting"):
        ProbeValue(**wrong)
