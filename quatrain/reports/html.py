"""One self-contained HTML page: inline style, inline figures, no scripts, nothing fetched. Every text that comes in is escaped."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from quatrain.errors import QuatrainError
from quatrain.reports.table import html_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 6000  # characters of one sampled text that a page shows


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it. ``body`` is HTML; make it with the functions below, which escape their input."""

    title: str
    body: str


@dataclass(frozen=True)
class Tile:
    """A number at the top of the page: what it is, its value as text, and a few words under it."""

    label: str
    value: str
    detail: str = ""


def write_report(
    path: str | Path,
    title: str,
    sections: Iterable[Section],
    *,
    subtitle: str = "",
    tiles: Sequence[Tile] = (),
    footer: str = "Made with Quatrain.",
) -> Path:
    """Write the page and return its path. The file is replaced whole or not at all.

    Raises QuatrainError if it cannot be written.
    """
    path = Path(path)
    template = Template((files("quatrain.reports") / "template.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=html.escape(title),
        subtitle=f'<p class="subtitle">{html.escape(subtitle)}</p>' if subtitle else "",
        tiles=f'<dl class="tiles">{"".join(map(_tile, tiles))}</dl>' if tiles else "",
        sections="\n".join(
            f'<section id="{_anchor(part.title)}"><h2>{html.escape(part.title)}</h2>\n{part.body}\n</section>' for part in sections
        ),
        footer=html.escape(footer),
    )
    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8", errors="replace")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise QuatrainError(
            f"the report cannot be written: {error.strerror}",
            given=path,
            expected="a file on a disk with free space",
            fix="choose another path",
        ) from error
    return path


def table(rows: Sequence[Mapping[str, Any]], *, best: Mapping[str, str] | None = None, empty: str = "No results.") -> str:
    """Results as rows (see ``reports.table``)."""
    return html_table(rows, best=best) if rows else note_empty(empty)


def figures(items: Mapping[str, Figure], empty: str = "Nothing to plot.") -> str:
    """Figures in a grid that folds on a narrow screen. The keys say what each shows, for those who cannot see it."""
    from quatrain.reports.plots import inline_svg

    if not items:
        return note_empty(empty)
    return f'<div class="grid">{"".join(f"<figure>{inline_svg(figure, label)}</figure>" for label, figure in items.items())}</div>'


def wide_figure(figure: Figure, label: str) -> str:
    """One figure over the whole width."""
    from quatrain.reports.plots import inline_svg

    return f'<figure class="panel">{inline_svg(figure, label)}</figure>'


def samples(items: Sequence[Mapping[str, Any]], empty: str = "No answers were kept.") -> str:
    """Sampled answers: prompt, completion, and the reference answer and reward where they are known."""
    return "".join(map(_sample, items)) if items else note_empty(empty)


def keys(values: Mapping[str, Any], empty: str = "Not recorded.") -> str:
    """A nested mapping as a table of dotted keys."""
    entries = list(flat(values))
    if not entries:
        return note_empty(empty)
    body = "".join(f"<tr><td>{_e(name)}</td><td>{_e(value)}</td></tr>" for name, value in entries)
    return f'<table class="keys"><tbody>{body}</tbody></table>'


def text_block(text: str, empty: str = "Not recorded.") -> str:
    """Text as it is, in a fixed width."""
    return f'<pre class="block">{_e(text.strip())}</pre>' if text.strip() else note_empty(empty)


def note(text: str) -> str:
    return f'<p class="note">{_e(text)}</p>'


def note_empty(text: str) -> str:
    """What stands where there is nothing to show, and why."""
    return f'<p class="empty">{_e(text)}</p>'


def folded(summary: str, body: str, shown: bool = False) -> str:
    """Something that is shown on demand, or from the start and can be put away."""
    return f"<details{' open' if shown else ''}><summary>{_e(summary)}</summary>{body}</details>"


def heading(text: str) -> str:
    return f"<h3>{_e(text)}</h3>"


def _tile(tile: Tile) -> str:
    detail = f"<small>{_e(tile.detail)}</small>" if tile.detail else ""
    return f'<div class="tile"><dt>{_e(tile.label)}</dt><dd>{_e(tile.value)}{detail}</dd></div>'


def _sample(item: Mapping[str, Any]) -> str:
    reward, answer = item.get("reward"), item.get("answer")
    facts = []
    if isinstance(reward, (int, float)):
        facts.append(f'<span class="pill{" good" if reward > 0 else ""}">reward {reward:.3g}</span>')
    if answer not in (None, ""):
        facts.append(f"<span>reference answer: {_e(_clipped(str(answer), 300))}</span>")
    others = {
        name: value
        for name, value in item.items()
        if name not in ("step", "prompt", "completion", "answer", "reward") and value is not None
    }
    facts += [f"<span>{_e(name)}: {_e(_clipped(str(value), 300))}</span>" for name, value in others.items()]
    prompt, completion = (_clipped(str(item.get(name) or ""), LONGEST) for name in ("prompt", "completion"))
    return (
        f'<article class="sample"><p class="role">prompt</p><pre>{_e(prompt) or "(empty)"}</pre>'
        f'<p class="role">answer</p><pre class="completion">{_e(completion) or "(empty)"}</pre>'
        f'<div class="facts">{"".join(facts)}</div></article>'
    )


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """(dotted key, value as text) of a nested mapping."""
    for name, part in value.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(part, Mapping) and part:
            yield from flat(part, path)
        elif isinstance(part, (list, tuple)) and part:
            yield path, ", ".join(map(_value, part))
        else:
            yield path, _value(part)


def _value(value: Any) -> str:
    if value is None or (isinstance(value, (dict, list, tuple)) and not value):
        return "–"
    # White space that matters (a stop string) is written so that it can be seen.
    return repr(value) if isinstance(value, str) and value != value.strip() else str(value)


def _clipped(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest:,} more characters)"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"


def _e(value: object) -> str:
    # A NUL or another control character is not allowed in HTML; the replacement character shows that something was there.
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\ufffd", str(value)))
