"""Twin delayed critics and a deterministic actor: the stages that offline actor–critics share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quatrain.estimator import Objective, Term
from quatrain.knobs import Knob
from quatrain.models.action_values import twin_critics
from quatrain.models.networks import DeterministicOf
from quatrain.parts.aggregations import PerDimension, value_scale
from quatrain.parts.likelihoods import CriticAlong
from quatrain.rollout.replayed import Draw, Recordings, Transitions
from quatrain.rollout.sources import Segments
from quatrain.training.fits import TwinQ
from quatrain.training.rules import AdamW
from quatrain.training.selves import Frozen, Made
from quatrain.training.steps import Collect, Fit, Repeat, Sync

BATCH = Knob("batch", 256)
VALUE = Term(likelihood=CriticAlong(), aggregation=value_scale)
LOAD = Collect(Recordings(), edits=(Transitions(),), into="replay")
EXPLORE = Collect(Segments(Knob("segment", 8)), edits=(Transitions(),), into="replay")


def adam(knob: str, lr: float) -> AdamW:
    """Adam at a learning rate of that name, its gradients as they are."""
    return AdamW(lr=Knob(knob, lr), clip_norm=0.0)


def actor_fit(terms: Mapping[str, Term]) -> tuple[Any, ...]:
    """One update of the actor on rows of its own."""
    return (Collect(Draw(BATCH), into="actor"), Fit(Objective(terms), rule=adam("actor_lr", 3e-4), source="actor"))


def td3_round(terms: Mapping[str, Term], times: int | Knob = Knob("updates", 50), discount: float = 0.99, rate: float = 0.005) -> Repeat:
    """``times`` over: two updates of the critics, one of the actor, the targets follow (Fujimoto et al. 2018, algorithm 1, d = 2)."""
    critic = Fit(TwinQ(discount), model="critic", rule=adam("critic_lr", 3e-4), source="critic")
    follow = (Sync("critic", "target_critic", rate), Sync("policy", "target_policy", rate))
    judged = Repeat((Collect(Draw(BATCH), into="critic"), critic), 2)
    return Repeat((judged, *actor_fit(terms), *follow), times)


def td3_models(hidden: int = 256, noise: float = 0.1, dropout: float = 0.0) -> dict[str, Any]:
    """The actor in the given policy's place, its critics, and the slow copies of both."""
    actor = DeterministicOf((hidden, hidden), noise, dropout)
    targets = {"target_policy": Frozen("policy"), "target_critic": Frozen("critic")}
    return {"policy": Made(actor), "critic": Made(twin_critics), **targets}


def imitation(noise: float = 0.1, alpha: float = 2.5) -> Term:
    """The squared error to the data's action, 1/α of its mean over dimensions (Fujimoto & Gu 2021, TD3+BC, eq. 3 divided by α).

    log π of the Gaussian of width ``noise`` around the actor's action is that error over −2·noise².
    """
    return Term(aggregation=PerDimension(2 * noise**2 / alpha))
