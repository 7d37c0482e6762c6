"""An edit that tells each trajectory what its prompt was worth before it, and learns from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.parts.likelihoods import LogProb
from quatrain.rollout.value_store import evidence, forgetting, per_prompt, places, prior_strength, recall, remember
from quatrain.training.batching import scored
from quatrain.training.state import State


@dataclass(frozen=True)
class TrackValue:
    """``tracked_value`` [N]: v = α/(α + β) of the row's prompt *before* this batch; then α ← ρα + Σr, β ← ρβ + Σ(1 − r).

    half   D_half of ρ = clip(2^(−D/D_half), least, most), D the mean of |log π_then − log π_now| over the prompt's last response.
    least, most  ρ_min and ρ_max; 1 and 1 keep everything.

    Rewards are from 0 to 1. Every prompt's last response is kept in memory, to be scored again when the prompt returns.
    """

    half: float = 0.06
    least: float = 0.875
    most: float = 0.96
    start: float = 0.875
    micro_tokens: int | Knob = Knob("micro_tokens", 16384)
    needs = ("prompt", "reward", "behaviour_logp")
    provides = ("tracked_value",)
    models = ("policy",)

    def __post_init__(self) -> None:
        if not (0 <= self.least <= self.most <= 1 and self.half > 0 and 0 <= self.start < 1):
            given = f"least={self.least}, most={self.most}, half={self.half}, start={self.start}"
            raise QuatrainError("a tracker's forgetting is out of range", given=given, expected="0 ≤ least ≤ most ≤ 1, half > 0")

    @torch.no_grad()
    def __call__(self, state: State, batch: Batch) -> Batch:
        known, (rows, index, count, wins) = recall(state.memory), per_prompt(batch)
        prompts = rows["prompt"].cpu()
        alpha, beta = evidence(known, prompts, prior_strength(self.start))
        value = (alpha / (alpha + beta)).to(batch.device)[index]
        place, met = places(known, prompts)
        rho = torch.full(prompts.shape, self.most, dtype=torch.float64)
        if met.any():
            moved = self.divergence(state, known.take(place[met]).to(batch.device)).cpu()
            rho[met] = forgetting(moved, self.half, self.least, self.most)
            state.measure({"tracker/divergence": (moved.sum(), len(moved))})
        state.measure({"tracker/kept": (rho.sum(), len(rho))})
        count, wins = count.cpu(), wins.cpu()
        remember(state.memory, rows.to("cpu").with_rows(alpha=rho * alpha + wins, beta=rho * beta + count - wins))
        return batch.with_rows(tracked_value=value)

    def divergence(self, state: Any, rows: Batch) -> Tensor:
        """[M] mean over a response's actions of |log π_then − log π_now|, float64."""
        policy = state.models["policy"]
        now = scored(rows, lambda part: policy.score(part, [LogProb()]), self.micro_tokens)[LogProb()]
        gap = torch.where(rows.mask, rows["behaviour_logp"] - now, 0.0).double().abs()
        return gap.sum(1) / rows.lengths.clamp(min=1)
