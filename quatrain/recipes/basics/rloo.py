from __future__ import annotations

from quatrain.parts.advantages import LeaveOneOut
from quatrain.recipes.basics.reinforce import reinforce
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe(
    "rloo",
    family="basics",
    title="Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
    paper="2402.14740",
)
def rloo(group: int = 8) -> Recipe:
    """REINFORCE leave-one-out: the baseline is the mean reward of the group's other samples.

    g = 1/N Σ_i (r_i − 1/(G−1) Σ_{j≠i} r_j) Σ_t ∇log π_θ(a_t|s_t)   (Ahmadian et al. 2024, eq. 6; Kool et al. 2019)

    Unbiased: the baseline does not contain its own sample. The paper uses 2 and 4 samples, and takes the KL to a reference off the
    reward, which is left to the reward here.
    """
    return reinforce(group=group).but(advantage=LeaveOneOut())
