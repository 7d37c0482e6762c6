from __future__ import annotations

from quatrain.knobs import Knob
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.aggregations import ConstantLength
from quatrain.recipes.basics.grpo import grpo
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe("dr-grpo", family="basics", title="Understanding R1-Zero-Like Training: A Critical Perspective", paper="2503.20783")
def dr_grpo(group: int = 8, clip: float = 0.2, epochs: int = 1, minibatches: int = 1) -> Recipe:
    """GRPO done right: neither the standard deviation nor the length of the answer divides.

    g = 1/(N·L) Σ_i Σ_t 1[not clipped] r_t (R_i − mean_group R) ∇log π_θ(a_t|s_t),  L the longest answer allowed.

    GRPO's standard deviation favours questions that are too easy or too hard, its 1/|o_i| long wrong answers (Liu et al. 2025, §3).
    """
    return grpo(group, clip, kl=0.0, epochs=epochs, minibatches=minibatches).but(
        advantage=GroupRelative(scale="none"), aggregation=ConstantLength(Knob("max_actions", 64))
    )
