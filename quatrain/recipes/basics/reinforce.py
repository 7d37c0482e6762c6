from __future__ import annotations

from quatrain.estimator import Objective, Term
from quatrain.parts.advantages import Centred, Return
from quatrain.parts.aggregations import sequence_sum
from quatrain.rollout.sources import OnPolicy
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.registry import recipe
from quatrain.training.steps import Collect, Fit


@recipe("reinforce", family="basics", title="Simple statistical gradient-following algorithms for connectionist reinforcement learning")
def reinforce(discount: float = 1.0, baseline: bool = True, group: int = 1) -> Recipe:
    """REINFORCE: the score function times the reward still to come (Williams 1992).

    g = 1/N Σ_i Σ_t G_t ∇log π_θ(a_t|s_t),  G_t = Σ_{k≥t} γ^{k−t} r_k, minus the mean of G over the batch with ``baseline``.

    The batch mean contains the sample's own return: it shrinks the gradient by (n−1)/n, n actions in the batch.
    """
    advantage = Centred(Return(discount)) if baseline else Return(discount)
    term = Term(advantage=advantage, aggregation=sequence_sum)
    return Recipe((Stage((Collect(OnPolicy(group=group)), Fit(Objective({"policy": term})))),))
