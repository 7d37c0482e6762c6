"""What a run leaves behind to look at: metrics and sampled answers as JSON lines, and TensorBoard scalars.

One object per line, one write per line: a killed run leaves at most one torn last line, which the next opening cuts off.
Resuming truncates both files to the checkpoint's step, so that a cut and resumed run has every line exactly once.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.errors import QuatrainError

METRICS, SAMPLES, TENSORBOARD, TABLES = "metrics.jsonl", "samples.jsonl", "tensorboard", "tables.json"


class JsonLines:
    """An append-only file of JSON objects that have a ``step``. Opening it cuts off a torn last line.

    Raises QuatrainError where the folder cannot be made or a line cannot be written (a full disk); what was written
    before stays readable, because a line that is written in part is taken back.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        _cut_torn_line(self._file)

    def append(self, *records: Mapping[str, Any]) -> None:
        """Write the records as lines, all or none of them."""
        data = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records).encode(
            "utf-8", "backslashreplace"
        )
        size = os.fstat(self._file).st_size
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError as error:
            if written:
                os.ftruncate(self._file, size)
            raise _unwritable(self.path, error) from error

    def truncate(self, step: int) -> None:
        """Drop every line whose step is above ``step``; the others keep their bytes. Atomic: the old file or the new one."""
        kept = [line for line, record in _lines(self.path) if record["step"] <= step]
        temporary = self.path.with_name(self.path.name + ".partial")
        try:
            with open(temporary, "wb") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            os.close(self._file)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise _unwritable(self.path, error) from error

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class MetricsLog:
    """The numbers of a run: ``metrics.jsonl`` and, if asked for, TensorBoard scalars under ``tensorboard/``.

    ``seconds`` on each line is the time since the log was opened, continued across resumes, unless the metrics bring their own.
    """

    def __init__(self, folder: str | Path, tensorboard: bool = True):
        self.folder = Path(folder)
        self._lines = JsonLines(self.folder / METRICS)
        self._tensorboard = tensorboard
        self._writer: Any = None
        self._purge: int | None = None
        self._restart_clock()

    def write(self, step: int, metrics: Mapping[str, float], stage: str) -> None:
        """Append one line {"step", "stage", "seconds", name: value …}.

        step     updates done so far, at least 0.
        metrics  numbers or one-element tensors; NaN and infinities are written as null and read back as NaN.
        Raises QuatrainError for a value that is no number, a reserved name, or a file that cannot be written.
        """
        values = {name: _number(name, value) for name, value in metrics.items()}
        seconds = values.pop("seconds", round(self._earlier + time.monotonic() - self._opened, 3))
        finite = {name: value if math.isfinite(value) else None for name, value in {"seconds": seconds, **values}.items()}
        self._lines.append({"step": int(step), "stage": stage, **finite})
        if self._tensorboard:
            self._scalars(int(step), values)

    def truncate(self, step: int) -> None:
        """Forget everything after ``step``: called on resume with the checkpoint's step. TensorBoard purges the same steps."""
        self._close_writer()
        self._lines.truncate(step)
        self._purge = step + 1
        self._restart_clock()

    def close(self) -> None:
        self._close_writer()
        self._lines.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _restart_clock(self) -> None:
        self._opened = time.monotonic()
        seconds = [record["seconds"] for _, record in _lines(self._lines.path) if isinstance(record.get("seconds"), (int, float))]
        self._earlier = max(seconds, default=0.0)

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        folder = self.folder / TENSORBOARD
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(folder), purge_step=self._purge)
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except OSError as error:
            raise _unwritable(folder, error) from error

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class SamplesLog:
    """A few sampled answers per evaluation, for people: ``samples.jsonl`` of step, prompt, completion, answer, reward."""

    def __init__(self, folder: str | Path):
        self._lines = JsonLines(Path(folder) / SAMPLES)

    def write(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Append one line per sample: texts ``prompt``, ``completion``, ``answer`` (or None) and a number ``reward``.

        Chat messages become one text; other keys are kept as texts. All samples of the call are written, or none.
        """
        self._lines.append(*({"step": int(step), **{name: _sample_value(value) for name, value in sample.items()}} for sample in samples))

    def truncate(self, step: int) -> None:
        """Forget everything after ``step``."""
        self._lines.truncate(step)

    def close(self) -> None:
        self._lines.close()

    def __enter__(self) -> SamplesLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_tables(folder: str | Path, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Write ``tables.json``: title → rows, column → a text, a number, or [value, low, high] for an interval.

    The file is replaced whole or not at all.
    """
    path = Path(folder) / TABLES
    temporary = path.with_name(path.name + ".partial")
    rows = {title: [{name: _cell(value) for name, value in row.items()} for row in table] for title, table in tables.items()}
    try:
        temporary.write_text(json.dumps(rows, ensure_ascii=False, allow_nan=False, indent=1), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _cell(value: Any) -> Any:
    if hasattr(value, "low"):
        return [_cell(value.value), _cell(value.low), _cell(value.high)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log as dicts, in order; a torn last line is left out.

    Raises QuatrainError if there is no such file, or if a line that is not the last one is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise QuatrainError("there is no log to read", given=path, expected="a file that a run has written", fix="check the run's folder")
    return [record for _, record in _lines(path)]


def read_metrics(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each metric's history: name → (steps [K] int64, values [K] float64, NaN where the value was not finite).

    path  a ``metrics.jsonl`` or the run folder that holds it. ``seconds`` is among the names.
    """
    path = Path(path)
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for record in read_records(path / METRICS if path.is_dir() else path):
        for name, value in record.items():
            if name not in ("step", "stage"):
                steps, values = columns.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(math.nan if value is None else float(value))
    return {name: (np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)) for name, (steps, values) in columns.items()}


def _number(name: str, value: Any) -> float:
    if name in ("step", "stage"):
        raise QuatrainError("this metric's name is taken by the log itself", given=name, fix="give the metric another name")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise QuatrainError(f"metric {name!r} is a single number", given=repr(value), expected="a float or a one-element tensor") from error


def _sample_value(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (list, tuple)):
        return "\n".join(map(_message, value))
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return str(value)
    return number if math.isfinite(number) else None


def _message(part: Any) -> str:
    return f"{part.get('role', '')}: {part['content']}" if isinstance(part, Mapping) and "content" in part else str(part)


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """(the line's bytes, its record) for every whole line. A last line without its line break was torn and is left out."""
    if not path.is_file():
        return []
    whole = path.read_bytes().split(b"\n")[:-1]
    return [(line + b"\n", _record(line, number, path)) for number, line in enumerate(whole, start=1)]


def _record(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise QuatrainError(
            f"line {number} of {path} is damaged",
            given=repr(line[:60].decode("utf-8", "replace")),
            expected='a JSON object with a "step"',
            fix="delete that line, or the file if the run is to start again",
        )
    return record


def _cut_torn_line(file: int) -> None:
    """A line is whole once its line break is there; what follows the last one is what a killed process left."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - 65536)
        at = os.pread(file, end - start, start).rfind(b"\n")
        if at >= 0 or start == 0:
            end = start + at + 1
            break
        end = start
    if end < os.fstat(file).st_size:
        os.ftruncate(file, end)


def _unwritable(path: Path, error: OSError) -> QuatrainError:
    return QuatrainError(
        f"the run's log cannot be written: {error.strerror or error}",
        given=path,
        expected="a folder on a disk with free space, that this user may write",
        fix="free some space or choose another folder, then resume the run",
    )
