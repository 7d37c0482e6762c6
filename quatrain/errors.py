"""Errors that a person can act on: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QuatrainError(Exception):
    """A user's mistake or a refused state. The command line prints it as one message, without a traceback.

    >>> print(QuatrainError("clip must be positive", given=-0.2, expected="a number above 0", fix="clip_low=0.2"))
    clip must be positive
      given:    -0.2
      expected: a number above 0
      to do:    clip_low=0.2
    """

    def __init__(self, what: str, *, given: object = None, expected: object = None, fix: object = None):
        self.what, self.given, self.expected, self.fix = what, given, expected, fix
        lines = [what]
        for label, value in (("given:   ", given), ("expected:", expected), ("to do:   ", fix)):
            if value is not None:
                lines.append(f"  {label} {value}")
        super().__init__("\n".join(lines))


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean …?' for the closest known name, else the list of known names.

    >>> nearest("gruop", ["group", "prompts"])
    "did you mean 'group'?"
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known names: {', '.join(known) or 'none'}"
