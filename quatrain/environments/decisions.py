"""Asking a policy what to do: one decision of every copy, whatever number of actions it is made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quatrain.protocols import Decision


@torch.no_grad()
def decide(policy: Any, observations: Tensor, generator: torch.Generator, greedy: bool = False, temperature: float = 1.0) -> Decision:
    """The decisions at observations [E, D].

    A policy that makes a decision in several actions with a log-probability each (the steps of a denoising chain) has a method
    ``decide(observations, generator, greedy)``; of any other one a decision is the one action that it samples. Greedy decisions are
    for evaluation, and their log-probabilities are not for learning.
    """
    if hasattr(policy, "decide"):
        return policy.decide(observations, generator, greedy)
    actions, logp = policy.act(observations, generator, greedy, temperature)
    once = torch.ones(len(actions), dtype=torch.long)
    return Decision(actions, actions[:, None], logp[:, None], {}, once)
