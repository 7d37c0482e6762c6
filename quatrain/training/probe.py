"""An edit that tells each trajectory what a probe of the policy's own states makes of it, and learns from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.models.features import row_statistics
from quatrain.models.probes import explained, fit_probe
from quatrain.parts.crossed import mean_of_others
from quatrain.training.batching import micro_batches
from quatrain.training.state import State

MEMORY = "probe"


@dataclass(frozen=True)
class ProbeValue:
    """``probe_value`` [N]: g(z_i), what a probe expects a *sibling's* reward to be; g is fit on the rows of earlier batches alone.

    z  the policy's hidden states at the prompt's end and pooled over the trajectory, and statistics of its entropies (``old_entropy``).
       A policy without ``features`` (a table, a network) has the entropies' statistics alone.
    g  principal components, then ridge regression (``models.probes``), on the newest ``window`` pairs (z_i, mean reward of the group's
       other rows). ``prior`` while there are none.

    layers             of hidden states, counted from the last.
    components, penalty, window  of the regression.

    What it remembers are the pairs. Measures ``probe/explained``: R² on this batch, before learning from it.
    """

    layers: int = 1
    components: int = 32
    penalty: float = 1.0
    window: int = 1024
    prior: float = 0.5
    micro_tokens: int | Knob = Knob("micro_tokens", 16384)
    needs = ("prompt", "reward", "old_entropy")
    provides = ("probe_value",)
    models = ("policy",)

    def __post_init__(self) -> None:
        if min(self.layers, self.components, self.window) < 1 or not self.penalty > 0:
            given = f"layers={self.layers}, components={self.components}, window={self.window}, penalty={self.penalty}"
            raise QuatrainError("a probe's setting is out of range", given=given, expected="1 or more; a penalty above 0")

    @torch.no_grad()
    def __call__(self, state: State, batch: Batch) -> Batch:
        seen = self.features(state.models["policy"], batch).cpu()
        target = mean_of_others(batch["reward"].double(), *group_index(batch)).cpu()
        paired = ~target.isnan()
        known = state.memory.get(MEMORY)
        value = torch.full((len(batch),), self.prior, dtype=torch.float64)
        if known is not None:
            value = fit_probe(known["features"], known["targets"], self.components, self.penalty)(seen)
            share = explained(value[paired], target[paired])
            if not share.isnan():
                state.measure({"probe/explained": (share, 1.0)})
        if paired.any():
            new = {"features": seen[paired], "targets": target[paired]}
            state.memory[MEMORY] = {
                name: torch.cat([known[name], rows] if known is not None else [rows])[-self.window :] for name, rows in new.items()
            }
        return batch.with_rows(probe_value=value.to(batch.device))

    def features(self, policy: Any, batch: Batch) -> Tensor:
        """[N, D] fp32, in the batch's order."""
        surprise = row_statistics(batch["old_entropy"], batch.mask).float()
        if not hasattr(policy, "features"):
            return surprise
        parts = batch.with_rows(place=torch.arange(len(batch), device=batch.device))
        found = [(part["place"], policy.features(part, layers=self.layers)) for part in micro_batches(parts, self.micro_tokens)]
        order = torch.argsort(torch.cat([place for place, _ in found]))
        return torch.cat([torch.cat([rows for _, rows in found])[order].float(), surprise], 1)
