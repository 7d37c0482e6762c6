"""Sampling that can be interrupted: rows enter while others are decoded, go on for so many tokens, are continued several times.

A prompt is prefilled once, and rows that have said the same so far are decoded as one (``living``); rows that have ended leave
the batch; what rows say is written down a stretch of tokens at a time (``transcript``). Every row draws from its own seed
(``draws.uniforms``), so it regenerates identically, up to floating point, in any company.

Axes: N rows, B rows that are decoded, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quatrain.errors import QuatrainError
from quatrain.models.backbone import Backbone
from quatrain.models.distributions import Categorical
from quatrain.models.draws import draw
from quatrain.models.living import KEEP, Living
from quatrain.models.stops import Stops
from quatrain.models.transcript import Samples, Stretch, Transcript
from quatrain.protocols import Sampling

__all__ = ["Decoding", "Samples", "Stops"]


class Decoding:
    """Completions in progress.

    pad      any token id: what padding inside the batch is filled with (always masked).
    room     rows decoded at the same time; others wait in the order in which they came. None: all.
    refill   waiting rows come in when at most this part of the room is still decoded; 0: when it is empty, which measured fastest on
             a CPU, where every prefill costs as much as several steps (``benchmarks/sampler.py``).
    version  of the weights; ``renew`` changes it.

    The model should be in evaluation mode. Raises QuatrainError for an impossible sampling.
    """

    def __init__(
        self,
        backbone: Backbone,
        sampling: Sampling,
        stops: Stops,
        pad: int = 0,
        room: int | None = None,
        refill: float = 0.0,
        version: int = 0,
    ):
        if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.top_k < 0 or sampling.max_actions < 1:
            raise QuatrainError(
                "nothing can be sampled so", given=sampling, expected="temperature ≥ 0, 0 < top_p ≤ 1, top_k ≥ 0, max_actions ≥ 1"
            )
        self.backbone, self.sampling, self.stops = backbone, sampling, stops
        self.room, self.refill, self.version = room, refill, version
        self.device, self.limit = backbone.head.weight.device, sampling.max_actions
        self.heated = sampling.heat is not None and sampling.temperature != 0
        self.transcript = Transcript(sampling, backbone.vocabulary, self.device)
        self.living = Living(backbone, pad)
        self.waiting: list[int] = []  # rows (lines of the transcript) that are not decoded yet
        self._steps = 0

    # -- rows come and go --------------------------------------------------------------------------------------------
    def admit(self, prompts: Sequence[Sequence[int]], seeds: Tensor) -> list[int]:
        """Begin one completion of each prompt, with its seed [N]; equal prompts are computed once. Returns the rows' ids.

        Raises QuatrainError for an empty prompt and for prompts that leave no room for ``max_actions`` within the model's positions.
        """
        lengths = [len(prompt) for prompt in prompts]
        if not lengths or not min(lengths):
            raise QuatrainError(
                "a prompt has no token", given=f"{len(lengths)} prompts", expected="at least one prompt of at least one token"
            )
        room = getattr(self.backbone.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if room and max(lengths) + self.limit > room:
            raise QuatrainError(
                "a prompt and its completion do not fit into the model's positions",
                given=f"{max(lengths)} prompt tokens + max_actions={self.limit}",
                expected=f"at most {room}",
                fix="lower max_actions or drop long prompts",
            )
        return self._keep(prompts, self.transcript.empty(len(lengths)), seeds)

    def fork(self, ids: Sequence[int], seeds: Tensor, at: Sequence[int] | None = None) -> list[int]:
        """Continue each of these rows once more, with its own seed [N], from all that it has said or from its first ``at`` tokens.

        A row alive is continued from the model's memory of it, another beginning is computed once for all that share it. A row
        may be named several times. Raises QuatrainError for a row that has ended and is not cut before its end.
        """
        place = self.transcript.places(ids)
        full = self.transcript.table["length"][place]
        lengths = full if at is None else torch.minimum(full, torch.as_tensor(at, dtype=torch.long, device=self.device))
        if bool(over := ((lengths == full) & self.transcript.over[place]).any()):
            raise QuatrainError("a row that has ended has nothing to continue", given=f"{int(over)} rows", fix="fork(ids, seeds, at=…)")
        first, decoded = len(self.transcript), {row: index for index, row in enumerate(self.living.rows.tolist())}
        made = self._keep([self.transcript.prompts[row] for row in place], self.transcript.beginnings(place, lengths), seeds)
        whole = (lengths == full).tolist()
        held = {first + i: decoded[row] for i, row in enumerate(place) if whole[i] and row in decoded}
        if held:
            self.waiting = [row for row in self.waiting if row not in held]
            self.living.fork(list(held.values()), list(held))
        return made

    def _keep(self, prompts: Sequence[Sequence[int]], lines: dict[str, Tensor], seeds: Tensor) -> list[int]:
        """Remember rows, which then wait; what they will say is of the present version."""
        first = len(self.transcript)
        made = self.transcript.add(prompts, lines, seeds, self.version)
        self.waiting += range(first, len(self.transcript))
        return made

    @property
    def ids(self) -> list[int]:
        """Rows that were admitted and not yet taken, in order of coming."""
        return self.transcript.ids

    def finished(self) -> list[int]:
        """Rows that have ended and were not yet taken."""
        return [row for row, over in zip(self.transcript.ids, self.transcript.over.tolist(), strict=True) if over]

    @property
    def live(self) -> int:
        """Rows that go on, those that wait included."""
        return self.living.going + len(self.waiting)

    def lengths(self, ids: Sequence[int]) -> list[int]:
        """How many tokens these rows have so far."""
        return self.transcript.table["length"][self.transcript.places(ids)].tolist()

    def read(self, ids: Sequence[int]) -> Samples:
        """What these rows have said so far."""
        return self.transcript.read(ids)

    def take(self, ids: Sequence[int]) -> Samples:
        """``read``, and forget them; rows that have not ended are cut."""
        found = self.transcript.read(ids)
        moved, living = self.transcript.drop(ids), self.living
        self.waiting = [new for new in moved[self.waiting].tolist() if new >= 0]
        living.rows = moved[living.rows]
        if bool((living.rows < 0).any()):
            living.leave((living.rows >= 0).nonzero()[:, 0])
        return found

    def renew(self, version: int, recompute: bool = False) -> None:
        """The weights have changed. Keys and values of earlier weights stay, or are computed again from the tokens."""
        self.version = version
        self.living.renew()
        self.transcript.renew(torch.cat([self.living.rows, torch.tensor(self.waiting, dtype=torch.long, device=self.device)]), version)
        if recompute:
            self._forget()

    def _forget(self) -> None:
        """All rows alive wait, to be computed again."""
        self.waiting = [*self.living.rows[self.living.alive].tolist(), *self.waiting]
        self.living.clear()

    # -- tokens ------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def advance(self, tokens: int) -> int:
        """At most so many tokens for every row that is alive (fewer for one that waits). Returns ``live``.

        Two calls are bit for bit one of their sum.
        """
        look_every = 1 if self.device.type == "cpu" else 8  # reading a count waits for an accelerator
        living, stretch, fewer = self.living, None, False
        for step in range(tokens):
            hidden = living.feed() if len(living) else None
            if self.waiting and (new := self._entering()):
                if stretch is not None:
                    self._write(stretch)
                hidden, stretch = self._enter(new, hidden), None
            if hidden is None:
                break
            stretch = stretch or self.transcript.stretch(living.rows, living.length, tokens - step)
            fewer |= self._step(hidden, stretch)
            self._steps += 1
            if fewer and (self._steps % look_every == 0 or step + 1 == tokens):
                living.count()
                fewer = False
                if not living.going or (self._steps % look_every == 0 and living.going <= KEEP * len(living)):
                    self._write(stretch)
                    living.leave(living.alive.nonzero()[:, 0])
                    stretch = None
        if stretch is not None:
            self._write(stretch)
        return self.live

    def _step(self, hidden: Tensor, stretch: Stretch) -> bool:
        """Draw a token for every row. Whether rows can have ended with it."""
        living, said = self.living, stretch.said
        logits = self.backbone.logits(hidden)
        if living.shared:
            logits = logits[living.of]
        if self.heated:
            factor = self.sampling.heat(Categorical(logits).entropy()).float()
            logits = logits.float() / factor[:, None]
            said["temperature"].append(self.sampling.temperature * factor)
        action, logp, support = draw(logits, stretch.uniform[stretch.steps], self.sampling)
        said["tokens"].append(action)
        said["logp"].append(logp.float())
        if support is not None:
            said["support"].append(support)
        living.last, living.length = action, living.length + living.alive
        if self.stops:
            now = self.stops.after(action, lambda index: self._tail(index, stretch)) & living.alive
            living.ended, living.alive = living.ended | now, living.alive & ~now
        full = stretch.longest + stretch.steps >= self.limit
        if full:
            living.alive = living.alive & (living.length < self.limit)
        return full or bool(self.stops)

    def _tail(self, index: Tensor, stretch: Stretch) -> list[list[int]]:
        """The last tokens of these rows, the present one included."""
        if not len(index):
            return []
        self._write(stretch)
        return self.transcript.tail(stretch, index, self.stops.span)

    def _write(self, stretch: Stretch) -> None:
        self.transcript.write(stretch, self.living.length, self.living.ended)

    def _entering(self) -> list[int]:
        """Waiting rows that come in now: as many as there is room for, when that is worth it, and whole groups of equal prompts."""
        prompts, decoded = self.transcript.prompts, len(self.living)
        free = len(self.waiting) if self.room is None else self.room - decoded
        if free < len(self.waiting) and decoded > self.refill * self.room:
            return []
        count = min(free, len(self.waiting))
        while 0 < count < len(self.waiting) and prompts[self.waiting[count - 1]] == prompts[self.waiting[count]]:
            count -= 1
        count = count or min(free, len(self.waiting))
        new, self.waiting = self.waiting[:count], self.waiting[count:]
        return new

    def _enter(self, new: list[int], hidden: Tensor | None) -> Tensor:
        """Continue waiting rows beside the others. The memory's hidden states [S, D]."""
        if not self.living.plain:  # its rows cannot be joined by others: all are computed again
            new = [*self.living.rows[self.living.alive].tolist(), *new]
            self.living.clear()
            hidden = None
        limit = max(len(self.transcript.prompts[row]) for row in new) + self.limit
        return self.living.enter(new, self.transcript.so_far(new), self.transcript.table["length"][new], limit, hidden)

    # -- keeping -----------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """All rows, and the memory of those alive: plain values and tensors of their own."""
        again = [] if self.living.plain else self.living.rows[self.living.alive].tolist()  # computed again
        kept = {"waiting": [*again, *self.waiting], "steps": self._steps, "version": self.version}
        return {**kept, **self.transcript.state_dict(), **self.living.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``, under the weights as they are."""
        self.waiting, self._steps, self.version = list(state["waiting"]), state["steps"], state["version"]
        self.transcript.load_state_dict(state)
        self.living.load_state_dict(state)
