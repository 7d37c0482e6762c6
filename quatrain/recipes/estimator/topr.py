from __future__ import annotations

from typing import Literal

from quatrain.experiments.arms import Arm
from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.parts.baselines import Affine
from quatrain.parts.denominators import Ratio
from quatrain.parts.tapers import TaperBySign
from quatrain.recipes.basics.grpo import grpo
from quatrain.recipes.basics.off_policy import off_policy
from quatrain.recipes.basics.reinforce import reinforce
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe

TAPERS = {
    "topr": TaperBySign((1.0, 1.0), (0.0, 1.0)),
    "reinforce": TaperBySign((1.0, 1.0), (1.0, 1.0)),
    "positives": TaperBySign((1.0, 1.0), (0.0, 0.0)),
    "truncated": TaperBySign((0.0, 1.0), (0.0, 1.0)),
}
RATIOS = {"sequence": ("sequence", "sum"), "mean": ("sequence", "mean"), "token": ("action", "sum")}


@recipe(
    "topr",
    family="estimator",
    title="Tapered Off-Policy REINFORCE: Stable and efficient reinforcement learning for LLMs",
    paper="2503.14286",
)
def topr(
    group: int = 8,
    baseline: float = 0.0,
    taper: Literal["topr", "reinforce", "positives", "truncated"] = "topr",
    ratio: Literal["sequence", "mean", "token"] = "sequence",
    refresh: int = 0,
) -> Recipe:
    """Tapered Off-Policy REINFORCE: imitate what is good; push down what is bad only as far as the policy still does it.

    g = 1/N Σ_{A≥0} A_i ∇log π(y_i) + 1/N Σ_{A<0} min(1, π(y_i)/μ(y_i)) A_i ∇log π(y_i),  A = R − c, R = ±1, y from μ ≠ π

    baseline  c. It shifts the effective share of positives (``parts.tapers.effective_share``); 10 to 20 % is said to be best.
    taper     ``topr``; ``reinforce``: no ratio, unbounded below; ``positives``: STaR; ``truncated``: importance weights up to 1.
    ratio     that of the whole ``sequence`` (the paper); of its length's root (``mean``) or per ``token``, as in frameworks.
    refresh   rounds after which the sampler is the policy again; 0: never.

    Without a KL. Rewards of 0 and 1 become −1 and +1. On policy it is REINFORCE. Inferred: the split is by the sign of R − c. The
    equations are from restatements of the paper; balancing the data set (one positive, many negatives) is left out.
    """
    level, reduce = RATIOS[ratio]
    tapered = reinforce(group=group).but(
        advantage=Affine(2.0, -1.0 - baseline), denominator=Ratio("current", "behaviour", level, reduce), bound=TAPERS[taper]
    )
    return off_policy(tapered, refresh)


def stale_grpo() -> Recipe:
    """GRPO's clip on the trajectories of the initial policy."""
    return off_policy(grpo(kl=0.0))


claim(
    "topr",
    "beats",
    "On trajectories of the initial policy alone TOPR ends at a higher accuracy than REINFORCE, PPO's clip and imitation of the solved.",
    arms={
        "topr": "topr",
        "reinforce": "topr:taper=reinforce",
        "clip": Arm("clip", stale_grpo),
        "positives": "topr:taper=positives",
    },
    settings=LETTERS,
    stand_in="a character model of 0.2 million parameters and letter problems for Llama 3 8B on GSM8K and MATH; fresh samples of the "
    "initial policy in every round for a data set sampled once; the DPO arm is left out",
    why="REINFORCE collapses and PPO's clip stands still, as the paper says; imitation of the solved alone is as good as TOPR: samples of "
    "the initial policy solve most of what can be learnt here, and pushing down the rest adds little.",
)
