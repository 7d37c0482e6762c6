from __future__ import annotations

from typing import Literal

from quatrain.experiments.arms import Arm
from quatrain.experiments.claims import claim
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.linked import FromPlanner, planner_mean, planners
from quatrain.parts.selections import every_action
from quatrain.recipes.basics.grpo import grpo, with_kl
from quatrain.rollout.linked import Roles
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe("matpo", family="multi-agent", title="Multi-Agent Tool-Integrated Policy Optimization", paper="2510.04678")
def matpo(
    group: int = 8,
    clip: float = 0.2,
    workers: Literal["trained", "frozen"] = "trained",
    kl: float = 0.0,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Multi-agent GRPO: a planner and the workers that it calls are one model; they share the planner's advantage.

    g = 1/P Σ_i Σ_{k=0..K_i} 1/|τ_i^k| Σ_t 1[not clipped] r_t A_i ∇log π_θ(a_t|s_t),   A_i = (R_i − mean_group R)/std_group R

    τ_i^0 is the i-th of P planner rollouts, τ_i^1 … τ_i^{K_i} are those of its workers, each in a context of its own; what tools and
    workers answer is read and has no coefficient. Mean and standard deviation are taken over the G planners of a question alone, and
    the sum over all rollouts is divided by the number of planners, not by that of sequences.

    workers  ``frozen``: their tokens are left out; only the planner learns.
    kl       the weight of a k3 penalty to the initial policy (the paper has none).

    The task says who called whom (rows ``role``, ``episode``): a ``TurnTask`` whose environment calls episodes. The released code
    divides by all sequences and multiplies by their number over that of planners: the same. → GRPO where nobody calls anybody.
    """
    where = planners if workers == "frozen" else every_action
    plain = grpo(group, clip, kl=0.0, epochs=epochs, minibatches=minibatches)
    plain = plain.but(advantage=FromPlanner(GroupRelative()), aggregation=planner_mean, where=where).with_collect(edits=(Roles(),))
    return with_kl(plain, kl) if kl else plain


ALONE, TEAM = "toolworld", "toolworld?agents=team"

claim(
    "matpo",
    "beats",
    "Where what tools answer is long and noisy for the context, MATPO succeeds more often than one agent trained with GRPO that "
    "reads it all, and than a planner whose workers do not learn.",
    arms={
        "matpo": Arm("matpo", "matpo", {"task": TEAM}),
        "grpo": Arm("grpo", "grpo", {"task": ALONE, "kl": 0.0}),
        "frozen": Arm("frozen", "matpo", {"task": TEAM, "workers": "frozen"}),
    },
    settings={"model": "tiny", "steps": 30, "prompts": 8, "eval_count": 128, "eval_samples": 2, "eval_every": 30},
    smoke={"eval_samples": 1},
    metric="pass@1",
    stand_in="a character model of 0.2 million parameters that looks two links up in a table, answers of 20 to 44 tokens and a context "
    "of 96, for a model of 14 billion parameters with a search tool",
    why="What was asked for ends an answer: the noise fills the window and misleads nobody. A planner's two questions are fixed by its "
    "task: that it must learn to divide one is not tested. The greedy team succeeds before any training, one agent as often as its "
    "window allows: what is learnt is to make no mistakes in samples, which are what is measured.",
)
