"""From records to items: which column is what, and the shapes that data sets come in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from quatrain.errors import QuatrainError, nearest
from quatrain.protocols import Item
from quatrain.rewards.extract import marked_answer

# Well-known column names, best first.
KNOWN: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "problem", "query"),
    "answer": ("answer", "final_answer", "expected_answer", "ground_truth", "target", "label", "reward_model.ground_truth"),
    "solution": ("solution", "completion", "response", "output", "rationale"),
    "messages": ("messages", "conversation", "conversations"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
}
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_GSM8K = re.compile(r"^####[ \t]*(\S.*?)\s*$", re.MULTILINE)
_ROLES = ("system", "user", "assistant", "tool", "developer")


@dataclass(frozen=True)
class Columns:
    """Which column holds what; None where there is none. A dot reaches into nested objects (``reward_model.ground_truth``)."""

    prompt: str | None = None
    answer: str | None = None
    solution: str | None = None
    messages: str | None = None
    chosen: str | None = None
    rejected: str | None = None


def find_columns(record: Mapping[str, Any], given: Mapping[str, str | None], where: str) -> Columns:
    """The columns of a source by its first record: those ``given`` by the user, else the first well-known name.

    Raises QuatrainError: a given column is absent; nothing to begin from (no prompt, no messages, no pair of conversations).
    """
    unknown = [role for role in given if role not in KNOWN]
    if unknown:
        raise QuatrainError(f"there is no column role {unknown[0]!r}", expected=", ".join(KNOWN), fix=nearest(unknown[0], KNOWN))
    found: dict[str, str | None] = {}
    for role, names in KNOWN.items():
        name = given.get(role)
        if name is not None and not _has(record, name):
            raise QuatrainError(
                f"{where} has no column {name!r} ({role})",
                given=f"columns {', '.join(map(str, record))}",
                expected=f"a column for {role}",
                fix=nearest(name, map(str, record)),
            )
        found[role] = name or next((candidate for candidate in names if _has(record, candidate)), None)
    conversations = found["chosen"] and found["rejected"] and not isinstance(_get(record, found["chosen"]), str)
    if not (found["prompt"] or found["messages"] or conversations):
        raise QuatrainError(
            f"{where} has no column to prompt with",
            given=f"columns {', '.join(map(str, record)) or 'none'}",
            expected=f"one of {', '.join(KNOWN['prompt'] + KNOWN['messages'])}",
            fix="name it: prompt=COLUMN answer=COLUMN",
        )
    return Columns(**found)


def to_items(records: Sequence[Mapping[str, Any]], columns: Columns, where: str, first: int = 0) -> list[Item]:
    """One item per record; ids count from ``first``.

    Plain columns: numbers become text. GSM8K's shape (an answer "steps … #### 42"): the text is the solution, without the
    ``<<48/2=24>>`` calculator marks (they are calls of a tool that is not there) and with the final "#### 42", which says where the
    answer is; the answer is what follows "####", without thousands separators; the lines before are the steps.
    Chat: the last assistant message is the solution, what comes before is the prompt. Preferences: texts or conversations.
    Without an answer column, a mark in the solution (\\boxed, ####) gives the answer.

    Raises QuatrainError, with the row (from 1): a value that is missing or of the wrong type.
    """
    return [_item(record, columns, f"row {row} of {where}", first + row - 1) for row, record in enumerate(records, 1)]


def split_heldout(items: Sequence[Item], share: float, where: str) -> tuple[list[Item], list[Item]]:
    """(train, held-out): a stable part by a hash of the prompt, at least one item; equal prompts stay together.

    It depends on the prompts alone, so that every run with this data, whatever its seed, holds out the same problems.
    share  0 ≤ share < 1; 0 holds out nothing.
    """
    if not 0 <= share < 1:
        raise QuatrainError("the held-out share is from 0 to below 1", given=share, fix="heldout=0.1")
    if share == 0:
        return list(items), []
    positions = [_position(item) for item in items]
    bound = max(share, min(positions))
    train = [item for item, position in zip(items, positions, strict=True) if position > bound]
    if not train:
        raise QuatrainError(
            f"{where} has too few different prompts to hold some out",
            given=f"{len(items)} items",
            fix="more data, or heldout=0, or heldout=FILE",
        )
    return train, [item for item, position in zip(items, positions, strict=True) if position <= bound]


def _position(item: Item) -> float:
    """Where a prompt falls in [0, 1)."""
    prompt = item.prompt if isinstance(item.prompt, str) else repr([sorted(message.items()) for message in item.prompt])
    return int.from_bytes(blake2b(prompt.encode(), digest_size=8).digest(), "big") / 2**64


def _item(record: Mapping[str, Any], columns: Columns, row: str, id: int) -> Item:
    prompt = _prompt(record, columns.prompt, row) if columns.prompt else None
    solution = _text(record, columns.solution, row) if columns.solution else None
    answer = _text(record, columns.answer, row) if columns.answer else None
    chosen = rejected = None
    steps: tuple[str, ...] = ()
    if columns.messages and prompt is None:
        prompt, solution = _conversation(_messages(record, columns.messages, row), solution)
    if columns.chosen and columns.rejected:
        before, chosen = _side(record, columns.chosen, row)
        other, rejected = _side(record, columns.rejected, row)
        if prompt is None:
            if before != other:
                raise QuatrainError(
                    f"chosen and rejected of {row} begin differently",
                    expected="the same messages before the last one",
                    fix="give a prompt column",
                )
            prompt = before
    mark = _GSM8K.findall(answer) if answer is not None and "\n" in answer and columns.solution is None else []
    if mark:
        solution = _CALCULATOR.sub("", answer).strip()
        steps = tuple(line for line in (line.strip() for line in solution.splitlines()) if line and not line.startswith("####"))
        answer = re.sub(r"(?<=\d),(?=\d{3})", "", mark[-1])
    if answer is None and solution is not None:
        answer = marked_answer(solution)
    return Item(id, prompt, answer, solution, steps, chosen, rejected, data={"record": dict(record)})


def _side(record: Mapping[str, Any], column: str, row: str) -> tuple[tuple[Mapping[str, str], ...], str]:
    """(messages before, completion) of one side of a preference pair."""
    value = _get(record, column)
    if isinstance(value, str):
        return (), value
    before, completion = _conversation(_messages(record, column, row), None)
    if completion is None:
        raise QuatrainError(f"column {column!r} of {row} has no reply", expected="messages that end with one of the assistant")
    return before, completion


def _prompt(record: Mapping[str, Any], column: str, row: str) -> str | tuple[Mapping[str, str], ...]:
    value = _get(record, column)
    if isinstance(value, list):
        return _messages(record, column, row)
    text = _text(record, column, row)
    if not text.strip():
        raise QuatrainError(
            f"the prompt of {row} is empty", given=f"column {column!r}", fix="delete the row, or name another column: prompt=COLUMN"
        )
    return text


def _conversation(messages: tuple[Mapping[str, str], ...], solution: str | None) -> tuple[tuple[Mapping[str, str], ...], str | None]:
    if len(messages) > 1 and messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1]["content"]
    return messages, solution


def _messages(record: Mapping[str, Any], column: str, row: str) -> tuple[Mapping[str, str], ...]:
    value = _get(record, column)
    expected = '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'
    if not isinstance(value, list) or not value:
        raise QuatrainError(f"column {column!r} of {row} is no list of messages", given=_brief(value), expected=expected)
    for message in value:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise QuatrainError(
                f"a message in column {column!r} of {row} is not a role and a text", given=_brief(message), expected=expected
            )
        if message["role"] not in _ROLES:
            raise QuatrainError(
                f"unknown role in column {column!r} of {row}",
                given=message["role"],
                expected=", ".join(_ROLES),
                fix=nearest(message["role"], _ROLES),
            )
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _text(record: Mapping[str, Any], column: str, row: str) -> str:
    """A cell as text; whole floats without their ".0" (a column of integers with gaps becomes floats on its way)."""
    if not _has(record, column):
        raise QuatrainError(
            f"{row} has no column {column!r}",
            given=f"columns {', '.join(map(str, record))}",
            expected="the columns of the first row in every row",
        )
    value = _get(record, column)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, str | int):
        return str(value)
    raise QuatrainError(
        f"column {column!r} of {row} is of the wrong type",
        given=_brief(value),
        expected="text or a number",
        fix="delete the rows without a value"
        if value is None or isinstance(value, float)
        else "write it as text, or name another column (answer=COLUMN)",
    )


def _has(record: Mapping[str, Any], column: str) -> bool:
    if column in record:
        return True
    head, dot, tail = column.partition(".")
    return bool(dot) and isinstance(record.get(head), Mapping) and _has(record[head], tail)


def _get(record: Mapping[str, Any], column: str) -> Any:
    if column in record:
        return record[column]
    head, dot, tail = column.partition(".")
    return _get(record[head], tail) if dot and isinstance(record.get(head), Mapping) else None


def _brief(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:79] + '…'} ({type(value).__name__})"
