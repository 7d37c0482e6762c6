"""An edit for policies whose likelihood is a mean over draws: every trajectory stands in the batch once per draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.parts.boundary import TRAJECTORY
from quatrain.parts.likelihoods import LogProb
from quatrain.training.batching import scored
from quatrain.training.state import State


@dataclass(frozen=True)
class MaskDraws:
    """``count`` rows of every trajectory, each with another draw; ``trajectory`` [N] is the key that they share.

    whole  in every draw everything is hidden.

    ``old_logp`` and ``behaviour_logp`` become those of the policy as it is under the new draws. They are rows, so that micro-batches
    cut between them: memory does not grow with their number. A policy whose likelihood is exact has nothing to draw, and is left
    with one row per trajectory.
    """

    count: int | Knob = 8
    whole: bool = False
    micro_tokens: int | Knob = Knob("micro_tokens", 16384)
    provides = (TRAJECTORY, "old_logp", "behaviour_logp")

    def __post_init__(self) -> None:
        if isinstance(self.count, int) and self.count < 1:
            raise QuatrainError("a likelihood is estimated from one draw or more", given=f"count={self.count}")

    @torch.no_grad()
    def __call__(self, state: State, batch: Batch) -> Batch:
        policy = state.models["policy"]
        batch = batch.with_rows(**{TRAJECTORY: torch.arange(len(batch), device=batch.device)})
        if not hasattr(policy, "redraw"):
            return batch
        batch = policy.redraw(batch, self.count, state.draw("mask draws"), self.whole)
        logp = scored(batch, lambda part: policy.score(part, [LogProb()]), self.micro_tokens)[LogProb()]
        state.spent["tokens/scored"] += int(batch.mask.sum())
        return batch.with_columns(old_logp=logp, behaviour_logp=logp)
