"""Checkpoints: round trips, atomicity, verification, and a full disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.training import checkpoint

STATE = {"a": torch.arange(3), 7: {"b": (1, 2.5, None, True, "x"), "c": [torch.ones(2, 2)]}, "empty": {}}


def test_round_trip(tmp_path: Path):
    back = checkpoint.load(checkpoint.save(tmp_path, 3, STATE))
    assert torch.equal(back["a"], STATE["a"]) and back[7]["b"] == (1, 2.5, None, True, "x") and back["empty"] == {}
    assert torch.equal(back[7]["c"][0], torch.ones(2, 2))


def test_tensors_that_share_memory_are_kept_apart(tmp_path: Path):
    base = torch.arange(6.0)
    back = checkpoint.load(checkpoint.save(tmp_path, 0, {"view": base[::2], "whole": base}))
    assert back["view"].tolist() == [0, 2, 4] and back["whole"].tolist() == list(range(6))


def test_only_the_newest_are_kept(tmp_path: Path):
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, STATE, keep=2)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-000002", "step-000010"]


def test_a_flipped_bit_is_found(tmp_path: Path):
    path = checkpoint.save(tmp_path, 1, STATE)
    data = bytearray((path / checkpoint.TENSORS).read_bytes())
    data[-1] ^= 1
    (path / checkpoint.TENSORS).write_bytes(data)
    with pytest.raises(QuatrainError, match="damaged"):
        checkpoint.load(path)


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path):
    path = checkpoint.save(tmp_path, 1, STATE)
    (path / checkpoint.MANIFEST).unlink()
    assert checkpoint.list_checkpoints(tmp_path) == []
    with pytest.raises(QuatrainError, match="no whole checkpoint"):
        checkpoint.load(path)


def test_a_full_disk_leaves_nothing_half_written_and_the_earlier_ones_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint.save(tmp_path, 1, STATE)

    def full(tensors: dict, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(QuatrainError, match=r"step 2 could not be written(.|\n)*No space left(.|\n)*earlier checkpoints are intact"):
        checkpoint.save(tmp_path, 2, STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_objects_are_refused(tmp_path: Path):
    with pytest.raises(QuatrainError, match="plain values"):
        checkpoint.save(tmp_path, 1, {"model": object()})
    assert list(tmp_path.iterdir()) == []
