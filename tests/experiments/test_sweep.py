"""Sweeps on tiny problems: spread, resumed, killed, interrupted, failing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from quatrain.errors import QuatrainError
from quatrain.experiments.jobs import Job
from quatrain.experiments.sweep import sweep
from quatrain.experiments.workers import Outcome

CART = {
    "task": "gym:CartPole-v1", "steps": 4, "prompts": 2, "max_actions": 15, "eval_every": 2, "eval_count": 2, "eval_samples": 0,
    "save_every": 1, "live": False, "tensorboard": False, "report": False, "threads": 1,
}  # fmt: skip


def cart(folder: Path, arm: str = "reinforce", seeds: int = 2, **keys: object) -> list[Job]:
    return [Job(arm, seed, folder / arm / f"seed{seed}", arm, {**CART, **keys}) for seed in range(seeds)]


def square(seed: int, add: float = 0.0) -> dict[str, float]:
    return {"value": seed**2 + add, "threads": float(os.environ["OMP_NUM_THREADS"]), "process": os.getpid()}


def fails(seed: int) -> dict[str, float]:
    if seed == 1:
        raise ZeroDivisionError("one is too many")
    if seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"value": 1.0}


def functions(folder: Path, function: object, count: int, **keys: object) -> list[Job]:
    return [Job("f", seed, folder / f"seed{seed}", keys=keys, measure=function) for seed in range(count)]


def test_jobs_are_spread_over_single_threaded_processes(tmp_path: Path):
    swept = sweep(functions(tmp_path, square, 5, add=0.5), tmp_path, workers=2, live=False)
    assert [outcome.result["value"] for outcome in swept.outcomes] == [0.5, 1.5, 4.5, 9.5, 16.5]
    assert {outcome.result["threads"] for outcome in swept.outcomes} == {1.0}
    processes = {outcome.result["process"] for outcome in swept.outcomes}
    assert len(processes) == 2 and os.getpid() not in processes


def test_a_failure_or_a_killed_process_does_not_end_the_others(tmp_path: Path):
    swept = sweep(functions(tmp_path, fails, 5), tmp_path, workers=2, live=False)
    messages = [outcome.message for outcome in swept.outcomes]
    assert "ZeroDivisionError: one is too many (test_sweep.py:" in messages[1]
    assert "signal 9 (Killed)" in messages[2]
    assert [bool(message) for message in messages] == [False, True, True, False, False]
    assert len(swept.failed) == 2


def test_failed_jobs_are_tried_again_and_finished_ones_are_not(tmp_path: Path):
    jobs = functions(tmp_path, square, 3)
    first = sweep(jobs[:2], tmp_path, workers=1, live=False)
    before = [(job.folder / "result.json").stat().st_mtime_ns for job in jobs[:2]]
    again = sweep(jobs, tmp_path, workers=1, live=False)
    assert [(job.folder / "result.json").stat().st_mtime_ns for job in jobs[:2]] == before
    assert [outcome.result for outcome in again.outcomes[:2]] == [outcome.result for outcome in first.outcomes]
    assert again.repeated == 1


def test_a_half_done_run_is_continued_to_the_same_result(tmp_path: Path):
    whole = sweep(cart(tmp_path / "whole", seeds=1), tmp_path / "whole", workers=0, live=False).outcomes[0].result
    (job,) = cart(tmp_path / "cut", seeds=1)
    run = job.folder / "run"
    interrupted_at(2, job)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 2 and not job.done
    cut = sweep([job], tmp_path / "cut", workers=0, live=False).outcomes[0].result
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4]
    assert cut["return"] == whole["return"] and cut["tokens"] == whole["tokens"]
    assert not (run / "checkpoints").exists() and (run / "model").exists()


def interrupted_at(step: int, job: Job) -> None:
    """Ctrl-C in that step of the job."""
    from quatrain.training.recorder import Recorder

    call = Recorder.__call__

    def pressed(self: Recorder, state: object, metrics: object) -> None:
        if state.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        call(self, state, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "__call__", pressed)
        swept = sweep([job], job.folder.parent, workers=0, live=False)
    assert swept.interrupted and not swept.outcomes


def test_a_run_that_died_before_its_first_checkpoint_begins_again(tmp_path: Path):
    (job,) = cart(tmp_path, seeds=1, steps=1)
    job.claim_folder()
    (job.folder / "run").mkdir()
    (job.folder / "run" / "metrics.jsonl").write_text('{"step": 0, "stage": "0", "seconds": 0.1}\n')
    assert sweep([job], tmp_path, workers=0, live=False).outcomes[0].result["updates"] > 0


SCRIPT = """
import sys
from pathlib import Path
from quatrain.experiments.sweep import sweep
from tests.experiments.test_sweep import cart
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    swept = sweep(cart(folder, seeds=3, steps=int(sys.argv[2])), folder, workers=1, live=False)
    print(swept.interrupted, len(swept.outcomes))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_killed_sweep_leaves_no_process_and_goes_on_where_it_was(how: int, tmp_path: Path):
    script = tmp_path / "go.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "sweep"
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder), "30"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    first, second = cart(folder, seeds=2, steps=30)
    wait_for(lambda: first.done and (second.folder / "run" / "checkpoints").exists())
    process.send_signal(how)
    told = process.communicate(timeout=60)[0]
    if how == signal.SIGINT:
        assert told.split() == ["True", "1"] and process.returncode == 0
    wait_for(lambda: quiet(second.folder / "run" / "metrics.jsonl"))
    assert not second.done
    before = (first.folder / "result.json").stat().st_mtime_ns
    rounds = len((second.folder / "run" / "metrics.jsonl").read_text().splitlines())
    assert 1 <= rounds < 31
    swept = sweep(cart(folder, seeds=3, steps=30), folder, workers=1, live=False)
    assert len(swept.outcomes) == 3 and not swept.failed
    assert (first.folder / "result.json").stat().st_mtime_ns == before
    lines = (second.folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(31))


def wait_for(condition: object, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def quiet(file: Path) -> bool:
    """Nobody has written to it for a while."""
    size = file.stat().st_size
    time.sleep(0.6)
    return file.stat().st_size == size


def test_wrong_keys_are_refused_before_anything_runs(tmp_path: Path):
    with pytest.raises(QuatrainError, match="unknown key 'stepz'"):
        sweep([*cart(tmp_path), *cart(tmp_path, "ppo", stepz=3)], tmp_path, workers=1, live=False)
    assert not list(tmp_path.rglob("*.json"))


def test_a_folder_with_other_settings_is_refused(tmp_path: Path):
    functions(tmp_path / "b", square, 1, add=1.0)[0].claim_folder()
    with pytest.raises(QuatrainError, match=r"add was 1\.0, is 2\.0"):
        sweep(functions(tmp_path / "b", square, 1, add=2.0), tmp_path / "b", workers=1, live=False)


def test_two_sweeps_in_one_folder_are_refused(tmp_path: Path):
    import fcntl

    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(QuatrainError, match="another process works"):
            sweep(functions(tmp_path, square, 1), tmp_path, workers=1, live=False)


def test_what_cannot_be_sent_says_so(tmp_path: Path):
    with pytest.raises(QuatrainError, match="cannot be sent"):
        sweep(functions(tmp_path, lambda seed: {"x": 1.0}, 1), tmp_path, workers=1, live=False)


def test_plain_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sweep(functions(tmp_path, fails, 2), tmp_path, workers=0)
    told = capsys.readouterr().err
    assert "[1/2] f · seed 0" in told and "[2/2] f · seed 1  failed: ZeroDivisionError" in told
    sweep(functions(tmp_path, fails, 2)[:1], tmp_path, workers=0)
    assert "1 of 1 runs are done already" in capsys.readouterr().err


def test_on_a_cluster_jobs_are_remote_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in with Ray's verbs: what is asked of it is what Ray is asked."""
    asked: dict[str, object] = {}

    class RayError(Exception): ...

    def get(reference: tuple) -> object:
        function, job = reference
        if job.seed == 1:
            raise RayError("node lost")
        return function(job)

    ray = types.ModuleType("ray")
    ray.exceptions = types.SimpleNamespace(RayError=RayError)
    ray.init = lambda **options: asked.update(options)
    ray.remote = lambda **options: (
        asked.update(options) or (lambda function: types.SimpleNamespace(remote=lambda job: Call((function, job))))
    )
    ray.wait = lambda references, num_returns, timeout: (references[:1], references[1:])
    ray.get = get

    class Call(tuple):
        __hash__ = object.__hash__

    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    swept = sweep(functions(tmp_path, square, 3), tmp_path, address="head:6379", live=False)
    assert asked["address"] == "head:6379" and asked["num_cpus"] == 1
    assert [isinstance(outcome, Outcome) and outcome.message for outcome in swept.outcomes] == ["", "its worker ended: node lost", ""]
    assert swept.outcomes[2].result["value"] == 4


def test_no_ray_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(QuatrainError, match=r"quatrain\[ray\]"):
        sweep(functions(tmp_path, square, 1), tmp_path, address="auto", live=False)
