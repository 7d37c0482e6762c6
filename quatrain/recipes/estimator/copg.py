from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quatrain.experiments.arms import Arm
from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.experiments.miniatures.regularised_bandit import distances
from quatrain.parts.aggregations import sequence_sum
from quatrain.parts.baselines import RegularisedLeaveOneOut
from quatrain.recipes.basics.dpo import dpo
from quatrain.recipes.basics.grpo import with_kl
from quatrain.recipes.basics.off_policy import off_policy
from quatrain.recipes.basics.rloo import rloo
from quatrain.training.columns import Score
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe
from quatrain.training.selves import Frozen

TITLE = "Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a supervised-friendly fashion"


@recipe("copg", family="estimator", title=TITLE, paper="2406.19185")
def copg(
    group: int = 8, beta: float = 0.1, data: Literal["rollouts", "pairs"] = "rollouts", epochs: int = 1, minibatches: int = 1
) -> Recipe:
    """Contrastive Policy Gradient: a regression on differences of regularised rewards, right from any distribution.

    g = 1/N Σ_i (R_i − mean_{j≠i} R_j) ∇log π_θ(y_i),  R = r − β log π_θ/π_ref(y), detached;  no ratio

    Minus the gradient of 1/(β N (k−1)) Σ_{i>j} ½ (R_i − R_j)² over a prompt's k samples, which is zero for every pair at
    π* ∝ π_ref exp(r/β). The paper has k = 2; the form for k is Command A's. It writes ℓ with the half penalty r − β/2 log π_θ/π_ref
    not detached, to be maximised (its text says minimised): ℓ = −½(R − R')²/β + const. β is set per experiment; 0.1 is assumed.

    data  ``pairs``: the reward of the chosen is +1, of the rejected −1 → IPO, (margin − 2/β)².

    On policy it is RLOO with the KL in the reward. Reuse of data (epochs, minibatches, ``off_policy``) needs no correction.
    """
    if data == "pairs":
        plain = dpo().but(advantage=RegularisedLeaveOneOut(beta, by="pair", of="preference"), aggregation=sequence_sum)
    else:
        scored = rloo(group).with_models(reference=Frozen()).with_collect(edits=(Score("reference"),))
        plain = replace(scored.but(advantage=RegularisedLeaveOneOut(beta)), target=f"reward - {beta:g}*kl")
    return plain.with_fit(epochs=epochs, minibatches=minibatches)


def stale_copg() -> Recipe:
    """CoPG on the trajectories of the initial policy."""
    return off_policy(copg())


def stale_rloo() -> Recipe:
    """Leave-one-out REINFORCE with a KL penalty on the trajectories of the initial policy, as if they were its own."""
    return off_policy(with_kl(rloo(), 0.1, "k2"))


claim(
    "copg",
    "beats",
    "On trajectories of the initial policy alone CoPG ends at a higher accuracy than REINFORCE without importance weights.",
    arms={"copg": Arm("copg", stale_copg), "rloo": Arm("rloo", stale_rloo)},
    settings=LETTERS,
    stand_in="a character model of 0.2 million parameters and letter problems for a summarisation model and a learnt reward; accuracy "
    "for the regularised return; fresh samples of the initial policy for a data set",
    why="The paper's theorem is about the regularised optimum, not about accuracy; with rewards of 0 and 1 a wrong baseline hurts less.",
)
claim(
    "copg.bandit",
    "beats",
    "From skewed data CoPG reaches the regularised optimum, where a policy gradient without a baseline or with a mean one does not.",
    arms=("copg", "none", "mean"),
    measure=distances,
    smoke={"steps": 20},
    metric="log10 KL to the optimum",
    higher=False,
    seeds=20,
    stand_in="bandits of three arms with random rewards and random skewed data, exact gradients",
    why="With its own value E_π[R] as baseline the off-policy gradient ends at the optimum as well: there R is constant.",
)
