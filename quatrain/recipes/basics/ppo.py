from __future__ import annotations

from quatrain.estimator import Objective, Term
from quatrain.losses.value import ValueLoss
from quatrain.parts.advantages import Centred, GeneralisedAdvantage, one
from quatrain.parts.bounds import Clip
from quatrain.parts.denominators import Ratio
from quatrain.parts.likelihoods import Entropy
from quatrain.rollout.sources import Segments
from quatrain.training.columns import Values
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.registry import recipe
from quatrain.training.selves import Critic
from quatrain.training.steps import Collect, Fit


@recipe("ppo", family="basics", title="Proximal Policy Optimization Algorithms", paper="1707.06347")
def ppo(
    clip: float = 0.2, discount: float = 0.99, trace: float = 0.95, entropy: float = 0.0, epochs: int = 10, minibatches: int = 4
) -> Recipe:
    """Proximal Policy Optimization: several clipped updates per batch, with a critic.

    g = E_t [1[not clipped] r_t A_t ∇log π_θ(a_t|s_t) + entropy·∇H(π_θ(·|s_t))],
    A_t = Σ_k (γλ)^k δ_{t+k}                                                       (Schulman et al. 2017, eqs. 7, 9, 11)

    Advantages are standardised over the batch. The critic regresses on the λ-returns with a Fit of its own.
    """
    policy = Term(
        advantage=Centred(GeneralisedAdvantage(discount, trace), scale=True), denominator=Ratio("current", "old"), bound=Clip(clip, clip)
    )
    terms = {"policy": policy} | ({"entropy": Term(advantage=one, likelihood=Entropy(), weight=entropy)} if entropy else {})
    steps = (
        Collect(Segments(), edits=(Values("critic"),)),
        Fit(Objective(terms), epochs=epochs, minibatches=minibatches),
        Fit(ValueLoss(discount, trace), model="critic", epochs=epochs, minibatches=minibatches),
    )
    return Recipe((Stage(steps),), models={"critic": Critic()})
