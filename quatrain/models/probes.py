"""Linear probes: principal components, then ridge regression, in closed form and float64. Axes: M rows, D features, K components."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.errors import QuatrainError


@dataclass(frozen=True)
class Probe:
    """g(z) = bias + z·weight. weight [D], bias [], float64."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """[M] predictions for features [M, D]."""
        return self.bias + features.double() @ self.weight


def ridge(features: Tensor, targets: Tensor, penalty: float) -> Probe:
    """argmin over w, b of Σ_i (b + w·z_i − y_i)² + penalty·‖w‖²; the intercept is not penalised. Hoerl & Kennard 1970.

    features [M, D], targets [M]; penalty above 0. → the mean of the targets for a penalty without bound.

    >>> probe = ridge(torch.tensor([[0.0], [2.0]]), torch.tensor([0.0, 1.0]), penalty=2.0)
    >>> probe.weight.tolist(), probe.bias.item()
    ([0.25], 0.25)
    """
    if not penalty > 0:
        raise QuatrainError("the penalty of a ridge regression is out of range", given=penalty, expected="above 0")
    features, targets = features.double(), targets.double()
    mean = features.mean(0)
    centred = features - mean
    square = centred.T @ centred + penalty * torch.eye(centred.shape[1], dtype=torch.float64, device=centred.device)
    weight = torch.linalg.solve(square, centred.T @ (targets - targets.mean()))
    return Probe(weight, targets.mean() - mean @ weight)


def principal(features: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(mean [D], scale [D], directions [D, K]) of standardised features [M, D]: the K ≤ min(count, M, D) of largest variance.

    A feature that does not vary has scale 1.
    """
    features = features.double()
    mean, scale = features.mean(0), features.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    _, _, directions = torch.linalg.svd((features - mean) / scale, full_matrices=False)
    return mean, scale, directions[:count].T


def fit_probe(features: Tensor, targets: Tensor, components: int, penalty: float) -> Probe:
    """Standardise, keep ``components`` principal components, ridge regression on those; as one map of the raw features.

    features [M, D], targets [M]. → plain ridge on standardised features for components ≥ min(M, D).
    """
    mean, scale, directions = principal(features, components)
    inner = ridge((features.double() - mean) / scale @ directions, targets, penalty)
    weight = directions @ inner.weight / scale
    return Probe(weight, inner.bias - mean @ weight)


def explained(predicted: Tensor, targets: Tensor) -> Tensor:
    """R² = 1 − Σ(y − ŷ)²/Σ(y − ȳ)², at most 1, below 0 where the mean of y would be better; NaN where y [M] does not vary.

    >>> explained(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 5.0])).item()
    0.3571428571428571
    """
    targets = targets.double()
    total = (targets - targets.mean()).square().sum()
    return torch.where(total > 0, 1 - (targets - predicted.double()).square().sum() / total, torch.nan)
