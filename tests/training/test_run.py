"""Whole runs on tiny models: cut and resumed bit for bit, interrupted, refused early, and leaving what they promise."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import quatrain
from quatrain.environments.gymnasium import GymTask
from quatrain.errors import QuatrainError
from quatrain.models.causal_lm import CausalLM
from quatrain.protocols import Item
from quatrain.tasks.text import TextTask
from quatrain.training import checkpoint
from quatrain.training.logging import read_records
from quatrain.training.recorder import Recorder
from tests.tiny_models import tiny_model, tiny_tokenizer

QUIET = {"live": False, "tensorboard": False, "report": False, "eval_every": 2, "eval_count": 4, "eval_samples": 2, "save_every": 1}
RECIPES = ["sft", "reinforce", "rloo", "grpo", "dr-grpo", "dapo", "gspo", "dpo", "opd", "hpt", "ppo"]


class FirstLetter:
    """Rewards completions that begin as the answer does."""

    def score(self, completions: list[str], items: list[Item]) -> list[float]:
        return [float(text[:1] == item.answer[:1]) + 0.1 * len(text) for text, item in zip(completions, items, strict=True)]


def letters() -> TextTask:
    items = [
        Item(i, f"{a}+{b}=", str(a + b), str(a + b), chosen=str(a + b), rejected=str(a + b + 1))
        for i, (a, b) in enumerate((a, b) for a in range(5) for b in range(5))
    ]
    return TextTask("sums", items[:20], items[20:], FirstLetter(), seed=3)


def language_model(seed: int = 0) -> CausalLM:
    tokens = tiny_tokenizer()
    torch.manual_seed(seed)
    return CausalLM(tiny_model("qwen3", vocabulary=len(tokens)), tokens)


def text_run(name: str, out: Path, **keys: Any) -> quatrain.Run:
    small = {"prompts": 4, "steps": 5, "lr": 1e-2, "max_actions": 4, "temperature": 0.7, "top_p": 0.9, "micro_tokens": 64}
    options = {key: value for key, value in small.items() if key in quatrain.make(name).knobs()} | ({"epochs": 2} if name == "ppo" else {})
    return quatrain.train(
        name, task=letters(), model=language_model(), out=str(out), **{"teacher": language_model(1), **QUIET, **options, **keys}
    )


def control_run(name: str, out: Path, **keys: Any) -> quatrain.Run:
    small = {"prompts": 2, "steps": 5, "lr": 1e-2, "max_actions": 20, "segment": 16}
    options = {key: value for key, value in small.items() if key in quatrain.make(name).knobs()} | ({"epochs": 2} if name == "ppo" else {})
    return quatrain.train(name, task=GymTask("CartPole-v1", copies=4), out=str(out), **{**QUIET, **options, **keys})


def left(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last checkpoint's state, and the metrics without times."""
    state = checkpoint.load(checkpoint.list_checkpoints(folder / "checkpoints")[-1])
    lines = read_records(folder / "metrics.jsonl")
    return state, [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def die_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill the run after that step's update, before anything of it is written."""
    call = Recorder.__call__

    def deadly(self: Recorder, state: Any, metrics: Any) -> None:
        if state.step == step:
            raise MemoryError("killed")
        call(self, state, metrics)

    monkeypatch.setattr(Recorder, "__call__", deadly)


@pytest.mark.parametrize("name", RECIPES)
def test_a_cut_and_resumed_run_is_the_uncut_one_bit_for_bit(name: str, tmp_path: Path):
    assert_resumes(text_run, name, tmp_path)


@pytest.mark.parametrize("name", ["ppo", "reinforce", "grpo"])
def test_a_cut_and_resumed_control_run_is_the_uncut_one_bit_for_bit(name: str, tmp_path: Path):
    assert_resumes(control_run, name, tmp_path)


def assert_resumes(run: Any, name: str, tmp_path: Path) -> None:
    run(name, tmp_path / "whole", schedule="cosine", warmup=2)
    for cut in (2, 5):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
            die_at(cut, patch)
            run(name, tmp_path / f"cut{cut}", schedule="cosine", warmup=2)
        run(name, tmp_path / f"cut{cut}", schedule="cosine", warmup=2, resume=True)
        whole, resumed = left(tmp_path / "whole"), left(tmp_path / f"cut{cut}")
        assert whole[0]["step"] == 5
        assert same(whole[0], resumed[0])
        assert same(whole[1], resumed[1])


def test_weights_do_move(tmp_path: Path):
    """Otherwise the resume tests could not fail."""
    before = language_model().module.state_dict()
    after = text_run("grpo", tmp_path).state.models["policy"].module.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["grpo", "gspo", "reinforce"])
def test_at_learning_rate_zero_nothing_moves_and_every_ratio_is_one(name: str, tmp_path: Path):
    before = language_model().module.state_dict()
    run = text_run(name, tmp_path, lr=0.0, **({} if name == "reinforce" else {"epochs": 2}))
    after = run.state.models["policy"].module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    for line in read_records(tmp_path / "metrics.jsonl"):
        assert abs(line.get("ratio/max", 1.0) - 1) < 1e-4


def test_the_first_update_has_ratio_one_under_temperature_and_top_p(tmp_path: Path):
    run = text_run("grpo", tmp_path, steps=1, temperature=0.7, top_p=0.9)
    assert "support" in run.state.stores["fresh"]
    assert abs(run.metrics.get("ratio/max", 1.0) - 1) < 1e-4
    assert abs(run.metrics.get("ratio", 1.0) - 1) < 1e-4


def test_an_interrupt_saves_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text_run("grpo", tmp_path / "whole", save_every=0)
    call = Recorder.__call__

    def pressed(self: Recorder, state: Any, metrics: Any) -> None:
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        call(self, state, metrics)

    monkeypatch.setattr(Recorder, "__call__", pressed)
    stopped = text_run("grpo", tmp_path / "cut", save_every=0)
    assert stopped.interrupted and stopped.state.step == 3
    monkeypatch.undo()
    text_run("grpo", tmp_path / "cut", save_every=0, resume=True)
    assert same(left(tmp_path / "whole")[0], left(tmp_path / "cut")[0])


def test_what_a_run_leaves(tmp_path: Path):
    run = text_run("hpt", tmp_path / "run", report=True, tensorboard=True, steps=2)
    for name in ("run.json", "metrics.jsonl", "samples.jsonl", "coefficients.json", "report.html", "tensorboard", "checkpoints", "model"):
        assert (run.folder / name).exists(), name
    told = json.loads((run.folder / "run.json").read_text())
    assert told["name"] == "hpt" and "BySolvedCount" not in told["explain"] and "Solved" in told["explain"]
    page = run.report.read_text()
    assert "hpt" in page and "accuracy" in page


def test_the_final_model_is_a_hugging_face_directory_with_the_same_logits(tmp_path: Path):
    from transformers import AutoModelForCausalLM

    run = text_run("grpo", tmp_path, steps=2)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, run.state.models["policy"].module.eval()(ids).logits)


def test_the_embedded_objects_are_not_needed_for_sft_then_grpo(tmp_path: Path):
    """Stages follow each other; their knobs are shared."""
    recipe = quatrain.make("sft").then(quatrain.make("grpo", kl=0.0))
    run = quatrain.train(recipe, task=letters(), model=language_model(), out=str(tmp_path), prompts=2, steps=2, max_actions=3, **QUIET)
    assert run.state.step == 4
    assert [line["stage"] for line in read_records(tmp_path / "metrics.jsonl")] == ["0", "0", "0", "1", "1"]


@pytest.mark.parametrize(("name", "measure"), [("sft", "heldout/nll"), ("dpo", "heldout/preferred")])
def test_a_task_without_a_reward_is_measured_by_likelihood(name: str, measure: str, tmp_path: Path):
    pairs = [{"prompt": f"{a}+1=", "chosen": str(a + 1), "rejected": str(a)} for a in range(9)]
    shown = [{"prompt": f"{a}+1=", "solution": str(a + 1)} for a in range(9)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in (pairs if name == "dpo" else shown)))
    options = {"model": language_model(), "task": str(path), "out": str(tmp_path / "run"), "steps": 3, "lr": 1e-2, "prompts": 8}
    run = quatrain.train(name, **{**QUIET, **options})
    first = read_records(tmp_path / "run" / "metrics.jsonl")[0]
    assert 0 < run.metrics["heldout/nll"] < first["heldout/nll"] if name == "sft" else run.metrics["heldout/preferred"] in (0.0, 1.0)


def test_a_budget_of_tokens_ends_a_run_evaluated_and_resumable(tmp_path: Path):
    whole = text_run("grpo", tmp_path / "whole", steps=6)
    spent = {line["step"]: line["tokens"] for line in read_records(tmp_path / "whole" / "metrics.jsonl") if "tokens" in line}
    budget = int(spent[2]) + 1
    short = text_run("grpo", tmp_path / "short", steps=6, tokens=budget, eval_every=5)
    assert short.state.step == 3 < whole.state.step
    assert short.metrics["tokens"] == spent[3] >= budget
    last = read_records(tmp_path / "short" / "metrics.jsonl")[-1]
    assert last["step"] == 3 and "accuracy" in last
    again = text_run("grpo", tmp_path / "short", steps=6, tokens=budget, eval_every=5, resume=True)
    assert again.state.step == 3
    longer = text_run("grpo", tmp_path / "short", steps=6, resume=True)
    assert same(left(longer.folder)[0]["models"], left(whole.folder)[0]["models"])


# -- refused early ------------------------------------------------------------------------------------------------------
def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path):
    text_run("sft", tmp_path, steps=1)
    with pytest.raises(QuatrainError, match="holds a run already"):
        text_run("sft", tmp_path, steps=1)


def test_resuming_with_other_knobs_is_refused(tmp_path: Path):
    text_run("grpo", tmp_path, steps=2)
    with pytest.raises(QuatrainError, match="prompts: 4 in the checkpoint, 8 now"):
        text_run("grpo", tmp_path, steps=3, prompts=8, resume=True)


def test_resuming_for_more_steps_is_the_longer_run(tmp_path: Path):
    text_run("grpo", tmp_path / "long", steps=5)
    text_run("grpo", tmp_path / "short", steps=3)
    text_run("grpo", tmp_path / "short", steps=5, resume=True)
    assert same(left(tmp_path / "long")[0]["models"], left(tmp_path / "short")[0]["models"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gruop": 4}, "did you mean 'group'"),
        ({"lr": "fast"}, "lr has a wrong value"),
        ({"prompts": 2.5}, "a whole number"),
        ({"eval_count": 0}, "eval_count has a wrong value"),
        ({"group": "many"}, "'group' of grpo has the wrong type"),
    ],
)
def test_wrong_keys_are_refused_with_the_fix(keys: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(QuatrainError, match=message):
        quatrain.train("grpo", task=letters(), model=language_model(), out=str(tmp_path / "run"), **keys)
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_needs_a_teacher_says_so(tmp_path: Path):
    with pytest.raises(QuatrainError, match="teacher=PATH"):
        text_run("opd", tmp_path / "run", teacher=None)
    assert not (tmp_path / "run").exists()


def test_demonstrations_where_there_are_none(tmp_path: Path):
    with pytest.raises(QuatrainError, match="learns from demonstrations"):
        quatrain.train("sft", task=GymTask("CartPole-v1", copies=2), out=str(tmp_path), **QUIET)
