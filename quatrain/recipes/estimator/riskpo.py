from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quatrain.controllers.quantiles import QuantileTracker
from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.knobs import Knob
from quatrain.parts.aggregations import token_mean
from quatrain.parts.risk import TailWeighted
from quatrain.recipes.basics.grpo import grpo
from quatrain.recipes.estimator.gspo import gspo
from quatrain.rollout.bundles import Bundles
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe(
    "riskpo",
    family="estimator",
    title="RiskPO: Risk-based Policy Optimization via Verifiable Reward for LLM Post-Training",
    paper="2510.00911",
)
def riskpo(
    group: int = 10,
    bundle: int = 5,
    lower: float = 0.2,
    upper: float = 0.8,
    weight: float = 0.5,
    attitude: Literal["averse", "seeking"] = "averse",
    version: Literal["paper", "code"] = "paper",
    rate: float = 0.1,
    clip: float = 0.2,
    epochs: int = 1,
    minibatches: int = 4,
) -> Recipe:
    """Risk-based policy optimization: bundles of questions, whose worst scores count most and whose best do not count at all.

    J = −1/N Σ_i min(s_i A, clip(s_i, 1±ε) A),  s = (π_θ/π_old)^{1/|y|},  S: sum of the 0/1 rewards of a bundle of ``bundle`` questions,
    A = −(1+w)(q_a − S)⁺ + (S − q_a)⁺ − (S − q_b)⁺ + q_a − q_b,   q_x ← q_x + η (x − mean 1[S < q_x]),   x = a, b

    lower, upper, weight, rate  a, b, w and η. A is 0 from q_b on and negative below: what is solved gets no reward.
    attitude  ``seeking``: the upper tail has the weight and the lower none (slopes 0, 1, 1+w), as the paper's counterexample.
    version   ``code``, released: A_i = [m (−(q_a − S)⁺/a) + ((S − q_a)⁺ − (S − q_b)⁺)/(b − a)]/(m+1)/std, m = 1+w, shared out by
              (r_i − mean_q r)/Σ(r_j − mean_q r), the k-th samples of all questions bundled; PPO's clip per token, token mean.

    Equations from public code and restatements of the paper. Inferred: ε = 0.2 for the sequence ratio, quantiles that start at a·B
    and b·B and move after the update, the mirror image of the weights, the sum of a bundle that is not full (B times its mean).
    → GSPO of a linear bundle score for w = 0 and quantiles far apart.
    """
    low, high = Knob("quantile_low", lower * bundle), Knob("quantile_high", upper * bundle)
    trackers = QuantileTracker(low, "bundle/below_low", lower, rate), QuantileTracker(high, "bundle/below_high", upper, rate)
    if version == "paper":
        slopes, base, pairing = (1 + weight, 1.0, 0.0), gspo(group, clip, clip, epochs, minibatches), "random"
    else:
        tail, middle = (1 + weight) / (2 + weight) / lower, 1 / (2 + weight) / (upper - lower)
        slopes, pairing = (tail, middle, 0.0), "order"
        base = grpo(group, clip, kl=0.0, epochs=epochs, minibatches=minibatches).but(aggregation=token_mean)
    if attitude == "seeking":
        slopes = slopes[::-1]
    code = version == "code"
    advantage = TailWeighted(low, high, slopes, bundle, anchored=not code, scaled=code, credit="share" if code else "same")
    bundled = base.but(advantage=advantage).with_collect(edits=(Bundles(bundle, pairing, low, high),))
    return replace(bundled, controllers=trackers)


COMMON = {
    "settings": LETTERS | {"eval_count": 256, "eval_samples": 8},
    "smoke": {"steps": 2, "prompts": 2, "eval_count": 8, "eval_samples": 8},
    "metric": "pass@8",
    "stand_in": "a character model of 0.2 million parameters and letter problems for models of 1.5 and 7 billion on mathematics and code; "
    "entropy is in the runs' logs, not in the verdict",
}
claim(
    "riskpo",
    "beats",
    "On problems of mixed difficulty RiskPO ends with a higher accuracy in 8 samples (pass@8) than GRPO, and than its risk-seeking mirror.",
    arms={"riskpo": "riskpo", "grpo": "grpo:kl=0,group=10,minibatches=4", "seeking": "riskpo:attitude=seeking"},
    why="The paper's form is at most 0 and as large as the score: at this learning rate all that is sampled is pushed down, and after "
    "forty updates answers never end. The released code's form (riskpo.code) divides by the spread and shares the credit out.",
    **COMMON,
)
claim(
    "riskpo.code",
    "beats",
    "RiskPO as released ends with a higher accuracy in 8 samples (pass@8) than GRPO.",
    arms={"riskpo": "riskpo:version=code", "grpo": "grpo:kl=0,group=10,minibatches=4"},
    why="Bundles of 16 prompts: three of five questions and one left over; a tail of three scores is a coarse quantile.",
    **COMMON,
)
