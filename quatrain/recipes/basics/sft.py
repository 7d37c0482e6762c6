from __future__ import annotations

from quatrain.estimator import Objective, Term
from quatrain.rollout.sources import Demonstrations
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.registry import recipe
from quatrain.training.steps import Collect, Fit


@recipe("sft", family="basics", title="Supervised fine-tuning")
def sft() -> Recipe:
    """Supervised fine-tuning: raise the log-probability of demonstrations.

    c_t = 1/Σ|o|, the gradient of the mean cross-entropy over demonstrated tokens. Every part is a term's default: all actions,
    ratio 1, advantage 1, log-probability.
    """
    return Recipe((Stage((Collect(Demonstrations()), Fit(Objective({"policy": Term()})))),))
