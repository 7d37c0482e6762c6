"""Sampling that can be interrupted: rows enter while others are decoded, go on for so many tokens, are continued several times.

A prompt is prefilled once; rows that have said the same so far are one row of the model's memory, and part when they differ;
rows that have ended leave the batch; stopping is decided by tensor operations, and only rows whose last token could complete
a stop text are decoded. Every row draws from its own seed (``draws.uniforms``), so it regenerates identically, up to floating
point, in any company. The last token of a row is fed to the model when the next one is asked for: weights that have changed
in between decide it, on the keys and values that earlier weights left.

Axes: N rows, B rows alive, S rows of the memory, T tokens, K support, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad as padded

from quatrain.errors import QuatrainError
from quatrain.models.backbone import Backbone
from quatrain.models.distributions import Categorical
from quatrain.models.draws import draw, truncates, uniforms
from quatrain.models.fast_decode import FastDecoder, fits
from quatrain.models.memory import Memory, prefill
from quatrain.protocols import Sampling

KEEP = 0.85  # rows that have ended leave when at most this part is still alive: copying the cache then pays within a few steps
SHARED_FROM = 32  # rows: below, a step costs its overhead whatever the number of rows, and equal ones are not looked for


@dataclass(frozen=True)
class Samples:
    """N completions of at most T tokens, padded on the right with zeros.

    tokens [N, T] int64; mask [N, T] bool, the end-of-sequence token included; logp [N, T] fp32 under the distribution
    sampled from; support [N, T, K] int32 action id + 1 where top-k or top-p is on; truncated [N] bool: cut at the limit, or
    taken before its end; temperature [N, T] fp32 where it differs by token; version [N, T] int64 of the weights.
    """

    tokens: Tensor
    mask: Tensor
    logp: Tensor
    support: Tensor | None
    truncated: Tensor
    temperature: Tensor | None
    version: Tensor


@dataclass(frozen=True)
class Stops:
    """What ends a completion: end-of-sequence ids, and texts (with how to look for them)."""

    eos: tuple[int, ...]
    texts: tuple[str, ...] = ()
    decode: Callable[[list[int]], str] | None = None
    could_end: Tensor | None = None  # [V] bool: a stop text can be complete after this token

    def after(self, action: Tensor, tail: Callable[[Tensor], list[list[int]]]) -> Tensor:
        """[B] bool for the last tokens [B]; ``tail(index)`` gives the last tokens of those rows."""
        done = action == self.eos[0] if self.eos else torch.zeros_like(action, dtype=torch.bool)
        for token in self.eos[1:]:
            done |= action == token
        if self.texts:
            for row, tokens in zip(index := (self.could_end[action] & ~done).nonzero()[:, 0], tail(index), strict=True):
                text = self.decode(tokens)
                done[row] = any(stop in text for stop in self.texts)
        return done

    @property
    def span(self) -> int:
        """Tokens that a stop text may stretch over: a character has at most four bytes, a byte-level token at least one."""
        return 4 * max(map(len, self.texts), default=0) + 8


@dataclass
class _Stretch:
    """Steps during which the same B rows are decoded; what they say is written down together."""

    place: Tensor  # [B, steps] where in the table
    uniform: tuple[Tensor, ...]  # of each step [B]
    longest: int  # tokens of the longest row when it began
    written: int = 0  # steps that are in the table
    said: defaultdict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))


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
        self.backbone, self.sampling, self.stops, self.pad = backbone, sampling, stops, pad
        self.room, self.refill, self.version = room, refill, version
        self.device, self.limit = backbone.head.weight.device, sampling.max_actions
        self.heated = sampling.heat is not None and sampling.temperature != 0
        self.ids: list[int] = []  # of the rows kept, in order of coming
        self.prompts: list[list[int]] = []
        self.waiting: list[int] = []  # rows (places in ``ids``) that the memory does not hold yet
        self._next = self._steps = 0
        width = self.limit + 1  # a row that has ended writes beyond its end until it leaves
        kinds = {"tokens": torch.long, "logp": torch.float32, "uniform": torch.float64, "version": torch.long}
        kinds |= {"temperature": torch.float32} if self.heated else {}
        self.table = {name: torch.zeros(0, width, dtype=kind, device=self.device) for name, kind in kinds.items()}
        if truncates(sampling, backbone.vocabulary):
            self.table["support"] = torch.zeros(0, width, 1, dtype=torch.int32, device=self.device)
        self.table["length"] = torch.zeros(0, dtype=torch.long, device=self.device)
        self.table["ended"] = torch.zeros(0, dtype=torch.bool, device=self.device)  # by its own last token, not by the limit
        self._clear()

    def _clear(self) -> None:
        none = torch.zeros(0, dtype=torch.long, device=self.device)
        self.memory: Memory | None = None
        # [B] of the rows decoded: place, row of the memory, last token, tokens; whether they go on, or ended by their own last token.
        self.rows, self.of, self.last, self.length, self.alive, self.ended = none, none, none, none, none.bool(), none.bool()
        self._going = 0  # how many of them are alive
        self.shared = False  # whether rows alive share rows of the memory; else they are the same
        self.fast: FastDecoder | None = None
        self._fits: bool | None = None  # not yet asked

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
        fresh = {name: value.new_zeros(len(lengths), *value.shape[1:]) for name, value in self.table.items()}
        return self._keep(prompts, fresh, seeds)

    def fork(self, ids: Sequence[int], seeds: Tensor, at: Sequence[int] | None = None) -> list[int]:
        """Continue each of these rows once more, with its own seed [N], from all that it has said or from its first ``at`` tokens.

        A row alive is continued from the model's memory of it, another beginning is computed once for all that share it. A row
        may be named several times. Raises QuatrainError for a row that has ended and is not cut before its end.
        """
        place = self._places(ids)
        lengths = self.table["length"][place]
        if at is not None:
            lengths = torch.minimum(lengths, torch.as_tensor(at, dtype=torch.long, device=self.device))
        if bool(over := ((lengths == self.table["length"][place]) & self._over()[place]).any()):
            raise QuatrainError("a row that has ended has nothing to continue", given=f"{int(over)} rows", fix="fork(ids, seeds, at=…)")
        first, alive = len(self.ids), {row: index for index, row in enumerate(self.rows.tolist())}
        copies = {name: value[place] for name, value in self.table.items()} | {"length": lengths}
        copies["ended"] = torch.zeros_like(copies["ended"])
        made = self._keep([self.prompts[row] for row in place], copies, seeds)
        whole = (lengths == self.table["length"][place]).tolist()
        held = [i for i, row in enumerate(place) if whole[i] and row in alive]
        if held:
            parent = torch.tensor([alive[place[i]] for i in held], device=self.device)
            new = torch.tensor([first + i for i in held], device=self.device)
            self.waiting = [row for row in self.waiting if row < first or row - first not in set(held)]
            self.rows, self.of = torch.cat([self.rows, new]), torch.cat([self.of, self.of[parent]])
            self.last, self.length = torch.cat([self.last, self.last[parent]]), torch.cat([self.length, self.length[parent]])
            self._more(len(held))
            self._share()
        return made

    def _keep(self, prompts: Sequence[Sequence[int]], fresh: dict[str, Tensor], seeds: Tensor) -> list[int]:
        """Remember rows, which then wait; what they will say is of the present version."""
        begun = torch.arange(self.limit + 1, device=self.device)
        fresh["uniform"] = uniforms(seeds.to(self.device), begun)
        fresh["version"] = torch.where(begun < fresh["length"][:, None], fresh["version"], self.version)
        self.table = {name: torch.cat([value, fresh[name]]) for name, value in self.table.items()}
        first, made = len(self.ids), list(range(self._next, self._next + len(prompts)))
        self._next += len(prompts)
        self.ids += made
        self.prompts += [list(prompt) for prompt in prompts]
        self.waiting += range(first, len(self.ids))
        return made

    def _places(self, ids: Sequence[int]) -> list[int]:
        place = {row: index for index, row in enumerate(self.ids)}
        if absent := [row for row in ids if row not in place]:
            raise QuatrainError("this row is not here", given=absent[:5], expected="rows that were admitted and not yet taken")
        return [place[row] for row in ids]

    def _over(self) -> Tensor:
        return self.table["ended"] | (self.table["length"] == self.limit)

    def finished(self) -> list[int]:
        """Rows that have ended and were not yet taken."""
        return [row for row, over in zip(self.ids, self._over().tolist(), strict=True) if over]

    @property
    def live(self) -> int:
        """Rows that go on, those that wait included."""
        return self._going + len(self.waiting)

    def lengths(self, ids: Sequence[int]) -> list[int]:
        """How many tokens these rows have so far."""
        return self.table["length"][self._places(ids)].tolist()

    def read(self, ids: Sequence[int]) -> Samples:
        """What these rows have said so far."""
        place = self._places(ids)
        if place == list(range(len(self.ids))):
            return _collect(self.table)
        return _collect({name: value[place] for name, value in self.table.items()})

    def take(self, ids: Sequence[int]) -> Samples:
        """``read``, and forget them; rows that have not ended are cut."""
        found, gone = self.read(ids), set(ids)
        stay = [index for index, row in enumerate(self.ids) if row not in gone]
        moved = torch.full((len(self.ids),), -1, device=self.device)
        moved[stay] = torch.arange(len(stay), device=self.device)
        self.waiting = [new for new in moved[self.waiting].tolist() if new >= 0]
        self.rows = moved[self.rows]
        if bool((self.rows < 0).any()):
            self._leave((self.rows >= 0).nonzero()[:, 0])
        self.table = {name: value[stay] for name, value in self.table.items()}
        self.ids, self.prompts = [self.ids[index] for index in stay], [self.prompts[index] for index in stay]
        return found

    def renew(self, version: int, recompute: bool = False) -> None:
        """The weights have changed. Keys and values of earlier weights stay, or are computed again from the tokens."""
        self.version, self.fast, self._fits = version, None, None
        going = torch.cat([self.rows, torch.tensor(self.waiting, dtype=torch.long, device=self.device)])
        ahead = torch.arange(self.limit + 1, device=self.device) >= self.table["length"][going, None]
        self.table["version"][going] = torch.where(ahead, version, self.table["version"][going])
        if recompute:
            self._forget()

    def _forget(self) -> None:
        """All rows alive wait, to be computed again."""
        self.waiting = [*self.rows[self.alive].tolist(), *self.waiting]
        self._clear()

    def _more(self, count: int) -> None:
        """So many rows more are alive."""
        self.alive, self.ended = padded(self.alive, (0, count), value=True), padded(self.ended, (0, count))
        self._going += count

    # -- tokens ------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def advance(self, tokens: int) -> int:
        """At most so many tokens for every row that is alive (fewer for one that waits). Returns ``live``.

        Two calls are bit for bit one of their sum.
        """
        look_every = 1 if self.device.type == "cpu" else 8  # reading a count waits for an accelerator
        stretch, fewer = None, False
        for step in range(tokens):
            hidden = self._feed() if len(self.rows) else None
            if self.waiting and (new := self._entering()):
                if stretch is not None:
                    self._write(stretch)
                hidden, stretch = self._enter(new, hidden), None
            if hidden is None:
                break
            stretch = stretch or self._stretch(tokens - step)
            fewer |= self._step(hidden, stretch)
            self._steps += 1
            if fewer and (self._steps % look_every == 0 or step + 1 == tokens):
                self._going, fewer = int(self.alive.count_nonzero()), False
                if not self._going or (self._steps % look_every == 0 and self._going <= KEEP * len(self.rows)):
                    self._write(stretch)
                    self._leave(self.alive.nonzero()[:, 0])
                    stretch = None
        if stretch is not None:
            self._write(stretch)
        return self.live

    def _stretch(self, steps: int) -> _Stretch:
        """Steps with the same rows begin."""
        steps, first = min(steps, self.limit), self.length
        place = (first[:, None] + torch.arange(steps, device=self.device)).clamp_max(self.limit)
        uniform = self.table["uniform"][self.rows[:, None], place].T.contiguous().unbind(0)
        return _Stretch(place, uniform, int(first.max()))

    def _step(self, hidden: Tensor, stretch: _Stretch) -> bool:
        """Draw a token for every row. Whether rows can have ended with it."""
        logits = self.backbone.logits(hidden)
        if self.shared:
            logits = logits[self.of]
        said = stretch.said
        if self.heated:
            factor = self.sampling.heat(Categorical(logits).entropy()).float()
            logits = logits.float() / factor[:, None]
            said["temperature"].append(self.sampling.temperature * factor)
        action, logp, support = draw(logits, stretch.uniform[len(said["tokens"])], self.sampling)
        said["tokens"].append(action)
        said["logp"].append(logp.float())
        if support is not None:
            said["support"].append(support)
        self.last, self.length = action, self.length + self.alive
        stops, full = bool(self.stops.eos or self.stops.texts), stretch.longest + len(said["tokens"]) >= self.limit
        if stops:
            now = self.stops.after(action, lambda index: self._tail(index, stretch)) & self.alive
            self.ended, self.alive = self.ended | now, self.alive & ~now
        if full:
            self.alive = self.alive & (self.length < self.limit)
        return stops or full

    def _tail(self, index: Tensor, stretch: _Stretch) -> list[list[int]]:
        """The last tokens of these rows, the present one included."""
        if not len(index):
            return []
        self._write(stretch)
        rows, ends = self.rows[index].tolist(), (stretch.place[index, stretch.written - 1] + 1).tolist()
        return [self.table["tokens"][row, max(0, end - self.stops.span) : end].tolist() for row, end in zip(rows, ends, strict=True)]

    def _write(self, stretch: _Stretch) -> None:
        """What has been said since the last time into the table."""
        table, begin, count = self.table, stretch.written, len(stretch.said["tokens"])
        at = (self.rows[:, None], stretch.place[:, begin:count])
        for name, steps in stretch.said.items():
            new = steps[begin:]
            if not new:
                continue
            if name == "support":
                width = max(table[name].shape[2], *(ids.shape[1] for ids in new))
                table[name] = padded(table[name], (0, width - table[name].shape[2]))
                new = [padded(ids, (0, width - ids.shape[1])) for ids in new]
            table[name].index_put_(at, torch.stack(new, 1))
        stretch.written = count
        table["length"][self.rows], table["ended"][self.rows] = self.length, self.ended

    def _leave(self, index: Tensor) -> None:
        """Only these rows go on."""
        for name in ("rows", "of", "last", "length", "alive", "ended"):
            setattr(self, name, getattr(self, name)[index])
        self._going = int(self.alive.sum())
        if not len(index):
            fast = self.fast
            self._clear()
            self.fast = fast
        elif not self.shared:
            self.memory.select(self.of)
            self.of = torch.arange(len(index), device=self.device)

    def _entering(self) -> list[int]:
        """Waiting rows that come in now: as many as there is room for, when that is worth it, and whole groups of equal prompts."""
        free = len(self.waiting) if self.room is None else self.room - len(self.rows)
        if free < len(self.waiting) and len(self.rows) > self.refill * self.room:
            return []
        count = min(free, len(self.waiting))
        while 0 < count < len(self.waiting) and self.prompts[self.waiting[count - 1]] == self.prompts[self.waiting[count]]:
            count -= 1
        count = count or min(free, len(self.waiting))
        new, self.waiting = self.waiting[:count], self.waiting[count:]
        return new

    def _enter(self, new: list[int], hidden: Tensor | None) -> Tensor:
        """Compute the beginnings of waiting rows, each once, and continue them beside the others. The memory's hidden states [S, D]."""
        if self.memory is not None and not self.memory.plain:  # its rows cannot be joined by others: all are computed again
            new = [*self.rows[self.alive].tolist(), *new]
            self._clear()
            hidden = None
        lengths = self.table["length"][new].tolist()
        number: dict[tuple[int, ...], int] = {}
        of = []
        for row, length in zip(new, lengths, strict=True):
            said = self.table["tokens"][row, :length].tolist() if length else []
            of.append(number.setdefault((*self.prompts[row], *said), len(number)))
        limit = max(len(self.prompts[row]) for row in new) + self.limit
        first, memory = prefill(self.backbone, list(number), self.pad, limit, self._decoder(limit))
        before = 0 if self.memory is None else len(self.memory)
        if self.memory is None:
            self.memory = memory
        else:
            self.memory.join(memory)
            first = torch.cat([hidden, first])
        place = torch.tensor(new, device=self.device)
        self.rows, self.of = torch.cat([self.rows, place]), torch.cat([self.of, torch.tensor(of, device=self.device) + before])
        self.last, self.length = padded(self.last, (0, len(new))), torch.cat([self.length, torch.tensor(lengths, device=self.device)])
        self._more(len(new))
        wide = self.of
        self._share()
        return first if self.shared else first[wide]

    def _share(self) -> None:
        """Whether rows alive are looked up in the memory, or each has its own of it."""
        self.shared = self.memory.plain and SHARED_FROM <= len(self.rows) > len(self.memory)
        if not self.shared and not (len(self.memory) == len(self.of) and bool((self.of[1:] > self.of[:-1]).all())):
            self.memory.select(self.of)
        if not self.shared:
            self.of = torch.arange(len(self.of), device=self.device)

    def _feed(self) -> Tensor:
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
        """All rows, and the memory of those alive: plain values and tensors of their own."""
        kept = {"ids": list(self.ids), "prompts": [list(prompt) for prompt in self.prompts], "waiting": list(self.waiting)}
        memory = None
        alive = {name: getattr(self, name) for name in ("rows", "of", "last", "length", "alive", "ended")}
        if self.memory is not None and self.memory.plain:
            memory = self.memory.state_dict()
        elif self.memory is not None:  # another kind of cache is computed again
            kept["waiting"], alive = [*self.rows[self.alive].tolist(), *self.waiting], {name: value[:0] for name, value in alive.items()}
        table = {name: value.clone() for name, value in self.table.items()}
        alive = {name: value.clone() for name, value in alive.items()}
        return {**kept, "next": self._next, "steps": self._steps, "version": self.version, "table": table, "alive": alive, "memory": memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``, under the weights as they are."""
        self.ids, self.prompts, self.waiting = list(state["ids"]), [list(prompt) for prompt in state["prompts"]], list(state["waiting"])
        self._next, self._steps, self.version = state["next"], state["steps"], state["version"]
        self.table = {name: value.to(self.device).clone() for name, value in state["table"].items()}
        self._clear()
        for name, value in state["alive"].items():
            setattr(self, name, value.to(self.device).clone())
        self._going = int(self.alive.sum())
        if state["memory"] is not None:
            self.memory = Memory.load(self.backbone, state["memory"])
            self.shared = len(self.rows) > len(self.memory) or not torch.equal(self.of, torch.arange(len(self.of), device=self.device))


def _collect(table: dict[str, Tensor]) -> Samples:
    """Rows of the table as padded tensors, no longer than the longest."""
    longest = int(table["length"].max())
    mask = torch.arange(longest, device=table["tokens"].device) < table["length"][:, None]

    def cut(name: str, fill: float = 0) -> Tensor:
        value = table[name][:, :longest]
        return value.masked_fill(~(mask if value.ndim == 2 else mask[..., None]), fill)

    return Samples(
        tokens=cut("tokens"),
        mask=mask,
        logp=cut("logp"),
        support=cut("support") if "support" in table else None,
        truncated=~table["ended"],
        temperature=cut("temperature", 1.0) if "temperature" in table else None,
        version=cut("version"),
    )
