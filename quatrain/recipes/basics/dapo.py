from __future__ import annotations

from typing import Literal

from quatrain.knobs import Knob
from quatrain.parts.aggregations import PerGroup, token_mean
from quatrain.parts.bounds import Clip
from quatrain.recipes.basics.grpo import grpo
from quatrain.rollout.edits import OverlongPenalty
from quatrain.rollout.sources import DynamicSampling, OnPolicy
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe("dapo", family="basics", title="DAPO: An Open-Source LLM Reinforcement Learning System at Scale", paper="2503.14476")
def dapo(
    group: int = 8,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    tries: int = 4,
    overlong_cache: int = 0,
    mean: Literal["prompt", "batch"] = "prompt",
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """DAPO: GRPO with clip-higher, dynamic sampling, a token mean and soft overlong punishment, without KL.

    g = E_prompt 1/Σ_i|o_i| Σ_i Σ_t 1[1−ε_low ≤ r or 1+ε_high ≥ r, by sign] r_t A_i ∇log π_θ   (Yu et al. 2025, eq. 8)

    tries           draws at most per step until every group has a signal (eq. 11).
    overlong_cache  length over which the punishment of long answers grows to −1 (eq. 13), in tokens; 0 is off. The paper has 4,096
                    of 20,480.
    mean            the token mean per ``prompt`` group (the paper's equation) or over the ``batch`` (the released code).
    """
    sampled = DynamicSampling(OnPolicy(group=group), tries=tries)
    edits = (OverlongPenalty(Knob("max_actions", 64), overlong_cache),) if overlong_cache else ()
    return (
        grpo(group, kl=0.0, epochs=epochs, minibatches=minibatches)
        .with_collect(source=sampled, edits=edits)
        .but(bound=Clip(clip_low, clip_high), aggregation=PerGroup(actions="pooled") if mean == "prompt" else token_mean)
    )
