from __future__ import annotations

from typing import Literal

from quatrain.estimator import Objective, Term
from quatrain.parts.advantages import Constant
from quatrain.parts.likelihoods import Divergence
from quatrain.rollout.sources import OnPolicy
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.registry import recipe
from quatrain.training.selves import Given
from quatrain.training.steps import Collect, Fit


@recipe(
    "opd",
    family="distillation",
    title="On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
    paper="2306.13649",
)
def opd(kind: Literal["reverse", "forward", "jsd"] = "reverse") -> Recipe:
    """On-policy distillation: descend the divergence to a teacher at every token of the student's own answers.

    g = −1/Σ|o| Σ_t ∇ D(π_θ(·|s_t), π_teacher(·|s_t)),  s_t from π_θ, no gradient through the sampling

    (Agarwal et al. 2024, eq. 3 with λ = 1.)

    kind  ``reverse`` KL(π_θ‖π_teacher), ``forward`` KL(π_teacher‖π_θ), ``jsd``.
    """
    term = Term(advantage=Constant(-1.0), likelihood=Divergence("teacher", kind))
    return Recipe((Stage((Collect(OnPolicy(group=1)), Fit(Objective({"policy": term})))),), models={"teacher": Given("teacher")})
