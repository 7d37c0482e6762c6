"""The scale of entropies that the next batch is sampled by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quatrain.parts.natures import entropy_scale

HEAT = ("heat_centre", "heat_top", "heat_bottom")  # the knobs


@dataclass(frozen=True)
class EntropyScale:
    """Controller: ``heat_centre``, ``heat_top``, ``heat_bottom`` from the entropies of the batch that was last learnt from."""

    level: float = 0.8
    of: str = "old_entropy"
    store: str = "fresh"

    def __call__(self, state: Any, metrics: Mapping[str, float]) -> dict[str, float]:
        batch = state.stores[self.store]
        return dict(zip(HEAT, entropy_scale(batch[self.of][batch.mask], self.level), strict=True))
