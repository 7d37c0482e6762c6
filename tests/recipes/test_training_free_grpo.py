"""training-free-grpo: nothing but the library changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import quatrain
from quatrain.environments.tool_choice import CUES, TOOLS, ToolChoice
from quatrain.errors import QuatrainError
from quatrain.protocols import Sampling
from quatrain.reports.tables import read_tables
from quatrain.search.endpoint import Endpoint
from quatrain.search.library import Operation, Rule, read_library
from quatrain.training.describe import eject, explain
from quatrain.training.driver import run
from quatrain.training.evaluate import evaluate_model
from quatrain.training.registry import make
from tests.recipes.laboratories import start

TASK = ToolChoice()


@pytest.mark.parametrize("options", [{}, {"group": 1, "alone": "all"}, {"size": 5}], ids=str)
def test_the_weights_never_move_and_the_library_does(options: dict[str, Any]):
    state = run(*start("training-free-grpo", options))
    policy = state.models["policy"]
    assert torch.equal(policy.module.base.values, TASK.network(seed=1).table) and "updates" not in state.spent
    assert 0 < len(policy.library) <= policy.library.size and 0 < policy.version <= 4


def test_before_the_first_round_it_is_the_base_policy_exactly():
    _, state = start("training-free-grpo", {})
    plain, same = (
        TASK.rollout(policy, TASK.starts("train", 0, 50), 4, Sampling(), 3) for policy in (TASK.network(seed=1), state.models["policy"])
    )
    assert torch.equal(plain.actions, same.actions) and torch.equal(plain["behaviour_logp"], same["behaviour_logp"])


def test_groups_that_agree_leave_the_library_empty():
    """A policy that always fails has no group with a contrast."""
    recipe, state = start("training-free-grpo", {})
    wrong = torch.zeros(len(CUES), len(TOOLS), dtype=torch.float64)
    wrong[torch.arange(len(TASK.right)), TASK.right] = -60.0
    state.models["policy"].module.base.values.data = wrong
    run(recipe, state)
    assert len(state.models["policy"].library) == 0 and state.models["policy"].version == 0 and state.spent["proposals"] == 0
    assert state.tables["Library"] == [{"rule": "none", "text": "", "weight": 0.0}]


def test_it_finds_hidden_heuristics():
    recipe, state = start("training-free-grpo", {}, steps=12)
    before = TASK.evaluate(state.models["policy"], 512, 0, Sampling(), 0)["success"]
    policy = run(recipe, state).models["policy"]
    assert TASK.evaluate(policy, 512, 0, Sampling(), 0)["success"] > before + 0.25
    strong = [rule for rule in policy.library.rules if rule.weight >= 3 and rule.place[0] < len(TASK.right)]
    assert len(strong) >= 5 and sum(int(TASK.right[rule.place[0]]) == rule.place[1] for rule in strong) / len(strong) > 0.7


def test_a_run_as_a_user_starts_it_keeps_and_reuses_its_library(tmp_path: Path):
    quiet = {"task": "tool-choice", "live": False, "tensorboard": False, "threads": 1, "eval_count": 64}
    whole = quatrain.train("training-free-grpo", steps=4, out=str(tmp_path / "whole"), **quiet)
    library = read_library(whole.folder / "model" / "library.json")
    assert library == whole.state.models["policy"].library and len(library)
    assert [row["text"] for row in read_tables(whole.folder)["Library"]] == [rule.text for rule in library.rules]
    assert library.rules[0].text in (whole.folder / "report.html").read_text()
    quatrain.train("training-free-grpo", steps=2, out=str(tmp_path / "cut"), report=False, **quiet)
    cut = quatrain.train("training-free-grpo", steps=4, out=str(tmp_path / "cut"), report=False, resume=True, **quiet)
    assert cut.state.models["policy"].library == library
    assert evaluate_model(str(whole.folder), task="tool-choice", eval_count=64)["success"] == whole.metrics["success"]
    on = quatrain.train("training-free-grpo", steps=1, model=str(whole.folder / "model"), out=str(tmp_path / "on"), report=False, **quiet)
    assert on.state.models["policy"].library.born > library.born
    path = str(whole.folder / "model" / "library.json")
    again = quatrain.train(
        "training-free-grpo", steps=1, library=path, propose="random", out=str(tmp_path / "again"), report=False, **quiet
    )
    assert again.metrics["library/rules"] >= 1


def test_explain_and_eject_say_what_it_is(tmp_path: Path):
    recipe = make("training-free-grpo")
    assert "Search(" in explain(recipe) and "WithLibrary" in explain(recipe)
    (tmp_path / "mine.py").write_text(eject(recipe, {}))
    found: dict[str, Any] = {"__name__": "mine"}
    exec(compile((tmp_path / "mine.py").read_text(), "mine.py", "exec"), found)
    assert found["recipe"].stages == recipe.stages


def test_what_does_not_fit_is_refused_before_anything_runs(monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(QuatrainError, match="reads rows of a table"):
        quatrain.train("training-free-grpo", task="letters:chain")
    with pytest.raises(QuatrainError, match="no base_url"):
        quatrain.train("training-free-grpo", task="letters:chain", propose="endpoint")


@pytest.mark.slow
def test_with_a_language_model_the_rules_are_in_its_prompt(tmp_path: Path, monkeypatch):
    """The embedded model on letters; the endpoint is a function here: see tests/search/test_endpoint.py for the wire."""
    monkeypatch.setattr(Endpoint, "operations", lambda self, library, group: [Operation("add", rule=Rule("count"))])
    found = quatrain.train(
        *("training-free-grpo",),
        **{"task": "letters:chain", "propose": "endpoint", "base_url": "http://localhost:1", "llm": "m", "steps": 2, "prompts": 8},
        **{"out": str(tmp_path), "live": False, "tensorboard": False, "threads": 1, "eval_count": 8, "eval_samples": 0},
    )
    assert [rule.text for rule in found.state.models["policy"].library.rules] == ["count"]
    prompts = found.state.stores["fresh"].contexts["policy"]
    decode = found.state.models["policy"].decode
    assert all("count" in decode(tokens[mask].tolist()) for tokens, mask in zip(prompts["tokens"], prompts["mask"], strict=True))
