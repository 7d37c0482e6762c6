"""Checkpoints: everything that a resumed run needs, written whole or not at all, verified when read, nothing unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from quatrain.errors import QuatrainError

TENSORS, VALUES, MANIFEST = "tensors.safetensors", "values.json", "manifest.json"


def save(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write ``folder/step-NNNNNN`` and drop all but the newest ``keep``. The earlier ones stay until the new one is whole.

    Raises QuatrainError if it cannot be written (a full disk); then nothing of it remains and the earlier ones are untouched.
    """
    target, partial = folder / f"step-{step:06d}", folder / f".partial-{step:06d}"
    tensors: dict[str, torch.Tensor] = {}
    values = _pack(state, "", tensors)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(tensors, partial / TENSORS)
        (partial / VALUES).write_text(json.dumps(values))
        (partial / MANIFEST).write_text(json.dumps({name: _digest(partial / name) for name in (TENSORS, VALUES)}))
        for name in (TENSORS, VALUES, MANIFEST):
            with open(partial / name, "rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    except Exception as error:  # safetensors has an error type of its own for a failed write
        shutil.rmtree(partial, ignore_errors=True)
        raise QuatrainError(
            f"the checkpoint of step {step} could not be written",
            given=f"{target}: {error}",
            fix="free space or choose out=…; earlier checkpoints are intact",
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / MANIFEST).is_file())


def load(path: Path) -> dict[str, Any]:
    """The state that was saved there. Raises QuatrainError if a file is missing or has changed since it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        damaged = [name for name, digest in manifest.items() if _digest(path / name) != digest]
    except (OSError, ValueError) as error:
        raise QuatrainError(
            "this is no whole checkpoint", given=f"{path}: {error}", fix="resume from an earlier one, or start afresh"
        ) from error
    if damaged:
        raise QuatrainError(
            "the checkpoint is damaged", given=f"{', '.join(damaged)} in {path}", fix="delete it; the run resumes from the one before"
        )
    return _unpack(json.loads((path / VALUES).read_text()), load_file(path / TENSORS))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _pack(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree as JSON values; tensors go to ``tensors`` under their path."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().clone().contiguous()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise QuatrainError("a checkpoint holds tensors and plain values only", given=f"{type(value).__name__} at {path}")


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    return (list if kind == "list" else tuple)(_unpack(item, tensors) for item in content)
