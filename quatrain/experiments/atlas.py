"""The atlas: every system on one static page, with its equation, what it changes in its neighbour, its diagnosis and its verdicts.

No script: the filters are radio buttons that the style sheet reads.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quatrain.reports.html import Section, Tile, folded, heading, note, text_block, write_report

WORDS = ("reproduced", "inconclusive", "contradicted", "not run")
PARTS = ("where", "denominator", "bound", "advantage", "likelihood", "aggregation", "weight")
SHELF = "basics"  # the family whose members are the neighbours that others are read beside
SCALE = 560  # width of a verdict's picture, in its own units


@dataclass(frozen=True)
class System:
    """One entry: who it is, what the filters know of it, and what is shown."""

    name: str
    family: str
    title: str
    paper: str | None
    doc: str
    neighbour: str
    told: str
    parts: tuple[str, ...]
    terms: tuple[str, ...]
    sources: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]
    diagnosis: str

    @property
    def word(self) -> str:
        """The verdict on its main claim, else on the first that was run."""
        main = [record for record in self.records if record["id"] == self.name] or list(self.records)
        return main[0]["verdict"] if main else "not run"


def write_atlas(path: str | Path, results: str | Path | None = None) -> Path:
    """Write the page from the registry and the recorded results; its path.

    Raises QuatrainError if a record is damaged or the page cannot be written.
    """
    systems = gather(results)
    counted = {word: sum(record["verdict"] == word for system in systems for record in system.records) for word in WORDS[:3]}
    tiles = [Tile("systems", str(len(systems))), *(Tile(f"claims {word}", str(number)) for word, number in counted.items())]
    body = _filters(systems) + "".join(map(_card, systems))
    rule = (
        "A claim is run in miniature with paired seeds. Its 95 % interval above zero: reproduced; below: contradicted; across: "
        "inconclusive. What stands in for the paper's models and data is named beside each verdict."
    )
    return write_report(path, "Atlas", [Section("Systems", note(rule) + body)], subtitle="Policy learning in four parts", tiles=tiles)


def gather(results: str | Path | None = None) -> list[System]:
    """Every registered system with what is recorded of it."""
    from quatrain.experiments.diagnose.record import read_diagnoses, sentence
    from quatrain.experiments.records import read_records
    from quatrain.training.describe import explain
    from quatrain.training.registry import entries

    records = read_records(results)
    diagnoses = read_diagnoses(Path(results) / "diagnosis" if results else None)
    known = {entry.name: (entry, entry.build()) for entry in entries()}
    shelf = {name: recipe for name, (entry, recipe) in known.items() if entry.family == SHELF}
    found = []
    for name, (entry, recipe) in known.items():
        beside = {other: explain(recipe, base) for other, base in shelf.items() if other != name}
        neighbour = min(beside, key=lambda other: (sum(map(len, differences(beside[other]))), other))
        told = beside[neighbour]
        parts, terms = differences(told)
        sources = tuple(
            sorted({type(step.source).__name__ for stage in recipe.stages for step in stage.all_steps() if hasattr(step, "into")})
        )
        own = tuple(record for key, record in records.items() if key.partition(".")[0] == name)
        diagnosis = sentence(diagnoses[name]) if name in diagnoses else ""
        found.append(
            System(name, entry.family, entry.title, entry.paper, entry.doc, neighbour, told, parts, terms, sources, own, diagnosis)
        )
    return found


def differences(told: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(parts that differ in a term that both have, terms that only this recipe has), read off an ``explain`` beside a neighbour."""
    marked: dict[str, list[str]] = {}
    term = ""
    for line in told.splitlines():
        if line.startswith("      term "):
            term = line.split()[1]
            marked[term] = []
        elif line.startswith("      * "):
            marked[term].append(line.split()[1].rstrip(":"))
    new = tuple(name for name, parts in marked.items() if len(parts) == len(PARTS))
    seen = {part for name, parts in marked.items() if name not in new for part in parts}
    return tuple(part for part in PARTS if part in seen), new


def strip_plot(record: Mapping[str, Any]) -> str:
    """SVG: one row per arm with a dot per seed and the mean; numbers on one axis."""
    arms = {label: [float(value) for value in numbers.values()] for label, numbers in record["numbers"].items()}
    values = [value for row in arms.values() for value in row if value == value]
    if not values or record["kind"] == "equal":
        return ""
    low, high = min(values), max(values)
    room = (high - low) or 1.0
    place = lambda value: 170 + (SCALE - 190) * (value - low) / room  # noqa: E731
    height = 22 * len(arms) + 24
    lines = []
    for index, (label, row) in enumerate(arms.items()):
        y = 14 + 22 * index
        row = [value for value in row if value == value]
        dots = "".join(f'<circle cx="{place(value):.1f}" cy="{y}" r="3.5"/>' for value in row)
        mean = place(sum(row) / len(row)) if row else 0
        lines.append(
            f'<g class="{"first" if index == 0 else "other"}"><text x="160" y="{y + 4}" text-anchor="end">{html.escape(label[:24])}</text>'
            f'{dots}<line x1="{mean:.1f}" x2="{mean:.1f}" y1="{y - 8}" y2="{y + 8}"/></g>'
        )
    axis = height - 6
    ends = f'<text x="170" y="{axis}">{low:.3g}</text><text x="{SCALE - 20}" y="{axis}" text-anchor="end">{high:.3g}</text>'
    return (
        f'<svg class="seeds" viewBox="0 0 {SCALE} {height}" role="img" aria-label="{html.escape(record["metric"])} of every seed by arm">'
        f"{''.join(lines)}{ends}</svg>"
    )


def _card(system: System) -> str:
    marks = {"family": [system.family], "verdict": [system.word], "part": system.parts, "source": system.sources}
    data = " ".join(f'data-{name}="{html.escape(" ".join(map(_key, values)))}"' for name, values in marks.items())
    paper = f' <a href="https://arxiv.org/abs/{html.escape(system.paper)}">arXiv {html.escape(system.paper)}</a>' if system.paper else ""
    head = (
        f'<p class="name"><code>{html.escape(system.name)}</code> <span class="pill {_key(system.word)}">{system.word}</span>'
        f'<span class="pill">{html.escape(system.family)}</span></p><p class="paper">{html.escape(system.title)}{paper}</p>'
    )
    differs = ", ".join([*system.parts, *(f"its own term {name}" for name in system.terms)]) or "no part of a term"
    body = folded("equation", text_block(system.doc))
    body += folded(f"beside {system.neighbour}: {differs}", text_block(system.told))
    if system.diagnosis:
        body += folded("diagnosis", note(system.diagnosis))
    for record in system.records:
        body += folded(f"{record['id']}: {record['verdict']}", _verdict(record))
    lead = f'<p class="lead">{html.escape(system.doc.splitlines()[0])}</p>'
    return f'<article class="sample system" {data}>{head}{lead}{body}</article>'


def _verdict(record: Mapping[str, Any]) -> str:
    from quatrain.experiments.records import measured_text

    settings = ", ".join(f"{name}={value}" for name, value in record["settings"].items())
    lines = [
        f"<p>{html.escape(record['says'])}</p>",
        strip_plot(record),
        note(f"{record['metric']}: {measured_text(record).replace('`', '')}; {len(record['seeds'])} seeds, equal {record['budget']}"),
    ]
    lines += [note(settings)] if settings else []
    lines += [heading("In place of the paper's"), note(record["stand_in"])] if record["stand_in"] else []
    lines += [heading("What it may not show"), note(record["why"])] if record["why"] else []
    return "".join(lines)


def _filters(systems: Sequence[System]) -> str:
    """Radio buttons for family, verdict, part and source, and the style that hides what they leave out."""
    choices = {
        "family": sorted({system.family for system in systems}),
        "verdict": [word for word in WORDS if any(system.word == word for system in systems)],
        "part": [part for part in PARTS if any(part in system.parts for system in systems)],
        "source": sorted({source for system in systems for source in system.sources}),
    }
    return "<style>" + _style(choices) + "</style>" + "".join(_row(name, values) for name, values in choices.items())


def _row(name: str, values: Iterable[str]) -> str:
    options = [("all", "all"), *((_key(value), value) for value in values)]
    buttons = "".join(
        f'<label><input type="radio" name="{name}" id="{name}-{key}"{" checked" if key == "all" else ""}>{html.escape(shown)}</label>'
        for key, shown in options
    )
    return f'<fieldset class="filter"><legend>{name}</legend>{buttons}</fieldset>'


def _style(choices: Mapping[str, Iterable[str]]) -> str:
    hide = "".join(
        f'main:has(#{name}-{_key(value)}:checked) .system:not([data-{name}~="{_key(value)}"]){{display:none}}'
        for name, values in choices.items()
        for value in values
    )
    return (
        ".filter{border:0;margin:8px 0 0;padding:0;display:flex;flex-wrap:wrap;gap:4px 12px;font-size:13px}"
        ".filter legend{float:left;width:64px;color:var(--ink);padding:0}.filter label{display:inline-flex;gap:4px;align-items:center}"
        ".system{margin-top:16px}.lead{margin:0 0 6px}.system .name{margin:0;display:flex;flex-wrap:wrap;gap:6px 10px;align-items:baseline}"
        ".system code{font:600 15px var(--mono)}.paper{margin:2px 0 8px;color:var(--ink);font-size:13.5px}.paper a{color:var(--accent)}"
        ".system details{margin-top:2px}.seeds{width:100%;max-width:640px;display:block}.seeds text{font:11px var(--sans);fill:var(--ink)}"
        ".seeds circle{fill:var(--ink);fill-opacity:.45}.seeds line{stroke:var(--ink);stroke-width:2}"
        ".seeds .first circle{fill:var(--accent);fill-opacity:.6}.seeds .first line{stroke:var(--accent)}"
        ".pill.reproduced{background:var(--good-paper);color:var(--good)}.pill.contradicted{background:#f7e4e1;color:#a33a2c}"
        f".pill.inconclusive{{background:#f6eed8;color:#7d6416}}{hide}"
    )


def _key(value: str) -> str:
    return value.replace(" ", "-")
