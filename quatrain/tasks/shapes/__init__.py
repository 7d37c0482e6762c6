"""The *shapes* laboratory: one vocabulary of characters and image tokens, images read and images drawn.

❤····🟦··········colour of square?          blue
draw red heart a1, blue square b2:          ❤····🟦··········

task=shapes                                  both kinds, independent of each other
task=shapes:generation                       only one is learnt; held out are both
task=shapes?objects=3-5&pool=64              harder scenes; fewer images to retrieve
task=shapes?prior=0.5                        questions alone; half of them have the answer that their words suggest
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from quatrain.errors import QuatrainError, nearest
from quatrain.tasks.shapes.problems import SIDES

NUMBERS = {"objects": (1, 3), "train": 8192, "heldout": 512, "pool": 256, "threshold": 0.6, "seed": 0, "prior": 0.0}
SHARES = ("threshold", "prior")  # in [0, 1]


def parse(spec: str) -> dict[str, Any]:
    """A spec as arguments of ``task.ShapesTask``.

    >>> parse("shapes:generation?objects=3-5&pool=64")
    {'sides': ('generation',), 'objects': (3, 5), 'pool': 64}

    Raises QuatrainError for an unknown kind or option.
    """
    name, _, query = spec.partition("?")
    family, _, side = name.partition(":")
    if family != "shapes" or (side and side not in SIDES):
        raise QuatrainError("not a task of shapes", given=spec, expected=f"shapes, shapes:{SIDES[0]}, shapes:{SIDES[1]}")
    found: dict[str, Any] = {"sides": (side,)} if side else {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in NUMBERS:
            raise QuatrainError(f"shapes has no option {key!r}", given=spec, fix=nearest(key, NUMBERS))
        try:
            ends = [float(value)] if key in SHARES else [int(number) for number in value.split("-")]
        except ValueError:
            raise QuatrainError(f"option {key!r} of shapes is a number", given=f"{key}={value}", expected="objects=2-4, pool=64") from None
        found[key] = (ends[0], ends[-1]) if key == "objects" else ends[0]
    return found


def shapes(spec: str = "shapes", **options: Any) -> Any:
    """The ShapesTask of a spec; keyword options override what it says."""
    from quatrain.tasks.shapes.task import ShapesTask

    return ShapesTask(spec, **{**NUMBERS, **parse(spec), **options})
