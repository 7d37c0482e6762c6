"""The head of a language model as what a model of its update reads: features, moments, chunks; what is refused."""

from __future__ import annotations

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.models.backbone import split
from quatrain.models.scorer import last_layer
from quatrain.training.rules import AdamW
from tests.models.test_scorer import batch
from tests.tiny_models import tiny_model


@pytest.mark.parametrize("tied", [True, False])
def test_the_logits_are_the_weights_times_the_features(tied: bool):
    model, rows = tiny_model(vocabulary=30, tied=tied, dtype=torch.float64), batch()
    layer = last_layer(split(model), rows)
    logits = layer.distribution(slice(None)).z
    assert logits.shape == (int(rows.mask.sum()), 30) and layer.weight is model.get_output_embeddings().weight
    assert torch.allclose(layer.hidden @ layer.weight.T, logits, rtol=1e-9)


@torch.no_grad()
def test_however_it_is_cut_with_the_moments_of_the_optimiser():
    """Moments are those of the parameter, as an ascent; one action at a time gives the same shifts."""
    model, rows = tiny_model(vocabulary=30, tied=False, dtype=torch.float64), batch(support=True)
    rule, action, advantage = AdamW(lr=1e-3), rows.actions[rows.mask], torch.randn(int(rows.mask.sum()), dtype=torch.float64)
    optimizer = rule.start(model)
    whole, pieces = (last_layer(split(model), rows, chunk_elements=elements) for elements in (2**20, 1))
    assert whole.moments(None) is None and whole.moments(optimizer) is None
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    whole.weight.grad = -2 * torch.ones_like(whole.weight)
    rule.update(optimizer, lambda: None)
    moments = whole.moments(optimizer)
    assert moments.steps == 1 and (moments.mean > 0).all() and torch.equal(moments.square, optimizer.state[whole.weight]["exp_avg_sq"])
    for top in (0, 4):
        for one, other in zip(*(layer.shifts(action, advantage, 1e-3, moments, top) for layer in (whole, pieces)), strict=True):
            assert torch.allclose(one, other, rtol=1e-9) and torch.isfinite(one).all() and one.abs().max() > 0


def test_masters_of_16_bit_weights_have_the_moments():
    model = tiny_model(vocabulary=30, tied=False, dtype=torch.bfloat16)
    optimizer = AdamW(lr=1e-3).start(model)
    layer = last_layer(split(model), batch())
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.gather()
    optimizer.step()
    assert layer.hidden.dtype == torch.float32 and layer.moments(optimizer).mean.dtype == torch.float32


def test_no_actions_have_no_shifts():
    rows = batch()
    rows = rows.take(torch.tensor([3]))
    layer = last_layer(split(tiny_model(vocabulary=30)), rows)
    assert [value.shape for value in layer.shifts(rows.actions[rows.mask], torch.zeros(0), 1e-3, None)] == [(0,), (0,)]


def test_a_frozen_head_is_refused():
    model = tiny_model(vocabulary=30, tied=False)
    model.get_output_embeddings().requires_grad_(False)
    with pytest.raises(QuatrainError, match="update of the language-model head"):
        last_layer(split(model), batch())
