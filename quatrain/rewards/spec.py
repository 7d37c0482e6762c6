"""Rewards by name: what stands after ``reward=``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from quatrain.errors import QuatrainError, nearest
from quatrain.rewards.base import Reward
from quatrain.rewards.exact import Contains, Exact
from quatrain.rewards.maths import Math
from quatrain.rewards.shape import Format, Length
from quatrain.rewards.user import User, split_source
from quatrain.rewards.weighted import Weighted

# Name → (what makes it, its options as name in a spec → (field, type)).
BUILT_IN: dict[str, tuple[Callable[..., Reward], dict[str, tuple[str, type]]]] = {
    "exact": (Exact, {}),
    "contains": (Contains, {"text": ("text", str)}),
    "math": (Math, {}),
    "format": (Format, {"pattern": ("pattern", str)}),
    "length": (Length, {"max": ("maximum", int), "cache": ("cache", int)}),
}
_WEIGHT = re.compile(r"(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*(?P<name>.+)", re.DOTALL)


def load_reward(spec: str | Reward, *, prepare: bool = True) -> Reward:
    """The reward that a text describes.

        exact | math | contains?text=yes | format | format?pattern=^[0-9]%2B$ | length?max=2048&cache=512
        rewards.py:score | package.module:score | rewards.py
        math+0.1*format                           a weighted sum

    In option values %2B is "+", %26 is "&" (as in URLs). A reward object, or anything callable with (completion, item), is
    returned as a reward.

    prepare  also load what it needs (import the user's file, the computer algebra system) in this process. False checks only
             what can be checked without running any of the user's code.

    Raises QuatrainError: empty text, unknown name or option, file or function not found, wrong parameters.
    """
    if isinstance(spec, str):
        reward = _parse(spec)
    elif hasattr(spec, "trusted"):
        reward = spec
    else:
        reward = User(_path_of(spec))
    if prepare and hasattr(reward, "prepare"):
        reward.prepare()
    return reward


def _parse(spec: str) -> Reward:
    spec = spec.strip()
    path, _ = split_source(spec)
    if path.endswith(".py") and Path(path).expanduser().is_file():
        return User(spec)  # a path may hold "+" and "*"
    parts = []
    for term in spec.split("+"):
        weighted = _WEIGHT.fullmatch(term.strip())
        weight, name = (float(weighted["weight"]), weighted["name"].strip()) if weighted else (1.0, term.strip())
        if not name:
            raise QuatrainError(
                "a reward's name is missing", given=f"reward={spec}", expected="a name, or a sum like math+0.1*format", fix="reward=math"
            )
        parts.append((weight, _one(name)))
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1 else Weighted(tuple(parts))


def _one(text: str) -> Reward:
    name, _, query = text.partition("?")
    if name in BUILT_IN:
        make, options = BUILT_IN[name]
        return make(**_options(name, query, options, make))
    path, function = split_source(text)
    if path.endswith(".py") or (function is not None and all(part.isidentifier() for part in path.split("."))):
        return User(text)
    raise QuatrainError(
        f"there is no reward {text!r}",
        expected=f"{', '.join(BUILT_IN)}; file.py:function; package.module:function; or a sum like math+0.1*format",
        fix=nearest(name, BUILT_IN),
    )


def _options(name: str, query: str, options: dict[str, tuple[str, type]], make: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        key, equals, text = pair.partition("=")
        if key not in options or not equals:
            raise QuatrainError(
                f"reward {name} has no option {key!r}" if equals else f"option {key!r} of reward {name} has no value",
                expected=f"options {', '.join(options) or 'none'}",
                fix=nearest(key, options) if options else f"reward={name}",
            )
        field, kind = options[key]
        try:
            values[field] = kind(unquote(text))
        except ValueError:
            raise QuatrainError(
                f"option {key} of reward {name} is not a number", given=text, expected="a whole number", fix=f"{key}=512"
            ) from None
    required = {field.name for field in fields(make) if field.default is MISSING and field.default_factory is MISSING}
    absent = [key for key, (field, _) in options.items() if field in required - set(values)]
    if absent:
        raise QuatrainError(f"reward {name} needs {' and '.join(absent)}", fix=f"reward={name}?{'&'.join(f'{key}=512' for key in absent)}")
    return values


def _path_of(function: Any) -> str:
    """The dotted path by which a worker can import a function given as an object."""
    module, name = getattr(function, "__module__", "__main__"), getattr(function, "__qualname__", "")
    if not callable(function):
        raise QuatrainError("a reward is a name or a function", given=f"{function!r}", fix="reward='math' or reward='rewards.py:function'")
    if module == "__main__" or not name.isidentifier():
        raise QuatrainError(
            "a reward runs in processes of its own, which cannot import this function",
            given=f"{name or type(function).__name__} of {module}",
            expected="a function at the top level of a module or file",
            fix="put it in a file and give its path: reward='rewards.py:function'",
        )
    return f"{module}:{name}"
