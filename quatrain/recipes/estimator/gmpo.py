from __future__ import annotations

from typing import Literal

from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.aggregations import sequence_mean, sequence_sum
from quatrain.parts.levels import GeometricClip
from quatrain.recipes.basics.grpo import grpo
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe("gmpo", family="estimator", title="Geometric-Mean Policy Optimization", paper="2507.20673")
def gmpo(
    group: int = 8,
    clip: float = 0.4,
    level: Literal["action", "sequence", "none"] = "action",
    root: bool = True,
    scale: Literal["group", "none"] = "group",
    kl: float = 0.0,
    epochs: int = 1,
    minibatches: int = 4,
) -> Recipe:
    """Geometric-Mean Policy Optimization: GRPO with the geometric mean of the token ratios, clipped token by token inside it.

    J = 1/N Σ_i A_i exp(1/|o_i| Σ_t m_t),  m_t = min(l_t, ε) if A_i > 0, max(l_t, −ε) if A_i < 0,  l = log π_θ/π_old
    g = 1/N Σ_i A_i exp(mean m) 1/|o_i| Σ_t 1[l_t not clipped] ∇log π_θ(a_t|s_t)

    clip   ε of the log-ratio, at both sides: ratios from e^−0.4 to e^0.4.
    level  where it is clipped: per ``action``, the sum over the ``sequence``, or ``none`` (the paper's ablations).
    root   False: the product of the ratios, not its |o|-th root.
    scale  ``group``: the z-score, as the released scripts do; ``none``: their trainer's, Dr. GRPO's.

    → PPO's clip in log space for answers of one token; → GSPO's ratio without its clip for level ``none``. The number of updates per
    batch is assumed.
    """
    return grpo(group, kl=kl, epochs=epochs, minibatches=minibatches).but(
        "policy",
        advantage=GroupRelative(scale=scale),
        bound=GeometricClip(clip, clip, level, root),
        aggregation=sequence_mean if root else sequence_sum,
    )


claim(
    "gmpo",
    "beats",
    "With several updates per batch and a high learning rate GMPO ends at a higher accuracy than GRPO.",
    arms=("gmpo:minibatches=8", "grpo:kl=0,minibatches=8"),
    settings=LETTERS,
    stand_in="a character model of 0.2 million parameters and letter problems for Qwen2.5-Math 7B on mathematics; each recipe's clip range",
    why="Outlying ratios, which the geometric mean tames, are rare in answers of a dozen tokens.",
)
claim(
    "gmpo.range",
    "beats",
    "The weights that GMPO gives stay closer to 1 than GRPO's: the policy moves less far from the one that sampled (mean KL of an update).",
    arms=("gmpo:minibatches=8", "grpo:kl=0,minibatches=8"),
    settings=LETTERS,
    metric="kl",
    higher=False,
    stand_in="as for gmpo; the KL to the policy that sampled, of the last round, for the range of the ratio",
    why="The two recipes' gradients differ in size, and so does how far a step carries, whatever the ratios do.",
)
