from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quatrain.estimator import Objective
from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.parts.bounds import Clip
from quatrain.parts.consistency import ConsistencyAdvantage, EntropyGate
from quatrain.recipes.basics.grpo import grpo, with_kl
from quatrain.rollout.edits import AnswerKeys
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe("copo", family="estimator", title="COPO: Consistency-Aware Policy Optimization", paper="2508.04138")
def copo(
    group: int = 6,
    steepness: float = 20.0,
    offset: float = 0.5,
    gate: Literal["soft", "hard"] = "soft",
    unless: Literal["never", "no_signal", "unsolved"] = "never",
    penalty: bool = True,
    clip: float = 0.2,
    dual: float = 3.0,
    kl: float = 0.0,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Consistency-aware policy optimization: where a prompt's answers agree, it is compared with the other prompts.

    L = w_q L_local + (1 − w_q) L_global,  w_q = σ(k (H_q − b)),  H_q = −Σ_a p(a) log2 p(a) over the prompt's final answers
    L_local   the group's z-score (r_i − mean_q r)/std_q r: GRPO
    L_global  A_q = (R_q − mean R)/std R over the batch's prompts for every token of every answer of q,
              R_q = mean_q r · (1 − λ H_q),  λ = (1 − 1/G)/log2 G

    Both are PPO's surrogate with a dual clip, averaged per sequence.

    steepness, offset   k and b; the paper also has 5 and 1.    gate  ``hard``: w_q = 1[H_q > b], the limit of large k.
    unless   the released code's variants: w_q = 0 where the local advantage is 0 (``no_signal``) or the reward is (``unsolved``).
    penalty  the factor 1 − λ H_q; without it R_q = mean_q r.
    kl       the weight of a k3 penalty to the initial policy; the code has 0.001 as an option.

    A group that agrees has a gradient unless R_q is the mean over prompts. → GRPO (with dual clip) for b → −∞. The dual clip's 3 and
    the Bessel correction over prompts are assumed, after the framework that the code extends.
    """
    local = EntropyGate(steepness, offset, gate == "hard", unless=unless)
    clipped = grpo(group, clip, kl=0.0, epochs=epochs, minibatches=minibatches).but(bound=Clip(clip, clip, dual=dual), weight=local)
    ((_, fit),) = clipped.fits(Objective)
    across = replace(fit.loss.terms["policy"], advantage=ConsistencyAdvantage(penalty), weight=replace(local, invert=True))
    both = clipped.with_terms(across=across).with_collect(edits=(AnswerKeys(),))
    return with_kl(both, kl) if kl else both


claim(
    "copo",
    "beats",
    "Where most groups are all right or all wrong, COPO keeps learning: it ends at a higher accuracy than GRPO and DAPO's resampling.",
    arms={"copo": "copo:group=6", "grpo": "grpo:kl=0,group=6", "dapo": "dapo:group=6"},
    settings=LETTERS | {"steps": 400, "tokens": 150_000},
    budget="tokens",
    stand_in="a character model of 0.2 million parameters and letter problems of every level, most of which it always or never solves, for "
    "models of 3 and 7 billion parameters on mathematics",
    why="Answers of a few characters agree by chance more often than the results of long derivations. All samples are charged: DAPO, "
    "which draws until groups disagree, takes fewer updates.",
)
