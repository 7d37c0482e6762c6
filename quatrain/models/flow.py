"""A flow policy: an action is noise carried along a learned velocity, and how uncertain that velocity is says in how many steps.

Axes: M points, D observation features, A action dimensions, E copies, K denoising steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.batch import Batch
from quatrain.errors import QuatrainError, nearest
from quatrain.models.distributions import Gaussian
from quatrain.models.networks import Box, NetworkPolicy, mlp, observations
from quatrain.models.paths import PATHS
from quatrain.models.solver import integrate
from quatrain.protocols import Decision

LOG_STD = (-6.0, 3.0)  # where the uncertainty's logarithm is kept


class _Field(nn.Module):
    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, generator: torch.Generator):
        super().__init__()
        self.trunk = mlp((inputs, *hidden), math.sqrt(2), generator, "relu")
        self.velocity = mlp((hidden[-1], outputs), 0.01, generator)
        self.log_std = mlp((hidden[-1], 64, 1), 0.01, generator, "relu")


class FlowPolicy(NetworkPolicy):
    """A velocity v(x_t, t | s) and its uncertainty σ(x_t, t | s); x₁ is the action in units of the box.

    It acts in two ways. **Greedily** the noise is the only chance: the differential equation is solved with steps of
    min(max(``tolerance``/σ, 1/``steps``), 1 − t). tolerance = 0 → ``steps`` equal steps; ∞ → one. **To learn from reward** an action is
    made in ``chain`` steps with a log-probability each, Δ = 1/K and t = k/K:

        x_{k+1} ~ N(advance(x_k, v) − ½a²Δ·E[x₀|x_k], a²·w(t)·Δ)

    with a = ``noise`` and w(t) the noise's weight in the path: to first order in Δ the marginals are those of the differential
    equation, since ∇log p_t = −E[x₀|x_t]/w(t) (Song et al. 2021, arXiv 2011.13456, eq. 13; Liu et al. 2025, Flow-GRPO, arXiv
    2505.05470, eq. 9, where the schedule of the noise is another). Each step is an action of the batch, and the policy of a recipe:
    its coefficients multiply the ∇log-density of denoising transitions (Ren et al. 2024, DPPO, arXiv 2409.00588; Zhang et al. 2025,
    ReinFlow, arXiv 2505.22094). The columns ``latent`` [N, T, A] and ``denoising`` [N, T] say where each step began. Their entropy does
    not depend on the weights. σ is not trained by it, so that after it ``tolerance`` means less.

    path      ``straight`` (rectified flow) or ``cosine`` (diffusion with DDIM's steps).

    >>> policy = FlowPolicy(2, Box((-1.0,), (1.0,)), hidden=(8,), tolerance=math.inf)
    >>> policy.decide(torch.zeros(3, 2), torch.Generator().manual_seed(0), greedy=True).evaluations
    tensor([1, 1, 1])
    """

    def __init__(
        self,
        observation_size: int,
        action_space: Box,
        hidden: Sequence[int] = (128, 128),
        seed: int = 0,
        path: str = "straight",
        tolerance: float = 0.2,
        steps: int = 20,
        chain: int = 5,
        noise: float = 0.5,
    ):
        if not isinstance(action_space, Box):
            raise QuatrainError("a flow policy has actions in a box", given=action_space, fix="a task with continuous actions")
        if path not in PATHS:
            raise QuatrainError(f"unknown path {path!r}", expected=", ".join(PATHS), fix=nearest(path, PATHS))
        if tolerance < 0 or steps < 1 or chain < 1 or noise <= 0:
            given = f"tolerance={tolerance}, steps={steps}, chain={chain}, noise={noise}"
            raise QuatrainError("a flow is walked in steps", given=given, expected="tolerance ≥ 0, steps ≥ 1, chain ≥ 1, noise > 0")
        self.observation_size, self.action_space, self.hidden, self.seed = observation_size, action_space, tuple(hidden), seed
        self.path, self.tolerance, self.steps, self.chain, self.noise = path, tolerance, steps, chain, noise
        generator = torch.Generator().manual_seed(seed)
        self.module: nn.Module = _Field(observation_size + action_space.outputs + 3, self.hidden, action_space.outputs, generator)
        self.version = 0

    def field(self, seen: Tensor, point: Tensor, time: Tensor, shared: bool = True) -> tuple[Tensor, Tensor]:
        """(velocity [M, A], log σ [M]) at observations [M, D], points [M, A] and time [M]; without ``shared`` log σ has no gradient in
        what the velocity is made of."""
        like = next(self.module.parameters())
        t = time.to(like)[:, None]
        wave = torch.cat([t, (math.pi * t).sin(), (math.pi * t).cos()], 1)
        features = self.module.trunk(torch.cat([seen.to(like), point.to(like), wave], 1)).relu()
        log_std = self.module.log_std(features if shared else features.detach())[:, 0]
        return self.module.velocity(features), log_std.clamp(*LOG_STD)

    # -- acting ----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def decide(self, observations: Tensor, generator: torch.Generator, greedy: bool = False) -> Decision:
        """Decisions at observations [E, D]: solved if greedy, with no log-probability (NaN); else a chain of K actions."""
        size = (len(observations), self.action_space.outputs)
        point = torch.randn(size, generator=generator, device=generator.device).to(self.device)
        if greedy:
            point, count = self.solve(observations, point)
            return Decision(self._executed(point), point[:, None], torch.full((size[0], 1), math.nan), {}, count)
        before, after, logp = [], [], []
        for k in range(self.chain):
            step = self._step(observations, point, torch.full((size[0],), k))
            before.append(point)
            point = self.action_space.sample(step, generator)
            after.append(point)
            logp.append(step.log_prob(point))
        columns = {"latent": torch.stack(before, 1), "denoising": torch.arange(self.chain).expand(size[0], -1)}
        count = torch.full((size[0],), self.chain)
        return Decision(self._executed(point), torch.stack(after, 1), torch.stack(logp, 1), columns, count)

    def solve(self, seen: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        """(x₁ [M, A], evaluations [M]) from noise [M, A] at observations [M, D]."""

        def field(rows: Tensor, here: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
            velocity, log_std = self.field(seen[rows], here, time)
            return velocity, log_std.exp()

        return integrate(field, PATHS[self.path].advance, point, self.tolerance, self.steps)

    def act(
        self, observations: Tensor, generator: torch.Generator | None = None, greedy: bool = False, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Greedy actions [E, A] and NaN in place of log-probabilities. Raises QuatrainError for sampled ones: a task that collects them
        asks ``decide``."""
        if not greedy or temperature != 1.0 or generator is None:
            raise QuatrainError(
                "a flow policy's sampled action is a chain of denoising steps, and this task collects single actions",
                given=f"greedy={greedy}, temperature={temperature}, generator={generator}",
                expected="greedy actions of a generator's noise",
                fix="a task of the plane, or act(greedy=True)",
            )
        made = self.decide(observations, generator, greedy=True)
        return made.executed, made.logp[:, 0]

    # -- scoring ---------------------------------------------------------------------------------------------------
    def distributions(self, batch: Batch, role: str = "policy", restricted: bool = True) -> Gaussian:
        """The Gaussian of each denoising step at the M positions where ``batch.mask`` is True, row by row."""
        seen = observations(batch, role, self.observation_size)[:, :-1][batch.mask]
        return self._step(seen, batch["latent"][batch.mask], batch["denoising"][batch.mask])

    def _step(self, seen: Tensor, point: Tensor, index: Tensor) -> Gaussian:
        path, step = PATHS[self.path], torch.full_like(point[:, :1], 1 / self.chain)
        time = index.to(point)[:, None] * step
        velocity, _ = self.field(seen, point, time[:, 0])
        mean = path.advance(point, velocity, time, step) - self.noise**2 / 2 * step * path.noise_in(point, velocity, time)
        return Gaussian(mean, self.noise * (path.noise_weight(time) * step).sqrt())

    def _executed(self, point: Tensor) -> Tensor:
        """Actions of points in units of the box."""
        low, half = point.new_tensor(self.action_space.low), point.new_tensor(self.action_space.half)
        return low + half * (1 + point)

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` (``trunk.*``, ``velocity.*``, ``log_std.*``) and ``config.json``; ``load_flow`` reads them back."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.module.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        names = ("observation_size", "hidden", "path", "tolerance", "steps", "chain", "noise", "version")
        config: dict[str, Any] = {
            "kind": "flow",
            "action_space": asdict(self.action_space),
            **{name: getattr(self, name) for name in names},
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_flow(folder: str | Path) -> FlowPolicy:
    """The policy that ``FlowPolicy.save`` wrote. QuatrainError when the folder holds something else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        version, space = config.pop("version"), Box(**{name: tuple(ends) for name, ends in config.pop("action_space").items()})
        if config.pop("kind") != "flow":
            raise KeyError("kind: flow")
        policy = FlowPolicy(action_space=space, **config)
        policy.module.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        expected = "config.json (kind: flow) and model.safetensors"
        raise QuatrainError("no flow policy can be read here", given=f"{folder}: {error}", expected=expected) from error
    policy.version = version
    return policy
