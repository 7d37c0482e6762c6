"""A live view of a run in the terminal: progress, time left and small histories; one plain line now and then elsewhere."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = ("reward", "return", "accuracy", "entropy", "ratio", "kl", "length", "loss", "tokens_per_second")
LABELS = {"tokens_per_second": "tokens/s"}
BLOCKS = "▁▂▃▄▅▆▇█"


class LiveView:
    """Progress bar, time left and sparklines of the usual metrics, redrawn in place; a context manager.

    total    updates of the whole run.
    title    what runs: "grpo", "stage 2: grpo".
    start    the step that the run resumes from; time left is estimated from the steps done here.
    console  where to draw; None is the standard output. Without a terminal (CI, a pipe), or where block characters
             cannot be printed, it writes one plain line every ``every`` seconds, and one for the last step.
    metrics  the names that are shown, in order; those that never arrive take no space.
    """

    def __init__(
        self,
        total: int,
        title: str,
        *,
        start: int = 0,
        console: Console | None = None,
        every: float = 5.0,
        metrics: Sequence[str] = SHOWN,
    ):
        from rich.console import Console

        # Colour may be forced onto a pipe (FORCE_COLOR); drawing in place never is.
        piped = console is None and not sys.stdout.isatty()
        self.console = console if console is not None else Console()
        self.plain = piped or not self.console.is_terminal or self.console.is_dumb_terminal or self.console.options.ascii_only
        self._total, self._title, self._start, self._every, self._names = max(int(total), 1), title, start, every, tuple(metrics)
        self._step = start
        self._history: dict[str, list[float]] = {}
        self._began = time.monotonic()
        self._shown = -math.inf
        self._unsaid = False
        self._live: Any = None

    def __enter__(self) -> LiveView:
        self._began = time.monotonic()
        if not self.plain:
            from rich.live import Live

            # The library redraws four times a second by itself, so that the clock moves during a long step.
            self._live = Live(self, console=self.console, refresh_per_second=4, transient=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._unsaid:
            self._say()

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """``step`` updates are done; whatever of ``metrics`` is shown joins its history. Unknown and non-finite ones are ignored."""
        self._step = int(step)
        for name, value in (metrics or {}).items():
            number = _finite(value) if name in self._names else None
            if number is not None:
                self._history.setdefault(name, []).append(number)
        if self._live is None:
            self._unsaid = True
            now = time.monotonic()
            if now - self._shown >= self._every or self._step >= self._total:
                self._say()

    def note(self, message: str) -> None:
        """A line above the view (or among the plain lines): a checkpoint was written, a stage begins."""
        self.console.print(message, markup=False, highlight=False)

    def line(self) -> str:
        """The state as one plain line."""
        done = f"{self._title}  {self._step}/{self._total}"
        values = [f"{LABELS.get(name, name)} {short(history[-1])}" for name, history in self._ordered()]
        left = self._seconds_left()
        return "  ".join([done, *values, f"{duration(self._elapsed())} elapsed", *([f"{duration(left)} left"] if left is not None else [])])

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        left = self._seconds_left()
        times = duration(self._elapsed()) + (f" · {duration(left)} left" if left is not None else "")
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(self._title, style="bold"),
            ProgressBar(total=self._total, completed=min(self._step, self._total), width=28),
            Text(f"{self._step}/{self._total}"),
            Text(times, style="dim"),
        )
        body = Table.grid(padding=(0, 1))
        body.add_column(justify="left", style="dim")
        body.add_column(justify="right", min_width=8)
        body.add_column(style="cyan", no_wrap=True)
        for name, history in self._ordered():
            body.add_row(LABELS.get(name, name), short(history[-1]), sparkline(history))
        return Group(head, body)

    def _ordered(self) -> list[tuple[str, list[float]]]:
        return [(name, self._history[name]) for name in self._names if name in self._history]

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _seconds_left(self) -> float | None:
        done = self._step - self._start
        return None if done <= 0 else self._elapsed() / done * max(self._total - self._step, 0)

    def _say(self) -> None:
        self._shown, self._unsaid = time.monotonic(), False
        self.console.print(self.line(), markup=False, highlight=False, soft_wrap=True)


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """A history as at most ``width`` block characters, each the mean of an equal share of the values.

    >>> sparkline([0, 1, 2, 3, 4, 5, 6, 7])
    '▁▂▃▄▅▆▇█'
    >>> sparkline([1.0, 1.0])
    '▄▄'
    """
    values = [number for number in map(_finite, list(values)) if number is not None]
    if not values:
        return ""
    columns = min(width, len(values))
    edges = [len(values) * column // columns for column in range(columns + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    if not high - low > 1e-12 * max(abs(low), abs(high)):
        return BLOCKS[3] * columns
    return "".join(BLOCKS[round((mean - low) / (high - low) * (len(BLOCKS) - 1))] for mean in means)


def short(value: float) -> str:
    """A number in few characters, for reading at a glance.

    >>> short(0.41234), short(-12.345), short(3141.6), short(2_500_000), short(3e-6), short(0)
    ('0.412', '-12.3', '3.14k', '2.50M', '3.0e-06', '0.000')
    """
    size = abs(value)
    if not math.isfinite(value):
        return "–"
    if 0 < size < 1e-3:
        return f"{value:.1e}"
    for limit, scale, unit in ((999.5, 1, ""), (999.5e3, 1e3, "k"), (999.5e6, 1e6, "M"), (math.inf, 1e9, "G")):
        if size < limit:
            scaled = value / scale
            digits = 3 if abs(scaled) < 0.9995 else 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f}{unit}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """
    >>> duration(7.2), duration(75), duration(3 * 3600 + 120)
    ('7s', '1m15s', '3h02m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return number if math.isfinite(number) else None
