from __future__ import annotations

from typing import Literal

from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.parts.lengths import LengthAdvantage
from quatrain.recipes.basics.grpo import grpo
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe(
    "adora",
    family="estimator",
    title="ADORA: Training Reasoning Models with Dynamic Advantage Estimation on Reinforcement Learning",
    paper="2602.10019",
)
def adora(
    group: int = 8,
    scale: float = 0.1,
    version: Literal["text", "vision"] = "text",
    clip: float = 0.2,
    kl: float = 0.0,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """ADORA: GRPO whose groups count fully while long answers pay, and a tenth where they do not.

    A_i = w_q (r_i − mean_q r)/(std_q r + 1e-6),  w_q = 1 if max |o⁺| > mean |o⁻|, else ``scale`` (λ)

    over the prompt's correct answers o⁺ and its incorrect ones o⁻ that were not cut at the longest length.

    version  how the released code settles what the rule leaves open. ``text``: a group without a correct answer is scaled, one
             without an incorrect answer that ended is kept. ``vision``: the reverse of both. For a 0/1 reward neither matters, but
             for groups whose wrong answers were all cut: there all of z-scores' signal is.

    The vision experiments' second criterion, of difficulty, is left out: the rule that the code applies to text is the default.
    The weight is per group: the advantages of a group still sum to 0. → GRPO for λ = 1.
    """
    edges = {"missing": "scale", "alone": "keep"} if version == "text" else {"missing": "keep", "alone": "scale"}
    return grpo(group, clip, kl=kl, epochs=epochs, minibatches=minibatches).but("policy", weight=LengthAdvantage(scale, **edges))


claim(
    "adora",
    "beats",
    "ADORA learns faster than GRPO: it ends at a higher accuracy after as many updates.",
    arms=("adora", "grpo:kl=0"),
    settings=LETTERS | {"task": "letters:chain?levels=2-5"},
    stand_in="a character model of 0.2 million parameters and chains of operations, whose answers are as long as the chain, for models "
    "of 7 billion parameters on problems of competitions",
    why="The length of a correct chain is given by the problem, so that a longer answer is rarely a better one, and the weight mostly "
    "lowers the step: the paper's models find out that thinking longer pays.",
)
