"""One run: settings checked whole, pieces put together, the driver started, results left in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from quatrain.controllers.schedules import Schedule
from quatrain.errors import QuatrainError
from quatrain.training import checkpoint
from quatrain.training.describe import explain
from quatrain.training.driver import build, run, total_rounds
from quatrain.training.loading import load_policy, load_run_task, with_engine
from quatrain.training.recipe import Recipe
from quatrain.training.recorder import Interrupted, Recorder
from quatrain.training.registry import find, make
from quatrain.training.settings import Settings, parse_settings
from quatrain.training.state import State


@dataclass(frozen=True)
class Run:
    """What a run left: its folder, its last state, its last metrics (the evaluation among them), and where the report is."""

    folder: Path
    state: State
    metrics: Mapping[str, float]
    seconds: float
    report: Path | None = None
    interrupted: bool = False


@dataclass(frozen=True)
class Plan:
    """A run before it costs anything: the recipe, the settings, the knobs that were set, and objects given in place of names."""

    recipe: Recipe
    settings: Settings
    knobs: Mapping[str, float]
    objects: Mapping[str, Any]


def plan(recipe: Recipe | str, **keys: Any) -> Plan:
    """Sort keys into options of the recipe, its knobs and settings of the run; refuse what is none of them.

    ``model``, ``teacher`` and ``task`` may be objects (a Policy, a Task) in place of names.
    """
    objects = {name: keys.pop(name) for name in ("model", "teacher", "task") if name in keys and not isinstance(keys[name], str)}
    options: Iterable[str] = ()
    if isinstance(recipe, str):
        options = find(recipe).options
        recipe = make(recipe, **{name: keys.pop(name) for name in options if name in keys})
    known = recipe.knobs()
    knobs = {name: _knob(name, keys.pop(name), known[name]) for name in list(keys) if name in known}
    return Plan(recipe, parse_settings(keys, (*known, *options)), knobs, objects)


def train(recipe: Recipe | str, **keys: Any) -> Run:
    """Train a policy by a recipe; everything is checked before anything expensive runs.

    recipe  a Recipe, or the name of a registered one.
    keys    options of a named recipe, its knobs (lr, steps, prompts, temperature …), and the fields of Settings.

    The run's folder gets run.json, metrics.jsonl, samples.jsonl, tensorboard/, checkpoints/, model/ and report.html.
    Raises QuatrainError for every mistake of the user's.
    """
    return execute(plan(recipe, **keys))


def execute(plan: Plan) -> Run:
    """Run a plan from its beginning, or from its newest checkpoint if it says ``resume``."""
    began, settings = perf_counter(), plan.settings
    if settings.threads:
        torch.set_num_threads(settings.threads)
    task = plan.objects.get("task") or load_run_task(settings)
    with closing(task) if hasattr(task, "close") else nullcontext():
        recipe, state = assemble(plan, task)
        folder = run_folder(plan, task)
        start_folder(folder, plan, recipe, state)
        interrupted = False
        with Recorder(folder, state, settings, total_rounds(recipe, state), f"{recipe.name or 'recipe'} on {task.name}") as recorder:
            if settings.resume:
                resume(folder, state, recorder)
            elif settings.eval_every:
                recorder.write(state, recorder.evaluate(state))
            try:
                run(recipe, state, after=recorder, until=recorder.spent)
            except Interrupted:
                interrupted = True
        state.models["policy"].save(folder / "model")
        report = write_report(folder, recipe, state) if settings.report else None
    return Run(folder, state, dict(recorder.latest), perf_counter() - began, report, interrupted)


def write_report(folder: Path, recipe: Recipe, state: State) -> Path:
    """The run's HTML page, with the coefficient picture of its recipe."""
    from quatrain.reports.run import run_report

    write_picture(folder, recipe, state)
    return run_report(folder)


def write_picture(folder: Path, recipe: Recipe, state: State) -> None:
    """What multiplies each action's gradient: by the ratio, and in an answer that was sampled."""
    from quatrain.reports.coefficients import write_coefficients
    from quatrain.training.picture import ratio_curves, sampled_strip

    tokens, strips = sampled_strip(recipe, state)
    write_coefficients(folder, ratio_curves(recipe), tokens, strips)


def assemble(plan: Plan, task: Any) -> tuple[Recipe, State]:
    """Task and models loaded and checked against the recipe; nothing has been trained yet."""
    settings, objects = plan.settings, plan.objects
    recipe = plan.recipe
    recipe.check(task)
    policy = with_engine(objects.get("model") or load_policy(settings.model, task, settings), settings)
    if hasattr(task, "check"):
        task.check(policy)
    known = recipe.knobs()
    suited = {**getattr(task, "defaults", {}), **getattr(policy, "defaults", {})}
    knobs = {**known, **{name: value for name, value in suited.items() if name in known}, **plan.knobs}
    state = State(task, {"policy": policy}, settings.seed, knobs=knobs)
    teacher = objects.get("teacher") or (load_policy(settings.teacher, task, settings) if settings.teacher else None)
    build(recipe, state, {"teacher": teacher})
    if "lr" in knobs and (settings.schedule != "constant" or settings.warmup):
        schedule = Schedule("lr", knobs["lr"], total_rounds(recipe, state), settings.warmup, settings.schedule)
        state.knobs["lr"] = schedule.at(0)
        recipe = replace(recipe, controllers=(*recipe.controllers, schedule))
    return recipe, state


def run_folder(plan: Plan, task: Any) -> Path:
    if plan.settings.out:
        return Path(plan.settings.out)
    short = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in Path(task.name).name)
    return Path("runs") / f"{plan.recipe.name or 'recipe'}-{short}-seed{plan.settings.seed}"


def start_folder(folder: Path, plan: Plan, recipe: Recipe, state: State) -> None:
    """Make the run's folder and write run.json. A folder that holds a run is not written over."""
    from quatrain.reports.provenance import provenance

    taken = (folder / "metrics.jsonl").exists()
    if taken and not plan.settings.resume:
        raise QuatrainError("this folder holds a run already", given=folder, fix="out=ANOTHER, resume=true to continue it, or delete it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "name": recipe.name or "recipe",
            "task": state.task.name,
            "seed": plan.settings.seed,
            "explain": explain(recipe),
            "config": {**plan.settings.model_dump(), **state.knobs},
            **provenance(),
        }
        temporary = folder / "run.json.partial"
        temporary.write_text(json.dumps(record, indent=1, default=str))
        os.replace(temporary, folder / "run.json")
    except OSError as error:
        raise QuatrainError(
            "the run's folder cannot be written", given=f"{folder}: {error.strerror}", fix="out=A_WRITABLE_FOLDER"
        ) from error


def resume(folder: Path, state: State, recorder: Recorder) -> None:
    """Continue from the newest whole checkpoint; what was logged after it is forgotten."""
    found = checkpoint.list_checkpoints(folder / "checkpoints")
    if not found:
        raise QuatrainError("there is no checkpoint to resume from", given=folder / "checkpoints", fix="leave out resume=true")
    knobs = state.knobs
    state.load_state_dict(checkpoint.load(found[-1]))
    changed = {
        name: (state.knobs[name], value)
        for name, value in knobs.items()
        if name not in ("lr", "steps", *state.steered) and state.knobs.get(name) != value
    }
    if changed:
        told = ", ".join(f"{name}: {old} in the checkpoint, {new} now" for name, (old, new) in changed.items())
        raise QuatrainError(
            "a run is resumed with the settings it began with", given=told, fix="leave those keys as they were, or start a new run"
        )
    state.knobs["steps"] = knobs.get("steps", state.knobs.get("steps", 0))
    recorder.metrics.truncate(state.step)
    recorder.samples.truncate(state.step)


def _knob(name: str, value: Any, default: float | int) -> float | int:
    """A knob's value in the type of its default."""
    kind = type(default)
    try:
        number = float(value)
        if kind is int and number != int(number):
            raise ValueError
        return kind(number)
    except (TypeError, ValueError):
        raise QuatrainError(
            f"{name} has a wrong value", given=repr(value), expected="a whole number" if kind is int else "a number"
        ) from None
