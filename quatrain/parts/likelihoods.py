"""The per-action statistic ℓ that is differentiated. Each is read off the policy's distribution at the action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from quatrain.errors import QuatrainError
from quatrain.protocols import Distribution

KINDS = ("reverse", "forward", "jsd")


@dataclass(frozen=True)
class LogProb:
    """ℓ_t = log π_θ(a_t|s_t): the score-function statistic of every policy gradient."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, distribution: Distribution, action: Tensor, others: Mapping[str, Distribution]) -> Tensor:
        return distribution.log_prob(action)


@dataclass(frozen=True)
class Entropy:
    """ℓ_t = H(π_θ(·|s_t)) in nats; an advantage of +1 is the entropy bonus."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, distribution: Distribution, action: Tensor, others: Mapping[str, Distribution]) -> Tensor:
        return distribution.entropy()


@dataclass(frozen=True)
class Divergence:
    """ℓ_t = D(π_θ, π_to) over whole distributions, in nats; an advantage of −1 descends it.

    kind  ``reverse`` KL(π_θ‖π_to), ``forward`` KL(π_to‖π_θ), ``jsd`` the Jensen–Shannon divergence with equal weights.
    to    the model whose (frozen) distribution it reads.
    """

    to: str = "teacher"
    kind: str = "reverse"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise QuatrainError("unknown kind of divergence", given=self.kind, expected=", ".join(KINDS))

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.to,)

    def __call__(self, distribution: Distribution, action: Tensor, others: Mapping[str, Distribution]) -> Tensor:
        return distribution.divergence(others[self.to], self.kind)


@dataclass(frozen=True)
class Candidates:
    """ℓ_t = 1/K Σ_k log π_θ(v_k|s_t) over the K likeliest actions v_1 … v_K of π_θ itself: which they are has no gradient.

    count  K, at least 1; fewer where fewer are possible (small vocabularies, truncated supports). With 1 it is log max π_θ.
    """

    count: int = 3
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.count < 1:
            raise QuatrainError("a candidate at least", given=f"count={self.count}")

    def __call__(self, distribution: Distribution, action: Tensor, others: Mapping[str, Distribution]) -> Tensor:
        return distribution.candidates(self.count)
