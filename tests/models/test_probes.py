"""Probes: the closed form against least squares written out, principal components, the map of raw features, R²."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.models.probes import explained, fit_probe, principal, ridge


def data(rows: int = 40, features: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, features, generator=g, dtype=torch.float64) * torch.tensor([5.0, 1, 1, 0.1, 2, 3])[:features] + 4
    return z, z @ torch.linspace(-1, 1, features, dtype=torch.float64) + torch.randn(rows, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("penalty", [1e-6, 1.0, 50.0])
def test_ridge_is_least_squares_on_rows_that_pull_to_zero(penalty: float):
    """√λ·I below the features, 0 below the targets, and an intercept that these rows do not see."""
    z, y = data()
    wide = torch.cat([torch.cat([z, torch.ones(40, 1)], 1), torch.cat([penalty**0.5 * torch.eye(6), torch.zeros(6, 1)], 1)]).double()
    expected = np.linalg.lstsq(wide.numpy(), torch.cat([y, torch.zeros(6)]).numpy(), rcond=None)[0]
    found = ridge(z, y, penalty)
    assert np.allclose(found.weight.numpy(), expected[:6], rtol=1e-8) and float(found.bias) == pytest.approx(expected[6], rel=1e-8)
    assert found(z.float()).dtype == torch.float64


def test_an_endless_penalty_leaves_the_mean_and_none_is_refused():
    z, y = data()
    assert torch.allclose(ridge(z, y, 1e14)(z), y.mean())
    with pytest.raises(QuatrainError, match="penalty"):
        ridge(z, y, 0.0)


def test_with_all_components_it_is_ridge_on_standardised_features():
    z, y = data()
    z = torch.cat([z, torch.full((40, 1), 7.0)], 1)  # one that never varies
    scaled = (z - z.mean(0)) / torch.where(z.std(0, correction=0) > 0, z.std(0, correction=0), 1.0)
    assert torch.allclose(fit_probe(z, y, 99, 2.0)(z), ridge(scaled, y, 2.0)(scaled), atol=1e-10)
    assert float(fit_probe(z, y, 99, 2.0).weight[-1]) == pytest.approx(0.0, abs=1e-12)


def test_components_are_the_directions_of_most_variance():
    z, y = data()
    mean, scale, directions = principal(z, 2)
    _, vectors = torch.linalg.eigh(torch.cov(((z - mean) / scale).T, correction=0))
    assert torch.allclose((directions.T @ vectors[:, [5, 4]]).abs(), torch.eye(2, dtype=torch.float64), atol=1e-8)
    inner = ridge((z - mean) / scale @ directions, y, 1.0)
    assert torch.allclose(fit_probe(z, y, 2, 1.0)(z), inner((z - mean) / scale @ directions), atol=1e-10)
    few = fit_probe(z[:3], y[:3], 50, 1.0)  # fewer rows than features
    assert torch.isfinite(few(z)).all()


def test_what_is_explained():
    y = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert float(explained(y, y)) == 1.0 and float(explained(torch.full((4,), 0.5), y)) == 0.0
    assert float(explained(1 - y, y)) == -3.0 and explained(y, torch.ones(4)).isnan()
