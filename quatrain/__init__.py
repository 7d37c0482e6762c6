"""Quatrain: policy learning in four parts. One small engine, and a recipe for every published system.

>>> import quatrain
>>> quatrain.make("gspo", group=16).name
'gspo'
"""

from __future__ import annotations

from typing import Any

# Imported when first asked for: ``import quatrain`` itself takes milliseconds.
_HOMES = {
    "quatrain.batch": ("Batch", "Origin"),
    "quatrain.errors": ("QuatrainError",),
    "quatrain.estimator": ("Estimate", "Objective", "Term"),
    "quatrain.experiments.compare": ("compare",),
    "quatrain.knobs": ("Knob",),
    "quatrain.training.registry": ("entries", "make", "recipe"),
    "quatrain.training.describe": ("eject", "explain"),
    "quatrain.training.recipe": ("Recipe", "Stage"),
    "quatrain.training.run": ("Run", "train"),
    "quatrain.training.steps": ("Collect", "Fit", "Measure", "Repeat", "Sync"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'quatrain' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
