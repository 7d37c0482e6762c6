"""What is kept of diagnoses: results/diagnosis/ID.json, a few numbers on one problem, for the recipe's entry in the atlas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quatrain.errors import QuatrainError
from quatrain.experiments.diagnose.checks import findings
from quatrain.experiments.diagnose.judge import Setting, judge
from quatrain.experiments.diagnose.problems import find_problem
from quatrain.experiments.diagnose.study import QUICK, STALE
from quatrain.experiments.records import repository
from quatrain.training.registry import entries, find

KEPT = ("target", "bias", "error", "scale", "cosine", "noise", "signal", "how")
ON = "tree"


def record_diagnosis(name: str, folder: str | Path | None = None, seed: int = 0) -> Path:
    """Write what the recipe's estimator is on fresh samples and on samples ``STALE`` updates old, and the faults found.

    A recipe that the enumerated problems cannot hold (its likelihood or source is of another kind) is recorded with the reason.
    """
    recipe, problem = find(name).build(), find_problem(ON)
    value: dict[str, Any] = {"id": name, "problem": ON, "about": problem.about, "stale": STALE}
    try:
        for key, setting in (("fresh", Setting()), ("old", Setting(staleness=STALE))):
            told = judge(recipe, problem, setting, seed, sampled=QUICK).data()
            value[key] = {name: told[name] for name in KEPT}
        value["findings"] = [vars(found) for found in findings(recipe, seed=seed)]
    except QuatrainError as error:
        value = {"id": name, "refused": str(error)}
    path = (Path(folder) if folder else repository() / "results" / "diagnosis") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
    return path


def chosen(names: list[str]) -> list[str]:
    """Recipes by name, by family, or ``all``."""
    known = entries()
    found = [entry.name for entry in known if "all" in names or entry.name in names or entry.family in names]
    for name in names:
        if name != "all" and name not in {entry.family for entry in known}:
            find(name)
    return found


def read_diagnoses(folder: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Recipe → its record. Raises QuatrainError if a file is damaged."""
    found = {}
    for file in sorted((Path(folder) if folder else repository() / "results" / "diagnosis").glob("*.json")):
        try:
            found[file.stem] = json.loads(file.read_text())
        except ValueError as error:
            raise QuatrainError(
                "a recorded diagnosis is damaged", given=f"{file}: {error}", fix=f"quatrain diagnose {file.stem} --record"
            ) from error
    return found


def sentence(record: dict[str, Any]) -> str:
    """What a record says, in words.

    >>> print(sentence({"refused": "no actions"}))
    Not diagnosed: no actions
    """
    if "refused" in record:
        return f"Not diagnosed: {record['refused']}"
    fresh, old = record["fresh"], record["old"]
    words = [
        f"Against {fresh['target']} on {record['problem']}: {_seen(fresh)}",
        f"; on samples {record['stale']} updates old {_seen(old)}.",
        " Faults: " + "; ".join(f"{one['kind']} ({one['seen']})" for one in record["findings"]) + "."
        if record["findings"]
        else " No faults.",
    ]
    return "".join(words)


def _seen(told: dict[str, Any]) -> str:
    if not isinstance(told["cosine"], (int, float)):
        return "no gradient"
    unbiased = isinstance(told["bias"], (int, float)) and told["bias"] < max(1e-6, 3 * (told["error"] or 0.0))
    return f"cosine {told['cosine']:.3f}, bias " + ("none found" if unbiased else f"{told['bias']:.3f}") + f", scale {told['scale']:.3f}"
