from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.training.logging import MetricsLog, SamplesLog, read_metrics, read_records


def test_metrics_come_back_as_they_were_written(tmp_path):
    with MetricsLog(tmp_path / "run", tensorboard=False) as log:
        log.write(1, {"reward": 0.1, "term/policy": torch.tensor(-2.5)}, "rl")
        log.write(2, {"reward": 1 / 3, "accuracy": 1}, "rl")
    history = read_metrics(tmp_path / "run")
    assert history["reward"][0].tolist() == [1, 2] and history["reward"][1].tolist() == [0.1, 1 / 3]
    assert history["accuracy"][0].tolist() == [2] and history["term/policy"][1].tolist() == [-2.5]
    assert set(history) == {"reward", "term/policy", "accuracy", "seconds"}
    assert [record["stage"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == ["rl", "rl"]


def test_values_that_are_not_finite_stay_valid_json_and_return_as_nan(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(1, {"kl": math.nan, "ratio/max": math.inf, "loss": 0.5}, "rl")
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert record["kl"] is None and record["ratio/max"] is None and record["loss"] == 0.5
    assert np.isnan(read_metrics(tmp_path)["kl"][1]).all()


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write(7, {"reward": 0.5}, "rl")
    assert read_metrics(tmp_path)["reward"][0].tolist() == [7]
    log.close()


def test_truncating_and_going_on_leaves_every_step_once(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with MetricsLog(whole, tensorboard=False) as log:
        for step in range(1, 9):
            log.write(step, {"reward": step / 7, "seconds": float(step)}, "rl")
    with MetricsLog(cut, tensorboard=False) as log:
        for step in range(1, 7):
            log.write(step, {"reward": step / 7, "seconds": float(step)}, "rl")
    with MetricsLog(cut, tensorboard=False) as log:
        log.truncate(4)
        for step in range(5, 9):
            log.write(step, {"reward": step / 7, "seconds": float(step)}, "rl")
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert not list(cut.glob("*.partial"))


def test_a_torn_last_line_is_cut_off_before_the_next_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(1, {"reward": 0.25}, "rl")
    with open(path, "a") as file:
        file.write('{"step": 2, "stage": "rl", "rew')
    assert read_metrics(tmp_path)["reward"][0].tolist() == [1]
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(2, {"reward": 0.75}, "rl")
    assert read_metrics(tmp_path)["reward"][1].tolist() == [0.25, 0.75]


def test_a_torn_line_longer_than_a_block_is_cut_off_whole(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"step": 1, "prompt": "a"}\n{"step": 2, "prompt": "' + "x" * 200_000)
    SamplesLog(tmp_path).close()
    assert (tmp_path / "samples.jsonl").read_text() == '{"step": 1, "prompt": "a"}\n'


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1')
    MetricsLog(tmp_path, tensorboard=False).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_damage_in_the_middle_is_refused_with_its_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(QuatrainError, match=r"line 2 of .*metrics\.jsonl is damaged"):
        read_metrics(tmp_path)


def test_seconds_go_on_after_a_resume(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 100.0}\n{"step": 2, "seconds": 500.0}\n')
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.truncate(1)
        log.write(2, {"reward": 1.0}, "rl")
    seconds = read_metrics(tmp_path)["seconds"][1]
    assert 100.0 <= seconds[1] < 110.0


def test_tensorboard_holds_the_scalars_and_purges_what_a_resume_forgets(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricsLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.write(step, {"reward": float(step)}, "rl")
    with MetricsLog(tmp_path) as log:
        log.truncate(1)
        log.write(2, {"reward": 20.0}, "rl")
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(1, 1.0), (2, 20.0)]


def test_without_tensorboard_no_folder_is_made(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(1, {"reward": 1.0}, "rl")
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_clear_message(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = MetricsLog(tmp_path, tensorboard=False)
    with pytest.raises(QuatrainError, match="cannot be written: No space left") as caught:
        log.write(1, {"reward": 1.0}, "rl")
    assert "free some space" in str(caught.value)


def test_a_line_that_did_not_fit_is_taken_back(tmp_path, monkeypatch):
    log = SamplesLog(tmp_path)
    log.write(1, [{"prompt": "1+1=", "completion": "2"}])
    before, real, calls = (tmp_path / "samples.jsonl").read_bytes(), os.write, []

    def half_then_full(file: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) == 1:
            return real(file, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(QuatrainError, match="No space left"):
        log.write(2, [{"prompt": "2+2=", "completion": "4"}])
    monkeypatch.undo()
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_one_clear_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuatrainError, match="cannot be written"):
        MetricsLog(tmp_path / "file" / "run")


@pytest.mark.parametrize("metrics", [{"reward": "high"}, {"reward": torch.zeros(2)}, {"reward": None}, {"step": 3.0}])
def test_what_is_no_metric_is_refused_by_name(tmp_path, metrics):
    with MetricsLog(tmp_path, tensorboard=False) as log, pytest.raises(QuatrainError, match="metric"):
        log.write(1, metrics, "rl")
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_samples_keep_any_text(tmp_path):
    hard = "line\nbreak \u2028 <script> \x00 \udc80 é"
    with SamplesLog(tmp_path) as log:
        log.write(
            3, [{"prompt": hard, "completion": "b", "answer": None, "reward": torch.tensor(0.5)}, {"prompt": "c", "reward": math.nan}]
        )
        log.write(4, [{"prompt": "d"}])
        log.truncate(3)
    first, second = read_records(tmp_path / "samples.jsonl")
    assert first == {"step": 3, "prompt": hard, "completion": "b", "answer": None, "reward": 0.5}
    assert second == {"step": 3, "prompt": "c", "reward": None}


def test_chat_messages_are_kept_as_one_text(tmp_path):
    with SamplesLog(tmp_path) as log:
        log.write(1, [{"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1"}], "completion": "2"}])
    assert read_records(tmp_path / "samples.jsonl")[0]["prompt"] == "system: Be brief.\nuser: 1+1"


def test_reading_what_is_not_there_says_so(tmp_path):
    with pytest.raises(QuatrainError, match="no log to read"):
        read_metrics(tmp_path)
