from __future__ import annotations

from typing import Literal

from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.aggregations import sequence_mean, token_mean
from quatrain.parts.bounds import Clip
from quatrain.parts.selections import Finished, every_action
from quatrain.recipes.basics.grpo import grpo
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe("lite-ppo", family="estimator", title="Part I: Tricks or Traps? A Deep Dive into RL for LLM Reasoning", paper="2508.08221")
def lite_ppo(
    group: int = 8,
    scale: Literal["batch", "group", "none"] = "batch",
    mean: Literal["token", "sequence"] = "token",
    clip: float = 0.2,
    clip_high: float = 0.2,
    finished: bool = False,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Lite PPO: two tricks on PPO's clip without a critic, the batch's standard deviation and a token mean.

    g = 1/Σ|o_i| Σ_i Σ_t 1[not clipped] r_t A_i ∇log π_θ(a_t|s_t),   A_i = (R_i − mean_group R)/(std_batch R + 1e-6)

    The tricks that the paper looks at one by one are options:
    scale      whose standard deviation divides; ``none`` where rewards are nearly constant within groups.
    mean       ``token`` helps base models, ``sequence`` aligned ones.
    clip_high  above ``clip``: clip-higher, which helps aligned models.
    finished   only answers that ended by themselves (overlong filtering): for short and medium lengths.

    → GRPO without KL with scale ``group``, mean ``sequence``. The paper samples 8 answers per prompt at temperature 0.99, top-p 0.99,
    top-k 100: ``temperature=0.99 top_p=0.99 top_k=100``; the default here is the run's. ε of 0.2 and Bessel's correction as in TRL.
    """
    return grpo(group, clip, kl=0.0, epochs=epochs, minibatches=minibatches).but(
        advantage=GroupRelative(scale=scale),
        bound=Clip(clip, clip_high),
        where=Finished() if finished else every_action,
        aggregation=token_mean if mean == "token" else sequence_mean,
    )


claim(
    "lite-ppo",
    "beats",
    "Lite PPO's two tricks beat GRPO, and DAPO with its five, after as many samples.",
    arms=("lite-ppo:minibatches=4", "grpo:kl=0,minibatches=4", "dapo:minibatches=4"),
    settings=LETTERS | {"steps": 400, "tokens": 150_000},
    budget="tokens",
    stand_in="a character model of 0.2 million parameters, warmed up on letter problems, for Qwen3 4B and 8B base models on mathematics",
    why="Answers here end within a dozen tokens, so that the kind of mean hardly matters. All samples are charged, dropped ones too.",
)
