"""Action values and marginal ratios that are linear in features: one linear system each. One-hot features are the tabular case.

Axes: M transitions, F features. Transition t of an episode has the weight γ^t in all sums (1 for γ = 1): so that the distributions compared
are the discounted ones of the logged episodes from their starts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quatrain.errors import QuatrainError


def fitted_values(
    features: Tensor, following: Tensor, rewards: Tensor, weight: Tensor, discount: float = 1.0, ridge: float = 1e-6
) -> Tensor:
    """θ [F] with Q̂ = φᵀθ: the fixed point of fitted Q evaluation in linear features (LSTD-Q, Lagoudakis & Parr 2003).

        Σ_m w_m φ_m (φ_m − γ φ'_m)ᵀ θ = Σ_m w_m φ_m r_m

    features   φ(s,a) [M, F]; following φ' = Σ_a' π(a'|s') φ(s',a') [M, F], zero where the episode ended.
    ridge      is added to the diagonal, relative to the weights' sum: features that were never seen get the value 0.

    One-hot features → the values of the empirical Markov decision process.
    """
    matrix = _matrix(features, following, weight, discount, ridge)
    return torch.linalg.solve(matrix, features.T @ (weight * rewards))


def density_ratio(
    features: Tensor, following: Tensor, start: Tensor, weight: Tensor, episodes: int, discount: float = 1.0, ridge: float = 1e-6
) -> Tensor:
    """θ [F] with d^π/d^b = φᵀθ: minimax weight learning with linear functions on both sides (Uehara et al. 2020, arXiv:1910.12809, MWL).

        1/n Σ_m w_m (φ_mᵀθ) (f_m − γ f'_m) = E f_0   for every f = φ_j

    start      E_{s_0} Σ_a π(a|s_0) φ(s_0,a) [F]. episodes n.
    following  as in ``fitted_values``: state–action ratios. For state ratios φ(s) [M, F] and φ' = ρ φ(s'), start = E φ(s_0)
               (Liu et al. 2018, arXiv:1810.12429).

    Its matrix is the transpose of that of ``fitted_values``: with the same features 1/n Σ w (d̂ r) = E V̂(s_0).
    """
    matrix = _matrix(features, following, weight, discount, ridge)
    return torch.linalg.solve(matrix.T, start * episodes)


def one_hot(index: Tensor, count: int) -> Tensor:
    """[…, F] float64. Raises QuatrainError for an index out of range."""
    if int(index.max()) >= count or int(index.min()) < 0:
        raise QuatrainError("a feature's number is out of range", given=(int(index.min()), int(index.max())), expected=f"0 to {count - 1}")
    return torch.nn.functional.one_hot(index, count).double()


def _matrix(features: Tensor, following: Tensor, weight: Tensor, discount: float, ridge: float) -> Tensor:
    found = features.T @ (weight[:, None] * (features - discount * following))
    return found + ridge * weight.sum() * torch.eye(features.shape[1], dtype=found.dtype)
