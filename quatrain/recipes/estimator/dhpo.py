from __future__ import annotations

from typing import Literal

from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.parts.guides import Surprise
from quatrain.parts.levels import TwoLevelClip
from quatrain.recipes.basics.grpo import grpo
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe(
    "dhpo",
    family="estimator",
    title="Orchestrating Tokens and Sequences: Dynamic Hybrid Policy Optimization for RLVR",
    paper="2601.05607",
)
def dhpo(
    group: int = 8,
    guide: Literal["average", "entropy", "entropy-response"] = "average",
    token_share: float = 0.5,
    minimum: Literal["joint", "branch", "after"] = "joint",
    clip: float = 0.2,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    epochs: int = 1,
    minibatches: int = 4,
) -> Recipe:
    """Dynamic Hybrid Policy Optimization: token and sequence ratios, each clipped in its own range, then mixed in one surrogate.

    J = 1/N Σ_i 1/|y_i| Σ_t min(m_t A_i, m̄_t A_i),  m = w r + (1−w) s,  m̄ = w clip(r, 1±ε) + (1−w) clip(s, 1−ε_low, 1+ε_high),
    r_t = π_θ/π_old,  s = exp(1/|y| Σ_t log r_t), given to each token as sg[s]·π_θ/sg[π_θ]

    guide    w: ``average`` is ``token_share``; ``entropy``: the token's entropy, min–max over the update's batch, detached: undecided
             tokens take their own ratio; ``entropy-response``: H/H_max of the response.
    minimum  ``joint``: as above; ``branch``: w min(r A, r̄ A) + (1−w) min(s A, s̄ A); ``after``: mixed, then clipped by 1±ε.
    clip, clip_low, clip_high  of the token's (GRPO's) and the sequence's (GSPO's) ratio.

    → GRPO for token_share = 1, GSPO for 0. From the abstract: both guides, clipping in separate ranges before mixing, one surrogate.
    Inferred: the ranges (the parents'), the scaling and direction of the entropy; a secondary note has the minimum per branch.
    """
    mix = token_share if guide == "average" else Surprise("batch" if guide == "entropy" else "response")
    bound = TwoLevelClip(mix, (clip, clip), (clip_low, clip_high), minimum)
    return grpo(group, kl=0.0, epochs=epochs, minibatches=minibatches).but(bound=bound)


claim(
    "dhpo",
    "beats",
    "DHPO ends at a higher accuracy than GRPO, than GSPO, and than mixing first and clipping after.",
    arms=("dhpo:minibatches=4", "grpo:kl=0,minibatches=4", "gspo:minibatches=4", "dhpo:minimum=after,minibatches=4"),
    settings=LETTERS,
    stand_in="a character model of 0.2 million parameters and letter problems for Qwen3 models on mathematics; the averaged mixture",
    why="The clip ranges are the parents', not the paper's. In answers of a dozen tokens the two ratios are close to each other.",
)
claim(
    "dhpo.entropy",
    "beats",
    "DHPO guided by entropy ends at a higher accuracy than GRPO and than GSPO.",
    arms=("dhpo:guide=entropy,minibatches=4", "grpo:kl=0,minibatches=4", "gspo:minibatches=4"),
    settings=LETTERS,
    stand_in="as for dhpo; entropies scaled between the least and the greatest of an update",
    why="As for dhpo; the scaling and the direction of the guide are inferred.",
)
