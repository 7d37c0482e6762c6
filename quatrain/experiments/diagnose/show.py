"""A diagnosis as tables and as one page."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from quatrain.experiments.diagnose.judge import STEP, Against, Judgement
from quatrain.experiments.diagnose.study import STALE, Caused, Diagnosis, Sweep


class Part(NamedTuple):
    """A titled table; the note says how to read it."""

    title: str
    note: str
    rows: list[dict[str, Any]]


def parts(diagnosis: Diagnosis) -> Iterator[Part]:
    """The tables of a diagnosis, in reading order."""
    claims = {found.recipe: found.target for found in diagnosis.judged}
    yield Part("What they claim to ascend", "", [{"recipe": name, "target": target} for name, target in claims.items()])
    yield Part(
        "Against the exact gradient",
        "bias: |E ĝ − g|/|g|; scale: what g is multiplied by; cosine between E ĝ and g; noise: relative variance × sampled tokens; "
        "signal: squared signal-to-noise along g per sampled token; variance: trace of Cov ĝ for one batch.",
        [_row(found) for found in diagnosis.judged],
    )
    several = [found for found in diagnosis.judged if len(found.terms) > 1]
    if several:
        yield Part(
            "Term by term",
            "Each against what it claims itself.",
            [
                {"recipe": found.recipe, "problem": found.problem, "term": name, "target": target, **_numbers(judged)}
                for found in several
                for name, (target, judged) in found.terms.items()
            ],
        )
    for sweep in diagnosis.sweeps:
        yield Part(
            f"Along the {sweep.name}",
            f"On {diagnosis.swept_on}. An update is a step of length {STEP:g} up the exact gradient.",
            list(_swept(sweep)),
        )
    for name, caused in diagnosis.causes.items():
        note = f"One part at a time switched to that of {diagnosis.beside}, on {diagnosis.swept_on}."
        yield Part(f"What causes what in {name}", note, [_caused(one) for one in caused])
    faults = [
        {"recipe": name, "fault": finding.kind, "seen": finding.seen, "why": finding.why, "to do": finding.fix}
        for name, row in diagnosis.found.items()
        for finding in row
    ]
    clean = [name for name, row in diagnosis.found.items() if not row]
    yield Part("Faults", f"None in {', '.join(clean)}." if clean else "", faults)
    yield Part(
        "Known facts, measured",
        "",
        [
            {
                "about": fact.about,
                "fact": fact.statement,
                "predicted": _text(fact.predicted),
                "measured": _text(fact.measured),
                "": "holds" if fact.holds else "FAILS",
            }
            for fact in diagnosis.facts
        ],
    )


def write_page(diagnosis: Diagnosis, path: Path) -> Path:
    """One self-contained HTML page: the tables, curves along the settings, the picture of the coefficients."""
    from quatrain.reports.coefficients import ratio_curve_plot
    from quatrain.reports.html import Section, Tile, wide_figure, write_report
    from quatrain.reports.html import figures as figure_grid
    from quatrain.reports.table import html_table

    sections = []
    for part in parts(diagnosis):
        note = f"<p>{html.escape(part.note)}</p>" if part.note else ""
        sections.append(Section(part.title, note + (html_table(part.rows) if part.rows else "")))
    figures = dict(sweep_figures(diagnosis))
    if figures:
        sections.insert(2, Section("In pictures", figure_grid(figures)))
    curves = coefficient_curves(diagnosis)
    if curves:
        picture = wide_figure(ratio_curve_plot(curves), "coefficient against the ratio")
        sections.insert(3, Section("Coefficients", picture))
    worst = min((found.main.cosine for found in diagnosis.judged if found.main.cosine == found.main.cosine), default=float("nan"))
    tiles = [
        Tile("recipes", str(len(diagnosis.recipes)), ", ".join(diagnosis.recipes)),
        Tile("lowest cosine", f"{worst:.3f}", "on-policy, over all problems"),
        Tile("faults", str(sum(map(len, diagnosis.found.values()))), "invariants broken"),
        Tile("facts", f"{sum(fact.holds for fact in diagnosis.facts)} of {len(diagnosis.facts)}", "predicted numbers measured"),
    ]
    title = f"Diagnosis: {', '.join(diagnosis.recipes)}"
    return write_report(path, title, sections, subtitle=f"{len(diagnosis.problems)} enumerated problems", tiles=tiles)


def sweep_figures(diagnosis: Diagnosis) -> Iterator[tuple[str, Any]]:
    """(label, figure): cosine and signal along every setting that was moved."""
    from quatrain.reports.plots import curves_plot

    for sweep in diagnosis.sweeps:
        for label, value in (("cosine", lambda found: found.main.cosine), ("signal per token", lambda found: found.signal)):
            curves = {name: (list(sweep.values), [_finite(value(found)) for found in row]) for name, row in sweep.judged.items()}
            yield f"{label} against {sweep.name}", curves_plot(curves, title=label, xlabel=sweep.name, smooth=False)


def coefficient_curves(diagnosis: Diagnosis) -> dict[str, Any]:
    from quatrain.training.picture import ratio_curves

    found: dict[str, Any] = {}
    for recipe in diagnosis.recipes.values():
        found |= ratio_curves(recipe)
    return found


def _row(found: Judgement) -> dict[str, Any]:
    row = {"recipe": found.recipe, "problem": found.problem, "draws": str(found.draws), **_numbers(found.main)}
    how = found.how if found.total else f"{found.how}; policy term only"
    return {**row, "variance": _text(found.variance, 5), "noise": _text(found.noise, 1), "signal": _text(found.signal, 5), "how": how}


def _numbers(judged: Against) -> dict[str, Any]:
    bias = _text(judged.bias) + (f" ± {1.96 * judged.error:.4f}" if judged.error else "")
    return {"bias": bias, "scale": _text(judged.scale), "cosine": _text(judged.cosine)}


def _caused(one: Caused) -> dict[str, Any]:
    after = one.fresh.after
    row = {"part": one.fresh.part, "from": _flat(one.fresh.ours), "to": _flat(one.fresh.theirs)}
    if after is None or one.stale.after is None:
        return {**row, "bias": f"cannot stand here: {one.fresh.refused or one.stale.refused}"}
    row |= _numbers(after.main)
    return {**row, "signal": _text(after.signal, 5), f"cosine, {STALE} updates old": _text(one.stale.after.main.cosine)}


def _swept(sweep: Sweep) -> Iterator[dict[str, Any]]:
    looks = (
        ("cosine", lambda found: _text(found.main.cosine)),
        ("bias", lambda found: _text(found.main.bias)),
        ("scale", lambda found: _text(found.main.scale)),
        ("signal", lambda found: _text(found.signal)),
    )
    for name, row in sweep.judged.items():
        for label, look in looks:
            yield {"recipe": name, "": label, **{f"{at:g}": look(found) for at, found in zip(sweep.values, row, strict=True)}}


def _text(value: float | None, decimals: int = 4) -> str:
    """A number with fixed decimals, right-aligned by its own width; a dash for what is not defined."""
    if value is None or math.isnan(value):
        return "–".rjust(decimals + 2)
    if math.isinf(value):
        return ("∞" if value > 0 else "−∞").rjust(decimals + 2)
    value = 0.0 if abs(value) < 0.5 * 10.0**-decimals else value  # no −0.0000
    return f"{value:.{decimals}f}".replace("-", "−").rjust(decimals + 3)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _finite(value: float) -> float:
    return value if abs(value) != float("inf") else float("nan")
