from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from quatrain.experiments.doctor import memory
from quatrain.experiments.doctor.finding import ERROR, OK, WARNING
from quatrain.experiments.doctor.patient import Patient
from quatrain.training.settings import Settings
from tests.experiments.doctor.ward.setups import Setup, lora, text


def patient(setup: Setup, **knobs: float) -> Patient:
    return Patient(setup.task, setup.policy, setup.recipe, {**setup.recipe.knobs(), **setup.keys, **knobs}, Settings())


def test_weights_gradients_and_moments_by_hand():
    here = patient(text())
    found, count = memory.estimate(here), sum(p.numel() for p in here.policy.module.parameters())
    assert (found.weights, found.gradients, found.moments) == (4 * count, 4 * count, 8 * count)
    # 4 prompts of 4 in a group, 4 tokens + 32, 2 layers, keys and values, 2 heads of 8, fp32, and half as much again to grow
    assert found.cache == 16 * 36 * 2 * 2 * 2 * 8 * 4 * 3 // 2


def test_adapters_need_gradients_and_moments_for_themselves_alone():
    found = memory.estimate(patient(lora()))
    assert found.moments == 2 * found.gradients and found.gradients < 0.5 * found.weights


def test_micro_batches_bound_activations_and_logits():
    one, two = (memory.estimate(patient(text(), micro_tokens=tokens)) for tokens in (64, 128))
    assert two.activations == 2 * one.activations and two.logits == 2 * one.logits and two.cache == one.cache


@pytest.mark.parametrize(("factor", "severity"), [(10, OK), (1.1, WARNING), (0.9, ERROR)])
def test_too_little_is_an_error_and_little_a_warning(factor: float, severity: str, monkeypatch: pytest.MonkeyPatch):
    here = patient(text())
    need = memory.estimate(here).to_come
    monkeypatch.setattr(memory, "free_memory", lambda device: int(factor * need))
    (found,) = memory.check_memory(here)
    assert found.severity == severity
    assert "gradients" in found.seen


def test_free_memory_is_known_on_this_machine_and_not_on_others():
    assert memory.free_memory(torch.device("cpu")) > 10**7
    assert memory.free_memory(SimpleNamespace(type="other")) is None
