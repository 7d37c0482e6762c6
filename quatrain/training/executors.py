"""In which order a stage's steps run: one after the other, or with rollouts that go on while the weights change."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from quatrain.errors import QuatrainError
from quatrain.knobs import Knob, resolve
from quatrain.rollout.in_flight import Rollouts, is_interruptible
from quatrain.rollout.sources import OnPolicy
from quatrain.training.clock import Clock
from quatrain.training.state import State
from quatrain.training.steps import Collect

if TYPE_CHECKING:
    from quatrain.training.recipe import Stage


class Executor(Protocol):
    """One round of a stage. It may ``check(stage)`` that the stage has the shape it needs."""

    def __call__(self, stage: Stage, state: State) -> None: ...


def synchronous(stage: Stage, state: State) -> None:
    """One round: every step in order."""
    for step in stage.steps:
        step(state)


@dataclass(frozen=True)
class InFlight:
    """Rollouts go on while the other steps run, and see new weights between two tokens: Piché et al. 2025 (PipelineRL).

    The stage begins with a Collect from an OnPolicy source. A round takes the oldest whole groups, as many as the source has prompts,
    as soon as there are; while the rest of the steps trains on them, rows are decoded further, and groups begin, with the weights as
    they were; then the new weights are loaded between two tokens, on the keys and values that the old ones left. The two run in turn in
    one process, and a clock says what would have happened in the meantime: ``simulated_seconds`` on the ledger.

    pool   rows decoded at the same time, at least one group; as groups end others begin.
    lag    the most rounds between a trajectory's beginning and its training. No group begins that could not keep to that, and the
           trainer waits for one that has to be in its batch. 0 → ``synchronous``, bit for bit (where the pool holds the batch).
    clock  what tokens and updates last; with a lag of 0 the whole machine decodes, then trains.

    A task whose rollouts cannot be interrupted has them collected whole, as with a lag of 0.
    """

    pool: int | Knob = Knob("pool", 128)
    lag: int | Knob = 4
    clock: Clock = field(default_factory=Clock)

    def check(self, stage: Stage) -> None:
        first = stage.steps[0] if stage.steps else None
        if not isinstance(first, Collect) or type(first.source) is not OnPolicy:
            raise QuatrainError(
                "rollouts in flight need a stage that begins with a Collect from OnPolicy", given=first, fix="the executor synchronous"
            )

    def __call__(self, stage: Stage, state: State) -> None:
        collect, run = stage.steps[0], resolve(self, state.knobs)
        source: OnPolicy = resolve(collect.source, state.knobs)
        if run.lag < 0 or run.pool < source.group:
            raise QuatrainError("rollouts in flight", given=f"pool={run.pool}, lag={run.lag}", expected=f"pool ≥ {source.group}, lag ≥ 0")
        if is_interruptible(state, source):
            batch, seconds = run.round(Rollouts(source, state), state)
        else:
            batch = source(state)
            rows = (batch.lengths[:, None] > torch.arange(batch.shape[1], device=batch.device)).sum(0).tolist()
            seconds = sum(run.clock.decoding(count, False) for count in rows if count) + run.clock.training(int(batch.mask.sum()), False)
        state.spent["simulated_seconds"] += seconds
        state.metrics["simulated_seconds"] = state.spent["simulated_seconds"]
        replace(collect, source=lambda state: batch)(state)
        for step in stage.steps[1:]:
            step(state)

    def round(self, rollouts: Rollouts, state: State) -> tuple[Any, float]:
        """The batch of one round and its simulated seconds; rows under way are as far as they get until the new weights arrive."""
        wanted, together, seconds = rollouts.source.prompts, self.lag > 0, 0.0
        while not rollouts.is_ready(wanted, self.lag):
            seconds += self.token(rollouts, wanted * (self.lag + 1))
        batch = rollouts.take(wanted)
        trained = seconds + self.clock.training(int(batch.mask.sum()), together)
        while seconds < trained and (spent := self.token(rollouts, wanted * self.lag)):
            seconds += spent
        state.metrics |= {"in_flight/rows": rollouts.decoding.live, "in_flight/queue": len(rollouts.groups)}
        rollouts.keep()
        return batch, max(seconds, trained)

    def token(self, rollouts: Rollouts, most: int) -> float:
        """One more token for every row, after groups have begun while fewer than ``most`` are under way. 0: there is no row."""
        rollouts.begin(most, self.pool)
        if not (rows := rollouts.decoding.live):
            return 0.0
        rollouts.decoding.advance(1)
        return self.clock.decoding(rows, self.lag > 0)
