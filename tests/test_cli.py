"""The command line as a person meets it: help, the main job on real input, and one clear message for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quatrain.cli import main
from tests.tiny_models import tiny_directory

SMALL = ["steps=2", "prompts=3", "max_actions=6", "eval_count=4", "eval_samples=2", "tensorboard=false"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("models") / "hf", "llama")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """GSM8K's own shape."""
    records = [
        {
            "question": f"ann has {a} pens and gets {b}. how many?",
            "answer": f"she has {a}+{b}=<<{a}+{b}={a + b}>>{a + b} pens.\n#### {a + b}",
        }
        for a in range(1, 6)
        for b in range(1, 6)
    ]
    path = tmp_path / "gsm.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def quatrain(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return exit.value.code or 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message on stderr of a command that must fail with exit code 2 and no traceback."""
    assert quatrain(*arguments) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and message.startswith("quatrain: ")
    return message


def test_import_and_help_are_light():
    for command in (["-c", "import quatrain"], ["-m", "quatrain", "--help"]):
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        assert time.perf_counter() - began < 2
    loaded = "import sys, quatrain, quatrain.cli; print({'torch', 'transformers', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True).stdout == "set()\n"


def test_the_main_job_on_real_input(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    assert quatrain("train", "grpo", f"model={model}", f"task={data}", "reward=math", f"out={out}", *SMALL) == 0
    told = capsys.readouterr().out
    assert "accuracy" in told and str(out / "report.html") in told
    assert quatrain("eval", out, f"task={data}", "reward=math", "eval_count=4", "eval_samples=2", "max_actions=6") == 0
    assert "pass@2" in capsys.readouterr().out
    (out / "report.html").unlink()
    assert quatrain("report", out) == 0 and (out / "report.html").exists()


def test_a_reasoning_gym_task_and_a_users_reward(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert quatrain("train", "rloo", f"model={model}", "task=reasoning_gym:chain_sum", f"out={tmp_path / 'a'}", *SMALL) == 0
    mine = tmp_path / "mine.py"
    mine.write_text("def score(completion, answer):\n    return 1.0 / (1 + len(completion))\n")
    assert quatrain("train", "grpo", f"model={model}", f"task={data}", f"reward={mine}:score", f"out={tmp_path / 'b'}", *SMALL) == 0


def test_a_yaml_file_holds_the_same_keys(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {model}\ntask: {data}\nsteps: 1\nlr: 1e-4\nprompts: 2\neval_every: 0\n")
    assert quatrain("train", "sft", file, f"out={tmp_path / 'run'}", "report=false") == 0
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["config"]["lr"] == 1e-4 and told["config"]["prompts"] == 2


def test_systems_explain_and_eject(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert quatrain("systems", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"id", "family", "paper", "recipe", "verdict"} <= set(rows[0]) and {"gspo", "hpt"} <= {row["id"] for row in rows}
    assert quatrain("explain", "gspo", "--beside", "grpo", "--picture", tmp_path / "gspo.png") == 0
    told = capsys.readouterr().out
    assert "* denominator: Ratio" in told and "s_i = exp" in told and (tmp_path / "gspo.png").stat().st_size > 5000
    assert quatrain("eject", "hpt", tmp_path / "hpt.py", "group=4", "lr=0.5") == 0
    assert "OnPolicy(group=4)" in (tmp_path / "hpt.py").read_text() and "lr=0.5" in (tmp_path / "hpt.py").read_text()


# -- one clear message each ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["grpo", "gruop=4"], "did you mean 'group'?"),
        (["grop"], "did you mean 'grpo'?"),
        (["grpo", "lr=fast"], "lr has a wrong value"),
        (["grpo", "steps"], "key=value"),
        (["grpo", "task=nowhere.jsonl"], "nowhere.jsonl"),
        (["grpo", "task=lettres"], "letters"),
        (["grpo", "task=gym:CartPol-v1"], "CartPole"),
        (["grpo", "task=reasoning_gym:countdwn"], "countdown"),
        (["grpo", "model=./nowhere"], "does not exist"),
        (["sft", "task=gym:CartPole-v1"], "learns from demonstrations"),
        (["missing.yaml"], "missing.yaml"),
    ],
)
def test_misspelt_words(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, "train", *arguments)
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("content", "keys", "expected"),
    [
        ("", [], "empty"),
        ('{"question": "1+1?", "answer": "2"}\n{"question": "2+2?", "ans', [], "line 2"),
        ('{"text": "1+1?", "label": "2"}\n', [], "text"),
        ('{"question": "1+1?", "answer": "2"}\n', ["answer=result"], "result"),
        ('{"question": "1+1?", "answer": ["2"]}\n' * 3, [], "answer"),
        ('["1+1?", "2"]\n', [], "line 1"),
    ],
)
def test_bad_files(content: str, keys: list[str], expected: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    assert expected in refused(capsys, "train", "grpo", f"model={model}", f"task={path}", "reward=exact", f"out={tmp_path / 'run'}", *keys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise KeyError('price')", "KeyError"),
        ("return float('nan')", "nan"),
        ("return 'good'", "'good'"),
        ("return None", "None"),
        ("while True: pass", "deadline"),
        ("import os; os._exit(1)", "took its process down"),
    ],
)
def test_bad_rewards(body: str, expected: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "mine.py"
    path.write_text(f"def score(completion):\n    {body}\n")
    keys = [f"model={model}", f"task={data}", f"reward={path}:score", f"out={tmp_path / 'run'}", "deadline=1"]
    assert expected in refused(capsys, "train", "grpo", *keys)
    assert not (tmp_path / "run").exists()


def test_chat_messages_without_a_template(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "chat.jsonl"
    chats = [[{"role": "user", "content": f"{a}+1?"}, {"role": "assistant", "content": str(a + 1)}] for a in range(20)]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    message = refused(capsys, "train", "sft", f"model={model}", f"task={path}", f"out={tmp_path / 'run'}", *SMALL[:2])
    assert "chat template" in message and "to do:" in message
    assert not (tmp_path / "run").exists()


def test_a_full_disk_at_checkpoint_time(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from quatrain.training import checkpoint

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    message = refused(
        capsys, "train", "sft", f"model={model}", f"task={data}", f"out={tmp_path / 'run'}", "steps=1", "prompts=2", "eval_every=0"
    )
    assert "No space left" in message
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
