"""Weighted sums of rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quatrain.rewards.base import Fault, Reward, finite

if TYPE_CHECKING:
    from quatrain.protocols import Item


@dataclass(frozen=True)
class Weighted:
    """Σ weight · reward. Trusted if all its parts are.

    parts  pairs (weight, reward), at least one.
    """

    parts: tuple[tuple[float, Reward], ...]

    @property
    def name(self) -> str:
        return "+".join(reward.name if weight == 1 else f"{weight:g}*{reward.name}" for weight, reward in self.parts)

    @property
    def trusted(self) -> bool:
        return all(reward.trusted for _, reward in self.parts)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, reward in self.parts for name in reward.needs))

    def prepare(self) -> None:
        for _, reward in self.parts:
            if hasattr(reward, "prepare"):
                reward.prepare()

    def __call__(self, completion: str, item: Item) -> float:
        total = 0.0
        for weight, reward in self.parts:
            try:
                total += weight * finite(reward(completion, item))
            except Fault as fault:
                raise ValueError(f"part {reward.name} returned {fault.text}") from None
        return total
