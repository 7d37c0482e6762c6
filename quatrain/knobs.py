"""Numbers that are set from outside: by a user, a schedule or a controller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from quatrain.errors import QuatrainError, nearest


@dataclass(frozen=True)
class Knob:
    """A number of a recipe that has a name. Any numeric field may hold one; it is resolved before each use.

    >>> resolve((1, Knob("lr", 0.1)), {"lr": 0.5})
    (1, 0.5)
    """

    name: str
    default: float | int


def knobs_in(tree: Any) -> Iterator[Knob]:
    """Every knob in a tree of frozen dataclasses, mappings and sequences."""
    if isinstance(tree, Knob):
        yield tree
    elif is_dataclass(tree) and not isinstance(tree, type):
        for part in fields(tree):
            yield from knobs_in(getattr(tree, part.name))
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from knobs_in(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from knobs_in(value)


def resolve(tree: Any, values: Mapping[str, float]) -> Any:
    """The tree with every knob replaced by its value, or by its default where there is none. Parts without knobs are shared.

    A whole number for a knob that counts becomes an int: controllers compute with floats.
    """
    if isinstance(tree, Knob):
        value = values.get(tree.name, tree.default)
        return int(value) if isinstance(tree.default, int) and float(value).is_integer() else value
    if is_dataclass(tree) and not isinstance(tree, type):
        old = {part.name: getattr(tree, part.name) for part in fields(tree) if part.init}
        new = {name: resolve(value, values) for name, value in old.items()}
        return tree if all(new[name] is old[name] for name in old) else replace(tree, **new)
    if isinstance(tree, Mapping):
        new = {name: resolve(value, values) for name, value in tree.items()}
        return tree if all(new[name] is tree[name] for name in tree) else type(tree)(new)
    if isinstance(tree, (tuple, list)):
        new = [resolve(value, values) for value in tree]
        return tree if all(a is b for a, b in zip(new, tree, strict=True)) else type(tree)(new)
    return tree


def defaults(tree: Any) -> dict[str, float | int]:
    """Name → default of every knob; one name with two defaults is refused."""
    found: dict[str, float | int] = {}
    for knob in knobs_in(tree):
        if found.setdefault(knob.name, knob.default) != knob.default:
            raise QuatrainError(
                "one knob has two defaults",
                given=f"{knob.name}: {found[knob.name]} and {knob.default}",
                fix="use one default, or two names",
            )
    return found


def check_known(names: Mapping[str, Any], known: Mapping[str, Any], what: str = "knob") -> None:
    """Refuse names that are not known, with the nearest known one."""
    for name in names:
        if name not in known:
            raise QuatrainError(f"unknown {what} {name!r}", fix=nearest(name, known))
