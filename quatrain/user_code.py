"""A user's own code, by name: ``file.py:name`` or ``package.module:name``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from quatrain.errors import QuatrainError


def split_source(source: str) -> tuple[str, str | None]:
    """(file or module, function or None).

    >>> split_source("rewards.py:score"), split_source("my.module:score"), split_source("rewards.py")
    (('rewards.py', 'score'), ('my.module', 'score'), ('rewards.py', None))
    """
    head, colon, tail = source.rpartition(":")
    return (head, tail) if colon and tail.isidentifier() else (source, None)


def load_module(path: str, what: str) -> ModuleType:
    """Import a file, or a module by its dotted name; its file's folder can be imported from.

    what  what the user gives in it (reward, environment): for the error.
    Raises QuatrainError if it cannot be imported.
    """
    try:
        if not path.endswith(".py"):
            return importlib.import_module(path)
        file = Path(path).expanduser().resolve()
        name = f"{what}_file_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        if str(file.parent) not in sys.path:
            sys.path.insert(0, str(file.parent))  # as `python file.py` would: its neighbours can be imported
        sys.modules[name] = module  # dataclasses and pickle look their module up
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # the boundary to a user's code: importing runs it
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise QuatrainError(
            f"the {what}'s {'file' if path.endswith('.py') else 'module'} {path} cannot be imported: {type(error).__name__}: {error}{line}",
            expected=f"{what}s.py:name, or package.module:name importable from here",
            fix=f"try: python {path}" if path.endswith(".py") else f"try: python -c 'import {path}'",
        ) from error
