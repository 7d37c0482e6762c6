"""Tasks by name."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from quatrain.errors import QuatrainError
from quatrain.rewards.workers import RewardWorkers
from quatrain.tasks.loading import Unjudged, load_task


def write(path: Path, count: int = 30, **extra: object) -> str:
    path.write_text("".join(json.dumps({"question": f"{index}+1?", "answer": index + 1, **extra}) + "\n" for index in range(count)))
    return str(path)


def test_a_file_with_a_reward(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "data.jsonl"), "math", seed=3)
    starts = task.starts("train", 0, 5)
    assert task.reward.score([f"#### {item.answer}" for item in starts] + ["no"], [*starts, starts[0]]) == [1, 1, 1, 1, 1, 0]
    assert task.size("train") + task.size("heldout") == 30 and task.seed == 3
    task.reward.close()


def test_heldout_by_file_by_split_by_share_or_not_at_all(tmp_path: Path) -> None:
    data, other = write(tmp_path / "train.jsonl"), write(tmp_path / "test.jsonl", 4)
    assert load_task(data, heldout=other).size("heldout") == 4
    assert load_task(str(tmp_path)).size("heldout") == 4
    assert load_task(str(tmp_path), limit=7).size("train") == 7
    assert load_task(data, heldout=0.5).size("heldout") > 8
    task = load_task(data, heldout=0)
    assert "heldout" not in task.splits and task.size("train") == 30
    ids = [item.id for split in ("train", "heldout") for item in load_task(data, heldout=other).splits[split]]
    assert len(set(ids)) == len(ids) == 34


def test_without_a_reward_only_a_score_is_refused(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "data.jsonl"))
    assert isinstance(task.reward, Unjudged)
    with pytest.raises(QuatrainError, match="reward=math"):
        task.reward.score(["1"], task.starts("train", 0, 1))


def test_columns_can_be_named(tmp_path: Path) -> None:
    task = load_task(
        write(tmp_path / "data.jsonl", gold="g"), "exact", prompt="gold", answer="question", heldout=write(tmp_path / "h.jsonl", gold="h")
    )
    item = task.starts("train", 0, 1)[0]
    assert item.prompt == "g" and item.answer.endswith("+1?")


def test_letters_and_environments() -> None:
    task = load_task("letters:chain?levels=1-2", seed=5)
    item = task.starts("train", 0, 1)[0]
    assert task.seed == 5 and task.reward.score([item.solution, "x"], [item, item]) == [1, 0]
    assert isinstance(load_task("letters:add", "exact").reward, RewardWorkers)
    pytest.importorskip("gymnasium")
    assert load_task("gym:CartPole-v1").name.endswith("CartPole-v1")
    with pytest.raises(QuatrainError, match="its own rewards"):
        load_task("gym:CartPole-v1", "exact")


def test_a_kind_of_ones_own_is_a_registered_function(monkeypatch: pytest.MonkeyPatch) -> None:
    from quatrain.tasks import kinds

    monkeypatch.setattr(kinds, "KINDS", known := dict(kinds.KINDS))
    monkeypatch.setattr("quatrain.tasks.loading.KINDS", known)
    kinds.kind("riddles:NAME", rewards=True)(
        lambda asked: load_task(f"letters:{asked.name}?levels={asked.options['levels']}", seed=asked.seed)
    )
    assert load_task("riddles:add?levels=2", seed=5).seed == 5
    with pytest.raises(QuatrainError, match="did you mean 'riddles'"):
        load_task("ridles:add")


def test_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym")
    task = load_task("reasoning_gym:countdown?min_numbers=3&max_numbers=3&size=20&heldout=5", seed=2)
    items = task.starts("train", 0, 3)
    assert (task.size("train"), task.size("heldout")) == (20, 5)
    assert task.reward.score([item.answer for item in items], items) == [1, 1, 1]
    task.reward.close()


def test_a_reward_that_likes_no_reference_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mine.py").write_text("def reward(completion): return 0\n")
    with caplog.at_level(logging.WARNING):
        load_task(write(tmp_path / "data.jsonl"), f"{tmp_path}/mine.py").reward.close()
    assert "gives nothing to the reference" in caplog.text


@pytest.mark.parametrize(
    ("spec", "options", "parts"),
    [
        ("leters", {}, ["no task 'leters'", "did you mean 'letters'?"]),
        ("reasoning_gim:countdown", {}, ["did you mean 'reasoning_gym'?"]),
        ("reasoning_gym:countdwn", {}, ["did you mean 'countdown'?"]),
        ("reasoning_gym:countdown?size=many", {}, ["whole numbers"]),
        ("reasoning_gym:countdown?size", {}, ["option 'size' has no value"]),
        ("DIR/dat.jsonl", {}, ["does not exist", "did you mean 'data.jsonl'?"]),
        ("a/b?confg=main", {}, ["no option 'confg'", "did you mean 'config'?"]),
        ("DIR/data.jsonl", {"reward": "mth"}, ["did you mean 'math'?"]),
        ("DIR/data.jsonl", {"answer": "anser"}, ["did you mean 'answer'?"]),
        ("DIR/plain.jsonl", {"reward": "math"}, ["reward math compares with an answer", "columns prompt", "answer=COLUMN"]),
        ("DIR/data.jsonl", {"reward": "DIR/bad.py:nan"}, ["returned nan", "bad.py"]),
        ("DIR/data.jsonl", {"reward": "DIR/bad.py:hang", "deadline": 0.3}, ["did not finish within 0.3 s"]),
        ("DIR/data.jsonl", {"limit": 0}, ["at least 1"]),
        ("DIR/data.jsonl", {"limit": 1}, ["too few different prompts"]),
    ],
)
def test_mistakes_are_one_message(tmp_path: Path, spec: str, options: dict, parts: list[str]) -> None:
    write(tmp_path / "data.jsonl")
    (tmp_path / "plain.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (tmp_path / "bad.py").write_text("def nan(completion): return float('nan')\ndef hang(completion):\n    while True: pass\n")
    options = {key: value.replace("DIR", str(tmp_path)) if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(QuatrainError) as error:
        load_task(spec.replace("DIR", str(tmp_path)), **options)
    for part in parts:
        assert part in str(error.value)
