"""The coefficient picture: what a recipe multiplies each action's statistic by, seen against the ratio and action by action.

Everything takes plain arrays or tensors. Three media: figures, HTML (tokens that wrap like text) and the terminal.
"""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quatrain.errors import QuatrainError
from quatrain.reports.plots import COLOURS, INK, RULE, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.text import Text

FILE = "coefficients.json"
UP, DOWN = (59, 130, 196), (207, 90, 80)  # blue pushes the action's probability up, red pushes it down

Curves = Mapping[str, tuple[Any, Any, Any]]  # name → ratio [K], c for A = +1 [K], c for A = −1 [K]
Strips = Mapping[str, Any]  # name → coefficient [T], NaN where there is no action


@styled
def ratio_curve_plot(curves: Curves, title: str = "") -> Figure:
    """c_t against the ratio, one colour per recipe: on the left for advantage +1, on the right for −1.

    curves  name → (ratio [K], c_plus [K], c_minus [K]), the coefficient of an action with that ratio and advantage ±1.
    Raises QuatrainError if lengths differ.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.4, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (name, curve) in enumerate(curves.items()):
        ratio, plus, minus = _curve(name, curve)
        # Curves often coincide over a stretch; each later one is thinner, so that the earlier stay visible beneath it.
        look = {"color": COLOURS[index % len(COLOURS)], "linewidth": max(1.3, 3.0 - 0.9 * index), "label": name.replace("$", r"\$")}
        left.plot(ratio, plus, **look)
        right.plot(ratio, minus, **look)
    for axes, text in ((left, "advantage +1"), (right, "advantage −1")):
        axes.set_title(text)
        axes.set_xlabel("ratio")
        axes.axhline(0, color=RULE, linewidth=0.8)
        axes.axvline(1, color=RULE, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.margins(x=0.01, y=0.08)
        axes.grid(visible=False, axis="x")
    left.set_ylabel("coefficient")
    if title:
        figure.suptitle(title.replace("$", r"\$"), x=0.01, ha="left", fontsize=9.5, fontweight="bold", color=INK)
    if len(curves) > 1:
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", labelcolor=INK, ncols=min(6, len(curves)), borderpad=0.1)
    return figure


@styled
def strip_plot(tokens: Sequence[str], coefficient: Any | Strips, width: int = 28) -> Figure:
    """One cell per action, coloured by its coefficient; one row per recipe, folded after ``width`` actions.

    tokens       T texts.
    coefficient  [T], or name → [T] for several recipes beside each other. NaN: no action here, drawn empty.
    Colours are scaled by each recipe's largest |c|, because normalisers differ between recipes.
    """
    strips = _strips(tokens, coefficient)
    names = list(strips)
    folds = max(1, math.ceil(len(tokens) / width))
    columns = min(width, max(1, len(tokens)))
    figure, axes = new_figure(width=9.4, height=0.35 + 0.28 * folds * (len(names) + 0.6))
    from matplotlib.patches import Rectangle

    for fold in range(folds):
        base = -fold * (len(names) + 0.6)
        for row, name in enumerate(names):
            if name and fold == 0:
                axes.annotate(name, (0, base - row - 0.5), xytext=(-6, 0), textcoords="offset points", ha="right", va="center", color=INK)
            scale = _scale(strips[name])
            for column, index in enumerate(range(fold * width, min((fold + 1) * width, len(tokens)))):
                value = strips[name][index]
                face = "none" if math.isnan(value) else (*(part / 255 for part in (UP if value > 0 else DOWN)), 0.5 * abs(value) / scale)
                axes.add_patch(Rectangle((column, base - row - 1), 0.94, 0.9, facecolor=face, edgecolor=RULE, linewidth=0.4))
                text = _visible(tokens[index]).replace("$", r"\$")
                axes.text(column + 0.47, base - row - 0.55, text[:6], ha="center", va="center", fontsize=7, color=INK)
    axes.set_xlim(0, columns)
    axes.set_ylim(-folds * (len(names) + 0.6) + 0.6, 0)
    axes.axis("off")
    return figure


def strip_html(tokens: Sequence[str], coefficient: Any | Strips) -> str:
    """The same as an HTML fragment: the text itself, each token on a background as strong as its coefficient, the value on hover."""
    parts = []
    for name, values in _strips(tokens, coefficient).items():
        scale = _scale(values)
        label = f"<figcaption>{html.escape(name)} <small>largest |c| {scale:.3g}</small></figcaption>"
        parts.append(f'<figure class="strip">{label}<p>{"".join(map(_span, tokens, values, [scale] * len(tokens)))}</p></figure>')
    return "".join(parts)


def strip_text(tokens: Sequence[str], coefficient: Any) -> Text:
    """The same for the terminal, one recipe: a rich ``Text`` with coloured backgrounds."""
    from rich.text import Text

    values = _strips(tokens, coefficient)[""]
    scale, text = _scale(values), Text()
    for token, value in zip(tokens, values, strict=True):
        if math.isnan(value):
            text.append(_visible(token), style="dim")
        else:
            red, green, blue = (round(part * abs(value) / scale) for part in (UP if value > 0 else DOWN))
            text.append(_visible(token), style=f"white on rgb({red},{green},{blue})" if value else "")
    return text


def ratio_table(curves: Curves, at: Sequence[float] = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0)) -> list[dict[str, Any]]:
    """Rows for ``results_table``: each recipe's coefficient at a few ratios, for advantage +1 and −1 (nearest point of the curve)."""
    rows = []
    for name, curve in curves.items():
        ratio, plus, minus = _curve(name, curve)
        for sign, values in (("+1", plus), ("−1", minus)):
            rows.append({"recipe": name, "advantage": sign, **{f"ratio {r:g}": float(values[np.abs(ratio - r).argmin()]) for r in at}})
    return rows


def write_coefficients(folder: str | Path, curves: Curves | None = None, tokens: Sequence[str] = (), strips: Any = None) -> Path:
    """Keep a picture's numbers in a run folder, where the report finds them: ``coefficients.json``."""
    data = {
        "curves": {name: [_listed(part) for part in _curve(name, curve)] for name, curve in (curves or {}).items()},
        "tokens": list(tokens),
        "strips": {name: _listed(values) for name, values in _strips(tokens, strips).items()} if strips is not None else {},
    }
    path = Path(folder) / FILE
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.write_text(json.dumps(data, ensure_ascii=True, allow_nan=False), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise QuatrainError(f"the coefficient picture cannot be written: {error.strerror}", given=path, fix="free some space") from error
    return path


def read_coefficients(folder: str | Path) -> tuple[dict[str, tuple], list[str], dict[str, np.ndarray]] | None:
    """(curves, tokens, strips) as ``write_coefficients`` was given them, or None if the folder has none."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        curves = {name: tuple(_array(part) for part in curve) for name, curve in data["curves"].items()}
        return curves, list(data["tokens"]), {name: _array(values) for name, values in data["strips"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise QuatrainError(
            "this file of coefficients is damaged", given=path, fix="delete it; the report leaves the picture out"
        ) from error


def _curve(name: str, curve: tuple[Any, Any, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ratio, plus, minus = (_array(part) for part in curve)
    if not ratio.shape == plus.shape == minus.shape or ratio.ndim != 1 or not len(ratio):
        raise QuatrainError(
            f"the curve of {name!r} is three rows of one length",
            given=f"{ratio.shape}, {plus.shape}, {minus.shape}",
            expected="[K], [K], [K]",
        )
    return ratio, plus, minus


def _strips(tokens: Sequence[str], coefficient: Any | Strips) -> dict[str, np.ndarray]:
    strips = {name: _array(values) for name, values in (coefficient.items() if isinstance(coefficient, Mapping) else [("", coefficient)])}
    for name, values in strips.items():
        if values.shape != (len(tokens),):
            raise QuatrainError(f"strip {name!r} has one coefficient per token", given=values.shape, expected=f"[{len(tokens)}]")
    return strips


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.array([math.nan if value is None else value for value in values] if isinstance(values, list) else values, dtype=float)


def _listed(values: Any) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in _array(values)]


def _scale(values: np.ndarray) -> float:
    known = np.abs(values[np.isfinite(values)])
    return float(known.max()) if known.size and known.max() > 0 else 1.0


def _span(token: str, value: float, scale: float) -> str:
    text = html.escape(_visible(token))
    if math.isnan(value):
        return f'<span class="none">{text}</span>'
    red, green, blue = UP if value > 0 else DOWN
    shade = f"background:rgba({red},{green},{blue},{0.75 * min(1.0, abs(value) / scale):.2f})"
    return f'<span style="{shade}" title="{value:.4g}">{text}</span>'


def _visible(token: str) -> str:
    """White space that can be seen; a long run of text stays as it is."""
    return token.replace("\n", "↵").replace("\t", "⇥") if token.strip() else token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")
