"""One piece of work of a sweep: a run of an arm with a seed, or a function of a seed. Its folder says what it is and whether it is done."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quatrain.errors import QuatrainError

if TYPE_CHECKING:
    from quatrain.training.recipe import Recipe

JOB, RESULT = "job.json", "result.json"


@dataclass(frozen=True)
class Job:
    """What one process does at a time. It must pickle: functions are named ones of a module, not lambdas.

    arm     the label that its results are filed under.
    seed    paired with the same seed of the other arms.
    folder  where it leaves its result, and all else.
    recipe  a registered name, a Recipe, or a function that returns one; with ``measure`` it is not looked at.
    keys    options, knobs and settings of the run (see ``quatrain.train``), or arguments of ``measure``.
    measure  a function ``(seed, **keys) → {name: number}`` in place of a training run.
    """

    arm: str
    seed: int
    folder: Path
    recipe: str | Recipe | Callable[[], Recipe] | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    measure: Callable[..., Mapping[str, float]] | None = None

    @property
    def done(self) -> bool:
        return (self.folder / RESULT).is_file()

    def work(self) -> dict[str, Any]:
        """What it does with any seed, as JSON."""
        return {"does": _name(self.measure or self.recipe), "keys": json.loads(json.dumps(dict(self.keys), default=repr))}

    def spec(self) -> dict[str, Any]:
        """What decides the result, as JSON: two jobs with one spec do the same, whatever their arms are called."""
        return {"seed": self.seed, **self.work()}

    def claim_folder(self) -> None:
        """Write down whose folder this is. Raises QuatrainError if it is another job's."""
        file = self.folder / JOB
        if file.is_file():
            if (there := json.loads(file.read_text())) != self.spec():
                raise QuatrainError(
                    "this folder holds a run with other settings",
                    given=f"{self.folder}: {_difference(there, self.spec())}",
                    fix="out=ANOTHER, or delete it",
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(file, self.spec())

    def run(self) -> dict[str, float] | None:
        """Do it, from where it was left; the result, or None if it was interrupted and can be continued."""
        self.claim_folder()
        if self.done:
            return json.loads((self.folder / RESULT).read_text())
        found = dict(self.measure(self.seed, **self.keys)) if self.measure else self._train()
        if found is not None:
            found = {name: float(value) for name, value in found.items()}
            _write(self.folder / RESULT, found)
        return found

    def plan(self) -> Any:
        """The training run that this is. Raises QuatrainError for unknown or wrong keys."""
        from quatrain.training.run import plan

        recipe = self.recipe() if callable(self.recipe) else self.recipe
        return plan(recipe, **self.keys, seed=self.seed, out=str(self.folder / "run"), resume=self._resumes())

    def rounds(self) -> int | None:
        """How many rounds the run has, None for a function."""
        if self.measure:
            return None
        from quatrain.knobs import resolve

        planned = self.plan()
        knobs = {**planned.recipe.knobs(), **planned.knobs}
        return sum(int(resolve(stage.rounds, knobs)) for stage in planned.recipe.stages)

    def _resumes(self) -> bool:
        from quatrain.training.checkpoint import list_checkpoints

        return bool(list_checkpoints(self.folder / "run" / "checkpoints"))

    def _train(self) -> dict[str, float] | None:
        from quatrain.training.run import execute, write_picture

        if not self._resumes():
            shutil.rmtree(self.folder / "run", ignore_errors=True)  # it died before its first checkpoint
        planned = self.plan()
        run = execute(planned)
        if run.interrupted:
            return None
        write_picture(run.folder, planned.recipe, run.state)
        shutil.rmtree(run.folder / "checkpoints")  # what remains is the model; a finished run is not continued
        return {**run.metrics, "run_seconds": run.seconds}


def digest(value: Any, size: int = 3) -> str:
    """``2·size`` letters that depend on a JSON value: folders of different settings have different names."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=repr).encode(), digest_size=size).hexdigest()


def _name(work: Any) -> str:
    if work is None or isinstance(work, str):
        return str(work)
    if hasattr(work, "stages"):
        from quatrain.training.describe import explain

        return explain(work)
    return f"{work.__module__}.{work.__qualname__}"


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    old, new = ({**spec, **spec["keys"]} for spec in (there, here))
    names = [name for name in {**old, **new} if name != "keys" and old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name)}, is {new.get(name)}" for name in names)


def _write(file: Path, value: Any) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(value, indent=1))
    os.replace(partial, file)
