from __future__ import annotations

from quatrain.estimator import Objective, Term
from quatrain.parts.advantages import KL, GroupRelative
from quatrain.parts.aggregations import sequence_mean
from quatrain.parts.bounds import Clip
from quatrain.parts.denominators import Ratio
from quatrain.rollout.sources import OnPolicy
from quatrain.training.columns import Score
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.registry import recipe
from quatrain.training.selves import Frozen
from quatrain.training.steps import Collect, Fit


@recipe(
    "grpo", family="basics", title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", paper="2402.03300"
)
def grpo(group: int = 8, clip: float = 0.2, kl: float = 0.04, epochs: int = 1, minibatches: int = 1) -> Recipe:
    """Group Relative Policy Optimization: PPO's surrogate with the group's z-score as the advantage, and no critic.

    g = 1/N Σ_i 1/|o_i| Σ_t [1[not clipped] r_t A_i + β (π_ref/π_θ − 1)] ∇log π_θ(a_t|s_t),   r_t = π_θ/π_old,
    A_i = (R_i − mean_group R)/(std_group R + 1e-6)                                           (Shao et al. 2024, eqs. 3, 4, 20)

    group  samples per prompt (the paper has 64).       clip  ε.
    kl     β, the weight of the k3 penalty to the initial policy; 0 needs no reference.
    epochs, minibatches   updates per batch are their product; with one the ratio is 1 and nothing is clipped.
    """
    term = Term(advantage=GroupRelative(), denominator=Ratio("current", "old"), bound=Clip(clip, clip), aggregation=sequence_mean)
    fit = Fit(Objective({"policy": term}), epochs=epochs, minibatches=minibatches)
    plain = Recipe((Stage((Collect(OnPolicy(group=group)), fit)),))
    return with_kl(plain, kl) if kl else plain


def with_kl(recipe: Recipe, weight: float, kind: str = "k3") -> Recipe:
    """The neighbour with a per-action KL penalty to the initial policy, averaged as its policy term is."""
    ((_, fit),) = recipe.fits(Objective)
    penalty = Term(advantage=KL("reference", kind), aggregation=fit.loss.terms["policy"].aggregation, weight=weight)
    (collect,) = (step for step in recipe.stages[0].steps if isinstance(step, Collect))
    scored = recipe.with_models(reference=Frozen()).with_collect(edits=(*collect.edits, Score("reference")))
    return scored.with_terms(kl=penalty)
