"""Features of a trajectory: the model's own hidden states row by row, without padding; statistics by hand."""

from __future__ import annotations

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.models.backbone import split
from quatrain.models.features import hidden_features, row_statistics
from tests.models.test_scorer import batch
from tests.tiny_models import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layers", [1, 2])
def test_hidden_states_are_the_models_own(architecture: str, layers: int):
    model, rows = tiny_model(architecture, vocabulary=30).double().eval(), batch()
    with torch.no_grad():
        found = hidden_features(split(model), rows, layers=layers)
        for row in range(4):
            prompt = rows.contexts["policy"]["tokens"][row][rows.contexts["policy"]["mask"][row]]
            ids = torch.cat([prompt, rows.actions[row][rows.present[row]]])[None]
            states = torch.cat(model(ids, output_hidden_states=True).hidden_states[-layers:], -1)[0]
            acted = states[len(prompt) :][rows.mask[row][rows.present[row]]]
            pooled = acted.mean(0) if len(acted) else torch.zeros_like(states[0])
            assert torch.allclose(found[row], torch.cat([states[len(prompt) - 1], pooled]), atol=1e-10)


def test_more_layers_than_there_are_are_refused():
    with pytest.raises(QuatrainError, match="1 to 2 layers"):
        hidden_features(split(tiny_model(vocabulary=30)), batch(), layers=3)


def test_statistics_by_hand_with_holes_and_nothing():
    value = torch.tensor([[1.0, float("nan"), 3.0, 2.0], [5.0, float("inf"), 0.0, 0.0], [float("nan")] * 4])
    mask = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    found = row_statistics(value, mask, (0.0, 0.5, 1.0))
    assert torch.allclose(found, torch.tensor([[2.0, (2 / 3) ** 0.5, 1, 2, 3], [5, 0, 5, 5, 5], [0, 0, 0, 0, 0]]))
