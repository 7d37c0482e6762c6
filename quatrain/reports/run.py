"""Reports of what is on disk: one run, or several side by side.

A run folder holds ``metrics.jsonl`` and, each if it was kept, ``samples.jsonl``, ``coefficients.json``, ``tables.json`` and ``run.json``:

    {"name": "grpo", "task": "addition", "model": "tiny", "seed": 0, "explain": "the recipe in words", "config": {…},
     "versions": {…}, "machine": {…}, "date": "…"}

Every key is optional (name: the folder's); ``reports.provenance.provenance()`` makes the last three. What is absent leaves
a sentence on the page, never a hole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.errors import QuatrainError
from quatrain.reports import html
from quatrain.reports.coefficients import ratio_curve_plot, read_coefficients, strip_html
from quatrain.reports.panels import Panel, grouped
from quatrain.reports.plots import curves_plot, seed_band
from quatrain.reports.table import Estimate
from quatrain.reports.tables import tables_html
from quatrain.training.live import duration, short
from quatrain.training.logging import METRICS, SAMPLES, read_metrics, read_records

History = Mapping[str, tuple[np.ndarray, np.ndarray]]

SUMMARY = ("accuracy", "pass@", "return", "reward", "entropy", "kl", "length", "tokens", "seconds")
LAST = ("accuracy", "pass@", "tokens", "seconds")  # whose end is the last value; other ends are means over the last tenth
SHOWN_SAMPLES = 6


@dataclass(frozen=True)
class Run:
    """What a run folder holds."""

    folder: Path
    facts: Mapping[str, Any]
    history: History
    stages: Mapping[str, int]  # name → first step; empty if there is only one
    samples: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        return str(self.facts.get("name") or self.folder.name)


def read_run(folder: str | Path) -> Run:
    """Read a run folder. Raises QuatrainError if it has no metrics, or if a file of it is damaged."""
    folder = Path(folder)
    if not (folder / METRICS).is_file():
        raise QuatrainError(
            "this is no run folder", given=folder, expected=f"a folder with {METRICS}", fix="name the folder that `train` wrote"
        )
    facts: Any = {}
    if (folder / "run.json").is_file():
        try:
            facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise QuatrainError("run.json is damaged", given=folder / "run.json", expected="a JSON object") from error
        if not isinstance(facts, dict):
            raise QuatrainError("run.json is an object", given=type(facts).__name__, expected='{"name": …, "config": …}')
    records = read_records(folder / METRICS)
    starts = [(record.get("stage"), record["step"]) for record in records]
    changes = dict(starts[:1]) | {name: step for (before, _), (name, step) in pairwise(starts) if name != before}
    samples = read_records(folder / SAMPLES) if (folder / SAMPLES).is_file() else []
    return Run(folder, facts, read_metrics(folder), changes if len(changes) > 1 else {}, samples)


def run_report(run_folder: str | Path, path: str | Path | None = None) -> Path:
    """Build the page of one run and return its path, ``report.html`` in the run folder unless ``path`` says otherwise."""
    run = read_run(run_folder)
    marks = {str(name): float(step) for name, step in run.stages.items()}
    curves = {name: (steps.astype(float), values) for name, (steps, values) in run.history.items()}
    sections = [
        html.Section("Results", _results(run)),
        *([html.Section("Measured", measured)] if (measured := tables_html(run.folder)) else []),
        html.Section("Learning curves", _plots(curves, marks)),
        html.Section("Sampled answers", _samples(run.samples)),
        html.Section("Recipe", html.text_block(str(run.facts.get("explain") or ""), empty="The run did not record its recipe in words.")),
        html.Section("Coefficients", _coefficients(run.folder)),
        html.Section("Configuration", html.keys(_mapping(run.facts.get("config")), empty="The run did not record its configuration.")),
        html.Section("Provenance", html.keys(_provenance(run))),
    ]
    return html.write_report(path or run.folder / "report.html", run.name, sections, subtitle=_subtitle(run), tiles=_tiles(run))


def comparison_report(
    folders: Sequence[str | Path] | Mapping[str, Sequence[str | Path]],
    path: str | Path,
    *,
    title: str = "Comparison",
    rows: Sequence[Mapping[str, Any]] | None = None,
    best: Mapping[str, str] | None = None,
    note: str = "",
    more: str = "",
) -> Path:
    """Build one page for several runs. Runs of one name are seeds of one arm: curves get bands, numbers get intervals.

    folders     of the runs, or arm → folders of its seeds, where the runs' own names do not tell the arms apart.

    rows, best  the summary table where the caller measured it itself (see ``reports.table``); None makes it from the metrics.
    note        a sentence under the table; more: HTML that stands beneath it.
    Raises QuatrainError for no folders or a folder without metrics.
    """
    if not folders:
        raise QuatrainError("there is nothing to compare", given="no run folders", expected="at least one")
    arms: dict[str, list[Run]] = {}
    if isinstance(folders, Mapping):
        arms |= {name: [read_run(folder) for folder in own] for name, own in folders.items()}
    else:
        for folder in folders:
            run = read_run(folder)
            arms.setdefault(run.name, []).append(run)
    by_update = {name: _over_seeds(runs) for name, runs in arms.items()}
    names = dict.fromkeys(metric for curves in by_update.values() for metric in curves)
    by_arm = {metric: {arm: curves.get(metric, _ABSENT) for arm, curves in by_update.items()} for metric in names}
    summary = rows if rows is not None else [{"arm": name, **_arm_row(runs)} for name, runs in arms.items()]
    several = any(len(runs) > 1 for runs in arms.values())
    seeds_note = (_SEEDS_NOTE if rows is None else _BANDS_NOTE) if several else ""
    remark = " ".join(part for part in (note, _ENDS_NOTE_ARMS if rows is None else "", seeds_note) if part)
    sections = [
        html.Section("Results", html.table(summary, best=best) + (html.note(remark) if remark else "") + more),
        html.Section("Learning curves", _arm_plots(by_arm, _by_tokens(arms))),
        html.Section(
            "Sampled answers",
            "".join(html.folded(name, _samples(runs[0].samples, few=True), shown=name == [*arms][-1]) for name, runs in arms.items()),
        ),
        html.Section(
            "Recipes", "".join(html.folded(name, html.text_block(str(runs[0].facts.get("explain") or ""))) for name, runs in arms.items())
        ),
        html.Section("Coefficients", _arm_coefficients(arms)),
        html.Section(
            "Configuration",
            _differences(arms)
            + "".join(html.folded(f"All of {name}", html.keys(_mapping(runs[0].facts.get("config")))) for name, runs in arms.items()),
        ),
        html.Section("Provenance", "".join(html.heading(name) + html.keys(_provenance(*runs)) for name, runs in arms.items())),
    ]
    count = sum(len(runs) for runs in arms.values())
    return html.write_report(
        path,
        title,
        sections,
        subtitle=f"{_count(len(arms), 'arm')} · {_count(count, 'run')} · {_shared(arms, 'task')}{_shared(arms, 'model')}".rstrip(" ·"),
    )


_ABSENT = (np.zeros(0), np.zeros((1, 0)))  # a curve of no points keeps its arm's colour free

_ENDS_NOTE = (
    "First and last: accuracies and counts are single evaluations; other metrics are means over the first and last tenth of the updates."
)
_ENDS_NOTE_ARMS = "Accuracies and counts are the last evaluation; other metrics are means over the last tenth of the updates."
_COLOURS_NOTE = (
    "What each action's gradient is multiplied by. Blue raises its probability, red lowers it; faint text is no action of the policy."
)
_BANDS_NOTE = "Bands: 95 % t-intervals of the mean over seeds."
_SEEDS_NOTE = f"± and b{_BANDS_NOTE[1:]}"


def end(history: History, name: str, first: bool = False) -> float:
    """A metric's value at the end (or the beginning) of a run, NaN if it was never finite."""
    values = history[name][1] if name in history else np.zeros(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan")
    count = 1 if name.startswith(LAST) else max(1, len(values) // 10)
    return float((values[:count] if first else values[-count:]).mean())


def _summary_names(history: History) -> list[str]:
    return [name for wanted in SUMMARY for name in history if (name.startswith(wanted) if wanted.endswith("@") else name == wanted)]


def _results(run: Run) -> str:
    rows = _ends(run)
    return html.table(rows, best={}) + html.note(_ENDS_NOTE) if rows else html.note_empty("No reward, return or accuracy was recorded.")


def _ends(run: Run) -> list[dict[str, Any]]:
    names = [name for name in _summary_names(run.history) if name not in ("tokens", "seconds")]
    if not names:
        return []
    finite = {name: run.history[name][1][np.isfinite(run.history[name][1])] for name in names}
    return [
        {"": "first", **{name: end(run.history, name, first=True) for name in names}},
        {"": "last", **{name: end(run.history, name) for name in names}},
        {"": "lowest", **{name: float(values.min()) if len(values) else None for name, values in finite.items()}},
        {"": "highest", **{name: float(values.max()) if len(values) else None for name, values in finite.items()}},
    ]


def _arm_row(runs: Sequence[Run]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for run in runs for name in _summary_names(run.history)))
    names.sort(key=lambda name: next(index for index, wanted in enumerate(SUMMARY) if name.startswith(wanted)))
    row: dict[str, Any] = {}
    for name in names:
        mean, low, high = (float(part[0]) for part in seed_band(np.array([[end(run.history, name)] for run in runs])))
        row[name] = Estimate(mean, low, high) if len(runs) > 1 else round(mean) if name == "tokens" and np.isfinite(mean) else mean
    return {"seeds": len(runs), **row} if len(runs) > 1 else row


def _over_seeds(runs: Sequence[Run]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name → (steps [K], values [S, K]) on the union of the runs' steps, NaN where a run has no value."""
    curves = {}
    for name in dict.fromkeys(metric for run in runs for metric in run.history):
        histories = [run.history.get(name, (np.zeros(0, dtype=int), np.zeros(0))) for run in runs]
        steps = np.unique(np.concatenate([steps for steps, _ in histories]))
        values = np.full((len(runs), len(steps)), np.nan)
        for row, (known, numbers) in zip(values, histories, strict=True):
            row[np.searchsorted(steps, known)] = numbers
        curves[name] = (steps.astype(float), values)
    return curves


def _by_tokens(arms: Mapping[str, Sequence[Run]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Held-out accuracy against sampled tokens: arm → (tokens [K], accuracy [S, K]), empty unless every run has both.

    Seeds sample different numbers of tokens, so each is interpolated at the points of the first, as far as the shortest goes.
    """
    curves = {}
    for name, runs in arms.items():
        points = []
        for run in runs:
            if "tokens" not in run.history or "accuracy" not in run.history:
                return {}
            steps, accuracy = run.history["accuracy"]
            known = np.isfinite(accuracy)
            if not known.any():
                return {}
            points.append((np.interp(steps[known], *run.history["tokens"]), accuracy[known]))
        if not any(tokens.any() for tokens, _ in points):
            continue  # it samples nothing
        grid = points[0][0][points[0][0] <= min(tokens[-1] for tokens, _ in points)]
        curves[name] = (grid, np.stack([np.interp(grid, tokens, accuracy) for tokens, accuracy in points]))
    return curves


def _plots(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], marks: Mapping[str, float]) -> str:
    def draw(panel: Panel) -> Any:
        chosen = {name: curves[name] for name in panel.names(curves) if np.isfinite(curves[name][1]).any()}
        return curves_plot(chosen, title=panel.title, marks=marks, limits=panel.limits) if chosen else None

    groups = grouped(curves)
    main, more = ({panel.title: figure for panel in group if (figure := draw(panel)) is not None} for group in groups)
    absent = [panel.title for panel in groups[0] if panel.title not in main and panel.expected]
    body = html.figures(main, empty="No metrics were recorded.")
    if absent and main:
        body += html.note(f"Not recorded in this run: {', '.join(absent).lower()}.")
    return body + (html.folded(f"Diagnostics ({len(more)} more)", html.figures(more)) if more else "")


def _arm_plots(by_arm: Mapping[str, Mapping[str, tuple]], by_tokens: Mapping[str, tuple]) -> str:
    def draw(group: Sequence[Panel]) -> dict[str, Any]:
        figures = {}
        for panel in group:
            names = panel.names(by_arm)
            for name in names:
                if any(np.isfinite(values).any() for _, values in by_arm[name].values()):
                    title = panel.title if name == panel.metrics[0] else name
                    figures[title] = curves_plot(by_arm[name], title=title, limits=panel.limits)
        return figures

    main, more = map(draw, grouped(by_arm))
    if by_tokens:
        figure = curves_plot(by_tokens, title="Held-out accuracy at equal sampled tokens", xlabel="sampled tokens")
        main = {"Held-out accuracy at equal sampled tokens": figure, **main}
    return html.figures(main, empty="No metrics were recorded.") + (
        html.folded(f"Diagnostics ({len(more)} more)", html.figures(more)) if more else ""
    )


def _samples(samples: Sequence[Mapping[str, Any]], few: bool = False) -> str:
    if not samples:
        return html.samples([])
    steps = sorted({sample["step"] for sample in samples})
    last = [sample for sample in samples if sample["step"] == steps[-1]][:SHOWN_SAMPLES]
    body = html.heading(f"After update {steps[-1]:,}") + html.samples(last)
    if len(steps) > 1 and not few:
        first = [sample for sample in samples if sample["step"] == steps[0]][:SHOWN_SAMPLES]
        body += html.folded(f"For comparison: after update {steps[0]:,}", html.samples(first))
    return body


def _coefficients(folder: Path) -> str:
    picture = read_coefficients(folder)
    if picture is None or not (picture[0] or picture[2]):
        return html.note_empty("The run kept no coefficient picture.")
    curves, tokens, strips = picture
    body = html.wide_figure(ratio_curve_plot(curves), "coefficient against ratio") if curves else ""
    body += strip_html(tokens, strips) if strips else ""
    return body + html.note(_COLOURS_NOTE)


def _arm_coefficients(arms: Mapping[str, Sequence[Run]]) -> str:
    curves: dict[str, tuple] = {}
    strips: dict[str, str] = {}
    for name, runs in arms.items():
        own_curves, tokens, own_strips = read_coefficients(runs[0].folder) or ({}, [], {})
        # Runs often keep the same reference beside themselves; it is drawn once.
        for line, curve in own_curves.items():
            same = line in curves and all(map(np.array_equal, curves[line], curve))
            curves[line if line not in curves or same else f"{name}: {line}"] = curve
        strips |= dict.fromkeys((strip_html(tokens, {line: values}) for line, values in own_strips.items()))
    if not curves and not strips:
        return html.note_empty("The runs kept no coefficient picture.")
    return (
        (html.wide_figure(ratio_curve_plot(curves), "coefficient against ratio") if curves else "")
        + "".join(strips)
        + html.note(_COLOURS_NOTE)
    )


OWN = ("out", "resume", "seed")  # differ between any two runs and say nothing about their arms


def _differences(arms: Mapping[str, Sequence[Run]]) -> str:
    configs = {name: dict(html.flat(_mapping(runs[0].facts.get("config")))) for name, runs in arms.items()}
    names = dict.fromkeys(key for config in configs.values() for key in config)
    rows = [{"key": key, **{arm: config.get(key, "–") for arm, config in configs.items()}} for key in names]
    rows = [row for row in rows if row["key"] not in OWN and len({row[arm] for arm in configs}) > 1]
    if not any(configs.values()):
        return html.note_empty("The runs did not record their configurations.")
    return html.table(rows, best={}, empty="The arms have the same configuration.") if len(configs) > 1 else ""


def _tiles(run: Run) -> list[html.Tile]:
    tiles = []
    for name in _summary_names(run.history):
        if name in ("tokens", "seconds", "entropy", "kl", "length"):
            continue
        before, after = end(run.history, name, first=True), end(run.history, name)
        if np.isfinite(after):
            label = {"accuracy": "held-out accuracy"}.get(name, name)
            tiles.append(html.Tile(label, short(after), f"from {short(before)}"))
    tokens, seconds, speed = (end(run.history, name) for name in ("tokens", "seconds", "tokens_per_second"))
    if np.isfinite(tokens):
        tiles.append(html.Tile("sampled tokens", short(tokens), f"{short(speed)} per second" if np.isfinite(speed) else ""))
    if np.isfinite(seconds):
        tiles.append(html.Tile("time", duration(seconds), _count(_updates(run), "update")))
    return tiles


def _subtitle(run: Run) -> str:
    parts = [f"{name} {run.facts[name]}" for name in ("task", "model", "seed") if run.facts.get(name) not in (None, "")]
    return " · ".join([*parts, str(run.facts["date"])[:10]] if run.facts.get("date") else parts)


def _provenance(*runs: Run) -> dict[str, Any]:
    run = runs[0]
    seconds = [f"{end(one.history, 'seconds'):.1f}" for one in runs]
    return {
        "folder": [one.folder.name for one in runs] if len(runs) > 1 else run.folder.name,
        "seed": [one.facts.get("seed") for one in runs] if len(runs) > 1 else run.facts.get("seed"),
        "updates": [_updates(one) for one in runs] if len(runs) > 1 else _updates(run),
        "seconds": seconds if len(runs) > 1 else seconds[0],
        "date": run.facts.get("date"),
        "machine": _mapping(run.facts.get("machine")),
        "versions": [f"{name} {version}" for name, version in _mapping(run.facts.get("versions")).items()],
    }


def _updates(run: Run) -> int:
    return max((int(steps.max()) for steps, _ in run.history.values() if len(steps)), default=0)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _shared(arms: Mapping[str, Sequence[Run]], key: str) -> str:
    values = {str(run.facts.get(key)) for runs in arms.values() for run in runs if run.facts.get(key)}
    return f"{key} {values.pop()} · " if len(values) == 1 else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {} if value is None else {"": value}
