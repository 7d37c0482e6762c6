"""How much the answers of a group agree, and what may be made of it. The row ``answer`` [N] is the key of a final answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum
from quatrain.errors import QuatrainError
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.gates import success_rate


def answer_entropy(batch: Batch, by: str = "prompt", answer: str = "answer") -> Tensor:
    """[N] H = −Σ_a p(a) log2 p(a) of the final answers of the row's group, in bits: 0 if all agree, log2 G if all differ.

    >>> batch = Batch(torch.ones(4, 1, dtype=torch.bool), torch.zeros(4, 1), rows={"prompt": torch.zeros(4), "answer": torch.arange(4)})
    >>> answer_entropy(batch).tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    group, count = group_index(batch, by)
    kinds, kind = torch.unique(torch.stack([group, torch.unique(batch[answer], return_inverse=True)[1]], 1), dim=0, return_inverse=True)
    each = torch.ones(len(batch), dtype=torch.float64, device=batch.device)
    p = group_sum(each, kind, len(kinds)) / group_sum(each, group, count)[kinds[:, 0]]
    return group_sum(-p * p.log2(), kinds[:, 0], count)[group]


@dataclass(frozen=True)
class ConsistencyAdvantage:
    """A_q = (R_q − mean R)/(std R + eps) over the prompts of the batch, given to every answer of prompt q: [N].

    R_q = mean_i r_i · (1 − λ H_q) with λ = (1 − 1/G)/log2 G, so that G different answers leave 1/G of the reward (COPO, 2508.04138);
    without ``penalty`` R_q = mean_i r_i. The standard deviation is Bessel-corrected; a single prompt gets 0.
    """

    penalty: bool = True
    of: str = "reward"
    by: str = "prompt"
    answer: str = "answer"
    eps: float = 1e-6

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.of, self.by, self.answer)

    def __call__(self, batch: Batch) -> Tensor:
        index, count = group_index(batch, self.by)
        reward = success_rate(batch, self.of, self.by)
        if self.penalty:
            size = group_sum(torch.ones_like(reward), index, count)[index]
            reward = reward * (1 - (1 - 1 / size) / size.clamp(min=2).log2() * answer_entropy(batch, self.by, self.answer))
        each = group_sum(reward, index, count) / group_sum(torch.ones_like(reward), index, count)
        centred = each - each.mean()
        return (centred / ((centred.square().sum() / max(count - 1, 1)).sqrt() + self.eps))[index]


@dataclass(frozen=True)
class EntropyGate:
    """w = σ(steepness·(H − offset)) of the answer entropy H in bits, or 1 − w with ``invert``: [N].

    hard    1 where H > offset, else 0: the limit of a steep gate.
    unless  where w is 0 whatever H is: ``no_signal``, where the group-relative advantage is 0; ``unsolved``, where the reward is 0.
    """

    steepness: float = 20.0
    offset: float = 0.5
    hard: bool = False
    invert: bool = False
    unless: Literal["never", "no_signal", "unsolved"] = "never"
    of: str = "reward"
    by: str = "prompt"
    answer: str = "answer"

    def __post_init__(self) -> None:
        if self.unless not in ("never", "no_signal", "unsolved"):
            raise QuatrainError("unknown exception of a gate", given=self.unless, expected="never, no_signal or unsolved")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.of, self.by, self.answer)

    def __call__(self, batch: Batch) -> Tensor:
        above = answer_entropy(batch, self.by, self.answer) - self.offset
        gate = (above > 0).double() if self.hard else torch.sigmoid(self.steepness * above)
        if self.unless == "no_signal":
            gate = torch.where(GroupRelative(self.by, "none", self.of)(batch).abs() < 1e-9, 0.0, gate)
        if self.unless == "unsolved":
            gate = torch.where(batch[self.of] == 0, 0.0, gate)
        return 1 - gate if self.invert else gate
