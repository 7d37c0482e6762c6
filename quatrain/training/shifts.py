"""An edit of the rows of one update: what every action alone would do to the policy and to its objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quatrain.batch import Batch, spread
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.models.last_layer import last_layer_of
from quatrain.parts.needs import needs_of
from quatrain.training.batching import scored
from quatrain.training.state import State

POLICY, OBJECTIVE = "current_policy_shift", "current_objective_shift"


@dataclass(frozen=True)
class Shifts:
    """``current_policy_shift`` m_F and ``current_objective_shift`` m_H [N, T]: see ``parts.curvature``; no gradient.

    An edit for the ``edits`` of a Fit: it reads the weights and the optimiser as they are before that very update.

    advantage  that of the term that is updated; groups have to be whole within an update.
    optimiser  ``adam``: the step that the policy's optimiser would make next on the action's gradient, with the moments it has, without
               weight decay and without a clip of the norm; before it has any, and for ``sgd``, the gradient itself.
    top        entries of the vocabulary that are looked at, the likeliest; 0: all.
    watch      a selection: the share of actions that it leaves out is measured as ``rejected``.
    """

    advantage: Callable[[Batch], Tensor]
    optimiser: Literal["adam", "sgd"] = "adam"
    top: int = 100
    lr: float | Knob = Knob("lr", 1e-6)
    watch: Callable[[Batch], Tensor] | None = None
    micro_tokens: int | Knob = Knob("micro_tokens", 16384)
    provides = (POLICY, OBJECTIVE)

    def __post_init__(self) -> None:
        if self.optimiser not in ("adam", "sgd"):
            raise QuatrainError("unknown optimiser to simulate", given=self.optimiser, expected="adam or sgd")
        if self.top < 0 or self.top == 1:
            raise QuatrainError("a distribution has two entries or more", given=f"top={self.top}", expected="2 or more; 0 for all")

    @property
    def needs(self) -> tuple[str, ...]:
        return needs_of(self.advantage)

    @torch.no_grad()
    def __call__(self, state: State, batch: Batch) -> Batch:
        layer_of, optimizer = last_layer_of(state.models["policy"]), state.optimizers.get("policy")

        def score(part: Batch) -> dict[str, Tensor]:
            layer = layer_of(part)
            moments = layer.moments(optimizer) if self.optimiser == "adam" else None
            shifts = layer.shifts(part.actions[part.mask], part["shift/advantage"][part.mask], self.lr, moments, self.top)
            return {
                name: value.new_zeros(part.shape).masked_scatter(part.mask, value)
                for name, value in zip(self.provides, shifts, strict=True)
            }

        advantage = spread(self.advantage(batch), batch)
        found = batch.with_columns(**scored(batch.with_columns(**{"shift/advantage": advantage}), score, self.micro_tokens))
        count = batch.mask.sum()
        state.spent["tokens/scored"] += int(count)
        state.measure({"policy_shift": (found[POLICY].sum(), count), "objective_shift": (found[OBJECTIVE].sum(), count)})
        if self.watch is not None:
            state.measure({"rejected": (count - (batch.mask & self.watch(found)).sum(), count)})
        return found
