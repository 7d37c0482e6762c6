from __future__ import annotations

from typing import Literal

from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.knobs import Knob
from quatrain.parts.aggregations import ConstantLength
from quatrain.parts.bounds import Clip
from quatrain.parts.denominators import Ratio
from quatrain.parts.discrepancy import Within, around
from quatrain.parts.tapers import TaperBySign
from quatrain.recipes.basics.asynchronous import asynchronous
from quatrain.recipes.basics.grpo import grpo
from quatrain.recipes.estimator.gspo import gspo
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe(
    "hispo",
    family="estimator",
    title="LongCat-Flash-Prover: Advancing Native Formal Reasoning via Agentic Tool-Integrated Reinforcement Learning",
    paper="2603.21065",
)
def hispo(
    group: int = 8,
    sequence_band: float = 0.1,
    token_band: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    clip_cap: float = 2.0,
    clip_on: Literal["total", "stale"] = "total",
    refresh: int = 1,
    bits: int = 0,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Hierarchical masks for asynchronous RL: sequences and tokens on which engine and trainer disagree give no gradient.

    g = 1/(N·T_max) Σ_i Σ_t H_it 1[not clipped] r_it A_i ∇log π_θ(y_t),  r = π_θ/μ = r_dis · r_stale,  r_dis = π_old/μ, r_stale = π_θ/π_old,
    H_it = 1[|exp(1/|y_i| Σ_j log r_dis,ij) − 1| < δ_seq] · 1[|r_dis,it − 1| < δ_tok],  μ the inference engine's policy

    sequence_band, token_band    δ_seq and δ_tok.
    clip_low, clip_high, clip_cap  A > 0: r at most 1 + clip_high; A < 0: r from 1 − clip_low to 1 + clip_cap (as a dual clip).
    clip_on         the ratio that the clip watches: r, or ``stale``, its factor r_stale alone (decoupled PPO).
    refresh, bits   a simulated engine that lags and rounds (``recipes.basics.asynchronous``); 1 and 0: the engine as it is.

    A is the group's z-score; no KL; masked tokens stay in the normaliser. Where engine and trainer agree r_dis = 1: plain clipped
    surrogate. Inferred: all thresholds (they are in an appendix that was not at hand) and the ratio's form, from restatements and the
    repository. The paper's check that a proof proves the given statement belongs to its prover's reward; its experts' iteration is
    another recipe: neither is here.
    """
    mismatch = (around(Ratio("old", "behaviour", "sequence"), sequence_band), around(Ratio("old", "behaviour"), token_band))
    watched = Ratio("current", "old") if clip_on == "stale" else None
    plain = grpo(group, kl=0.0, epochs=epochs, minibatches=minibatches).but(
        denominator=Ratio("current", "behaviour"),
        bound=Within(Clip(clip_low, clip_high, on=watched, dual=1 + clip_cap), mismatch),
        aggregation=ConstantLength(Knob("max_actions", 64)),
    )
    return asynchronous(plain, refresh, bits)


def late_grpo() -> Recipe:
    """GRPO's clip of the whole ratio, on the same engine."""
    return asynchronous(grpo(kl=0.0).but(denominator=Ratio("current", "behaviour")), 8, 5)


def late_tis() -> Recipe:
    """The whole ratio, truncated at 2."""
    return asynchronous(grpo(kl=0.0).but(denominator=Ratio("current", "behaviour"), bound=TaperBySign((0.0, 2.0), (0.0, 2.0))), 8, 5)


def late_gspo() -> Recipe:
    """GSPO's clip of the sequence's whole ratio."""
    return asynchronous(gspo(minibatches=1).but(denominator=Ratio("current", "behaviour", "sequence", "mean")), 8, 5)


claim(
    "hispo",
    "beats",
    "With an engine that rounds and lags eight rounds, HisPO ends higher than GRPO, GSPO and truncated weights.",
    arms={"hispo": "hispo:refresh=8,bits=5", "grpo": late_grpo, "gspo": late_gspo, "tis": late_tis},
    settings=LETTERS,
    stand_in="a dense character model with weights of 5 binary digits for the engine of a mixture of experts; letter problems for proofs; "
    "the reward-hacking half (a checker with a hole) is left out",
    why="Rounding a dense model is milder than experts that are routed differently, and answers are too short for it to add up. The "
    "thresholds are not the paper's.",
)
