"""How near a gradient with n mask draws is to one with very many: an off-policy batch of the embedded masked-diffusion model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.knobs import resolve
from quatrain.training.mask_draws import MaskDraws
from quatrain.training.state import State
from quatrain.training.steps import Fit

COUNTS = (1, 2, 4, 8, 16)
BOUNDS = ("boundary", "joint")


def cosines(
    seed: int,
    task: Any = "letters:reverse+sort+chain?levels=1-4",
    prompts: int = 6,
    repeats: int = 4,
    reference: int = 256,
    updates: int = 3,
    policy: Any = None,
) -> dict[str, float]:
    """``correlation`` of log n with the cosine of BGPO's gradient; and per bound and n the mean cosine over repeated draws.

    One batch of 8 answers per prompt is sampled at θ_old; the gradients are taken at θ, ``updates`` of AdamW on this batch later, and
    compared with that of the joint ratio with ``reference`` draws. policy: None is model=tiny-diffusion.
    """
    from quatrain.tasks.letters import letters
    from quatrain.training.loading import load_tiny
    from quatrain.training.registry import make

    policy = policy or load_tiny("tiny-diffusion")
    steps = {bound: make("bgpo-dllm", bound=bound).stages[0].steps for bound in BOUNDS}
    knobs = {"prompts": prompts, "max_actions": policy.unmasking.canvas, "lr": 5e-4, "micro_tokens": 16384}
    fits = {bound: resolve(fit, knobs) for bound, (_, fit) in steps.items()}
    state = State(letters(task, seed=seed) if isinstance(task, str) else task, {"policy": policy.clone()}, seed, knobs=knobs)
    batch = resolve(steps["joint"][0].source, knobs)(state)
    trained = State(state.task, {"policy": policy}, seed, knobs=knobs)
    state.stores["fresh"] = trained.stores["fresh"] = resolve(MaskDraws(8), knobs)(state, batch)
    for _ in range(updates):
        fits["boundary"](trained)

    def towards(bound: str, count: int) -> Tensor:
        return gradient(fits[bound], policy, resolve(MaskDraws(count), knobs)(state, batch))

    goal = towards("joint", reference)
    found = {(bound, n): [similarity(towards(bound, n), goal) for _ in range(repeats)] for bound in BOUNDS for n in COUNTS}
    points = torch.tensor([[n, value] for n in COUNTS for value in found["boundary", n]], dtype=torch.float64)
    correlation = torch.corrcoef(torch.stack([points[:, 0].log(), points[:, 1]]))[0, 1]
    return {"correlation": float(correlation), **{f"{bound} {n}": sum(values) / repeats for (bound, n), values in found.items()}}


def gradient(fit: Fit, policy: Any, batch: Batch) -> Tensor:
    """All weights' gradient of one update on these rows, flat, accumulated over micro-batches; the weights are left as they are."""
    policy.module.zero_grad(set_to_none=True)
    for _ in fit.gradient_parts(policy, {}, fit.loss.prepare(batch)):
        pass
    parts = [p.grad.flatten() if p.grad is not None else torch.zeros_like(p).flatten() for p in policy.module.parameters()]
    policy.module.zero_grad(set_to_none=True)
    return torch.cat(parts).double()


def similarity(one: Tensor, other: Tensor) -> float:
    """The cosine of two gradients; 0 where one of them is zero."""
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))
