"""Bounds of a latent-variable model's log-density: the evidence bound and the importance-weighted one."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def elbo(log_likelihood: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """E_q[log p(x|z)] − KL(q(z|x) ‖ N(0, I)) ≤ log p(x), nats, [M].

    log_likelihood [L, M]: log p(x|z) at L draws of z from q = N(mean, std²), both [M, Z]. An unbiased estimate of the bound; the
    KL is exact: ½ Σ (μ² + σ² − 1 − 2 log σ).

    → log p(x) when q is the posterior.

    >>> elbo(torch.tensor([[-1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]])).item()
    -1.0
    """
    return log_likelihood.mean(0) - 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum(-1)


def iwae(log_likelihood: Tensor, z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log 1/L Σ_l p(x|z_l) p(z_l)/q(z_l|x), nats, [M]: between the evidence bound (L = 1) and log p(x) (L → ∞), in expectation.

    Burda et al. 2016, "Importance Weighted Autoencoders", eq. 8. log_likelihood [L, M]; z [L, M, Z] drawn from q = N(mean, std²).
    """
    log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
    log_q = (-0.5 * (((z - mean) / std).square() + math.log(2 * math.pi)) - std.log()).sum(-1)
    return torch.logsumexp(log_likelihood + log_prior - log_q, 0) - math.log(len(z))


def gaussian_log_likelihood(x: Tensor, mean: Tensor, variance: float) -> Tensor:
    """log N(x; mean, variance·I) summed over the last axis, nats."""
    return -0.5 * ((x - mean).square() / variance + math.log(2 * math.pi * variance)).sum(-1)
