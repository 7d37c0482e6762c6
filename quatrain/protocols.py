"""What the rooms expect of each other. Siblings meet only through these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # reward workers start by importing Item: in milliseconds, without torch
    from torch import Tensor, nn

    from quatrain.batch import Batch


@dataclass(frozen=True)
class Item:
    """One problem: what a rollout of a text task starts from.

    id        unique within its task and split; the group key of its rollouts.
    prompt    a text, or chat messages [{"role": …, "content": …}, …].
    answer    the reference answer, None where only a reward function judges.
    solution  a worked solution ending in the answer: demonstrations, hints, process rewards.
    steps     the solution's intermediate steps, in order.
    chosen, rejected  a preference pair's completions.
    data      whatever else its source knows (level, kind, the raw record).
    """

    id: int
    prompt: str | Sequence[Mapping[str, str]]
    answer: str | None = None
    solution: str | None = None
    steps: tuple[str, ...] = ()
    chosen: str | None = None
    rejected: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """The distribution that actions are sampled from.

    temperature  above 0; logits are divided by it. 0 is greedy.
    top_p        (0, 1]: the smallest set of likeliest actions with at least this mass. 1 is off.
    top_k        at least 0: only the k likeliest actions. 0 is off.
    max_actions  the longest trajectory, in actions (tokens, controls).
    stop         texts that end a completion (language models); the end-of-sequence token always does.
    heat         entropy [B] at temperature 1, in nats → factor [B] on the temperature at that very action; None: one for all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_actions: int = 64
    stop: tuple[str, ...] = ()
    heat: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Decision:
    """What a policy decides at E states at once, and the K actions with a log-probability that each decision is made of.

    executed     what the environment does, [E] integers or [E, D] floats.
    actions      [E, K, …]: the decision itself, K = 1; or what it was made of step by step (denoising).
    logp         [E, K].
    columns      name → [E, K, …]: what scoring an action needs besides the observation.
    evaluations  [E] forward passes of the network that each decision took.
    """

    executed: Tensor
    actions: Tensor
    logp: Tensor
    columns: Mapping[str, Tensor]
    evaluations: Tensor


class Distribution(Protocol):
    """A batch of M action distributions. All results are [M] and differentiable."""

    def log_prob(self, action: Tensor) -> Tensor: ...

    def entropy(self) -> Tensor: ...

    def divergence(self, other: Any, kind: str, beta: float = 0.5, cap: float = ..., top: int = 0) -> Tensor: ...

    def candidates(self, count: int) -> Tensor: ...


class Statistic(Protocol):
    """A per-action quantity ℓ that is differentiated: read off the policy's distribution at the action."""

    needs: tuple[str, ...]  # names of other models whose distributions it reads ("teacher")

    def __call__(self, distribution: Distribution, action: Tensor, others: Mapping[str, Distribution]) -> Tensor: ...


@runtime_checkable
class Policy(Protocol):
    """Anything with a log-probability. ``module`` holds its trainable weights; ``version`` counts its updates."""

    module: nn.Module
    version: int

    def score(
        self, batch: Batch, statistics: Sequence[Statistic], role: str = "policy", others: Mapping[str, Policy] | None = None
    ) -> dict[Statistic, Tensor]:
        """Each statistic at every action [N, T]; zero where ``batch.mask`` is False.

        The distribution is the one that was sampled from: tempered by the ``temperature`` column and restricted to the
        ``support`` column where the batch has them. ``others`` are the models that wide statistics read; they are
        scored without gradient in their own role if the batch has a context of that name, else in ``role``.
        """
        ...

    def clone(self) -> Policy:
        """A frozen copy with its own weights."""
        ...

    def save(self, folder: Any) -> None:
        """Write a directory that a person can load without Quatrain (for language models, a Hugging Face one)."""
        ...


class Task(Protocol):
    """Where trajectories begin and how they are judged: a set of problems or an environment.

    Starts are addressable: ``starts("train", cursor, n)`` depends on nothing but its arguments and the task's seed,
    so that what was trained on is a position, and a resumed run sees the same problems.

    A task whose prompts show something besides asking about it may say which of their pieces do: ``observed``, texts of one token each,
    that of nothing first (see ``rollout.corruption``).
    """

    name: str
    provides: frozenset[str]  # names of columns and rows in what ``rollout`` returns
    has: frozenset[str]  # what it holds besides problems: "demonstrations", "pairs"

    def starts(self, split: str, cursor: int, count: int) -> Sequence[Any]:
        """``count`` starts from position ``cursor`` of an endless (shuffled, repeated) sequence of the split."""
        ...

    def rollout(self, policy: Policy, starts: Sequence[Any], group: int, sampling: Sampling, seed: int) -> Batch:
        """``group`` trajectories from each start, rewarded; rows ordered start by start."""
        ...

    def demonstrations(self, policy: Policy, starts: Sequence[Any]) -> Batch:
        """One demonstrated trajectory per start that has one, origin DEMONSTRATION, prompt keys as in ``rollout``."""
        ...

    def evaluate(self, policy: Policy, count: int, samples: int, sampling: Sampling, seed: int) -> dict[str, float]:
        """Held-out performance: named numbers (text: accuracy, pass@k, length; control: return)."""
        ...
