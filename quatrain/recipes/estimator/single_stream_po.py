from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.parts.aggregations import token_mean
from quatrain.parts.baselines import Affine
from quatrain.parts.bounds import Clip
from quatrain.parts.tracked import Above, Standardised
from quatrain.recipes.basics.grpo import grpo
from quatrain.rollout.prioritised import Prioritised, StartValues, WholePool
from quatrain.rollout.sources import OnPolicy
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe
from quatrain.training.steps import Collect
from quatrain.training.value_tracker import TrackValue


@recipe("single-stream-po", family="estimator", title="Single-stream Policy Optimization", paper="2509.13232")
def single_stream_po(
    pool: int = 256,
    offline: int = 8,
    prioritised: bool = True,
    floor: float = 0.05,
    baseline: Literal["tracked", "batch"] = "tracked",
    half: float = 0.06,
    least: float = 0.875,
    most: float = 0.96,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual: float = 10.0,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Single-stream policy optimization: one response per prompt, compared with what the prompt has been worth so far.

    A_i = (r_i − v̂(x_i) − mean)/std over the batch,  v̂ = α/(α + β) before the update  α ← ρα + r, β ← ρβ + 1 − r,
    ρ = clip(2^(−D/D_half), ρ_min, ρ_max), D the mean |Δ log π| on x's last response; prompts drawn by √(v̂(1 − v̂)) + floor;
    PPO's surrogate with clip-higher and dual clip, token mean, no KL

    pool, offline  prompts that are tracked: the task's first; responses of the initial policy to each, which begin its tracker with
                   α = N (s + ½)/(n + 1), N = 1/(1 − ρ_min). They are charged to the ledger.
    prioritised    else prompts come in the task's order. baseline: ``batch``: no tracker in the advantage, only the batch's mean.
    half, least, most  D_half, ρ_min, ρ_max.

    ρ = 1: v̂ is a running mean; a constant ρ holds 1/(1 − ρ) observations. D is the released code's stand-in for a KL. A prompt never
    met begins at ½. Inferred: the Bessel correction; a prompt that a batch holds twice forgets once. Rewards are from 0 to 1.
    """
    source = Prioritised(OnPolicy(), pool, floor, least) if prioritised else OnPolicy()
    plain = grpo(1, kl=0.0, epochs=epochs, minibatches=minibatches).but(
        advantage=Standardised(Above() if baseline == "tracked" else Affine()),
        bound=Clip(clip_low, clip_high, dual=dual),
        aggregation=token_mean,
    )
    (stage,) = plain.with_collect(source=source, edits=(TrackValue(half, least, most, least),)).stages
    begin = (Collect(WholePool(OnPolicy(group=offline), pool), (StartValues(least),), into="offline"),)
    return replace(plain, stages=(replace(stage, begin=begin),))


claim(
    "single-stream-po",
    "beats",
    "With as many responses per update it ends higher than GRPO, than the batch's mean as the baseline, and than prompts in order.",
    arms={
        "single stream": "single-stream-po:prompts=128",
        "grpo": "grpo:kl=0",
        "batch mean": "single-stream-po:baseline=batch,prioritised=false,prompts=128",
        "in order": "single-stream-po:prioritised=false,prompts=128",
    },
    settings=LETTERS | {"task": "letters?train=256"},
    stand_in="a character model and 256 letter problems for Qwen3-8B on mathematics; 128 responses per update in every arm, and 2048 more "
    "of the initial policy to begin the trackers; the time that a round waits for its longest answer is not simulated",
    why="With 256 problems memory of them may decide, and the offline responses are not charged against the other arms.",
)
