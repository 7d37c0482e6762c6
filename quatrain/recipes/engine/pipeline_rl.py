from __future__ import annotations

from dataclasses import replace

from quatrain.experiments.claims import claim
from quatrain.knobs import Knob
from quatrain.parts.aggregations import token_mean
from quatrain.parts.denominators import Ratio
from quatrain.parts.tapers import TaperBySign
from quatrain.recipes.basics.grpo import grpo
from quatrain.training.clock import Clock
from quatrain.training.executors import InFlight
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe
from quatrain.training.staleness import Staleness


@recipe(
    "pipeline-rl",
    family="engine",
    title="PipelineRL: Faster On-policy Reinforcement Learning for Long Sequence Generation",
    paper="2509.19128",
)
def pipeline_rl(
    group: int = 8,
    cap: float = 5.0,
    lag: int = 4,
    minibatches: int = 1,
    share: float = 0.5,
    step_seconds: float = 0.02,
    row_seconds: float = 0.0003,
    token_seconds: float = 0.0004,
) -> Recipe:
    """PipelineRL: sequences in progress see new weights between two tokens; the trainer weighs each token by what really sampled it.

    g = 1/N Σ_i Σ_t min(c, π_θ/μ_t) A_i ∇log π_θ(y_t|·),  μ_t = π_{v(t)} of the weights at that token, A_i group-relative, no clip, no KL

    group, cap   samples per prompt; c.
    lag          the most updates between a trajectory's beginning and its training; no group begins that could exceed it. 0: nothing
                 runs at the same time: the engine decodes a batch to its end, then the trainer trains.
    minibatches  updates on a batch: with lag 0 and ``prompts`` times as large the conventional loop of G updates per generation.
    share, …_seconds  the simulated clock (``training.clock.Clock``): the part of the machine that decodes while the rest trains; a token
                 for however many rows, for each row, and to train on. The knob ``pool`` is how many rows are decoded at once.

    Keys and values of earlier weights are kept. Measured: lag by action, and the effective sample size of π_θ/μ. On policy it is
    REINFORCE with a group's z-score. Inferred: that a batch is of whole groups, oldest first; that prefill and the transfer of weights
    take no time. PPO's clip and GSPO in place of the truncated weight are ``.but(bound=…, denominator=…)``.
    """
    plain = grpo(group, kl=0.0, minibatches=minibatches).with_collect(edits=(Staleness(),))
    plain = plain.but(denominator=Ratio("current", "behaviour"), bound=TaperBySign((0.0, cap), (0.0, cap)), aggregation=token_mean)
    engine = InFlight(Knob("pool", 128), lag, Clock(step_seconds, row_seconds, token_seconds, share))
    (stage,) = plain.stages
    return replace(plain, stages=(replace(stage, executor=engine),))


claim(
    "pipeline-rl",
    "beats",
    "In equal simulated time in-flight updates reach a higher accuracy than generating for 1, 4 or 16 updates and then making them.",
    arms={
        "pipeline-rl": "pipeline-rl:pool=64",
        "synchronous": "pipeline-rl:lag=0",
        "conventional-4": "pipeline-rl:lag=0,minibatches=4,prompts=32",
        "conventional-16": "pipeline-rl:lag=0,minibatches=16,prompts=128",
    },
    settings={
        "task": "letters:chain",
        "model": "tiny",
        "prompts": 8,
        "steps": 1000,
        "simulated_seconds": 20.0,
        "eval_count": 512,
        "eval_every": 0,
        "eval_samples": 0,
    },
    budget="simulated seconds",
    stand_in="a character model and answers of up to 13 tokens for reasoning chains of thousands; a clock in which a decoding step costs "
    "20 ms and 0.3 ms for each row (of half the machine: 0.6), and a trained token 0.4 ms, for an engine and a trainer on separate GPUs; "
    "as many rows decoded for each share of the machine in all arms",
    why="An answer of 13 tokens lasts about as long as one update, so that few weights arrive within it, and the tail of long answers "
    "that a synchronous engine waits for is short; how much time is saved is decided by the clock's "
    "constants. After 60 simulated seconds all arms were alike, at what the model can learn; hence 20.",
)
