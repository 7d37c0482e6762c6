from __future__ import annotations

from typing import Literal

from quatrain.experiments.claims import claim
from quatrain.parts.drifts import ClipDrift, DiscoveredDrift, Drift, Drifting
from quatrain.recipes.basics.ppo import ppo
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe("discovered-po", family="estimator", title="Discovered Policy Optimisation", paper="2210.05639")
def discovered_po(
    drift: Literal["discovered", "clip"] = "discovered",
    alpha: float = 2.0,
    beta: float = 0.6,
    clip: float = 0.2,
    discount: float = 0.99,
    trace: float = 0.95,
    entropy: float = 0.0,
    epochs: int = 4,
    minibatches: int = 4,
) -> Recipe:
    """Discovered policy optimization: PPO with a smooth drift, found by evolution, in place of the clip.

    g = E_t [r_t (A_t − f′(r_t)) ∇log π_θ(a_t|s_t)],
    f = ReLU((r−1)A − α tanh((r−1)A/α)) for A ≥ 0,  ReLU(A log r − β tanh(A log r/β)) for A < 0          (Lu et al. 2022, §5)

    For A < 0 the coefficient changes its sign where r is small: an action that was pushed down too far is pulled back up. A clip only
    lets go of it.

    drift  ``clip`` is PPO's own, f = ReLU((r − clip(r)) A), of width ``clip``: → ppo exactly. Any other drift, such as a network's
           (LPO, §4), goes in with ``with_drift``.

    → no bound as α and β grow.
    """
    return with_drift(
        DiscoveredDrift(alpha, beta) if drift == "discovered" else ClipDrift(clip), discount, trace, entropy, epochs, minibatches
    )


def with_drift(
    drift: Drift, discount: float = 0.99, trace: float = 0.95, entropy: float = 0.0, epochs: int = 4, minibatches: int = 4
) -> Recipe:
    """PPO with any drift in place of its clip."""
    plain = ppo(discount=discount, trace=trace, entropy=entropy, epochs=epochs, minibatches=minibatches)
    return plain.but("policy", bound=Drifting(drift))


claim(
    "discovered-po",
    "beats",
    "With PPO's hyper-parameters the discovered drift ends at a higher return than PPO.",
    arms=("discovered-po:epochs=4,minibatches=4", "ppo:epochs=4,minibatches=4"),
    settings={"task": "gym:CartPole-v1", "steps": 15, "eval_count": 50, "eval_samples": 0, "eval_every": 5},
    metric="return",
    seeds=20,
    stand_in="CartPole after 15 batches, before either has solved it, for Brax and MinAtar",
    why="The paper's claim is matching or exceeding PPO. CartPole has one easy behaviour and two actions: the clip rarely "
    "binds. The first five of these twenty seeds alone would have said contradicted, at −83 [−153, −12].",
)
