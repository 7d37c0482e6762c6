"""The registry: a decorator on a plain function. The name that users type is the name given there."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from quatrain.errors import QuatrainError, nearest
from quatrain.training.recipe import Recipe


@dataclass(frozen=True)
class Entry:
    """A registered recipe: how it is built and where it comes from."""

    name: str
    build: Callable[..., Recipe]
    family: str
    title: str
    paper: str | None
    doc: str

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.build).parameters)

    @property
    def summary(self) -> str:
        return self.doc.strip().splitlines()[0]


REGISTRY: dict[str, Entry] = {}


def recipe(name: str, *, family: str, title: str, paper: str | None = None) -> Callable[[Callable[..., Recipe]], Callable[..., Recipe]]:
    """Register a function that returns a Recipe. Its parameters are the recipe's options, its docstring the explanation
    (without one, the title).

    name    what users type; family: the shelf; title: the paper's; paper: its arXiv number, where it has one.
    """

    def register(function: Callable[..., Recipe]) -> Callable[..., Recipe]:
        if name in REGISTRY and REGISTRY[name].build.__module__ != function.__module__:
            raise QuatrainError("two recipes have one name", given=f"{name}: {REGISTRY[name].build.__module__} and {function.__module__}")

        doc = inspect.getdoc(function) or title

        def build(*args: Any, **kwargs: Any) -> Recipe:
            return replace(function(*args, **kwargs), name=name, summary=doc.strip().splitlines()[0])

        build.__doc__, build.__name__, build.__module__ = function.__doc__, function.__name__, function.__module__
        build.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
        REGISTRY[name] = Entry(name, build, family, title, paper, doc)
        return build

    return register


@cache
def _load() -> None:
    """Import every recipe file of the library and those that other packages register (entry point ``quatrain.recipes``)."""
    room = importlib.import_module("quatrain.recipes")  # plugged in: the registry does not depend on what it lists
    for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
        importlib.import_module(module.name)
    for point in entry_points(group="quatrain.recipes"):
        point.load()


def entries(pattern: str = "*", family: str | None = None) -> list[Entry]:
    """Registered recipes whose name matches a glob, in order of family and name."""
    _load()
    found = [entry for entry in REGISTRY.values() if fnmatch(entry.name, pattern) and family in (None, entry.family)]
    return sorted(found, key=lambda entry: (entry.family, entry.name))


def find(name: str) -> Entry:
    """The entry of that name, or the recipe in a file: ``mine.py``, ``mine.py:name`` where it registers several.

    An unknown one is refused with the nearest known.
    """
    _load()
    path, _, chosen = name.partition(".py")
    if path != name and chosen[:1] in ("", ":"):
        return _in_file(Path(path + ".py"), chosen[1:])
    if name not in REGISTRY:
        raise QuatrainError(f"unknown recipe {name!r}", fix=nearest(name, REGISTRY))
    return REGISTRY[name]


def _in_file(path: Path, name: str) -> Entry:
    """The recipe that a user's file registers."""
    if not path.is_file():
        raise QuatrainError("this file of recipes does not exist", given=path)
    module = f"quatrain_user_{path.stem}"
    if sys.modules.get(module) is None or Path(sys.modules[module].__file__).resolve() != path.resolve():
        spec = importlib.util.spec_from_file_location(module, path)
        sys.modules[module] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[module])
        except Exception as error:
            del sys.modules[module]
            raise QuatrainError("this file of recipes cannot be imported", given=f"{path}: {type(error).__name__}: {error}") from error
    found = {entry.name: entry for entry in REGISTRY.values() if entry.build.__module__ == module}
    if not found or (name and name not in found) or (not name and len(found) > 1):
        told = ", ".join(found) or "none"
        raise QuatrainError("which recipe of this file?", given=f"{path} registers: {told}", fix=f"{path}:NAME, after @recipe('NAME', …)")
    return found[name] if name else next(iter(found.values()))


def make(name: str, **options: Any) -> Recipe:
    """Build a recipe by name. Options may be texts (from a command line); they are converted to the declared types.

    Raises QuatrainError for an unknown option (with the nearest) or a value of the wrong type.
    """
    entry = find(name)
    for option in options:
        if option not in entry.options:
            raise QuatrainError(f"{name} has no option {option!r}", fix=nearest(option, entry.options))
    declared = {key: (parameter.annotation, parameter.default) for key, parameter in entry.options.items()}
    model = create_model(f"options of {name}", __config__=ConfigDict(arbitrary_types_allowed=True), **declared)  # type: ignore[call-overload]
    try:
        checked = model(**options)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise QuatrainError(
            f"option {key!r} of {name} has the wrong type", given=repr(first["input"]), expected=str(declared[key][0]), fix=first["msg"]
        ) from None
    return entry.build(**{key: getattr(checked, key) for key in options})
