"""The per-action statistic ℓ that is differentiated. Each is read off the policy's distribution at the action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
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

    kind  ``reverse`` KL(π_θ‖π_to), ``forward`` KL(π_to‖π_θ), ``jsd`` the generalised Jensen–Shannon divergence.
    to    the model whose (frozen) distribution it reads.
    beta  of jsd: β KL(π_to‖m) + (1 − β) KL(π_θ‖m), m = (1 − β) π_θ + β π_to; forward at 0, reverse at 1.
    cap   the most that one entry of the vocabulary adds, above 0: a KL may then be negative.
    top   only the likeliest entries of π_to, both normalised over them; 0: the whole vocabulary.
    """

    to: str = "teacher"
    kind: str = "reverse"
    beta: float = 0.5
    cap: float = inf
    top: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise QuatrainError("unknown kind of divergence", given=self.kind, expected=", ".join(KINDS))
        if not (0 <= self.beta <= 1 and self.cap > 0 and self.top >= 0):
            given = f"beta={self.beta}, cap={self.cap}, top={self.top}"
            raise QuatrainError("a number of a divergence is out of range", given=given, expected="0 ≤ beta ≤ 1, cap > 0, top ≥ 0")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.to,)

    def __call__(self, distribution: Distribution, action: Tensor, others: Mapping[str, Distribution]) -> Tensor:
        return distribution.divergence(others[self.to], self.kind, self.beta, self.cap, self.top)


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


@dataclass(frozen=True)
class CriticAlong:
    """ℓ_t = f(s_t, μ_θ(s_t)): what another model says of the policy's own (mean) action, differentiated through the action.

    critic  a model with a value of actions: a Q-function (the deterministic policy gradient, Silver et al. 2014, eq. 9) or a
            log-density. Its weights get no gradient.
    """

    critic: str = "critic"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.critic,)

    def __call__(self, distribution: Distribution, action: Tensor, others: Mapping[str, Distribution]) -> Tensor:
        return others[self.critic].value(distribution.mean)
