"""What rows have said: a table with a line for each row kept, written several tokens at a time.

Axes: N rows kept, B of them that are decoded, T tokens, K support.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad as padded

from quatrain.errors import QuatrainError
from quatrain.models.draws import truncates, uniforms
from quatrain.protocols import Sampling


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


@dataclass
class Stretch:
    """Steps during which the same B rows are decoded; what they say is written down together."""

    rows: Tensor  # [B] lines of the table
    place: Tensor  # [B, steps] where in the line
    uniform: tuple[Tensor, ...]  # of each step [B]
    longest: int  # tokens of the longest row when it began
    written: int = 0  # steps that are in the table
    said: defaultdict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    @property
    def steps(self) -> int:
        """How many there have been."""
        return len(self.said["tokens"])


class Transcript:
    """Rows in order of coming: ``ids``, ``prompts``, and the ``table`` of what each has said.

    table  [N, limit + 1] tokens, logp, uniform (what it draws with), version; where sampling makes them temperature, and support
           with an axis K more; [N] length; [N] ended: by its own last token, not by the limit.
    """

    def __init__(self, sampling: Sampling, vocabulary: int, device: torch.device):
        self.limit, self.device = sampling.max_actions, device
        self.ids: list[int] = []
        self.prompts: list[list[int]] = []
        self._next = 0
        width = self.limit + 1  # a row that has ended writes beyond its end until it leaves
        kinds = {"tokens": torch.long, "logp": torch.float32, "uniform": torch.float64, "version": torch.long}
        kinds |= {"temperature": torch.float32} if sampling.heat is not None and sampling.temperature != 0 else {}
        self.table = {name: torch.zeros(0, width, dtype=kind, device=device) for name, kind in kinds.items()}
        if truncates(sampling, vocabulary):
            self.table["support"] = torch.zeros(0, width, 1, dtype=torch.int32, device=device)
        self.table["length"] = torch.zeros(0, dtype=torch.long, device=device)
        self.table["ended"] = torch.zeros(0, dtype=torch.bool, device=device)

    def __len__(self) -> int:
        return len(self.ids)

    # -- rows --------------------------------------------------------------------------------------------------------
    def empty(self, count: int) -> dict[str, Tensor]:
        """Lines of rows that have said nothing."""
        return {name: value.new_zeros(count, *value.shape[1:]) for name, value in self.table.items()}

    def beginnings(self, place: list[int], lengths: Tensor) -> dict[str, Tensor]:
        """Copies of these lines of which only the first ``lengths`` tokens count."""
        copies = {name: value[place] for name, value in self.table.items()}
        return copies | {"length": lengths, "ended": torch.zeros_like(copies["ended"])}

    def add(self, prompts: Sequence[Sequence[int]], lines: dict[str, Tensor], seeds: Tensor, version: int) -> list[int]:
        """Keep these rows, which draw from their own seeds [n]; what they will say is of that version. Returns their ids."""
        begun = torch.arange(self.limit + 1, device=self.device)
        lines["uniform"] = uniforms(seeds.to(self.device), begun)
        lines["version"] = torch.where(begun < lines["length"][:, None], lines["version"], version)
        self.table = {name: torch.cat([value, lines[name]]) for name, value in self.table.items()}
        made = list(range(self._next, self._next + len(prompts)))
        self._next += len(prompts)
        self.ids += made
        self.prompts += [list(prompt) for prompt in prompts]
        return made

    def places(self, ids: Sequence[int]) -> list[int]:
        """Where in the table they are. Raises QuatrainError for a row that is not here."""
        place = {row: index for index, row in enumerate(self.ids)}
        if absent := [row for row in ids if row not in place]:
            raise QuatrainError("this row is not here", given=absent[:5], expected="rows that were admitted and not yet taken")
        return [place[row] for row in ids]

    def drop(self, ids: Sequence[int]) -> Tensor:
        """Forget rows. [N] where in the table each one now is, −1 for those."""
        gone = set(ids)
        stay = [index for index, row in enumerate(self.ids) if row not in gone]
        moved = torch.full((len(self),), -1, device=self.device)
        moved[stay] = torch.arange(len(stay), device=self.device)
        self.table = {name: value[stay] for name, value in self.table.items()}
        self.ids, self.prompts = [self.ids[index] for index in stay], [self.prompts[index] for index in stay]
        return moved

    def renew(self, place: Tensor, version: int) -> None:
        """What these rows say from now on is of that version."""
        ahead = torch.arange(self.limit + 1, device=self.device) >= self.table["length"][place, None]
        self.table["version"][place] = torch.where(ahead, version, self.table["version"][place])

    # -- what they have said -----------------------------------------------------------------------------------------
    @property
    def over(self) -> Tensor:
        """[N] bool: it has ended, by itself or at the limit."""
        return self.table["ended"] | (self.table["length"] == self.limit)

    def so_far(self, place: list[int]) -> list[tuple[int, ...]]:
        """Prompt and tokens said so far."""
        lengths = self.table["length"][place].tolist()
        said = [self.table["tokens"][row, :length].tolist() if length else [] for row, length in zip(place, lengths, strict=True)]
        return [(*self.prompts[row], *tokens) for row, tokens in zip(place, said, strict=True)]

    def read(self, ids: Sequence[int]) -> Samples:
        """What these rows have said so far, no longer than the longest of them."""
        place, table = self.places(ids), self.table
        if place != list(range(len(self))):
            table = {name: value[place] for name, value in table.items()}
        longest = int(table["length"].max())
        mask = torch.arange(longest, device=self.device) < table["length"][:, None]

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

    # -- writing -----------------------------------------------------------------------------------------------------
    def stretch(self, rows: Tensor, length: Tensor, steps: int) -> Stretch:
        """At most so many steps of these rows [B], which have ``length`` [B] tokens, begin."""
        steps = min(steps, self.limit)
        place = (length[:, None] + torch.arange(steps, device=self.device)).clamp_max(self.limit)
        uniform = self.table["uniform"][rows[:, None], place].T.contiguous().unbind(0)
        return Stretch(rows, place, uniform, int(length.max()))

    def write(self, stretch: Stretch, length: Tensor, ended: Tensor) -> None:
        """Into the table what has been said since the last time, and what its rows' length and end now are."""
        table, begin, count = self.table, stretch.written, stretch.steps
        at = (stretch.rows[:, None], stretch.place[:, begin:count])
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
        table["length"][stretch.rows], table["ended"][stretch.rows] = length, ended

    def tail(self, stretch: Stretch, index: Tensor, span: int) -> list[list[int]]:
        """The last tokens, at most ``span``, of these of its rows; what they said is written."""
        rows, ends = stretch.rows[index].tolist(), (stretch.place[index, stretch.written - 1] + 1).tolist()
        return [self.table["tokens"][row, max(0, end - span) : end].tolist() for row, end in zip(rows, ends, strict=True)]

    # -- keeping -----------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors of its own."""
        table = {name: value.clone() for name, value in self.table.items()}
        return {"ids": list(self.ids), "prompts": [list(prompt) for prompt in self.prompts], "next": self._next, "table": table}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ids, self.prompts, self._next = list(state["ids"]), [list(prompt) for prompt in state["prompts"]], state["next"]
        self.table = {name: value.to(self.device).clone() for name, value in state["table"].items()}
