from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Literal

from quatrain.estimator import Objective, Term
from quatrain.experiments.claims import claim
from quatrain.parts.advantages import KL, Constant
from quatrain.parts.aggregations import sequence_mean, token_mean
from quatrain.parts.likelihoods import Divergence
from quatrain.recipes.distillation.opd import opd
from quatrain.rollout.privileged import Privileged
from quatrain.tasks.warm_start import TOLD
from quatrain.training.columns import Score
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe
from quatrain.training.selves import Frozen
from quatrain.training.steps import Sync


@recipe(
    "opsd",
    family="distillation",
    title="Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models",
    paper="2601.18734",
)
def opsd(
    beta: float = 0.5,
    clip: float = 0.05,
    top: int = 0,
    sampled: bool = False,
    teacher: Literal["fixed", "current", "average"] = "fixed",
    decay: float = 0.999,
    mean: Literal["sequence", "token"] = "sequence",
    template: str = TOLD,
) -> Recipe:
    """On-policy self-distillation: the model that knows the solution teaches itself without it.

    L = E 1/|y| Σ_t Σ_v min(c, d_v),  Σ_v d_v = β KL(p_T‖m) + (1 − β) KL(p_S‖m),  m = (1 − β) p_S + β p_T,
    p_S = π_θ(·|x, y_<t),  p_T = π̄(·|x, y*, y_<t) without gradient,  y from p_S

    beta     0: KL(p_T‖p_S); 1: KL(p_S‖p_T); the formula itself would be 0 there.
    clip     c, a cap on every entry of the vocabulary (0: none); with β = 0 or 1 the loss may be negative. 0.05 is the released code's
             since March 2026 (down to 1e-7 in its runs without thinking); its first release had none.
    top      only the teacher's likeliest tokens, both normalised over them; 0: all.
    sampled  the sampled token's log-probability with A = log p_T − log p_S, detached, in place of the divergence; no clip.
    teacher  π̄: the model as it was (recommended), as it is, or its moving average with ``decay``.
    mean     per ``sequence`` (paper), or over all the batch's tokens (code).

    The paper samples at temperature 1.1 and top-p 0.95; both sides are tempered. → on-policy distillation, β = 1 and c = 0, from a
    teacher that was told. It needs a model that reads a solution: ``template`` is what the teacher is asked.
    """
    average = sequence_mean if mean == "sequence" else token_mean
    if sampled:
        term = Term(advantage=KL("teacher", "k2"), aggregation=average)
    else:
        term = Term(advantage=Constant(-1.0), likelihood=Divergence("teacher", "jsd", beta, clip or inf, top), aggregation=average)
    edits = (Privileged(template), *([Score("teacher")] if sampled else []))
    plain = opd().with_collect(edits=edits).with_fit(loss=Objective({"policy": term})).with_models(teacher=Frozen())
    plain = replace(plain, target="-divergence") if sampled else plain
    if teacher == "fixed":
        return plain
    (stage,) = plain.stages
    follow = Sync("policy", "teacher", rate=1.0 if teacher == "current" else 1 - decay)
    return replace(plain, stages=(replace(stage, steps=(*stage.steps, follow)),))


LABORATORY = {"task": "letters:worked", "model": "tiny:privileged", "steps": 200, "tokens": 20_000, "prompts": 16, "eval_count": 512}
STAND_IN = (
    "a character model of 0.2 million parameters that was taught to read a solution in a longer hand than it writes, on chains of "
    "operations, for instruction-tuned Qwen3 of 1.7 to 8 billion on competition problems"
)

claim(
    "opsd",
    "beats",
    "At equal sampled tokens self-distillation from the informed self ends at a higher accuracy than imitation of the solutions, and than "
    "GRPO with eight samples per prompt.",
    arms={"opsd": "opsd:clip=0", "sft": "sft", "grpo": "grpo:kl=0"},
    settings=LABORATORY,
    budget="tokens",
    stand_in=STAND_IN,
    why="Without the cap: on distributions as sharp as this model's, 0.05 silences the very tokens that it gets wrong. Imitation samples "
    "nothing, and has as many updates as self-distillation.",
)
claim(
    "opsd.teacher",
    "beats",
    "A teacher that stays as it was ends at a higher accuracy than one that moves with the student.",
    arms={"fixed": "opsd:clip=0", "current": "opsd:clip=0,teacher=current"},
    settings=LABORATORY,
    budget="tokens",
    stand_in=STAND_IN,
    why="How soon a moving teacher collapses depends on the learning rate, which is high here.",
)
