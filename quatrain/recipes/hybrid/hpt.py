from __future__ import annotations

from typing import Literal

from quatrain.estimator import Objective, Term
from quatrain.experiments.arms import Arm
from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.knobs import Knob
from quatrain.parts.advantages import GroupRelative, one
from quatrain.parts.aggregations import PerGroup
from quatrain.parts.bounds import Clip, unbounded
from quatrain.parts.denominators import Ratio
from quatrain.parts.gates import BySolvedCount, Scaled, Solved
from quatrain.parts.likelihoods import Entropy
from quatrain.parts.selections import demonstrations, rollouts
from quatrain.recipes.basics.grpo import grpo
from quatrain.recipes.basics.sft import sft as imitation
from quatrain.rollout.edits import AddDemonstrations
from quatrain.rollout.sources import OnPolicy
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.registry import recipe
from quatrain.training.steps import Collect, Fit

# Weights by number of solved rollouts, 0 to 5 and more: the released code's soft coefficients.
SOFT_RL, SOFT_SFT = (0.0, 0.0, 0.125, 0.25, 0.5, 1.0), (1.0, 1.0, 0.5, 0.25, 0.125, 0.0)


@recipe("hpt", family="hybrid", title="Towards a Unified View of Large Language Model Post-Training", paper="2509.04419")
def hpt(
    group: int = 8,
    gate: float = 0.0,
    version: Literal["paper", "code"] = "paper",
    soft: bool = False,
    sft: float = 1.0,
    entropy: float = 0.0,
    clip: float = 0.2,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Hybrid Post-Training: per prompt, explore if the policy can solve it, else imitate its demonstration.

    P = mean reward of the prompt's ``group`` rollouts;  L = E_prompt [1[P > gate] L_RL + sft·1[P ≤ gate] L_SFT]   (eqs. 8–13)
    L_SFT  the token mean of the prompt's one demonstration.
    L_RL   −1/G Σ_i Σ_t min(r A, clip(r) A), a sum over tokens.

    version  ``paper``: A = (R − mean)/std, clipped. ``code``: A = R − mean, ratio not clipped, token sums divided by the longest
             answer allowed; with it come sft = 1 (0.3 for the 1.5B model) and entropy = 0.001.
    gate     0: imitate only what no rollout solved (Qwen). The code gates LLaMA at two solved of eight: 0.25.
    soft     the released code's graded weights by number of solved rollouts, in place of the gate.

    The paper names Dr. GRPO, whose advantage has no standard deviation, and divides by it: the text contradicts the name. ε is not
    stated; 0.2 is assumed. → SFT with gate ≥ 1; → GRPO with summed tokens where every prompt is solved once.
    """
    explore, imitate = (BySolvedCount(SOFT_RL), BySolvedCount(SOFT_SFT)) if soft else (Solved(gate), Solved(gate, invert=True))
    code = version == "code"
    terms = {
        "policy": Term(
            advantage=GroupRelative(scale="none" if code else "group"),
            denominator=Ratio("current", "old"),
            bound=unbounded if code else Clip(clip, clip),
            where=rollouts,
            aggregation=PerGroup(actions="sum"),
            weight=Scaled(explore, 1.0, Knob("max_actions", 64)) if code else explore,
        ),
        "sft": Term(advantage=one, where=demonstrations, aggregation=PerGroup(actions="mean"), weight=Scaled(imitate, sft)),
    }
    if entropy:
        terms["entropy"] = Term(advantage=one, likelihood=Entropy(), where=rollouts, weight=entropy)
    steps = (
        Collect(OnPolicy(group=group), edits=(AddDemonstrations(),)),
        Fit(Objective(terms), epochs=epochs, minibatches=minibatches),
    )
    return Recipe((Stage(steps),))


def imitate_then_explore() -> Recipe:
    """Supervised fine-tuning, then GRPO, as many steps of each."""
    return imitation().then(grpo(kl=0.0))


claim(
    "hpt",
    "beats",
    "HPT ends at a higher held-out accuracy than imitation, than GRPO, and than imitation followed by GRPO, after as many updates.",
    arms={
        "hpt": "hpt",
        "sft": "sft",
        "grpo": "grpo:kl=0",
        "sft→grpo": Arm("sft→grpo", imitate_then_explore, {"steps": 100}),
    },
    settings=LETTERS,
    stand_in="a character model of 0.2 million parameters and letter problems with worked solutions for Qwen2.5-Math on problems of "
    "competitions with answers of a larger model; the paper's LUFFY arm is left out",
    why="The demonstrations here are exact and short, so that plain imitation is stronger than it is on a larger model's long answers.",
)
