"""quatrain diagnose on the command line, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quatrain.cli import app
from quatrain.errors import QuatrainError
from quatrain.experiments.diagnose.causes import causes
from quatrain.experiments.diagnose.command import arm
from quatrain.experiments.diagnose.problems import find_problem
from quatrain.experiments.diagnose.show import parts, write_page
from quatrain.experiments.diagnose.study import diagnose
from quatrain.training.registry import make
from tests.experiments.diagnose.planted import PLANTED

ONE = ("bandit",)


@pytest.fixture(scope="module")
def diagnosis():
    recipes = {"grpo": make("grpo"), "hpt": make("hpt"), "sft": make("sft")}
    return diagnose(recipes, ONE, ("rloo", make("rloo")), "bandit")


def test_json_is_one_object_with_the_numbers_of_the_tables():
    result = CliRunner().invoke(app, ["diagnose", "rloo", "grpo:kl=0,group=4", "--problem", "bandit", "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    first, second = data["judged"]
    assert (first["recipe"], second["recipe"], second["draws"]) == ("rloo", "grpo:kl=0,group=4", 4)
    assert first["bias"] < 1e-12 and second["bias"] > 0.1
    assert {sweep["name"]: sweep["values"] for sweep in data["sweeps"]}["updates since sampled"] == [0, 1, 4, 16]
    assert {cause["part"] for cause in data["causes"]["grpo:kl=0,group=4"]} == {
        "(as it is)",
        "advantage",
        "denominator",
        "bound",
        "aggregation",
    }
    assert all(fact["holds"] for fact in data["facts"]) and data["findings"]["rloo"] == []


def test_the_text_says_what_was_claimed_and_prints_the_facts():
    result = CliRunner().invoke(app, ["diagnose", "dr-grpo", "--problem", "bandit", "--beside", "none"], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    for words in ("Against the exact gradient", "0.8750", "exact: 27 compositions by reward", "Known facts", "None in dr-grpo"):
        assert words in result.stdout
    assert "What causes what" not in result.stdout


def test_terms_that_cannot_be_summed_are_judged_one_by_one(diagnosis):
    tables = {part.title: part for part in parts(diagnosis)}
    hpt = [row for row in tables["Term by term"].rows if row["recipe"] == "hpt"]
    assert [row["term"] for row in hpt] == ["policy", "sft"]
    (line,) = [row for row in tables["Against the exact gradient"].rows if row["recipe"] == "hpt"]
    assert line["how"].endswith("policy term only")
    switched = {row["part"]: row["bias"] for row in tables["What causes what in hpt"].rows}
    assert "not finite" in switched["where"]  # a z-score of demonstrations, which have no reward


def test_a_part_that_needs_what_the_recipe_lacks_says_so():
    ground = find_problem("bandit")
    found = {cause.part: cause for cause in causes(make("rloo"), make("ppo"), ground)}
    assert found["advantage"].after is None and "'value' is needed" in found["advantage"].refused


def test_the_page_is_self_contained(diagnosis, tmp_path: Path):
    page = write_page(diagnosis, tmp_path / "page.html").read_text()
    assert page.count("<svg") >= 9  # eight sweeps, one picture of coefficients
    assert "://" not in page and "<script" not in page


def test_faults_are_in_the_tables_and_in_the_data():
    recipes = {"broken": PLANTED["baseline contains its own sample"][0]()}
    found = diagnose(recipes, ONE, None, "bandit")
    (row,) = next(part for part in parts(found) if part.title == "Faults").rows
    assert row["fault"] == "bias" and "0.875" in row["seen"]
    assert json.loads(json.dumps(found.data()))["findings"]["broken"][0]["kind"] == "bias"


def test_mistakes_are_sentences():
    with pytest.raises(QuatrainError, match="did you mean 'gspo'"):
        arm("gsop")
    with pytest.raises(QuatrainError, match="options are missing"):
        arm("grpo:")
    with pytest.raises(QuatrainError, match="unknown problem"):
        diagnose({"rloo": make("rloo")}, ("forest",))
    with pytest.raises(QuatrainError, match="nothing to diagnose"):
        diagnose({})
    with pytest.raises(QuatrainError, match="enumerates what a Collect samples"):
        diagnose({"replay": make("rloo").with_collect(source=Replay())}, ONE)


class Replay:
    """A source that nobody can enumerate."""

    def provides(self, task: object) -> set[str]:
        return {"reward", "prompt"}
