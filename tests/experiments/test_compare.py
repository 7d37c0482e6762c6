"""Comparisons: arms in words, the table against hand-made runs, and a whole one on tiny problems."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import quatrain
from quatrain.errors import QuatrainError
from quatrain.experiments.arms import Arm, as_arms, parse_seeds
from quatrain.experiments.comparison import Comparison, Numbers, pick_target

CART = {"task": "gym:CartPole-v1", "steps": 4, "prompts": 2, "max_actions": 15, "eval_count": 2}


def run(final: float, start: float = 0.1, tokens: float = 100.0) -> Numbers:
    """A run that climbs from its start to its end in a straight line of 11 evaluations."""
    share = np.linspace(0, 1, 11)
    numbers = {"accuracy": final, "tokens": tokens, "updates": 10.0, "run_seconds": 5.0}
    return Numbers(numbers, 10 * share, tokens * share, 5 * share, {"accuracy": start + (final - start) * share})


def comparison(*finals: list[float], **options: object) -> Comparison:
    runs = {f"arm{index}": {seed: run(value) for seed, value in enumerate(values)} for index, values in enumerate(finals)}
    return Comparison(Path(), runs, range(len(finals[0])), "accuracy", **options)


def test_the_table_of_known_runs():
    found = comparison([0.4, 0.5, 0.6, 0.5, 0.5], [0.7, 0.8, 0.9, 0.8, 0.8], target=0.5)
    first, second = found.rows()
    assert second["accuracy"].value == pytest.approx(0.8) and second["IQM"] == pytest.approx(0.8)
    assert (second["difference"].low, second["difference"].high) == pytest.approx((0.3, 0.3))  # the same in every seed
    assert second["P(better)"] == 1.0 and first["P(better)"] is None and first["difference"] is None
    assert second["area"] == pytest.approx(0.45)
    slow, fast = found.spent()
    assert (slow["reached 0.5"], slow["tokens to it"], slow["seconds to it"]) == ("4/5", 100, 5.0)
    assert (fast["reached 0.5"], fast["tokens to it"], fast["tokens"]) == ("5/5", 60, 100)
    never = comparison([0.2, 0.2, 0.6], target=0.5).spent()[0]
    assert (never["reached 0.5"], never["tokens to it"]) == ("1/3", None)


def test_unpaired_seeds_are_left_out_of_differences():
    found = comparison([0.4, 0.5, 0.6], [0.7, 0.8, 0.2])
    del found.runs["arm1"][2]
    assert found.difference("arm1").value == pytest.approx(0.3)
    assert not found.complete
    del found.runs["arm1"][1]
    assert found.difference("arm1").value == pytest.approx(0.3) and np.isnan(found.difference("arm1").low)


def test_where_less_is_better():
    found = comparison([5.0, 6.0], [2.0, 3.0], higher=False, target=4.0)
    assert found.better("arm1") == 1.0
    assert pick_target({0: run(0.1, start=1.1)}, "accuracy", higher=False) == pytest.approx(0.2)
    assert pick_target({0: run(0.1, start=1.1)}, "accuracy", higher=True) is None


def test_arms_in_words():
    assert as_arms(["grpo", "gspo:minibatches=8,lr=1e-3"])[1] == Arm("gspo:minibatches=8,lr=1e-3", "gspo", {"minibatches": 8, "lr": 1e-3})
    mine = quatrain.make("grpo", group=2)
    assert as_arms({"mine": mine, "theirs": "grpo:kl=0"}) == [Arm("mine", mine), Arm("theirs", "grpo", {"kl": 0})]
    with pytest.raises(QuatrainError, match="different labels"):
        as_arms(["grpo", "grpo"])
    with pytest.raises(QuatrainError, match="an arm is a recipe"):
        as_arms(["grpo:minibatches"])


@pytest.mark.parametrize("wrong", [0, True, "5-", "3-1", [1, 1], "a"])
def test_seeds_that_are_none(wrong: object):
    with pytest.raises(QuatrainError, match="seeds are"):
        parse_seeds(wrong)


@pytest.mark.parametrize(
    ("arms", "keys", "message"),
    [
        (["grpo", "gspo:clap=1"], {}, "unknown key 'clap'"),
        (["grpo", "gspq"], {}, "did you mean 'gspo'"),
        (["grpo"], {"seed": 3}, "sets these itself"),
        (["grpo:out=x"], {}, "sets these itself"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(arms: list[str], keys: dict[str, object], message: str, tmp_path: Path):
    with pytest.raises(QuatrainError, match=message):
        quatrain.compare(arms, **({"out": tmp_path / "c"} | CART | keys))
    assert not (tmp_path / "c").exists()


def test_a_whole_comparison_and_what_it_leaves(tmp_path: Path):
    arms = ["reinforce", "grpo:minibatches=2,kl=0"]
    found = quatrain.compare(arms, out=tmp_path / "c", seeds=2, workers=0, live=False, **CART)
    assert found.metric == "return" and found.complete and not found.failures
    lines = [json.loads(line) for line in (tmp_path / "c" / "numbers.jsonl").read_text().splitlines()]
    assert {(line["arm"], line["seed"]) for line in lines} == {(arm, seed) for arm in arms for seed in (0, 1)}
    starts = {(line["arm"], line["seed"]): line["return"] for line in lines if line["step"] == 0}
    for seed in (0, 1):  # the same initial weights and held-out episodes for both arms; other ones for another seed
        assert starts[arms[0], seed] == starts[arms[1], seed]
    assert starts[arms[0], 0] != starts[arms[0], 1]
    told = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert told["arms"][arms[1]]["final"] == {str(seed): found.runs[arms[1]][seed].final["return"] for seed in (0, 1)}
    assert told["versions"] and told["date"]
    page = found.report.read_text()
    for text in ("What it cost", "P(better)", "Difference in return to reinforce", "minibatches=2", "paired by seed"):
        assert text in page
    assert "<script" not in page and "http:" not in page and "https:" not in page
    again = quatrain.compare(arms, out=tmp_path / "c", seeds=3, workers=0, live=False, **CART)
    assert sorted(again.runs["reinforce"]) == [0, 1, 2]
    assert again.runs["reinforce"][0].final == found.runs["reinforce"][0].final


def test_numbers_as_parquet(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    quatrain.compare(["reinforce"], out=tmp_path, seeds=1, workers=0, live=False, report=False, **{**CART, "steps": 1})
    table = parquet.read_table(tmp_path / "numbers.parquet")
    assert {"arm", "seed", "step", "return", "tokens"} <= set(table.column_names) and table.num_rows == 2


def test_an_arm_that_fails_is_reported_beside_the_others(tmp_path: Path):
    found = quatrain.compare(["reinforce", "sft"], out=tmp_path, seeds=1, workers=0, live=False, **{**CART, "prompts": 2})
    assert [(arm, seed) for arm, seed, _ in found.failures] == [("sft", 0)]
    assert "learns from demonstrations" in found.failures[0][2]
    assert len(found.runs["reinforce"]) == 1 and found.report is None


def test_a_recipe_of_ones_own_and_equal_tokens(tmp_path: Path):
    arms = {"small": quatrain.make("reinforce"), "large": "reinforce:prompts=6"}
    keys = {**CART, "steps": 50, "tokens": 100}
    del keys["prompts"]
    found = quatrain.compare(arms, out=tmp_path, seeds=1, workers=0, live=False, report=False, prompts=2, **keys)
    spent = {arm: runs[0].final["tokens"] for arm, runs in found.runs.items()}
    assert all(100 <= tokens < 200 for tokens in spent.values())
    assert found.runs["small"][0].final["updates"] > found.runs["large"][0].final["updates"]


def test_from_the_command_line(tmp_path: Path):
    from quatrain.cli import app

    keys = [f"{name}={value}" for name, value in {**CART, "steps": 1, "out": tmp_path, "seeds": 2, "workers": 0}.items()]
    result = CliRunner().invoke(app, ["compare", "reinforce", "grpo:kl=0", *keys])
    assert result.exit_code == 0, result.output
    assert "P(better)" in result.output and "grpo:kl=0" in result.output and "report.html" in result.output
