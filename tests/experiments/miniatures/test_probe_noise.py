"""The noise of gradients: the estimate of a known relative variance."""

from __future__ import annotations

import pytest
import torch

from quatrain.experiments.miniatures.probe_noise import noises, relative_variance


def test_a_known_relative_variance_is_found():
    """Mean of norm 2 in 4 dimensions, variance 9 in each: 36/4."""
    g = torch.Generator().manual_seed(0)
    draws = 1 + 3 * torch.randn(200_000, 4, generator=g, dtype=torch.float64)
    assert relative_variance(draws) == pytest.approx(9.0, rel=0.02)


@pytest.mark.slow
def test_all_arms_are_measured():
    found = noises(0, warm=1, batches=2, prompts=4)
    assert set(found) == {"poise", "rloo", "none", "grpo", "explained"} and found["explained"] <= 1
