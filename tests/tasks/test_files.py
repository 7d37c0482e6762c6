"""Reading files, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quatrain.errors import QuatrainError
from quatrain.tasks import files
from quatrain.tasks.files import Records, read_folder, read_hub, read_records

ROWS = [{"question": f"{index}+1", "answer": index + 1} for index in range(5)]


def write(path: Path, rows: list[dict] = ROWS) -> Path:
    """The rows in the format of the suffix."""
    if path.suffix == ".parquet":
        table = pytest.importorskip("pyarrow").Table.from_pylist(rows)
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_every_kind_of_file_gives_its_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"data{suffix}")
    assert read_records(path) == ROWS
    assert read_records(path, limit=2) == ROWS[:2]


def test_blank_lines_byte_order_marks_and_json_that_is_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}\n\n  \n{"a": "\xc3\xa9"}')
    assert read_records(path) == [{"a": 1}, {"a": "é"}]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", b"", ["has no records", "0 bytes"]),
        ("a.jsonl", b"\n \n", ["has no records"]),
        (
            "a.jsonl",
            b'{"a": 1}\n{"a": 2, "b": "tru',
            ["line 2 of", "cut off", '{"a": 2, "b": "tru', "one JSON object per line", "sed -i '2d'"],
        ),
        ("a.jsonl", b"question,answer\n1,2\n", ["line 1 of", "not JSON", "question,answer"]),
        ("a.jsonl", b'{"a": 1}\n[1, 2]\n', ["line 2 of", "no object", "[1, 2]"]),
        ("a.jsonl", b'{"a": 1}\n\xff\xfe\n', ["line 2 of", "not JSON"]),
        ("a.json", b"[]", ["has no records"]),
        ("a.json", b'[{"a": 1}, ', ["not valid JSON", "cut"]),
        ("a.json", b'[{"a": 1}, 2]', ["record 2", "no object"]),
        ("a.parquet", b"PAR1 not really", ["cannot be read as Parquet", "15 bytes"]),
        ("a.csv", b"a,b\n", ["unknown kind", ".csv", ".jsonl"]),
    ],
)
def test_broken_files_are_one_message(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(QuatrainError) as error:
        read_records(tmp_path / name)
    for part in parts:
        assert part in str(error.value)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl")
    with pytest.raises(QuatrainError, match=r"did you mean 'train\.jsonl'\?"):
        read_records(tmp_path / "trian.jsonl")
    with pytest.raises(QuatrainError, match="no data file is in"):
        read_records(tmp_path / "absent" / "train.jsonl")


def test_folders_of_files_and_of_data_sets(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl")
    assert read_folder(tmp_path) == Records(ROWS)
    write(tmp_path / "test.parquet", ROWS[:2])
    assert read_folder(tmp_path, limit=3) == Records(ROWS[:3], ROWS[:2])
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": whole, "validation": whole.select([0])}).save_to_disk(str(tmp_path / "two"))
    datasets.DatasetDict({"first": whole, "second": whole}).save_to_disk(str(tmp_path / "odd"))
    assert read_folder(tmp_path / "one", limit=4) == Records(ROWS[:4])
    assert read_folder(tmp_path / "two") == Records(ROWS, ROWS[:1])
    with pytest.raises(QuatrainError, match="first, second"):
        read_folder(tmp_path / "odd")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(QuatrainError, match="cannot be read as a data set"):
        read_folder(tmp_path / "one")
    (tmp_path / "none").mkdir()
    with pytest.raises(QuatrainError, match="holds no data set"):
        read_folder(tmp_path / "none")


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name: str, config: str | None, split: str | None):
        asked.append((name, config, split))
        if name == "who/gone":
            raise ConnectionError("Couldn't reach the Hub\nmore lines")
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_hub("openai/gsm8k", "main", limit=3) == Records(ROWS[:3], ROWS[:1])
    assert asked == [("openai/gsm8k", "main", None)]
    with pytest.raises(QuatrainError) as error:
        read_hub("who/gone")
    assert "Couldn't reach the Hub" in str(error.value) and "more lines" not in str(error.value) and "task=data.jsonl" in str(error.value)


@pytest.mark.parametrize(("package", "read"), [("pyarrow", lambda path: read_records(path)), ("datasets", lambda path: read_hub("a/b"))])
def test_what_is_not_installed_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, read) -> None:
    (tmp_path / "a.parquet").write_bytes(b"x")
    monkeypatch.setattr(files, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(QuatrainError, match=package) as error:
        read(tmp_path / "a.parquet")
    assert "pip install quatrain[data]" in str(error.value)
