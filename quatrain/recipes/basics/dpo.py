from __future__ import annotations

from quatrain.estimator import Objective, Term
from quatrain.parts.advantages import PairLogistic
from quatrain.parts.aggregations import PerGroup
from quatrain.rollout.sources import Pairs
from quatrain.training.columns import Score
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.registry import recipe
from quatrain.training.selves import Frozen
from quatrain.training.steps import Collect, Fit


@recipe("dpo", family="basics", title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model", paper="2305.18290")
def dpo(beta: float = 0.1) -> Recipe:
    """Direct Preference Optimization: a logistic regression on pairs, with the policy's own log-ratio as the reward.

    g = E_pairs β σ(−β m) [Σ_t ∇log π_θ(chosen) − Σ_t ∇log π_θ(rejected)],
    m = log π_θ/π_ref(chosen) − log π_θ/π_ref(rejected)                             (Rafailov et al. 2023, eq. 7 and its gradient)

    The reference is in the advantage, which looks at the current policy; the term's own ratio is 1.
    """
    term = Term(advantage=PairLogistic(beta), aggregation=PerGroup(by="pair", rows="sum"))
    steps = (Collect(Pairs(), edits=(Score("reference"),)), Fit(Objective({"policy": term})))
    return Recipe((Stage(steps),), models={"reference": Frozen()})
