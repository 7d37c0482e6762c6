"""A recipe as an expression: what ``explain`` prints and ``eject`` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from quatrain.errors import QuatrainError
from quatrain.estimator import Objective, Term
from quatrain.knobs import Knob
from quatrain.training.executors import synchronous
from quatrain.training.recipe import Recipe
from quatrain.training.steps import Repeat

WIDTH = 100


def expression(value: Any, indent: int = 0, full: bool = False) -> str:
    """The Python expression that makes the value: frozen dataclasses, functions by name.

    full  every field of a dataclass, in place of those that differ from their default.

    >>> from quatrain.parts.bounds import Clip
    >>> expression(Clip(0.2, 0.28))
    'Clip(high=0.28)'
    """
    if isinstance(value, Knob):
        return f"Knob({value.name!r}, {value.default!r})"
    if is_dataclass(value) and not isinstance(value, type):
        shown = [part for part in fields(value) if full or not _is_default(value, part)]
        parts = [f"{part.name}={expression(getattr(value, part.name), indent + 4, full)}" for part in shown]
        return _call(type(value).__name__, "(", ")", parts, indent)
    if isinstance(value, Mapping):
        return _call("", "{", "}", [f"{key!r}: {expression(item, indent + 4, full)}" for key, item in value.items()], indent)
    if isinstance(value, tuple):
        parts = [expression(item, indent + 4, full) for item in value]
        return _call("", "(", ",)" if len(parts) == 1 else ")", parts, indent)
    if isinstance(value, list):
        return _call("", "[", "]", [expression(item, indent + 4, full) for item in value], indent)
    if callable(value):
        return _name(value)
    return repr(value)


def imports(value: Any) -> set[tuple[str, str]]:
    """(module, name) of everything that the expression names."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {(type(value).__module__, type(value).__name__)}
        return found.union(*(imports(getattr(value, part.name)) for part in fields(value) if not _is_default(value, part)))
    if isinstance(value, Mapping):
        return set().union(*map(imports, value.values()))
    if isinstance(value, (tuple, list)):
        return set().union(*map(imports, value))
    return {(value.__module__, _name(value))} if callable(value) else set()


def explain(recipe: Recipe, beside: Recipe | None = None) -> str:
    """The four parts of every term, stage by stage; lines that differ from the neighbour ``beside`` are marked with ``*``."""
    lines = [f"{recipe.name}: {recipe.summary}"] if recipe.name else []
    other = _term_lines(beside) if beside else None
    for name, model in recipe.models.items():
        lines.append(f"  model {name}: {expression(model)}")
    lines += [f"  store {name}: {expression(store)}" for name, store in recipe.stores.items()]
    for number, stage in enumerate(recipe.stages):
        order = "" if stage.executor is synchronous else f", {expression(stage.executor)}"
        lines.append(f"  stage {stage.name or number}: {expression(stage.rounds)} rounds{order}")
        for step in stage.steps:
            lines += _step_lines(step, 4, other)
    return "\n".join(lines)


def _step_lines(step: Any, indent: int, other: Mapping[tuple[str, str], str] | None) -> list[str]:
    """A step; a Repeat with what it repeats further in, a Fit of terms part by part."""
    margin = " " * indent
    if isinstance(step, Repeat):
        inside = (line for part in step.steps for line in _step_lines(part, indent + 2, other))
        return [f"{margin}{expression(step.times)} times over:", *inside]
    if not isinstance(objective := getattr(step, "loss", None), Objective):
        return [margin + expression(step, indent)]
    settings = ", ".join(
        f"{part.name}={expression(getattr(step, part.name))}"
        for part in fields(step)
        if part.name not in ("loss", "rule") and not _is_default(step, part)
    )
    lines = [f"{margin}Fit({settings or 'one update per batch'}), {expression(step.rule, indent, full=True)}"]
    for name, term in objective.terms.items():
        lines.append(f"{margin}  term {name}")
        for part in fields(Term):
            text = expression(getattr(term, part.name), 8, full=True)
            mark = "*" if other is not None and other.get((name, part.name)) != text else " "
            lines.append(f"{margin}  {mark} {part.name + ':':13}{text}")
    return lines


def _term_lines(recipe: Recipe) -> dict[tuple[str, str], str]:
    return {
        (name, part.name): expression(getattr(term, part.name), 8, full=True)
        for _, step in recipe.fits(Objective)
        for name, term in step.loss.terms.items()
        for part in fields(Term)
    }


def eject(recipe: Recipe, settings: Mapping[str, Any]) -> str:
    """A readable, runnable file: the recipe and all that it composes, spelled out, and the call that trains it."""
    bare = Recipe(recipe.stages, recipe.models, recipe.stores, recipe.controllers)
    modules: dict[str, set[str]] = {}
    for module, name in imports(bare):
        modules.setdefault(module, set()).add(name)
    lines = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(modules.items())]
    call = _call("train", "(", ")", ["recipe", *(f"{key}={value!r}" for key, value in settings.items())], 4)
    return (
        f'"""{recipe.name or "recipe"}: {recipe.summary}\n\nEjected: edit it freely, then run it with Python.\n"""\n\n'
        + "\n".join(lines)
        + "\nfrom quatrain.training.run import train\n\n"
        + f"recipe = {expression(bare)}\n\n"
        + f'if __name__ == "__main__":\n    {call}\n'
    )


def _is_default(value: Any, part: Any) -> bool:
    default = part.default if part.default_factory is MISSING else part.default_factory()
    return default is not MISSING and getattr(value, part.name) == default


def _name(value: Any) -> str:
    name = getattr(value, "__qualname__", "")
    if not name.isidentifier():
        raise QuatrainError(
            "a recipe's parts are named functions and dataclasses",
            given=repr(value),
            fix="def a function at module level in place of a lambda",
        )
    return name


def _call(head: str, left: str, right: str, parts: list[str], indent: int) -> str:
    flat = head + left + ", ".join(parts) + right
    if len(flat) + indent <= WIDTH and "\n" not in flat:
        return flat
    inside = "".join(f"{' ' * (indent + 4)}{part},\n" for part in parts)
    return f"{head}{left}\n{inside}{' ' * indent}{right.lstrip(',')}"
