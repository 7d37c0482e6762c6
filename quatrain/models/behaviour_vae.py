"""The density of the actions in a data set, by a conditional variational autoencoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.losses.vae import elbo, gaussian_log_likelihood, iwae
from quatrain.models.draws import normals, stream
from quatrain.models.ensembles import Ensemble
from quatrain.models.networks import Box, NetworkPolicy, observations

LOG_STD = (-4.0, 15.0)  # of the encoder


class BehaviourVAE:
    """log π_β(a|s) from below: q(z|s, a) = N(μ, σ²), p(z) = N(0, I) with 2A latents, p(a|s, z) = N(decoder, β/4).

    Actions are fractions of their box, and so is the density. ``samples``: draws of z per action; ``bound``: ``elbo`` or ``iwae``.
    A fixed decoder variance of β/4 is the loss mean(u − a)² + β·mean KL of the means over A and 2A dimensions (β = 0.5: variance ⅛).
    """

    def __init__(
        self,
        observation_size: int,
        box: Box,
        hidden: Sequence[int] = (750, 750),
        beta: float = 0.5,
        bound: str = "elbo",
        samples: int = 1,
        seed: int = 0,
    ):
        if bound not in ("elbo", "iwae") or samples < 1 or not beta > 0:
            given = f"bound={bound}, samples={samples}, beta={beta}"
            raise QuatrainError("unknown bound of a density", given=given, expected="elbo or iwae, a sample at least, beta above 0")
        self.observation_size, self.box, self.bound, self.samples, self.variance = observation_size, box, bound, samples, beta / 4
        self.latents = 2 * box.outputs
        generator = torch.Generator().manual_seed(seed)
        encoder = Ensemble(1, (observation_size + box.outputs, *hidden, 2 * self.latents), generator)
        decoder = Ensemble(1, (observation_size + self.latents, *hidden, box.outputs), generator)
        self.module: nn.Module = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        self.version = 0

    def log_density(self, seen: Tensor, actions: Tensor, draws: Tensor, frozen: bool = False) -> Tensor:
        """[M] the bound at observations [M, D] and actions [M, A], its latents drawn by seeds [M]."""
        count, action = self.samples, self.box.unit(actions)
        mean, log_std = self.module["encoder"](torch.cat([seen, action], 1), frozen=frozen)[0].chunk(2, -1)
        std = log_std.clamp(*LOG_STD).exp()
        noise = normals(stream(draws, "latents"), count * self.latents).unflatten(1, (count, self.latents)).transpose(0, 1).to(mean)
        z = mean + std * noise
        inputs = torch.cat([seen.expand(count, *seen.shape), z], -1).flatten(0, 1)
        decoded = self.module["decoder"](inputs, frozen=frozen)[0].tanh().unflatten(0, (count, len(seen)))
        log_likelihood = gaussian_log_likelihood(action, decoded, self.variance)
        return elbo(log_likelihood, mean, std) if self.bound == "elbo" else iwae(log_likelihood, z, mean, std)

    def distributions(self, batch: Batch, role: str = "policy", restricted: bool = True) -> AlongDensity:
        """The density at the M positions where the batch acted, for a statistic that moves the action. Reads ``draw``."""
        seen = observations(batch, role, self.observation_size)[:, :-1][batch.mask]
        return AlongDensity(self, seen, batch["draw"][batch.mask])

    def clone(self) -> BehaviourVAE:
        """A frozen copy with its own weights."""
        twin = copy.deepcopy(self)
        twin.module.requires_grad_(False)
        return twin


@dataclass(frozen=True)
class AlongDensity:
    """log π_β(·|s) at M states."""

    vae: BehaviourVAE
    seen: Tensor
    draws: Tensor

    def value(self, actions: Tensor) -> Tensor:
        """[M] nats at actions [M, A]; differentiable in them, not in the model's weights."""
        return self.vae.log_density(self.seen, actions, self.draws, frozen=True)


@dataclass(frozen=True)
class DensityOf:
    """How a recipe makes one that fits its policy: untrained, see ``BehaviourVAE``."""

    beta: float = 0.5
    hidden: tuple[int, ...] = (750, 750)
    bound: str = "elbo"
    samples: int = 1

    def __call__(self, policy: NetworkPolicy) -> BehaviourVAE:
        """Raises QuatrainError for a policy whose actions are no box."""
        box = policy.action_space
        if not isinstance(box, Box):
            raise QuatrainError("this density is of actions in a box", given=box)
        made = BehaviourVAE(policy.observation_size, box.executed, self.hidden, self.beta, self.bound, self.samples, policy.seed + 2)
        made.module.to(policy.device)
        return made
