"""How far apart rounding may bring two computations of the same number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Tolerance:
    """dtype: the least precise one among the weights.

    logp_max, logp_mean  gap of log-probabilities in nats, over all actions: the largest and the mean.
    gradient             ‖g − g′‖/‖g‖ of one update's gradient computed in two ways.
    borderline           an action whose cumulative probability is this near to top_p may or may not be in the support.
    """

    dtype: str
    logp_max: float
    logp_mean: float
    gradient: float
    borderline: float


# fp32: some ten times what sums in another order do. bf16 has 8 bits: logits of size 16 are known to 0.06.
TOLERANCES = {
    torch.float64: Tolerance("float64", 1e-6, 1e-7, 1e-7, 1e-9),
    torch.float32: Tolerance("float32", 1e-3, 1e-4, 1e-3, 1e-4),
    torch.float16: Tolerance("float16", 0.1, 0.01, 0.05, 0.01),
    torch.bfloat16: Tolerance("bfloat16", 0.5, 0.03, 0.1, 0.03),
}


def tolerance_of(policy: Any) -> Tolerance:
    """The tolerance for the least precise weights of a policy. On an accelerator fp32 products may be rounded to TF32."""
    kinds = {parameter.dtype for parameter in policy.module.parameters()} & TOLERANCES.keys()
    return max((TOLERANCES[kind] for kind in kinds), key=lambda found: found.logp_max, default=TOLERANCES[torch.float32])
