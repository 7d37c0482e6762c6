"""Whatever a reward does, the run goes on, and says so."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quatrain.errors import QuatrainError
from quatrain.protocols import Item
from quatrain.rewards.workers import RewardWorkers

BEHAVIOURS = """
import os, subprocess, sys, time

def score(completion, answer):
    if completion == "hang": time.sleep(60)
    if completion == "spin": 9**9**9**9
    if completion == "exit": os._exit(0)
    if completion == "sysexit": sys.exit()
    if completion == "segv": os.kill(os.getpid(), 11)
    if completion == "raise": return {}["absent"]
    if completion == "nan": return float("nan")
    if completion == "inf": return float("inf")
    if completion == "none": return None
    if completion == "text": return "1.0"
    if completion == "flood":
        for _ in range(50): os.write(1, b"x" * 10000); os.write(2, b"x" * 10000); print('{"value": 7}')
    if completion == "pid": return os.getpid()
    if completion == "orphan":
        child = subprocess.Popen(["sleep", "60"])
        open("PATH", "w").write(str(child.pid))
        time.sleep(60)
    return completion == answer
"""


@pytest.fixture
def rewards(tmp_path: Path) -> str:
    (tmp_path / "rewards.py").write_text(BEHAVIOURS.replace("PATH", str(tmp_path / "child")))
    return f"{tmp_path}/rewards.py:score"


def items(count: int) -> list[Item]:
    return [Item(index, f"problem {index}", "right") for index in range(count)]


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Whether the process ends within that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            threads = len(os.listdir(f"/proc/{pid}/task"))
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z" and threads == 1:  # its first thread may be gone while others still end
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order_and_the_processes_are_reused(rewards: str, workers: int) -> None:
    completions = ["right" if index % 3 == 0 else "wrong" for index in range(500)]
    with RewardWorkers(rewards, workers=workers) as pool:
        assert pool.score(completions, items(500)) == [float(index % 3 == 0) for index in range(500)]
        pids = {pool.score(["pid"], items(1))[0] for _ in range(4)}
    assert len(pids) <= workers and os.getpid() not in pids


@pytest.mark.parametrize("bad", ["hang", "spin"])
def test_a_hang_costs_its_own_reward_and_no_other(rewards: str, bad: str, caplog: pytest.LogCaptureFixture) -> None:
    completions = ["right", "right", bad, "right", "wrong", "right"]
    with RewardWorkers(rewards, deadline_s=0.4) as pool, caplog.at_level(logging.WARNING):
        started = time.monotonic()
        assert pool.score(completions, items(6)) == [1, 1, 0, 1, 0, 1]
        assert 0.4 < time.monotonic() - started < 10
        assert pool.counts == {"timeout": 1}
    assert len(caplog.records) == 1
    assert "did not finish within 0.4 s" in caplog.text and "item 2" in caplog.text and "rewards.py:score" in caplog.text


@pytest.mark.parametrize(("bad", "how"), [("exit", "exited with status 0"), ("sysexit", "exited with status 0"), ("segv", "SIGSEGV")])
def test_a_crash_costs_its_own_reward_and_no_other(rewards: str, bad: str, how: str, caplog: pytest.LogCaptureFixture) -> None:
    with RewardWorkers(rewards) as pool, caplog.at_level(logging.WARNING):
        assert pool.score(["right", bad, "right"], items(3)) == [1, 0, 1]
        assert pool.counts == {"crash": 1}
    assert how in caplog.text


@pytest.mark.parametrize(
    ("bad", "what"),
    [("raise", "KeyError: 'absent'"), ("nan", "returned nan"), ("inf", "returned inf"), ("none", "None"), ("text", "'1.0' (str)")],
)
def test_no_number_is_refused_or_counted(rewards: str, bad: str, what: str, caplog: pytest.LogCaptureFixture) -> None:
    with RewardWorkers(rewards, on_error="raise") as pool:
        with pytest.raises(QuatrainError) as error:
            pool.score(["right", bad, "right"], items(3))
        assert pool.score(["right"], items(1)) == [1]  # nothing of the failed call is left
    assert what in str(error.value) and "rewards.py" in str(error.value) and repr(bad) in str(error.value) and "item 1" in str(error.value)
    with RewardWorkers(rewards, on_error="zero") as pool, caplog.at_level(logging.WARNING):
        assert pool.score(["right", bad, "right"], items(3)) == [1, 0, 1]
        assert pool.counts == {"error": 1}
    assert what in caplog.text


def test_a_flood_of_output_neither_blocks_nor_counts_as_a_result(rewards: str) -> None:
    with RewardWorkers(rewards) as pool:
        assert pool.score(["flood", "right"], items(2)) == [0, 1]
        assert not pool.counts


@pytest.mark.parametrize("source", ["def reward(completion):\n    {}\n"])
@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("raise ValueError('no')", "raised ValueError: no"),
        ("return float('nan')", "returned nan"),
        ("return 'good'", "returned 'good' (str)"),
        ("while True: pass", "did not finish within"),
        ("__import__('os')._exit(3)", "exited with status 3"),
    ],
)
def test_check_refuses_before_anything_expensive(tmp_path: Path, source: str, body: str, what: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source.format(body))
    with RewardWorkers(f"{file}", deadline_s=0.4, on_error="zero") as pool, pytest.raises(QuatrainError) as error:
        pool.check(items(2))
    assert what in str(error.value) and "mine.py" in str(error.value)


def test_check_returns_the_rewards_of_the_references(rewards: str) -> None:
    with RewardWorkers(rewards) as pool:
        assert pool.check([Item(0, "", "right"), Item(1, "", None), Item(2, "", "right", solution="wrong")]) == [1, 0]


def test_a_file_that_cannot_be_loaded_is_one_message(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    for text, what in [
        ("import absent_module_xyz\n", "absent_module_xyz"),
        ("def f(:\n", "SyntaxError"),
        ("import os; os._exit(4)\n", "exited with status 4"),
        ("def f(completions): return 0\n", "did you mean 'completion'?"),
    ]:
        file.write_text(text)
        with RewardWorkers(f"{file}:f") as pool, pytest.raises(QuatrainError, match=r"broken\.py") as error:
            pool.score(["x"], items(1))
        assert what in str(error.value)
    file.write_text("import time; time.sleep(60)\n")
    with RewardWorkers(f"{file}:f", startup_s=0.3) as pool, pytest.raises(QuatrainError, match="not loaded within"):
        pool.score(["x"], items(1))


def test_trusted_rewards_start_no_process() -> None:
    with RewardWorkers("exact+0.5*contains", workers=2) as pool:
        assert pool._processes == []
        assert pool.score([" Right ", "quite right", "no"], items(3)) == [1.5, 0.5, 0]
        started = time.perf_counter()
        pool.score(["right"] * 20000, items(1) * 20000)
        assert time.perf_counter() - started < 2


def test_easy_mathematics_is_fast() -> None:
    completions = [f"4 apples and {index} more.\n#### {index}" for index in range(4000)]
    with RewardWorkers("math") as pool:
        pool.check([Item(0, "", "1")])
        started = time.perf_counter()
        rewards = pool.score(completions, [Item(0, "", "42")] * 4000)
        assert sum(rewards) == 1 and rewards[42] == 1
        assert time.perf_counter() - started < 4  # 1000 per second and worker


def test_an_answer_that_computer_algebra_never_finishes_is_a_reward() -> None:
    with RewardWorkers("math", deadline_s=1.0) as pool:
        assert pool.score([r"\boxed{9^{9^{9^{9}}}}", r"\boxed{x+1}"], [Item(0, "", "1+x")] * 2) == [0, 1]
        assert pool.counts == {"timeout": 1}


def test_killing_a_worker_kills_what_it_started(rewards: str, tmp_path: Path) -> None:
    with RewardWorkers(rewards, deadline_s=1.5) as pool:
        assert pool.score(["orphan"], items(1)) == [0]
    assert gone(int((tmp_path / "child").read_text()))


@pytest.mark.parametrize("completion", ["pid", "hang", "spin"])
def test_no_worker_outlives_a_killed_parent(rewards: str, tmp_path: Path, completion: str) -> None:
    script = f"""
import time
from quatrain.protocols import Item
from quatrain.rewards.workers import RewardWorkers
pool = RewardWorkers({rewards!r}, deadline_s=0.5 if {completion == "spin"} else 60)
print(int(pool.score(["pid"], [Item(0, "")])[0]), flush=True)
pool.deadline_s = 60
pool.score([{completion!r}], [Item(0, "")])
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert gone(worker)


def test_closed_and_collected_workers_end(rewards: str) -> None:
    pool = RewardWorkers(rewards)
    pid = int(pool.score(["pid"], items(1))[0])
    pool.close()
    assert gone(pid)
    again = int(pool.score(["pid"], items(1))[0])
    assert again != pid
    del pool
    assert gone(again)


def test_a_worker_that_died_between_calls_is_replaced_at_no_cost(rewards: str) -> None:
    with RewardWorkers(rewards) as pool:
        pid = int(pool.score(["pid"], items(1))[0])
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        assert pool.score(["right"], items(1)) == [1]
        assert not pool.counts


def test_bad_arguments() -> None:
    for arguments in ({"workers": 0}, {"deadline_s": 0}, {"on_error": "zeros"}):
        with pytest.raises(QuatrainError):
            RewardWorkers("exact", **arguments)
    with RewardWorkers("exact") as pool:
        with pytest.raises(QuatrainError, match="one item per completion"):
            pool.score(["a"], [])
        with pytest.raises(QuatrainError, match="item 0 has none"):
            pool.score(["a"], [Item(0, "")])
    with pytest.raises(QuatrainError, match="cannot import this function"):
        RewardWorkers(lambda completion, item: 1.0)
