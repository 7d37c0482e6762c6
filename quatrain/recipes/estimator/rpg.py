from __future__ import annotations

from typing import Literal

from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.bounds import Clip, unbounded
from quatrain.parts.divergences import Clamp, FDivergence, Kind, Regularised
from quatrain.recipes.basics.dapo import dapo
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe(
    "rpg",
    family="estimator",
    title="On the Design of KL-Regularized Policy Gradient Algorithms for LLM Reasoning",
    paper="2505.17508",
)
def rpg(
    group: int = 16,
    kl: Kind = "unnormalised-reverse",
    beta: float = 1e-4,
    clip: Literal["dual", "clamp", "none"] = "dual",
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual: float = 3.0,
    tries: int = 4,
    overlong_cache: int = 0,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Regularized policy gradient: the KL to the old policy with its exact importance weight, under one clip with the reward.

    g = E_old [w (R − b − β f′(w)) ∇log π_θ],  w = π_θ/π_old:  −∇ of  −E_π[R] + β D_f,  b the group's mean of R

    kl      D_f: ``reverse`` f′ = log w + 1, ``unnormalised-reverse`` log w, ``forward`` −1/w, ``unnormalised-forward`` 1 − 1/w
            (the paper's RKL, URKL, FKL, UFKL; its R − b − β log w and so on is this bracket).
    clip    ``dual``: PPO's dual clip (Ye et al. 2020) by the sign of the regularised advantage (the bracket), a constant under the
            gradient; ``clamp``: the released code without that clip, w clamped first, in β f′(w) too; ``none``: the formula above.
    tries, overlong_cache   DAPO's sampling and length penalty, as in the paper's runs; the mean is over the batch's tokens.

    The paper's losses to differentiate and their stop-gradient (REINFORCE) forms have one gradient: four objectives, not eight; both are
    in the test. The code's clipped branch chooses the side by the sign of R − b alone. GRPO's k3 to a reference lacks the weight w: the
    correct gradient of E_old[w k3] is w log(π_ref/π_θ), KL("reference", "k2") with denominator Ratio("current", "old").

    → policy gradient with a group baseline at w = 1 for the unnormalised kinds; the others add a constant ∓β. → DAPO with a mean-centred
    advantage and dual clip for β = 0. The anchor is the old policy itself, renewed with every batch.
    """
    within = (1 - clip_low, 1 + clip_high)
    bound = {"dual": Clip(clip_low, clip_high, dual=dual), "clamp": Clamp(clip_low, clip_high), "none": unbounded}[clip]
    penalty = FDivergence(kl, within=within if clip == "clamp" else None)
    plain = dapo(group, clip_low, clip_high, tries, overlong_cache, mean="batch", epochs=epochs, minibatches=minibatches)
    return plain.but(advantage=Regularised(GroupRelative(scale="none"), penalty, beta), bound=bound)


claim(
    "rpg",
    "beats",
    "With four updates per batch RPG ends at a higher accuracy than GRPO and DAPO.",
    arms={"rpg": "rpg:group=8,minibatches=4", "grpo": "grpo:kl=0,minibatches=4", "dapo": "dapo:minibatches=4"},
    settings=LETTERS | {"steps": 400, "tokens": 150_000},
    budget="tokens",
    stand_in="a character model of 0.2 million parameters and letter problems for models of 4 and 7 billion parameters on mathematics",
    why="At the paper's β = 1e-4 the penalty is small beside the reward: from DAPO it then differs in the standard deviation and the dual "
    "clip. RPG and DAPO draw up to four times per batch; all samples are charged.",
)
