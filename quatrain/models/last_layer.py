"""The last layer of a policy that chooses among V actions: a matrix of weights times features. What a model of its update reads.

Axes: M actions, V vocabulary, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.errors import QuatrainError
from quatrain.models.distributions import Categorical
from quatrain.parts.curvature import Moments, logit_motion, objective_shift, policy_shift, score_of_logits


@dataclass(frozen=True)
class LastLayer:
    """Of the M actions of a batch: a change Δ of the weights [V, D] changes the logits that were sampled from by Δ · hidden.

    weight        the parameter, [V, D]; [D, V] where ``transposed``.
    hidden        [M, D], temperature and scaling of the logits included.
    distribution  rows of the M → the distributions that were sampled from.
    chunk         actions whose logits are held at once.
    """

    weight: Tensor
    hidden: Tensor
    distribution: Callable[[slice], Categorical]
    transposed: bool = False
    chunk: int = 2**30

    def moments(self, optimizer: torch.optim.Optimizer | None) -> Moments | None:
        """What an Adam has seen of the weights, as an ascent on [V, D]; None before its first update, or where there is none."""
        pairs = getattr(optimizer, "pairs", ())
        master = next((master for own, master in pairs if own is self.weight), self.weight)
        if optimizer is None or master not in optimizer.state:
            return None
        group, seen = optimizer.param_groups[0], optimizer.state[master]
        mean, square = (seen[name].to(self.hidden.dtype) for name in ("exp_avg", "exp_avg_sq"))
        mean, square = (mean.T, square.T) if self.transposed else (mean, square)
        return Moments(-mean, square, int(seen["step"]), tuple(group["betas"]), group["eps"])

    def shifts(self, action: Tensor, advantage: Tensor, lr: float, moments: Moments | None, top: int = 0) -> tuple[Tensor, Tensor]:
        """([M] m_F, [M] m_H) of actions [M] with advantages [M]; ``moments`` None is gradient ascent. See ``parts.curvature``."""
        found = []
        for start in range(0, len(action), self.chunk):
            rows = slice(start, start + self.chunk)
            hidden, a = self.hidden[rows], advantage[rows].to(self.hidden.dtype)
            entries, p, v = score_of_logits(_possible(self.distribution(rows)).to(hidden.dtype), action[rows], top)
            motion = logit_motion(v, hidden, a, moments, entries)
            found.append(torch.stack([policy_shift(v, motion, lr), objective_shift(p, v, motion, a, lr)]))
        policy, objective = torch.cat(found, 1) if found else self.hidden.new_zeros(2, 0)
        return policy, objective


def last_layer_of(policy: object) -> Callable[..., LastLayer]:
    """The policy's ``last_layer``. Raises QuatrainError for one that has no softmax of a matrix product."""
    if not hasattr(policy, "last_layer"):
        raise QuatrainError(
            "this recipe models the update of a last layer before a softmax",
            given=type(policy).__name__,
            expected="a causal language model, or a table",
        )
    return policy.last_layer


def _possible(distribution: Categorical) -> Tensor:
    """[m, V] tempered logits, −inf outside of a truncated support."""
    if distribution.support_ids is None:
        return distribution.z
    inside = distribution.z.new_zeros(len(distribution.z), distribution.z.shape[1] + 1, dtype=torch.bool)
    inside = inside.scatter(1, distribution.support_ids.long(), True)[:, 1:]
    return distribution.z.masked_fill(~inside & inside.any(1, keepdim=True), -torch.inf)
