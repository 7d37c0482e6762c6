"""A library of rules: what a policy is told beside its prompt, as a value that operations change.

Axes: S rows of a table, V actions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from quatrain.errors import QuatrainError

Kind = Literal["add", "modify", "delete", "keep"]


@dataclass(frozen=True)
class Rule:
    """One rule.

    text    for language models and people; two rules of one text are one rule.
    weight  w_e: how much it counts, for or (below 0) against; a text in a prompt has no other weight than its order.
    place   (row, action) of a table: φ_e(s, a) = 1 where the state has that row and the action is that one. None: text only.
    name    given by the library when the rule is added.
    """

    text: str
    weight: float = 1.0
    place: tuple[int, int] | None = None
    name: str = ""

    @property
    def meaning(self) -> Any:
        """What two rules have in common that say the same: the place, or the text but for case, spaces and a full stop."""
        return self.place or " ".join(self.text.casefold().split()).rstrip(".")


@dataclass(frozen=True)
class Operation:
    """add ``rule``; modify the rule called ``name`` into ``rule``; delete it; keep it as it is."""

    kind: Kind
    name: str = ""
    rule: Rule | None = None

    def __post_init__(self) -> None:
        wrong = self.kind not in get_args(Kind)
        wrong = wrong or (self.kind != "add" and not self.name) or (self.kind in ("add", "modify") and not (self.rule and self.rule.text))
        if wrong:
            raise QuatrainError(
                "this is no operation on a library",
                given=self,
                expected="add with a rule, modify with a name and a rule, delete or keep with a name",
            )


@dataclass(frozen=True)
class Library:
    """Rules, oldest first.

    size  the most rules; beyond it the one of least |weight| goes, the oldest of several.
    born  how many rules were ever added: the next one's name. Names are never given twice.
    """

    rules: tuple[Rule, ...] = ()
    size: int = 32
    born: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise QuatrainError("a library has room for a rule or more", given=f"size={self.size}")

    def __len__(self) -> int:
        return len(self.rules)

    def find(self, meaning: Any) -> Rule | None:
        """The rule of that meaning: a (row, action), or a text."""
        meaning = Rule(meaning).meaning if isinstance(meaning, str) else meaning
        return next((rule for rule in self.rules if rule.meaning == meaning), None)

    def apply(self, operations: Iterable[Operation]) -> Library:
        """The library after these operations, in order.

        Each is idempotent: adding what is there, deleting or modifying what is not, and keeping, change nothing. A rule that is modified
        into what another one says takes its place.

        >>> one = Library().apply([Operation("add", rule=Rule("Check the units."))])
        >>> one == one.apply([Operation("add", rule=Rule("check  the units"))])
        True
        >>> gone = one.apply([Operation("delete", "R1")])
        >>> len(gone), gone == gone.apply([Operation("delete", "R1")])
        (0, True)
        """
        library = self
        for operation in operations:
            library = library._after(operation)
        return library

    def _after(self, operation: Operation) -> Library:
        known = any(rule.name == operation.name for rule in self.rules)
        if operation.kind == "add" and self.find(operation.rule.meaning) is None:
            rules = (*self.rules, replace(operation.rule, name=f"R{self.born + 1}"))
            if len(rules) > self.size:
                least = min(range(len(rules)), key=lambda number: abs(rules[number].weight))
                rules = rules[:least] + rules[least + 1 :]
            return replace(self, rules=rules, born=self.born + 1)
        if operation.kind == "delete" and known:
            return replace(self, rules=tuple(rule for rule in self.rules if rule.name != operation.name))
        if operation.kind == "modify" and known:
            new = replace(operation.rule, name=operation.name)
            others = [new if rule.name == new.name else rule for rule in self.rules]
            return replace(self, rules=tuple(rule for rule in others if rule.name == new.name or rule.meaning != new.meaning))
        return self

    # -- what a policy makes of it -----------------------------------------------------------------------------------
    def prior(self, like: Tensor) -> Tensor:
        """[S, V] Σ_e w_e φ_e(s, a), shaped as the table ``like``. Raises QuatrainError for a rule beyond the table."""
        prior = torch.zeros_like(like)
        for rule in self.rules:
            if rule.place is not None:
                if not all(0 <= place < count for place, count in zip(rule.place, like.shape, strict=True)):
                    raise QuatrainError(
                        "a rule is about no row of this table", given=rule, expected=f"(row, action) below {tuple(like.shape)}"
                    )
                prior[rule.place] += rule.weight
        return prior

    def text(self, heading: str = "Keep in mind:") -> str:
        """What is put before a prompt; empty without rules."""
        return "\n".join([heading, *(f"- {rule.text}" for rule in self.rules)]) + "\n\n" if self.rules else ""

    # -- keeping -----------------------------------------------------------------------------------------------------
    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    @staticmethod
    def loads(text: str) -> Library:
        """From ``dumps``. Raises QuatrainError for anything else."""
        try:
            found: Mapping[str, Any] = json.loads(text)
            rules = [Rule(**{**rule, "place": tuple(rule["place"]) if rule.get("place") else None}) for rule in found["rules"]]
            return Library(tuple(rules), found["size"], found["born"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise QuatrainError("this is no library of rules", given=text[:80], expected="the library.json of a run") from error


def read_library(path: str | Path) -> Library:
    """The library of a file. Raises QuatrainError if it is not there or no library."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise QuatrainError("this file of a library does not exist", given=path, fix="library=RUN/model/library.json")
    return Library.loads(file.read_text(encoding="utf-8"))


def library_table(state: Any) -> dict[str, float]:
    """Leaves the policy's library in ``state.tables``; ``library/rules``: how many it has."""
    library = state.models["policy"].library
    rows = [{"rule": rule.name, "text": rule.text, "weight": rule.weight} for rule in library.rules]
    state.tables["Library"] = rows or [{"rule": "none", "text": "", "weight": 0.0}]
    return {"library/rules": float(len(library))}
