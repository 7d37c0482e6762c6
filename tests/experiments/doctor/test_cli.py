from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from quatrain.cli import app, main

RUN = CliRunner()
KEYS = ["task=gym:CartPole-v1", "max_actions=32", "prompts=2"]


def test_a_healthy_set_up_ends_with_0_and_says_so():
    found = RUN.invoke(app, ["doctor", "reinforce", *KEYS])
    assert found.exit_code == 0
    assert "nothing wrong was found" in found.output and "✓" in found.output and "✗" not in found.output


def test_json_is_one_object_and_the_recipe_may_stand_anywhere():
    found = RUN.invoke(app, ["doctor", *KEYS, "reinforce", "--json"])
    told = json.loads(found.output)
    assert told["errors"] == 0 and told["about"]["recipe"] == "reinforce"
    assert {"check", "severity", "seen", "why", "fix"} == set(told["findings"][0])


def test_errors_end_with_1():
    found = RUN.invoke(app, ["doctor", "sft", "task=gym:CartPole-v1"])
    assert found.exit_code == 1
    assert "✗" in found.output and "demonstrations" in found.output


def test_mistakes_in_the_command_end_with_2(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "grpo", "gspo"])
    assert ended.value.code == 2 and "one recipe" in capsys.readouterr().err
