"""Critics: V(s) before and after every action, for networks and for language models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import singledispatch
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.models.backbone import Backbone
from quatrain.models.causal_lm import CausalLM
from quatrain.models.networks import NetworkPolicy, mlp, observations
from quatrain.models.scorer import contiguous


class Critic(Protocol):
    """``module`` holds its trainable weights; ``version`` counts its updates."""

    module: nn.Module
    version: int

    def values(self, batch: Batch, role: str = "policy") -> Tensor: ...


class MLPCritic:
    """V(s) of an MLP over the observation. Orthogonal weights, gain 1 in the last layer.

    >>> critic = MLPCritic(4, hidden=(8,), seed=0)
    >>> states = torch.zeros(2, 4, 4)
    >>> batch = Batch(torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3), contexts={"policy": {"observations": states}})
    >>> critic.values(batch).shape
    torch.Size([2, 4])
    """

    def __init__(self, observation_size: int, hidden: Sequence[int] = (64, 64), seed: int = 0):
        self.observation_size = observation_size
        self.module: nn.Module = mlp((observation_size, *hidden, 1), 1.0, torch.Generator().manual_seed(seed))
        self.version = 0

    def values(self, batch: Batch, role: str = "policy") -> Tensor:
        """V at each of the T+1 observations, [N, T+1]; differentiable. Meaningless at observations beyond a row's end."""
        seen = observations(batch, role, self.observation_size)
        return self.module(seen.to(next(self.module.parameters())))[..., 0]


class LMCritic:
    """V of the text so far: a linear head on the last hidden states of a copy of the policy's backbone.

    The head starts at zero, so that the first advantages are the returns themselves. What is frozen in the policy (all but its
    adapters) is frozen here.
    """

    def __init__(self, backbone: Backbone):
        """backbone  of the policy: copied, not touched."""
        decoder, weight = copy.deepcopy(backbone.decoder), backbone.head.weight
        head = nn.Linear(weight.shape[1], 1, device=weight.device, dtype=torch.float32)
        nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
        self.module: nn.Module = nn.ModuleDict({"decoder": decoder, "head": head})
        self.version = 0

    def values(self, batch: Batch, role: str = "policy") -> Tensor:
        """V before each of the T positions and after the last, [N, T+1] fp32; differentiable.

        The state before position t is the hidden state of the token before it: the prompt's last one for t = 0. Beyond a row's last
        present position, the value after it. Reads contexts[role] ``tokens`` and ``mask`` [N, P], the actions [N, T] and ``present``.
        Raises QuatrainError without such a context, or where an action has nothing before it.
        """
        ids = contiguous(batch, role).ids
        hidden = self.module["decoder"](input_ids=ids, use_cache=False).last_hidden_state
        passed = (batch.present | batch.mask).cumsum(1)
        before = batch.contexts[role]["mask"].sum(1, keepdim=True) - 1 + torch.cat([torch.zeros_like(passed[:, :1]), passed], 1)
        return self.module["head"](hidden.float())[..., 0].gather(1, before.clamp_min(0))


@torch.no_grad()
def value_columns(critic: Critic, batch: Batch, role: str = "policy") -> dict[str, Tensor]:
    """Columns ``value`` V(s_t) and ``next_value`` V(s_{t+1}), both [N, T], without gradient.

    At a truncated action ``next_value`` is that of the true final state; at a terminated one it is there and must not be used
    (``quatrain.parts.gae.gae`` does not). Zero where the policy did not act.
    """
    values = critic.values(batch, role).float().to(batch.device)
    return {name: torch.where(batch.mask, part, 0.0) for name, part in (("value", values[:, :-1]), ("next_value", values[:, 1:]))}


@singledispatch
def make_critic(policy: Any, seed: int = 0) -> Critic:
    """An untrained critic of what that kind of policy sees."""
    raise QuatrainError("no critic is known for this kind of policy", given=type(policy).__name__, expected="NetworkPolicy or CausalLM")


@make_critic.register
def _(policy: NetworkPolicy, seed: int = 0) -> MLPCritic:
    critic = MLPCritic(policy.observation_size, policy.hidden, seed)
    critic.module.to(policy.device)
    return critic


@make_critic.register
def _(policy: CausalLM, seed: int = 0) -> LMCritic:
    return LMCritic(policy.backbone)
