"""Reading records: JSON lines, JSON, Parquet and Hugging Face data sets, as lists of dicts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quatrain.errors import QuatrainError, nearest

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
HELDOUT_SPLITS = ("test", "validation", "valid", "dev", "heldout", "eval")
Record = dict[str, Any]


@dataclass(frozen=True)
class Records:
    """The records of a source: those to train on, and its own held-out ones if it has some."""

    train: list[Record]
    heldout: list[Record] | None = None


def read_records(path: str | Path, limit: int | None = None) -> list[Record]:
    """The records of a .jsonl, .json (a list of objects, or one per line) or .parquet file; at most ``limit``.

    Raises QuatrainError: no such file, unknown kind, empty, a line that is no JSON object (its number and beginning),
    unreadable Parquet, pyarrow not installed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        near = sorted(file.name for file in path.parent.glob("*") if file.suffix in SUFFIXES) if path.parent.is_dir() else []
        fix = nearest(path.name, near) if near else f"no data file is in {path.parent.absolute()}"
        raise QuatrainError(f"the data file {path} does not exist", expected=f"a file {', '.join(SUFFIXES)}", fix=fix)
    if path.suffix not in SUFFIXES:
        raise QuatrainError(f"unknown kind of data file {path.name}", given=path.suffix or "no suffix", expected=", ".join(SUFFIXES))
    if path.suffix == ".parquet":
        records = _parquet(path, limit)
    elif path.suffix == ".json" and _first_character(path) == "[":
        records = _json_list(path)[:limit]
    else:
        records = [record for _, record in zip(range(limit) if limit is not None else iter(int, 1), _json_lines(path), strict=False)]
    if not records:
        raise QuatrainError(
            f"{path} has no records", given=f"{path.stat().st_size} bytes", expected="at least one record", fix="write it again"
        )
    return records


def read_folder(path: Path, limit: int | None = None) -> Records:
    """A folder: what ``datasets.save_to_disk`` wrote, or files named by split (train.jsonl, test.parquet …)."""
    if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
        require("datasets", "data", f"to read {path}")
        import datasets

        try:
            return _splits(datasets.load_from_disk(str(path)), str(path), limit)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise QuatrainError(f"{path} cannot be read as a data set: {_brief(error)}", fix="write it again with save_to_disk") from error
    files = {file.stem: file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES}
    if not files:
        raise QuatrainError(
            f"the folder {path} holds no data set", expected=f"what save_to_disk writes, or train{SUFFIXES[0]} and test{SUFFIXES[0]}"
        )
    if "train" not in files and len(files) > 1:
        raise QuatrainError(f"which file of {path} is to be trained on?", given=", ".join(files), fix=f"task={next(iter(files.values()))}")
    train = files.get("train") or next(iter(files.values()))
    held = next((files[name] for name in HELDOUT_SPLITS if name in files and files[name] != train), None)
    return Records(read_records(train, limit), read_records(held) if held else None)


def read_hub(name: str, config: str | None = None, split: str | None = None, limit: int | None = None) -> Records:
    """A data set by its name on the Hugging Face hub (or in the local cache).

    Raises QuatrainError: datasets not installed, unknown name, configuration or split, no connection.
    """
    require("datasets", "data", f"to load {name}")
    import datasets

    try:
        loaded = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the boundary to a network library whose errors have no common base
        raise QuatrainError(
            f"the data set {name!r} cannot be loaded: {_brief(error)}",
            expected="a data set of the Hugging Face hub that can be reached from here, or is in its cache",
            fix=f"check the name and the connection; a configuration is named {name}?config=main; or give a file: task=data.jsonl",
        ) from error
    return _splits(loaded, name, limit)


def require(package: str, extra: str, why: str) -> None:
    """Raises QuatrainError with the extra to install if ``package`` is not there."""
    if find_spec(package) is None:
        raise QuatrainError(f"{package} is needed {why} and is not installed", fix=f"pip install quatrain[{extra}]")


def _splits(loaded: Any, name: str, limit: int | None) -> Records:
    if not hasattr(loaded, "keys"):
        return Records(_rows(loaded, name, limit))
    if "train" not in loaded and len(loaded) > 1:
        raise QuatrainError(
            f"data set {name} has no split 'train'", given=f"splits {', '.join(loaded)}", fix=f"{name}?split={next(iter(loaded))}"
        )
    train = "train" if "train" in loaded else next(iter(loaded))
    held = next((split for split in HELDOUT_SPLITS if split in loaded and split != train), None)
    return Records(_rows(loaded[train], name, limit), _rows(loaded[held], name, None) if held else None)


def _rows(dataset: Any, name: str, limit: int | None) -> list[Record]:
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if not count:
        raise QuatrainError(f"data set {name} has no records", expected="at least one record")
    return dataset.select(range(count)).to_list()


def _parquet(path: Path, limit: int | None) -> list[Record]:
    require("pyarrow", "data", f"to read {path}")
    import pyarrow.parquet

    records: list[Record] = []
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                records += batch.to_pylist()
                if limit is not None and len(records) >= limit:
                    break
    except (pyarrow.ArrowException, OSError) as error:
        raise QuatrainError(
            f"{path} cannot be read as Parquet: {_brief(error)}", given=f"{path.stat().st_size} bytes", fix="copy or write the file again"
        ) from error
    return records[:limit]


def _json_list(path: Path) -> list[Record]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise QuatrainError(
            f"{path} is not valid JSON: {_brief(error)}", expected="a list of objects", fix="the file may be cut: write it again"
        ) from error
    for row, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise QuatrainError(
                f"record {row} of {path} is no object", given=_beginning(json.dumps(record)), expected='{"prompt": …, "answer": …}'
            )
    return records


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if not line:
                    continue
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                cut = raw.lstrip().startswith(b"{") and not raw.rstrip().endswith(b"}")
                raise QuatrainError(
                    f"line {number} of {path} is {'cut off' if cut else 'not JSON'}: {_brief(error)}",
                    given=_beginning(raw.decode("utf-8", "replace").strip()),
                    expected="one JSON object per line",
                    fix=f"repair or delete it: sed -i '{number}d' {path}",
                ) from error
            if not isinstance(record, dict):
                raise QuatrainError(f"line {number} of {path} is no object", given=_beginning(line), expected='{"prompt": …, "answer": …}')
            yield record


def _first_character(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(64).decode("utf-8-sig", "replace").lstrip()[:1]


def _beginning(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"


def _brief(error: BaseException) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
