from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quatrain.controllers.schedules import Annealed
from quatrain.estimator import Objective, Term
from quatrain.experiments.claims import claim
from quatrain.knobs import Knob
from quatrain.parts.gates import Scaled
from quatrain.parts.perception import ByOutcome, Perception
from quatrain.recipes.basics.dapo import dapo
from quatrain.recipes.basics.grpo import grpo, with_kl
from quatrain.rollout.corruption import Corrupt
from quatrain.training.columns import Score
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe("papo", family="estimator", title="Perception-Aware Policy Optimization for Multimodal Reasoning", paper="2507.06448")
def papo(
    group: int = 8,
    base: Literal["grpo", "dapo"] = "grpo",
    gamma: float = 0.02,
    wrong: float = 1.0,
    anneal: bool = False,
    rate: float = 0.6,
    fill: int | None = None,
    entropy: float = 0.0,
    kl: float = 0.01,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Perception-aware policy optimization: answers should be less likely where the observation is blanked.

    J = J_base + γ mean_t k3(r_t) − η H[π_θ(·|I)],  k3 = r − log r − 1,  r = π_θ(o_t|q, I_m)/π_θ(o_t|q, I),  H ≈ −mean_t log π_θ(o_t)
    g of the second: γ mean_t (1 − r_t) ∇log π_θ(o_t|q, I), as |log r| ≤ 20 and k3 ≤ 10, else 0

    I_m is the observation I, each piece blanked with probability ``rate``; its log-probabilities are computed once per batch, without
    gradient, as in the released code. The average is the base's.

    base     ``dapo``: the paper's second; with it γ = 0.01, kl = 0, η = 0.03.    kl  the weight of the base's k3 to the initial policy.
    wrong    the perception's weight on answers that were not solved; the code also has 0.1.    anneal  γ falls linearly to 0.
    entropy  η, of the clean branch. The paper's Double Entropy Loss has −η₂ H[π_θ(·|I_m)] as well: without a gradient through the
             corrupted branch it is a constant, and left out.

    A large γ is maximised by unlikely answers (the paper's collapse): η is the remedy. → the base for γ = η = 0, and where I_m = I.
    A text's observation is what its task says is observed, else the whole prompt: tokens become ``fill`` (None: the piece that shows
    nothing, or token 0).
    """
    if base == "grpo":
        plain = grpo(group, kl=0.0, epochs=epochs, minibatches=minibatches)
    else:
        plain = dapo(group, epochs=epochs, minibatches=minibatches)
    ((_, fit),) = plain.fits(Objective)
    mean = fit.loss.terms["policy"].aggregation
    plain = plain.with_collect(edits=(Corrupt(rate, fill), Score("policy", "corrupted_logp", role="corrupted")))
    plain = with_kl(plain, kl) if kl else plain
    weight = Scaled(ByOutcome(1.0, wrong), by=Knob("gamma", gamma) if anneal else gamma)
    plain = plain.with_terms(perception=Term(advantage=Perception(), aggregation=mean, weight=weight))
    plain = plain.with_terms(entropy=Term(aggregation=mean, weight=entropy)) if entropy else plain
    return replace(plain, controllers=(*plain.controllers, Annealed("gamma", gamma))) if anneal else plain


claim(
    "papo",
    "beats",
    "With the perception term PAPO ends at a higher accuracy than GRPO; with a large γ it does not, unless entropy is held down.",
    arms={"papo": "papo", "grpo": "grpo:kl=0.01", "large": "papo:gamma=1,kl=0", "entropy": "papo:gamma=1,kl=0,entropy=0.05"},
    settings={"task": "letters", "model": "tiny", "steps": 200, "prompts": 16, "eval_count": 512, "eval_every": 50},
    stand_in="a character model of 0.2 million parameters on letter problems whose characters are blanked, for vision-language models of "
    "3 and 7 billion parameters on images whose patches are",
    why="No letter problem can be guessed without its text, so that there is no shortcut to unlearn: the split of the accuracy by "
    "dependence on the image is not measured.",
)
