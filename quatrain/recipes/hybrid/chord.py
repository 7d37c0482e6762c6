from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quatrain.controllers.schedules import Schedule
from quatrain.estimator import Term
from quatrain.experiments.arms import Arm
from quatrain.experiments.claims import claim
from quatrain.knobs import Knob
from quatrain.parts.advantages import one
from quatrain.parts.aggregations import token_mean
from quatrain.parts.gates import Share
from quatrain.parts.selections import demonstrations, rollouts
from quatrain.parts.shaping import ByProbability
from quatrain.recipes.basics.grpo import grpo
from quatrain.recipes.basics.sft import sft
from quatrain.rollout.edits import AddDemonstrations
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe(
    "chord",
    family="hybrid",
    title="On-Policy RL Meets Off-Policy Experts: Harmonizing Supervised Fine-Tuning and Reinforcement Learning via Dynamic Weighting",
    paper="2508.11408",
)
def chord(
    variant: Literal["mu", "phi", "importance", "fixed"] = "mu",
    mu: float = 0.1,
    peak: float = 0.9,
    valley: float = 0.05,
    warmup: int = 0,
    decay: int = 200,
    group: int = 8,
    clip: float = 0.2,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Exploration and imitation as two terms of one loss, whose weights move.

    L = (1 − μ) L_GRPO + μ L_SFT,  L_SFT = −mean_t φ_t log π(y*_t),  each a mean over its own tokens

    variant  ``mu``          φ = 1; μ rises from 0 to ``peak`` over ``warmup`` steps, then falls as a cosine to ``valley`` over ``decay``.
             ``phi``         φ = p(1 − p), p = π_θ(y*_t), detached; ``mu`` stays.
             ``importance``  φ = p: the expert's probability is taken for 1, as the paper's baseline does.
             ``fixed``       φ = 1; ``mu`` stays.

    The demonstrations are those of the prompts that are explored; the paper draws expert batches of their own. Its appendix lets μ
    fall over 30 steps, its ablation over 200. → GRPO with one mean over all tokens for μ = 0; → SFT for μ = 1 and φ = 1.
    """
    schedule = Schedule("mu", peak, warmup + decay, warmup, "cosine", floor=valley / peak if peak else 0.0, from_zero=True)
    share = Knob("mu", schedule.at(0)) if variant == "mu" else mu
    plain = grpo(group, clip, kl=0.0, epochs=epochs, minibatches=minibatches)
    plain = plain.but(where=rollouts, aggregation=token_mean, weight=Share(share, rest=True)).with_collect(edits=(AddDemonstrations(),))
    weight = Share(share) if variant in ("mu", "fixed") else ByProbability(variant, by=share)
    mixed = plain.with_terms(sft=Term(advantage=one, where=demonstrations, weight=weight))
    return replace(mixed, controllers=(schedule,)) if variant == "mu" else mixed


def explore() -> Recipe:
    """GRPO as the mixture has it."""
    return grpo(kl=0.0).but(aggregation=token_mean)


def imitate_then_explore() -> Recipe:
    """As many steps of imitation as of exploration after it: the mixture's demonstrations, and its rollouts."""
    return sft().then(explore())


OTHERS = {"sft→grpo": Arm("sft→grpo", imitate_then_explore), "grpo": Arm("grpo", explore)}
LABORATORY = {
    "settings": {"task": "letters:worked+sort+reverse+shift", "model": "tiny", "steps": 120, "prompts": 16, "eval_count": 512},
    "stand_in": "a character model of 0.2 million parameters; letter problems of four kinds whose demonstrations are in its own hand, but "
    "for a quarter of them, worked at three times the length; for models of 7 billion parameters and the answers of a larger one",
}
WHY = "Imitation before exploration has the same demonstrations and rollouts, and twice the updates. "

claim(
    "chord",
    "beats",
    "With μ falling CHORD ends at a higher accuracy than imitation followed by GRPO, than GRPO, and than a mixture of fixed weights, "
    "after as many rollouts.",
    arms={"chord": "chord:decay=100", **OTHERS, "fixed": "chord:variant=fixed,mu=0.5"},
    budget="rollouts",
    why=WHY + "Demonstrations here are exact and short, so that imitation does not have to be stopped before it overfits them.",
    **LABORATORY,
)
claim(
    "chord.phi",
    "beats",
    "With p(1 − p) and a small μ CHORD ends at a higher accuracy than imitation followed by GRPO, than GRPO, and than μ alone.",
    arms={"phi": "chord:variant=phi", **OTHERS, "fixed": "chord:variant=fixed"},
    budget="rollouts",
    why=WHY + "A kind that the model never solves has tokens of a probability near 0, which p(1 − p) leaves alone by design.",
    **LABORATORY,
)
claim(
    "chord.entropy",
    "beats",
    "Imitation weighted by p(1 − p) leaves the policy a higher entropy than imitation weighted by p.",
    arms={"phi": "chord:variant=phi,mu=0.5", "importance": "chord:variant=importance,mu=0.5"},
    metric="entropy",
    budget="rollouts",
    why="μ is 0.5: at the paper's 0.1 either weight leaves so little of the demonstrations here that exploration decides the entropy.",
    **LABORATORY,
)
