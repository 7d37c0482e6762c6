from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quatrain.estimator import Objective, Term
from quatrain.experiments.claims import claim
from quatrain.parts.advantages import GroupRelative, PairLogistic
from quatrain.parts.aggregations import PerGroup, sequence_sum
from quatrain.parts.gates import Mixed, Scaled
from quatrain.parts.implicit import Implicit, OutcomeLogistic
from quatrain.parts.segments import Plus, SegmentRelative
from quatrain.recipes.basics.grpo import grpo
from quatrain.rollout.pairs import Again, OrdersPairs, RankedPairs
from quatrain.rollout.turns import Turns
from quatrain.training.columns import Score
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.registry import recipe
from quatrain.training.selves import Twin
from quatrain.training.steps import Collect, Fit


@recipe("oprl", family="agentic", title="Agentic Reinforcement Learning with Implicit Step Rewards", paper="2509.19199")
def oprl(
    group: int = 8,
    alpha: float = 1.0,
    beta: float = 0.05,
    prm: Literal["pairs", "outcomes"] = "pairs",
    fuse: Literal["advantage", "reward"] = "advantage",
    level: Literal["turn", "action"] = "turn",
    where: Literal["all", "mixed"] = "all",
    clip: float = 0.2,
    kl: float = 0.0,
    prm_epochs: int = 1,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Online process reward learning (iStar): a second model learns in turn which episodes are better; its log-ratio pays every turn.

    L(φ) = −log σ(m),  m = β log π_φ/π_old(τ⁺) − β log π_φ/π_old(τ⁻);     r_φ(turn) = β Σ_{t in turn} log π_φ/π_old(a_t|s_t)
    A = A^E + α A^S,  A^E = z of the episode's reward in its group,  A^S = z of r_φ over all turns of all episodes of the group
    g = 1/N Σ_i 1/|τ_i| Σ_t 1[not clipped] r_t A_t ∇log π_θ(a_t|s_t)                                     (Liu et al. 2025)

    A round: episodes; pairs τ⁺, τ⁻ of a group by outcome; φ, a copy of the initial policy, fitted to them with the policy that acted as
    reference; the fitted φ scores the same episodes; θ. What tools and environments answer is read and has no coefficient.

    prm    ``outcomes``: a logistic regression of every episode's outcome in place of pairs, as PRIME has it.
    fuse   ``reward``: r_o + α r_φ of every turn, standardised together: the merging that the paper argues against.
    level  ``action``: r_φ and its z-score token by token, in place of turn by turn.
    where  ``mixed``: A^S in groups alone whose episodes differ in outcome. Elsewhere φ was fitted to nothing, and its z-score, of the
           size of any other, pulls the policy back to where φ lags.
    kl     the weight of a k3 penalty to the initial policy.

    From restatements. Inferred: β (0.05), that pairs are formed from the outside in (best with worst), both models' common learning rate,
    the mean over actions and the exact form of the merging. → GRPO for α = 0; a task without turns has one per episode.
    """
    implicit = Implicit(beta if fuse == "advantage" else alpha * beta)
    step = SegmentRelative(implicit, plus="reward" if fuse == "reward" else "", by="turn" if level == "turn" else "")
    weight = Scaled(Mixed(), alpha) if where == "mixed" else alpha
    advantage = step if fuse == "reward" else Plus(GroupRelative(), step, weight)
    plain = grpo(group, clip, kl, epochs, minibatches).but("policy", advantage=advantage)
    collect, fit = plain.stages[0].steps
    pairs = Term(PairLogistic(beta, "old"), aggregation=PerGroup("pair", rows="sum"))
    outcomes = Term(OutcomeLogistic(beta), aggregation=sequence_sum)
    learn = Fit(Objective({"prm": pairs if prm == "pairs" else outcomes}), "prm", source="pairs", epochs=prm_epochs)
    steps = (
        replace(collect, edits=(Turns(), *collect.edits)),
        Collect(Again(), (RankedPairs(),) if prm == "pairs" else (), into="pairs"),
        learn,
        Collect(Again(), (Score("prm"), OrdersPairs(Implicit(beta)))),
        fit,
    )
    return replace(plain, stages=(Stage(steps),), models={**plain.models, "prm": Twin()})


SETTINGS = {"task": "grid?walls=3", "model": "tiny", "steps": 40, "prompts": 8, "eval_count": 128, "eval_every": 20}
STAND_IN = (
    "a character model of 0.2 million parameters in a grid of 4×4 with walls that it does not see, a letter a turn, a reward at the door "
    "alone; models of 7 billion with reasoning in every turn in the paper"
)
WHY = (
    "Outcomes are 0 or 1: a group that is all solved or all failed makes no pair, and its A^S is the gap between two models that learn "
    "apart. The paper's scores are graded. GiGPO's arm is its own recipe's; a turn is one token, so that turn and token level are one."
)
claim(
    "oprl",
    "beats",
    "On a sparse task of many turns OPRL ends at a higher success after equally many episodes than GRPO, and than merging its rewards.",
    arms={"oprl": "oprl", "grpo": "grpo:kl=0", "merged": "oprl:fuse=reward"},
    settings=SETTINGS,
    metric="success",
    stand_in=STAND_IN,
    why=WHY,
)
claim(
    "oprl.mixed",
    "beats",
    "With A^S only in groups that make pairs, OPRL ends at a higher success than GRPO, and than a process reward fitted to outcomes.",
    arms={"oprl": "oprl:where=mixed", "grpo": "grpo:kl=0", "outcomes": "oprl:where=mixed,prm=outcomes"},
    settings=SETTINGS,
    metric="success",
    stand_in=STAND_IN,
    why=WHY,
)
