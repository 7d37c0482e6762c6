"""Small network policies for control: an MLP over observations, categorical or Gaussian actions."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quatrain.batch import Batch, spread
from quatrain.errors import QuatrainError
from quatrain.models.distributions import Categorical, Gaussian
from quatrain.models.draws import kept, stream
from quatrain.protocols import Distribution, Policy, Statistic


@dataclass(frozen=True)
class Discrete:
    """Actions 0 … count−1, chosen from a categorical distribution. Actions are integers [M]."""

    count: int
    kind: ClassVar[str] = "discrete"
    tempered: ClassVar[bool] = True  # can be sampled at another temperature

    @property
    def outputs(self) -> int:
        """Numbers that the network puts out per state."""
        return self.count

    @property
    def log_stds(self) -> int:
        """Trained numbers beside the network."""
        return 0

    @property
    def executed(self) -> Discrete:
        """The actions that an environment knows."""
        return self

    def distribution(
        self, output: Tensor, log_std: Tensor, temperature: Tensor | None = None, support: Tensor | None = None
    ) -> Categorical:
        return Categorical(output, support, temperature)

    def sample(self, distribution: Categorical, generator: torch.Generator | None) -> Tensor:
        """[M] actions: the likeliest one without a generator, else by the Gumbel-max trick (noise from the generator's own device)."""
        z = distribution.z
        if generator is None:
            return z.argmax(-1)
        uniform = torch.rand(z.shape, generator=generator, device=generator.device).to(z.device)
        return (z - (-uniform.log()).log()).argmax(-1)


@dataclass(frozen=True)
class Box:
    """Actions in [low, high]^D from a Gaussian with a standard deviation that does not depend on the state. Actions are floats [M, D].

    What is recorded and scored is the sample as drawn; an environment executes it clipped to the box.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    kind: ClassVar[str] = "box"
    tempered: ClassVar[bool] = False

    @property
    def outputs(self) -> int:
        return len(self.low)

    @property
    def log_stds(self) -> int:
        return len(self.low)

    @property
    def executed(self) -> Box:
        return Box(self.low, self.high)

    @property
    def half(self) -> tuple[float, ...]:
        """Half the box's width: the unit of actions within models."""
        return tuple((high - low) / 2 for low, high in zip(self.low, self.high, strict=True))

    def unit(self, actions: Tensor) -> Tensor:
        """Actions [M, D] as fractions of the box: −1 at its low end, 1 at its high one.

        >>> Box((0.0,), (4.0,)).unit(torch.tensor([[1.0]])).item()
        -0.5
        """
        low, half = actions.new_tensor(self.low), actions.new_tensor(self.half)
        return (actions - low) / half - 1

    def distribution(self, output: Tensor, log_std: Tensor, temperature: Tensor | None = None, support: Tensor | None = None) -> Gaussian:
        if support is not None or (temperature is not None and bool((temperature != 1).any())):
            raise QuatrainError("a Gaussian policy is sampled at temperature 1, without top-k or top-p", fix="Sampling(temperature=1.0)")
        return Gaussian(output, log_std.exp())

    def sample(self, distribution: Gaussian, generator: torch.Generator | None) -> Tensor:
        """[M, D] actions: the mean without a generator."""
        mean = distribution.mean
        if generator is None:
            return mean
        return mean + distribution.std * torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)


@dataclass(frozen=True)
class Squashed(Box):
    """A deterministic action in the box, and exploration around it: a Gaussian with mean tanh(output), in fractions of the box.

    noise  the standard deviation of exploration, above 0, in fractions of half the box's width. Not trained.
    """

    noise: float = 0.1
    kind: ClassVar[str] = "squashed"

    def __post_init__(self) -> None:
        if not self.noise > 0:
            raise QuatrainError("exploration has a width", given=f"noise={self.noise}", expected="above 0")

    @property
    def log_stds(self) -> int:
        return 0

    def distribution(self, output: Tensor, log_std: Tensor, temperature: Tensor | None = None, support: Tensor | None = None) -> Gaussian:
        low, half = output.new_tensor(self.low), output.new_tensor(self.half)
        return super().distribution(low + half * (1 + output.tanh()), (self.noise * half).log(), temperature, support)


SPACES = {space.kind: space for space in (Discrete, Box, Squashed)}
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


def mlp(sizes: Sequence[int], last_gain: float, generator: torch.Generator, activation: str = "tanh") -> nn.Sequential:
    """tanh (or relu) layers of these sizes with a linear last one.

    Orthogonal weights of gain √2, ``last_gain`` in the last layer, zero biases: Huang et al. 2022, "The 37
    implementation details of PPO", no. 2.
    """
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
        nn.init.orthogonal_(layer.weight, last_gain if last else math.sqrt(2), generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer] if last else [layer, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def observations(batch: Batch, role: str, size: int) -> Tensor:
    """[N, T+1, D] what the role saw; QuatrainError when the batch has no such context or it is of another size.

    A trimmed batch may carry more of them than it has actions: the first T+1 are its own.
    """
    context = batch.contexts.get(role, {})
    if "observations" not in context:
        seen = {name: sorted(part) for name, part in batch.contexts.items()}
        raise QuatrainError(f"a network reads contexts[{role!r}]['observations']", given=seen, expected="observations [N, T+1, D]")
    found, length = context["observations"], batch.shape[1] + 1
    if found.ndim != 3 or found.shape[1] < length or found.shape[2] != size:
        expected = f"[{len(batch)}, {length}, {size}]"
        raise QuatrainError(
            "observations are one more than the actions, of the network's own size", given=tuple(found.shape), expected=expected
        )
    return found[:, :length]


class _Net(nn.Module):
    def __init__(self, sizes: Sequence[int], log_stds: int, generator: torch.Generator, activation: str, dropout: float):
        super().__init__()
        self.trunk = mlp(sizes, 0.01, generator, activation)
        self.log_std = nn.Parameter(torch.zeros(log_stds))
        self.dropout = dropout

    def forward(self, seen: Tensor, draws: Tensor | None = None) -> Tensor:
        if not self.dropout or draws is None:
            return self.trunk(seen)
        for place, layer in enumerate(self.trunk):
            seen = layer(seen)
            if not isinstance(layer, nn.Linear):
                seen = seen * kept(stream(draws, f"dropout {place}"), seen.shape[1], self.dropout)
        return seen


class NetworkPolicy:
    """π_θ(a|s) of an MLP over the observation; a ``quatrain.protocols.Policy``.

    observation_size  D.
    action_space      ``Discrete(count)`` or ``Box(low, high)``.
    hidden            widths of the layers.
    seed              of the initial weights.
    activation        ``tanh`` or ``relu``.
    dropout           the chance of a hidden unit to be left out where a batch brings its random numbers (the column ``draw``):
                      while it is fitted, never when it acts.

    >>> policy = NetworkPolicy(4, Discrete(2), hidden=(8,), seed=0)
    >>> actions, logp = policy.act(torch.zeros(3, 4), torch.Generator().manual_seed(0))
    >>> actions.shape, logp.exp()
    (torch.Size([3]), tensor([0.5000, 0.5000, 0.5000]))
    """

    def __init__(
        self,
        observation_size: int,
        action_space: Discrete | Box,
        hidden: Sequence[int] = (64, 64),
        seed: int = 0,
        activation: str = "tanh",
        dropout: float = 0.0,
    ):
        self.observation_size, self.action_space, self.hidden, self.seed = observation_size, action_space, tuple(hidden), seed
        self.activation, self.dropout = activation, dropout
        sizes = (observation_size, *self.hidden, action_space.outputs)
        self.module: nn.Module = _Net(sizes, action_space.log_stds, torch.Generator().manual_seed(seed), activation, dropout)
        self.version = 0

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def distribution(
        self, observations: Tensor, temperature: Tensor | None = None, support: Tensor | None = None, draws: Tensor | None = None
    ) -> Distribution:
        """π(·|s) at observations [M, D]; tempered by temperature [M], restricted to support [M, K], dropout by draws [M], where given."""
        output = self.module(observations.to(self.module.log_std), draws)
        return self.action_space.distribution(output, self.module.log_std, temperature, support)

    @torch.no_grad()
    def act(
        self, observations: Tensor, generator: torch.Generator | None = None, greedy: bool = False, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """(actions [E] or [E, D], their log-probabilities [E]) at observations [E, D], on the policy's device.

        Greedy actions are the mode, with the log-probability that the policy gives it. Raises QuatrainError without a generator for
        sampled actions, and for a temperature other than 1 of Gaussian actions.
        """
        if generator is None and not greedy:
            raise QuatrainError("sampled actions need a generator", fix="torch.Generator().manual_seed(seed), or greedy=True")
        tempered = None if temperature == 1.0 else torch.full((len(observations),), temperature, device=self.device)
        distribution = self.distribution(observations, tempered)
        actions = self.action_space.sample(distribution, None if greedy else generator)
        return actions, distribution.log_prob(actions)

    def distributions(self, batch: Batch, role: str = "policy", restricted: bool = True) -> Distribution:
        """π(·|s) at the M positions where ``batch.mask`` is True, row by row.

        ``temperature`` of the batch (per row or action; absent or NaN is 1) applies, and ``support`` unless not ``restricted``.
        """
        seen = observations(batch, role, self.observation_size)[:, :-1][batch.mask]
        temperature = spread(batch["temperature"], batch)[batch.mask].nan_to_num(1.0) if "temperature" in batch else None
        support = batch["support"][batch.mask] if restricted and "support" in batch else None
        return self.distribution(seen, temperature, support, batch["draw"][batch.mask] if "draw" in batch else None)

    def score(
        self, batch: Batch, statistics: Sequence[Statistic], role: str = "policy", others: Mapping[str, Policy] | None = None
    ) -> dict[Statistic, Tensor]:
        """Each statistic at every action [N, T], zero where the mask is False (observations there are not read). See the protocol."""
        distribution, action = self.distributions(batch, role), batch.actions[batch.mask]
        frozen = {}
        for name in {name for statistic in statistics for name in statistic.needs}:
            if name not in (others or {}):
                raise QuatrainError(
                    f"a statistic reads the model {name!r}", given=f"models {sorted(others or {})}", fix=f"others={{{name!r}: …}}"
                )
            with torch.no_grad():
                frozen[name] = others[name].distributions(batch, name if name in batch.contexts else role, restricted=False)
        values = {statistic: statistic(distribution, action, frozen) for statistic in statistics}
        return {statistic: value.new_zeros(batch.shape).masked_scatter(batch.mask, value) for statistic, value in values.items()}

    def clone(self) -> NetworkPolicy:
        """A frozen copy with its own weights."""
        twin = copy.deepcopy(self)
        twin.module.requires_grad_(False)
        return twin

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` (weights ``trunk.*``, ``log_std``) and ``config.json``; ``load_network`` reads them back."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in self.module.state_dict().items()}, folder / "model.safetensors"
        )
        space = {"kind": self.action_space.kind, **asdict(self.action_space)}
        config: dict[str, Any] = {"kind": "network", "observation_size": self.observation_size, "action_space": space}
        config |= {"hidden": list(self.hidden), "activation": self.activation, "dropout": self.dropout, "version": self.version}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_network(folder: str | Path) -> NetworkPolicy:
    """The policy that ``NetworkPolicy.save`` wrote. QuatrainError when the folder holds something else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    expected = "config.json (kind: network) and model.safetensors"
    try:
        config = json.loads((folder / "config.json").read_text())
        space = dict(config["action_space"])
        action_space = SPACES[space.pop("kind")](**{name: tuple(v) if isinstance(v, list) else v for name, v in space.items()})
        rest = {name: config[name] for name in ("activation", "dropout") if name in config}  # absent in a file of an earlier version
        policy = NetworkPolicy(config["observation_size"], action_space, config["hidden"], **rest)
        policy.module.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise QuatrainError("no network policy can be read here", given=f"{folder}: {error}", expected=expected) from error
    policy.version = config["version"]
    return policy


def deterministic(policy: NetworkPolicy, hidden: Sequence[int] = (256, 256), noise: float = 0.1, dropout: float = 0.0) -> NetworkPolicy:
    """An untrained relu network of the same observations and box of actions that chooses one action, and explores around it by ``noise``.

    A policy that is one already stays as it is. Raises QuatrainError for a policy whose actions are no box.
    """
    box = policy.action_space
    if isinstance(box, Squashed):
        return policy
    if not isinstance(box, Box):
        raise QuatrainError(
            "a deterministic policy has actions in a box", given=box, fix="a task with continuous actions, such as gym:Pendulum-v1"
        )
    twin = NetworkPolicy(policy.observation_size, Squashed(box.low, box.high, noise), hidden, policy.seed, "relu", dropout)
    twin.module.to(policy.device)
    return twin


@dataclass(frozen=True)
class DeterministicOf:
    """How a recipe makes a deterministic policy of a given one's observations and actions: see ``deterministic``."""

    hidden: tuple[int, ...] = (256, 256)
    noise: float = 0.1
    dropout: float = 0.0

    def __call__(self, policy: NetworkPolicy) -> NetworkPolicy:
        return deterministic(policy, self.hidden, self.noise, self.dropout)
