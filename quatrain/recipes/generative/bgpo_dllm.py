from __future__ import annotations

from typing import Literal

from quatrain.experiments.claims import claim
from quatrain.experiments.miniatures.bound_gradients import COUNTS, cosines
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.aggregations import sequence_sum, token_mean
from quatrain.parts.boundary import Boundary, JointRatio, PerTrajectory
from quatrain.parts.bounds import Clip
from quatrain.parts.denominators import Ratio
from quatrain.recipes.basics.grpo import grpo
from quatrain.training.mask_draws import MaskDraws
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe(
    "bgpo-dllm",
    family="generative",
    title="Boundary-Guided Policy Optimization for Memory-efficient RL of Diffusion Large Language Models",
    paper="2510.11683",
)
def bgpo_dllm(
    group: int = 8,
    draws: int = 8,
    bound: Literal["boundary", "joint", "token"] = "boundary",
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Boundary-guided policy optimization: a bound of the evidence bound's ratio that is a mean over mask draws.

    g = 1/(N·n) Σ_i Σ_j f(d_ij) A_i ∇l_ij,   f = 1 where A_i ≥ 0, exp(d_ij) where A_i < 0,   d_ij = l_ij(θ) − l_ij(θ_old),
    l_ij = L/k_j Σ_hidden log p_θ(y_t | what is seen, x),   log π_θ(y_i|x) ≈ mean_j l_ij,   A the group's z-score

    It ascends A(1 + d̄) or A·mean_j exp(d_j), both at most A·exp(d̄) and equal to it, gradient included, where θ = θ_old. A draw is a row
    with coefficients of its own, shared by θ and θ_old; micro-batches cut between draws.

    draws  n (the paper has 16).
    bound  ``joint``: A·exp(d̄) itself. Its coefficient needs all draws, which one pass without gradient gives: in constant memory too,
           for one more forward, which is what the bound saves here. ``token``: as in the released code, ratios per token, 1 + d and
           exp(d), within PPO's clip (ε = 0.2) and a dual clip at 3, averaged over all tokens; 1 + d ≤ 0 has no gradient.
    epochs, minibatches   updates per batch are their product; with one all bounds are the same.

    Policies with an exact likelihood have nothing to draw: there A ≥ 0 is REINFORCE's and A < 0 the sequence's ratio, without a clip.
    Inferred: L counts the whole canvas, the repeated end included; no KL to the initial policy.
    """
    shape = {
        "boundary": (Ratio("current", "old", "sequence", "sum"), Boundary(), sequence_sum),
        "joint": (Ratio("current", "old", "sequence", "sum"), JointRatio(), sequence_sum),
        "token": (Ratio("current", "old"), Boundary(Clip(0.2, 0.2, dual=3.0)), token_mean),
    }
    denominator, factor, mean = shape[bound]
    plain = grpo(group, kl=0.0, epochs=epochs, minibatches=minibatches).with_collect(edits=(MaskDraws(draws),))
    return plain.but(advantage=PerTrajectory(GroupRelative()), denominator=denominator, bound=factor, aggregation=mean)


def diffu_grpo() -> Recipe:
    """GRPO with the one-step likelihood of d1 (Zhao et al. 2025): everything is hidden, every token has a ratio of its own."""
    return grpo(kl=0.0, minibatches=4).with_collect(edits=(MaskDraws(1, whole=True),))


claim(
    "bgpo-dllm",
    "beats",
    "With 8 mask draws BGPO ends at a higher accuracy than with 2, than a ratio of evidence bounds with 2, and than one-draw diffu-GRPO.",
    arms={
        "bgpo-8": "bgpo-dllm:draws=8,minibatches=4",
        "bgpo-2": "bgpo-dllm:draws=2,minibatches=4",
        "elbo-2": "bgpo-dllm:draws=2,bound=joint,minibatches=4",
        "diffu": diffu_grpo,
    },
    settings={"task": "letters:reverse+sort+chain?levels=1-4", "model": "tiny-diffusion", "steps": 30, "prompts": 16, "eval_count": 256},
    stand_in="a masked-diffusion character model of 0.2 million parameters on letter problems, for LLaDA-8B on mathematics and code",
    why="Arms have equal updates; draws cost forwards that the ledger counts apart (tokens/scored). Canvases have 12 positions, where one "
    "draw tells nearly as much as many; over hundreds of tokens it tells less. Arms are alike from the tenth step on.",
)

claim(
    "bgpo-dllm.bias",
    "correlates",
    "More mask draws bring BGPO's gradient nearer to that of 256 draws of the evidence bound's ratio.",
    arms=("correlation", *[f"{bound} {count}" for bound in ("boundary", "joint") for count in COUNTS]),
    measure=cosines,
    smoke={"prompts": 2, "repeats": 1, "reference": 4},
    stand_in="the model, batch and problems of the claim above",
    why="Few groups of a batch this small have a signal, so that single cosines are noisy; the reference is the joint ratio's gradient.",
)
