"""How noisy a gradient is whose baseline is a probe's, at equally many rollouts: the embedded model, part of the way into training."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from quatrain.experiments.miniatures.bound_gradients import gradient
from quatrain.knobs import resolve
from quatrain.models.probes import explained
from quatrain.parts.advantages import LeaveOneOut
from quatrain.parts.aggregations import token_mean
from quatrain.parts.baselines import Affine
from quatrain.seeds import derive
from quatrain.training.driver import build, run
from quatrain.training.state import State


def noises(seed: int, task: str = "letters", warm: int = 12, batches: int = 12, prompts: int = 64) -> dict[str, float]:
    """Baseline → log10 of the relative variance of one update's gradient, of ``2·prompts`` rollouts; ``explained``: the probe's R².

    ``poise`` (crossed probe), ``rloo`` (the other's reward) and ``none`` share their rollouts, two of each prompt; ``grpo`` has eight of
    a quarter of the prompts. The probe learns from ``warm`` updates of POISE, after which weights and probe stay as they are.
    """
    from quatrain.tasks.letters import letters
    from quatrain.training.loading import load_tiny
    from quatrain.training.registry import make

    policy, poise = load_tiny("tiny"), make("poise")
    grpo = make("grpo", kl=0.0).but(aggregation=token_mean)
    twins = {"poise": poise, "rloo": poise.but(advantage=LeaveOneOut()), "none": poise.but(advantage=Affine())}
    knobs = {**policy.defaults, "steps": warm, "micro_tokens": 16384}
    state = State(letters(task, seed=seed), {"policy": policy}, seed, knobs={**knobs, "prompts": prompts})
    build(poise, state, {})
    run(poise, state)
    found, shares = defaultdict(list), []
    for number in range(batches):
        for recipes, count in ((twins, prompts), ({"grpo": grpo}, prompts // 4)):
            here = State(state.task, {"policy": policy}, derive(seed, "noises", number), knobs={**knobs, "prompts": count})
            here.cursors["train"], here.memory = state.cursors["train"] + number * prompts, dict(state.memory)
            collect, _ = resolve(next(iter(recipes.values())).stages[0].steps, here.knobs)
            collect(here)
            batch = here.stores["fresh"]
            for label, recipe in recipes.items():
                _, fit = resolve(recipe.stages[0].steps, here.knobs)
                found[label].append(gradient(fit, policy, batch))
            if "probe_value" in batch:
                shares.append(float(explained(batch["probe_value"], batch["reward"] - LeaveOneOut()(batch))))
    return {label: math.log10(relative_variance(torch.stack(rows))) for label, rows in found.items()} | {
        "explained": sum(shares) / len(shares)
    }


def relative_variance(gradients: Tensor) -> float:
    """tr Cov/‖mean‖² of independent gradients [K, D], K at least 2; the square of the mean is estimated without bias, at least 0.

    >>> relative_variance(torch.tensor([[1.0], [3.0]]))
    0.6666666666666666
    """
    gradients = gradients.double()
    variance = gradients.var(0).sum()
    signal = gradients.mean(0).square().sum() - variance / len(gradients)
    return float(variance / signal.clamp(min=1e-12 * variance))
