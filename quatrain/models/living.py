"""The rows that are decoded, and the model's memory of them: they enter, are continued twice, part, and leave.

Rows that have said the same so far are one row of the memory, and part when they differ. The last token of a row is fed to
the model when the next one is asked for: weights that have changed in between decide it, on the keys and values that earlier
weights left.

Axes: B rows, S rows of the memory, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad as padded

from quatrain.models.backbone import Backbone
from quatrain.models.fast_decode import FastDecoder, fits
from quatrain.models.memory import Memory, prefill

KEEP = 0.85  # rows that have ended leave when at most this part is still alive: copying the cache then pays within a few steps
SHARED_FROM = 32  # rows: below, a step costs its overhead whatever the number of rows, and equal ones are not looked for
FIELDS = ("rows", "of", "last", "length", "alive", "ended")


class Living:
    """B rows that are decoded.

    rows [B] their lines in the transcript; of [B] row of the memory; last [B] token, which the model has not read yet; length [B]
    tokens said; alive [B] bool: it goes on; ended [B] bool: by its own last token.

    going   how many are alive, as counted last.
    shared  whether rows look up their row of the memory; else they stand as it does.
    """

    def __init__(self, backbone: Backbone, pad: int):
        self.backbone, self.pad, self.device = backbone, pad, backbone.head.weight.device
        self.fast: FastDecoder | None = None
        self._fits: bool | None = None  # not yet asked
        self.clear()

    def clear(self) -> None:
        """Nobody is decoded."""
        none = torch.zeros(0, dtype=torch.long, device=self.device)
        self.memory: Memory | None = None
        self.rows, self.of, self.last, self.length, self.alive, self.ended = none, none, none, none, none.bool(), none.bool()
        self.going, self.shared = 0, False

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def plain(self) -> bool:
        """Whether others can join these rows, and their memory can be kept."""
        return self.memory is None or self.memory.plain

    def renew(self) -> None:
        """The weights have changed."""
        self.fast, self._fits = None, None

    def count(self) -> None:
        self.going = int(self.alive.count_nonzero())

    # -- coming and going --------------------------------------------------------------------------------------------
    def enter(self, rows: list[int], so_far: Sequence[tuple[int, ...]], length: Tensor, limit: int, hidden: Tensor | None) -> Tensor:
        """Compute the beginnings of these rows, each once, and continue them beside the others: hidden states after them all.

        ``length`` [n] tokens of each were its own; ``limit`` positions at most are ever needed; ``hidden`` is of the others.
        """
        number: dict[tuple[int, ...], int] = {}
        of = torch.tensor([number.setdefault(tokens, len(number)) for tokens in so_far], device=self.device)
        first, memory = prefill(self.backbone, list(number), self.pad, limit, self._decoder(limit))
        before = 0 if self.memory is None else len(self.memory)
        if self.memory is None:
            self.memory = memory
        else:
            self.memory.join(memory)
            first = torch.cat([hidden, first])
        self.rows, self.of = torch.cat([self.rows, torch.tensor(rows, device=self.device)]), torch.cat([self.of, of + before])
        self.last, self.length = padded(self.last, (0, len(rows))), torch.cat([self.length, length])
        self._more(len(rows))
        wide = self.of
        self._share()
        return first if self.shared else first[wide]

    def fork(self, parents: list[int], rows: list[int]) -> None:
        """Continue those (0 to B − 1) once more, as ``rows``."""
        parent = torch.tensor(parents, device=self.device)
        self.rows = torch.cat([self.rows, torch.tensor(rows, device=self.device)])
        for name in ("of", "last", "length"):
            value = getattr(self, name)
            setattr(self, name, torch.cat([value, value[parent]]))
        self._more(len(rows))
        self._share()

    def leave(self, index: Tensor) -> None:
        """Only these [n] go on."""
        for name in FIELDS:
            setattr(self, name, getattr(self, name)[index])
        self.count()
        if not len(index):
            self.clear()
        elif not self.shared:
            self.memory.select(self.of)
            self.of = torch.arange(len(index), device=self.device)

    def _more(self, count: int) -> None:
        """So many rows more are alive."""
        self.alive, self.ended = padded(self.alive, (0, count), value=True), padded(self.ended, (0, count))
        self.going += count

    def _share(self) -> None:
        """Whether rows are looked up in the memory, or each has its own of it."""
        self.shared = self.memory.plain and SHARED_FROM <= len(self.rows) > len(self.memory)
        if not self.shared and not (len(self.memory) == len(self.of) and bool((self.of[1:] > self.of[:-1]).all())):
            self.memory.select(self.of)
        if not self.shared:
            self.of = torch.arange(len(self.of), device=self.device)

    # -- reading -----------------------------------------------------------------------------------------------------
    def feed(self) -> Tensor:
        """Hidden states [S, D] of the memory's rows after the last token of every row; rows that differ part."""
        if not self.shared:
            return self.memory.advance(self.last, self._decoder())
        memory, token = self.memory, self.last
        pair, which = torch.unique(self.of * self.backbone.vocabulary + token, return_inverse=True)  # children of one row stand together
        parent = pair // self.backbone.vocabulary
        more = torch.zeros_like(parent, dtype=torch.bool)
        more[1:] = parent[1:] == parent[:-1]  # its first child takes over a parent's row, the others get copies
        place = torch.where(more, len(memory) + more.cumsum(0) - 1, parent)
        if bool(more.any()):
            memory.fork(parent[more])
        self.of = place[which]
        if len(pair) == len(token):
            self.shared = False
            memory.select(self.of)
            self.of = torch.arange(len(token), device=self.device)
            return memory.advance(token, self._decoder())
        if len(pair) <= KEEP * len(memory):
            memory.select(place)
            self.of, place = which, torch.arange(len(pair), device=self.device)
        said = torch.zeros(len(memory), dtype=token.dtype, device=self.device)
        return memory.advance(said.index_copy_(0, place, pair % self.backbone.vocabulary), self._decoder())

    def _decoder(self, positions: int = 0) -> FastDecoder | None:
        """The joined weights as they are, made anew after a change, for at least so many positions."""
        positions = max(positions, 0 if self.memory is None else self.memory.limit)
        if self.fast is not None:
            self.fast.reach(positions)
        elif self._fits is None:
            self._fits = fits(self.backbone)
        if self.fast is None and self._fits:
            self.fast = FastDecoder(self.backbone, positions)
        return self.fast

    # -- keeping -----------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """``alive``: [B] tensors, and ``memory``; of a memory that is not plain nothing, its rows have to be computed again."""
        kept = self.memory is not None and self.memory.plain
        alive = {name: getattr(self, name).clone() if self.plain else getattr(self, name)[:0] for name in FIELDS}
        return {"alive": alive, "memory": self.memory.state_dict() if kept else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``, under the weights as they are."""
        self.clear()
        self.renew()
        for name, value in state["alive"].items():
            setattr(self, name, value.to(self.device).clone())
        self.count()
        if state["memory"] is not None:
            self.memory = Memory.load(self.backbone, state["memory"])
            self.shared = len(self.rows) > len(self.memory) or not torch.equal(self.of, torch.arange(len(self.of), device=self.device))
