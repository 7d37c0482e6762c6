from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quatrain.controllers.schedules import Annealed
from quatrain.estimator import Term
from quatrain.experiments.claims import claim
from quatrain.knobs import Knob
from quatrain.parts.advantages import Constant, one
from quatrain.parts.bounds import unbounded
from quatrain.parts.denominators import Ratio
from quatrain.parts.divergences import FDivergence
from quatrain.parts.gates import Scaled
from quatrain.parts.likelihoods import Divergence
from quatrain.recipes.basics.ppo import ppo
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe
from quatrain.training.selves import Frozen
from quatrain.training.steps import Sync


@recipe("mdpo", family="estimator", title="Mirror Descent Policy Optimization", paper="2005.09814")
def mdpo(
    step_size: float = 1.0,
    anneal: bool = True,
    kl: Literal["exact", "sampled"] = "exact",
    q: float = 1.0,
    discount: float = 0.99,
    trace: float = 0.95,
    entropy: float = 0.0,
    epochs: int = 10,
    minibatches: int = 1,
) -> Recipe:
    """Mirror descent policy optimization: several unclipped updates per batch, held back by the KL to where they began.

    θ_{k+1} ≈ argmax E_{s~π_k}[E_{a~π_θ} A_k(s, a) − 1/t_k KL(π_θ(·|s)‖π_k(·|s))],  t_k = 1 − k/K           (Tomar et al. 2020, §4)
    g = E_t [r_t A_t ∇log π_θ(a_t|s_t) − 1/t_k ∇KL(π_θ(·|s_t)‖π_k(·|s_t))],  r = π_θ/π_k, not clipped

    by m = epochs·minibatches steps over the batch. At the first the KL has no gradient: one step alone is the policy gradient.

    step_size   t_0; with ``anneal`` t_k falls linearly with the round.
    kl          ``exact``: over the whole distribution, to a copy of the policy taken before the batch; ``sampled``: from the batch's
                actions, r·(log r + 1) ∇log π_θ.
    q           of ``sampled``: Tsallis' logarithm log_q in place of log; 1 is the KL.

    That k is the round and K the rounds of its stage is inferred. The off-policy form, with a replayed critic, is not here.
    → ppo without its clip for a large step size; for a small one nothing moves.
    """
    t = Knob("step_size", step_size)
    held = {
        "exact": Term(advantage=Constant(-1.0), likelihood=Divergence("old"), weight=Scaled(one, 1.0, t)),
        "sampled": Term(
            advantage=FDivergence("tsallis", q=q), denominator=Ratio("current", "old"), bound=unbounded, weight=Scaled(one, 1.0, t)
        ),
    }[kl]
    plain = ppo(discount=discount, trace=trace, entropy=entropy, epochs=epochs, minibatches=minibatches)
    plain = replace(plain.but("policy", bound=unbounded).with_terms(kl=held), controllers=(Annealed(t.name, step_size),) if anneal else ())
    if kl == "sampled":
        return plain
    (stage,) = plain.stages
    return replace(plain, stages=(replace(stage, steps=(Sync("policy", "old"), *stage.steps)),)).with_models(old=Frozen())


claim(
    "mdpo",
    "beats",
    "Ten steps per batch, held by the KL, end at a higher return than PPO's clip, and than one step.",
    arms={"mdpo": "mdpo:epochs=10", "ppo": "ppo:epochs=10,minibatches=1", "one step": "mdpo:epochs=1"},
    settings={"task": "gym:CartPole-v1", "steps": 20, "eval_count": 50, "eval_samples": 0, "eval_every": 5},
    metric="return",
    seeds=20,
    stand_in="CartPole with small networks for MuJoCo; the off-policy half (against SAC) and TRPO are left out",
    why="CartPole is solved by any of them in time: the return after 20 batches tells the speed, of one learning rate for all.",
)
