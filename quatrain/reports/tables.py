"""Tables that a run has measured: read back, shown on its page, and pictures of those that hold intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quatrain.errors import QuatrainError
from quatrain.reports import html
from quatrain.reports.plots import COLOURS, INK, legend, new_figure, save, styled
from quatrain.reports.table import Estimate
from quatrain.training.logging import TABLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]


def read_tables(folder: str | Path) -> dict[str, Rows]:
    """Title → rows of ``tables.json``, intervals as Estimates; nothing where the run left none.

    Raises QuatrainError if the file is damaged.
    """
    path = Path(folder) / TABLES
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise QuatrainError("tables.json is damaged", given=path, expected="title → rows") from error
    return {title: [{name: _value(value) for name, value in row.items()} for row in rows] for title, rows in found.items()}


def tables_html(folder: str | Path) -> str:
    """The tables as HTML, each with its picture if it has intervals; the pictures are written beside them as PNG files."""
    body = ""
    for title, rows in read_tables(folder).items():
        body += html.heading(title) + html.table(rows, best={})
        if (figure := interval_plot(rows, title=title)) is not None:
            save(figure, Path(folder) / f"{title.lower().replace(' ', '-')}.png")
            body += html.wide_figure(figure, title)
    return body


@styled
def interval_plot(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure | None:
    """Columns along the axis, one point with its interval per row of Estimates; a row of plain numbers is a level line.

    The first column names the rows. None where fewer than two columns hold intervals.
    """
    columns = list(rows[0])[1:] if rows else []
    points = [row for row in rows if all(isinstance(row.get(name), Estimate) for name in columns)]
    if len(columns) < 2 or not points:
        return None
    label = next(iter(rows[0]))
    figure, axes = new_figure(9.2, 3.4)
    for number, row in enumerate(points):
        cells = [(place, row[name]) for place, name in enumerate(columns) if np.isfinite(row[name].value)]
        x = [place + 0.8 * (number + 0.5) / len(points) - 0.4 for place, _ in cells]
        value, low, high = (np.array([getattr(cell, part) for _, cell in cells]) for part in ("value", "low", "high"))
        look = {"fmt": "os^D"[number // len(COLOURS) % 4], "markersize": 3.2, "elinewidth": 1.0, "capsize": 0}
        axes.errorbar(x, value, yerr=np.stack([value - low, high - value]), color=COLOURS[number % len(COLOURS)], label=row[label], **look)
    for row in rows:
        if all(isinstance(row[name], (int, float)) for name in columns):
            place = np.arange(len(columns))
            axes.hlines([row[name] for name in columns], place - 0.45, place + 0.45, color=INK, linewidth=1.2, label=row[label])
    axes.set_xticks(range(len(columns)), columns)
    axes.grid(visible=False, axis="x")
    axes.set_title(title.replace("$", r"\$"))
    legend(figure, axes, room=0)
    return figure


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return Estimate(*(float("nan") if part is None else part for part in value))
    return value
