"""Rows of results as a table: in the terminal, in Markdown and in HTML, with the best values bold and intervals beside them."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quatrain.errors import QuatrainError

if TYPE_CHECKING:
    from rich.table import Table

HIGHER, LOWER = "max", "min"
UPWARD = ("reward", "return", "accuracy", "pass@")
DASH = "–"


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, both ends in the number's own unit. Prints ``value ± half`` or, if lopsided, ``value [low, high]``."""

    value: float
    low: float
    high: float

    @staticmethod
    def around(value: float, half: float) -> Estimate:
        """The interval value ± half."""
        return Estimate(value, value - half, value + half)


@dataclass(frozen=True)
class Cell:
    text: str
    number: bool
    best: bool


def results_table(rows: Sequence[Mapping[str, Any]], *, best: Mapping[str, str] | None = None, title: str | None = None) -> Table:
    """The rows as a rich table. Columns are the keys in order of appearance; numbers are aligned right.

    rows  values are texts, numbers, ``Estimate``s, or None and NaN for "not measured".
    best  column → "max" or "min": its best value is bold. None takes "max" for rewards, returns and accuracies.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns, cells = layout(rows, best)
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", header_style="dim", pad_edge=False)
    for index, name in enumerate(columns):
        numeric = _is_numeric(cells, index)
        widest = max([len(name), *(len(line[index].text) for line in cells)])
        table.add_column(Text(name), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold", min_width=min(widest, 16))
    for line in cells:
        table.add_row(*(Text(cell.text, style="bold green" if cell.best else "") for cell in line))
    return table


def markdown_table(rows: Sequence[Mapping[str, Any]], *, best: Mapping[str, str] | None = None) -> str:
    """The rows as a Markdown table, the best values in ``**``.

    >>> print(markdown_table([{"arm": "grpo", "accuracy": 0.5}, {"arm": "hpt", "accuracy": 0.75}]))
    | arm | accuracy |
    |:--|--:|
    | grpo | 0.500 |
    | hpt | **0.750** |
    """
    columns, cells = layout(rows, best)
    lines = [[_escape_markdown(name) for name in columns], ["--:" if _is_numeric(cells, index) else ":--" for index in range(len(columns))]]
    lines += [[f"**{_escape_markdown(cell.text)}**" if cell.best else _escape_markdown(cell.text) for cell in line] for line in cells]
    rule = "|" + "|".join(lines[1]) + "|"
    return "\n".join(rule if index == 1 else "| " + " | ".join(line) + " |" for index, line in enumerate(lines))


def html_table(rows: Sequence[Mapping[str, Any]], *, best: Mapping[str, str] | None = None) -> str:
    """The rows as an HTML table; every text is escaped."""
    columns, cells = layout(rows, best)
    kind = ['class="number"' if _is_numeric(cells, index) else "" for index in range(len(columns))]
    head = "".join(f"<th scope='col' {kind[index]}>{html.escape(name)}</th>" for index, name in enumerate(columns))

    def data(index: int, cell: Cell) -> str:
        text = html.escape(cell.text)
        return f"<td {kind[index]}>{f'<strong>{text}</strong>' if cell.best else text}</td>"

    body = "".join("<tr>" + "".join(data(index, cell) for index, cell in enumerate(line)) + "</tr>" for line in cells)
    return f'<div class="wide"><table class="results"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def layout(rows: Sequence[Mapping[str, Any]], best: Mapping[str, str] | None = None) -> tuple[list[str], list[list[Cell]]]:
    """(column names, cells row by row): numbers of a column share their decimals; ties for the best are all best.

    A column is judged only if at least two rows have a value in it and they are not all the same.
    Raises QuatrainError for a direction other than "max" or "min".
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if best is None:
        best = {name: HIGHER for name in columns if name.startswith(UPWARD)}
    for name, direction in best.items():
        if direction not in (HIGHER, LOWER):
            raise QuatrainError(f"the best value of column {name!r} is its largest or smallest", given=direction, expected="'max' or 'min'")
    texts = {name: _column([row.get(name) for row in rows], best.get(name)) for name in columns}
    return columns, [[texts[name][index] for name in columns] for index in range(len(rows))]


def _column(values: list[Any], direction: str | None) -> list[Cell]:
    numbers = [_central(value) for value in values]
    known = [number for number in numbers if math.isfinite(number)]
    decimals = _decimals(known) if known and not all(_is_whole(value) for value in values) else 0
    # What is printed alike is equally good: the eye must not be told otherwise.
    rounded = [round(number, decimals) if math.isfinite(number) else math.nan for number in numbers]
    top = None
    if direction and len({value for value in rounded if not math.isnan(value)}) > 1:
        top = (max if direction == HIGHER else min)(value for value in rounded if not math.isnan(value))
    return [
        Cell(_text(value, decimals), not isinstance(value, str), top is not None and number == top)
        for value, number in zip(values, rounded, strict=True)
    ]


def _central(value: Any) -> float:
    if isinstance(value, Estimate):
        return float(value.value)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _is_whole(value: Any) -> bool:
    return value is None or isinstance(value, (int, str))


def _decimals(numbers: list[float]) -> int:
    size = max(abs(number) for number in numbers)
    if size >= 100:
        return 0
    if size >= 10:
        return 1
    if size > 1:
        return 2
    return 3 if size >= 0.01 or size == 0 else min(9, 2 - math.floor(math.log10(size)))


def _text(value: Any, decimals: int) -> str:
    if isinstance(value, Estimate):
        if not math.isfinite(value.value):
            return DASH
        low, high = value.value - value.low, value.high - value.value
        middle = f"{value.value:,.{decimals}f}"
        if not (math.isfinite(low) and math.isfinite(high)):
            return middle
        if math.isclose(low, high, abs_tol=0.5 * 10.0**-decimals):
            return f"{middle} ± {(low + high) / 2:,.{decimals}f}"
        return f"{middle} [{value.low:,.{decimals}f}, {value.high:,.{decimals}f}]"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return DASH
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.{decimals}f}" if math.isfinite(value) else ("∞" if value > 0 else "−∞")


def _is_numeric(cells: list[list[Cell]], index: int) -> bool:
    return bool(cells) and all(line[index].number for line in cells)


def _escape_markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").replace("\n", " ")
