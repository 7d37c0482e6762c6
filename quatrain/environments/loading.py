"""Text environments by name: an embedded laboratory, or a user's own class."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

from quatrain.environments.text import TextEnvironment
from quatrain.errors import QuatrainError, nearest
from quatrain.user_code import load_module, split_source

LABORATORIES = {"grid": "quatrain.environments.grid:Grid", "toolworld": "quatrain.environments.toolworld:Toolworld"}


def is_turned(spec: str) -> bool:
    """Does what stands after ``task=`` name a text environment: a laboratory, or ``file.py``, ``file.py:Class``?

    >>> [is_turned(spec) for spec in ("grid?size=4", "mine.py:House", "mine.py", "letters:chain", "data.jsonl")]
    [True, True, True, False, False]
    """
    head = spec.partition("?")[0]
    return head in LABORATORIES or split_source(head)[0].endswith(".py")


def load_environment(spec: str, seed: int = 0) -> TextEnvironment:
    """The environment of ``grid``, ``grid?size=4&walls=2``, ``mine.py:Class?option=value``.

    seed  given to a class that has an option ``seed``, unless the text has one.
    Raises QuatrainError: a file or class that is not there, a class that is no environment, an unknown option or a wrong value.
    """
    head, _, query = spec.partition("?")
    path, name = split_source(LABORATORIES.get(head, head))
    if path.endswith(".py") and not Path(path).expanduser().is_file():
        raise QuatrainError("this file of an environment does not exist", given=f"task={spec}")
    made_by = _class(load_module(path, "environment"), path, name)
    known = inspect.signature(made_by).parameters
    options = {"seed": seed} if "seed" in known else {}
    for pair in filter(None, query.split("&")):
        key, equals, text = pair.partition("=")
        if key not in known or not equals:
            raise QuatrainError(
                f"{head} has no option {key!r}" if equals else f"option {key!r} has no value", given=spec, fix=nearest(key, known)
            )
        options[key] = _value(text)
    try:
        made = made_by(**options)
    except TypeError as error:  # the boundary to a user's code: a missing argument
        raise QuatrainError(f"{head} cannot be made: {error}", given=spec, expected=f"options {', '.join(known) or 'none'}") from error
    if absent := [method for method in ("start", "step") if not callable(getattr(made, method, None))]:
        raise QuatrainError(
            f"{head} is no text environment",
            given=f"{made_by.__name__} without {' and '.join(absent)}",
            expected="start(split, index) -> Start and step(state, text) -> Step",
            fix="see quatrain.environments.text.TextEnvironment",
        )
    return made


def _class(module: Any, path: str, name: str | None) -> Any:
    """The class of that name; without a name the only one that the file itself defines and that can be stepped."""
    own = {key: value for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__}
    steps = [key for key, value in own.items() if hasattr(value, "step")]
    if name is None and len(steps) == 1:
        name = steps[0]
    if name is None or not hasattr(module, name):
        told = ", ".join(steps or own) or "none"
        fix = nearest(name, own) if name else f"task={path}:CLASS"
        raise QuatrainError(f"which environment of {path}?", given=f"{name or 'no name'}; classes: {told}", fix=fix)
    return getattr(module, name)


def _value(text: str) -> Any:
    """A Python literal, true or false, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)
