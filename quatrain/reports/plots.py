"""Figures in one restrained style: learning curves with bands over seeds, comparisons of arms, bars.

Figures are matplotlib ``Figure`` objects made without pyplot, so nothing is global and no window opens. ``inline_svg`` turns one into a
fragment for an HTML page; ``save`` writes a file. Backgrounds are transparent and the ink is a middle grey, legible on white and on black;
in a page the ink becomes the CSS variable ``--ink`` and follows the reader's light or dark theme.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from quatrain.errors import QuatrainError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, RULE = "#7b7f86", "#7b7f87"  # text and lines; told apart so that a page can make lines fainter than text
COLOURS = ("#3b82c4", "#e0803a", "#3f9e6e", "#c25b9b", "#8a72d0", "#b59a2b", "#4aa7b5", "#cf5a50")
SMOOTH_FROM = 60  # points; a longer noisy curve gets a moving average over it
MOST_POINTS = 600  # of one drawn curve; a longer one is averaged down to them, so that a page stays small

P, R = ParamSpec("P"), TypeVar("R")

Curve = tuple[Any, Any]  # x [K], y [K] of one run or [S, K] of S seeds


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function in the common style, which matplotlib reads while it draws."""

    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with style():
            return draw(*args, **kwargs)

    return inner


@styled
def curves_plot(
    curves: Mapping[str, Curve],
    *,
    title: str = "",
    ylabel: str = "",
    xlabel: str = "update",
    marks: Mapping[str, float] | None = None,
    limits: tuple[float | None, float | None] = (None, None),
    smooth: bool = True,
) -> Figure:
    """Learning curves, one colour per name; bands are 95 % t-intervals of the mean over seeds.

    curves  name → (x [K], y [K]) for one run, (x [K], y [S, K]) for S seeds. Values that are not finite are gaps.
    marks   text → x of a thin vertical line (where a stage begins).
    limits  lower and upper end of the y axis, None for what the data needs.
    smooth  draw a long single curve faintly with its moving average (a thirtieth of its length) on top.
    Raises QuatrainError for shapes that do not fit.
    """
    figure, axes = new_figure()
    labelled = len(curves) > 1
    for index, (name, (x, y)) in enumerate(curves.items()):
        x, y = np.asarray(x, dtype=float), np.atleast_2d(np.asarray(y, dtype=float))
        if x.ndim != 1 or y.ndim != 2 or y.shape[1] != len(x):
            raise QuatrainError(f"curve {name!r} has x of [K] and y of [K] or [S, K]", given=f"x {x.shape}, y {y.shape}")
        x, y = _thinned(x, y)
        known = np.isfinite(y).any(0)
        if not known.any():
            continue
        x, y = x[known], y[:, known]
        window = max(3, len(x) // 30) if smooth and len(x) >= SMOOTH_FROM else 1
        smoothed = np.stack([moving_average(row, window) for row in y])
        mean, low, high = seed_band(smoothed)
        colour = COLOURS[index % len(COLOURS)]
        if len(y) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        elif window > 1:
            axes.plot(x, y[0], color=colour, alpha=0.28, linewidth=0.8)
        look = {"marker": "o", "markersize": 3.2} if len(x) <= 25 else {}
        look["linestyle"] = "-" if index < len(COLOURS) else (0, (4, 1.5))  # colours come round again, lines do not
        axes.plot(x, mean, color=colour, label=_plain(name) if labelled else None, **look)
    _finish(axes, title, xlabel, ylabel)
    axes.locator_params(axis="x", integer=True)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom if limits[0] is None else limits[0], top if limits[1] is None else limits[1])
    for text, at in (marks or {}).items():
        axes.axvline(at, color=RULE, linewidth=0.8, linestyle=(0, (3, 3)))
        place = {"xycoords": ("data", "axes fraction"), "xytext": (3, -2), "textcoords": "offset points", "va": "top"}
        axes.annotate(_plain(text), (at, 1), fontsize=7.5, color=INK, **place)
    if labelled and axes.lines:
        legend(figure, axes, room=46 - len(title))
    return figure


@styled
def bars_plot(bars: Mapping[str, float | tuple[float, float, float]], *, title: str = "", xlabel: str = "") -> Figure:
    """Horizontal bars with their values written out, and intervals where (value, low, high) is given."""
    parts = [value if isinstance(value, tuple) else (value, value, value) for value in bars.values()]
    values, lows, highs = (np.array(column, dtype=float) for column in zip(*parts, strict=True)) if parts else (np.zeros(0),) * 3
    figure, axes = new_figure(height=0.75 + 0.34 * max(1, len(bars)))
    place = np.arange(len(bars))[::-1]
    axes.barh(place, np.nan_to_num(values), height=0.62, color=[COLOURS[index % len(COLOURS)] for index in range(len(bars))], alpha=0.85)
    spread = np.isfinite(values) & (highs > lows)
    if spread.any():
        widths = np.stack([values - lows, highs - values])[:, spread]
        axes.errorbar(values[spread], place[spread], xerr=widths, fmt="none", ecolor=INK, elinewidth=1.2, capsize=2.5)
    reach = np.nanmax(np.abs(np.concatenate([values, lows, highs, [1e-12]])))
    for row, value, high in zip(place, values, highs, strict=True):
        text = f"{value:.3g}" if math.isfinite(value) else "not measured"
        at = np.nanmax([0.0, value, high])
        axes.annotate(text, (at, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    axes.set_xlim(1.06 * min(0.0, float(np.nanmin(np.append(lows, 0.0)))), float(reach) * 1.18)
    axes.set_yticks(place, [_plain(name) for name in bars])
    _finish(axes, title, xlabel, "")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(True)
    return figure


def seed_band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, low, high), each [K], of the 95 % t-interval of the mean over seeds [S, K]; NaN seeds are left out point by point.

    With one finite seed the interval has no width; with none all three are NaN.
    """
    values = np.asarray(values, dtype=float)
    finite = np.isfinite(values)
    count = finite.sum(0)
    mean = np.where(count > 0, np.where(finite, values, 0.0).sum(0) / np.maximum(count, 1), np.nan)
    if values.shape[0] == 1:
        return mean, mean, mean
    from scipy.stats import t

    variance = np.where(finite, (values - mean) ** 2, 0.0).sum(0) / np.maximum(count - 1, 1)
    half = np.where(count > 1, t.ppf(0.975, np.maximum(count - 1, 1)) * np.sqrt(variance / np.maximum(count, 1)), 0.0)
    return mean, mean - half, mean + half


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """[K] → [K]: the mean over a centred window, which shrinks symmetrically at both ends so that they are not biased.

    NaN values are left out of the means and stay NaN.
    """
    values = np.asarray(values, dtype=float)
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, len(values) - 1 - index), window // 2)
    low, high = index - reach, index + reach + 1
    return np.where(finite, (total[high] - total[low]) / np.maximum(count[high] - count[low], 1), np.nan)


def legend(figure: Figure, axes: Axes, room: int) -> None:
    """Names beside the title if they fit into that many characters, else under the figure; never over the curves."""
    handles, names = axes.get_legend_handles_labels()
    if sum(len(name) + 5 for name in names) <= room:
        place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": len(names), "borderaxespad": 0.2}
        axes.legend(handles, names, labelcolor=INK, borderpad=0.1, columnspacing=1.2, handletextpad=0.5, **place)
    else:
        columns = max(1, min(len(names), int(62 // (max(map(len, names)) + 5))))
        figure.set_figheight(figure.get_figheight() + 0.17 * math.ceil(len(names) / columns))
        figure.legend(handles, names, labelcolor=INK, loc="outside lower left", ncols=columns, borderpad=0.1, columnspacing=1.2)


def inline_svg(figure: Figure, label: str) -> str:
    """The figure as an ``<svg>`` fragment for an HTML page: no scripts, no links, text as text, ink from ``var(--ink)``.

    label  what it shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\sid="[A-Za-z0-9_.]+_\d+"', "", text)  # figure_1, axes_1, …: not unique on a page with several figures
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\sd="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)  # a hundredth of a point is enough
    text = text.replace(RULE, "var(--rule)").replace(INK, "var(--ink)")
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg class="figure" role="img" aria-label="{html.escape(label)}" {size}>'
    return re.sub(r"<svg.*?>", lambda _: head, text, count=1, flags=re.S).strip()


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure as what the path's suffix says (.svg, .png, .pdf)."""
    path = Path(path)
    with style():
        figure.savefig(path, dpi=160)
    return path


def new_figure(width: float = 4.6, height: float = 2.7) -> tuple[Figure, Axes]:
    """An empty figure of that many inches in the common style, and its axes."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def style() -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 8.5,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": RULE,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.spines.left": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlesize": 9.5,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.facecolor": "none",
            "figure.facecolor": "none",
            "savefig.facecolor": "none",
            "grid.color": RULE,
            "grid.alpha": 0.25,
            "grid.linewidth": 0.7,
            "xtick.color": RULE,
            "ytick.color": RULE,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "xtick.major.size": 3,
            "ytick.major.size": 0,
            "lines.linewidth": 1.6,
            "legend.frameon": False,
            "legend.fontsize": 8,
            "legend.handlelength": 1.4,
            "svg.fonttype": "none",
            "svg.hashsalt": "quatrain",
        }
    )


def _finish(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(_plain(title))
    axes.set_xlabel(_plain(xlabel))
    axes.set_ylabel(_plain(ylabel))
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.02)
    axes.xaxis.set_major_formatter(_tick)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x [K], y [S, K] averaged over equal stretches to at most MOST_POINTS points; NaN where a stretch has no value."""
    if len(x) <= MOST_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MOST_POINTS + 1).astype(int)[:-1]
    finite = np.isfinite(y)
    count = np.add.reduceat(finite, edges, axis=1, dtype=int)
    total = np.add.reduceat(np.where(finite, y, 0.0), edges, axis=1)
    widths = np.diff(np.append(edges, len(x)))
    return np.add.reduceat(x, edges) / widths, np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _tick(value: float, _position: int) -> str:
    """20000 as 20k: no offset in a corner that has to be multiplied in the head."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(scale, 1e4 if unit == "k" else 0):
            return f"{value / scale:g}{unit}"
    return f"{value:g}".replace("-", "−")


def _plain(text: str) -> str:
    """A dollar sign of a name is a dollar sign, not the start of a formula."""
    return text.replace("$", r"\$")
