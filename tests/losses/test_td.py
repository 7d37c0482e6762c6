"""TD3's targets by hand, and bounds of a density on a model whose density is known."""

from __future__ import annotations

import math

import torch

from quatrain.losses.td import clipped_double_q, smoothed
from quatrain.losses.vae import elbo, gaussian_log_likelihood, iwae


def test_the_target_is_the_smaller_value_and_none_after_the_end():
    y = clipped_double_q(torch.tensor([1.0, 1.0]), torch.tensor([False, True]), torch.tensor([[2.0, 2.0], [4.0, 1.0]]), 0.5)
    assert y.tolist() == [2.0, 1.0]


def test_noise_is_clipped_in_units_of_the_box_and_the_action_to_it():
    low, high = torch.tensor([-2.0]), torch.tensor([2.0])
    found = smoothed(torch.tensor([[0.0], [0.0], [1.9]]), torch.tensor([[1.0], [-9.0], [2.0]]), low, high, 0.2, 0.5)
    assert torch.allclose(found, torch.tensor([[0.4], [-1.0], [2.0]]))


def test_elbo_below_iwae_below_the_exact_density_of_a_linear_gaussian_model():
    """z ~ N(0, 1), x|z ~ N(2z, 0.5): x ~ N(0, 4.5). With a wrong q the bounds are in order and IWAE gets there."""
    g = torch.Generator().manual_seed(0)
    x, variance = torch.tensor([[1.5]], dtype=torch.float64), 0.5
    exact = float(-0.5 * (x.square() / 4.5 + math.log(2 * math.pi * 4.5)))
    mean, std = torch.tensor([[0.4]], dtype=torch.float64), torch.tensor([[0.8]], dtype=torch.float64)
    z = mean + std * torch.randn(200_000, 1, 1, generator=g, dtype=torch.float64)
    likelihood = gaussian_log_likelihood(x, 2 * z, variance)
    low, high = float(elbo(likelihood, mean, std)), float(iwae(likelihood, z, mean, std))
    few = iwae(likelihood.view(5, -1), z.view(5, -1, 1), mean, std).mean()
    assert low < few < exact and abs(high - exact) < 0.01
    posterior_mean, posterior_std = 2 * x / 4.5, torch.full_like(x, math.sqrt(0.5 / 4.5))
    z = posterior_mean + posterior_std * torch.randn(3, 1, 1, generator=g, dtype=torch.float64)
    tight = iwae(gaussian_log_likelihood(x, 2 * z, variance), z, posterior_mean, posterior_std)
    assert abs(float(tight) - exact) < 1e-9
