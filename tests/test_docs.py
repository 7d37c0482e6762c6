"""What the docs show, done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import quatrain
from quatrain.errors import QuatrainError
from quatrain.training import registry
from tests.training.test_run import QUIET, language_model, letters

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The worked example's file, taken from the page. What it registers is forgotten again."""
    registry.entries()  # what is loaded for the first time must not be forgotten with it
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    page = (DOCS / "adding-a-recipe.md").read_text()
    path = tmp_path / "mine.py"
    path.write_text(re.search(r"```python\n# mine.py\n(.*?)```", page, re.DOTALL)[1])
    return path


def test_the_worked_example_is_ten_lines_and_trains(mine: Path, tmp_path: Path):
    assert len([line for line in mine.read_text().splitlines() if line.strip()]) <= 10
    run = quatrain.train(
        str(mine), task=letters(), model=language_model(), out=str(tmp_path / "run"), steps=2, prompts=3, max_actions=4, **QUIET
    )
    assert run.state.step == 2
    told = quatrain.explain(quatrain.make(str(mine)), quatrain.make("gspo"))
    assert "* bound:       tapered" in told and "* advantage:   WeightedBaseline" in told and "  denominator: Ratio" in told


def test_the_worked_example_is_diagnosed_as_the_page_says(mine: Path):
    """On fresh samples GSPO points better; on old ones its clip turns the gradient around, and the taper does not."""
    from quatrain.experiments.diagnose.judge import Setting, judge
    from quatrain.experiments.diagnose.problems import find_problem

    tree = find_problem("tree")
    cosine = {
        (name, age): judge(quatrain.make(recipe), tree, Setting(staleness=age)).main.cosine
        for name, recipe in (("mine", str(mine)), ("gspo", "gspo"))
        for age in (0, 4)
    }
    assert {key: round(value, 1) for key, value in cosine.items()} == {
        ("mine", 0): 0.7,
        ("gspo", 0): 0.8,
        ("mine", 4): 0.5,
        ("gspo", 4): -0.7,
    }


def test_the_worked_example_is_compared(mine: Path, tmp_path: Path):
    arms = {"gspo": "gspo", "mine": quatrain.make(str(mine))}
    found = quatrain.compare(
        arms, task="gym:CartPole-v1", seeds=2, steps=2, max_actions=10, workers=0, out=str(tmp_path / "cmp"), live=False
    )
    assert set(found.runs) == {"gspo", "mine"} and all(len(runs) == 2 for runs in found.runs.values())


def test_the_worked_example_ejects_to_a_file_that_runs(mine: Path):
    source = quatrain.eject(quatrain.make("gspo"), {"task": "letters"})
    scope: dict = {"__name__": "ejected"}
    exec(compile(source, "run.py", "exec"), scope)
    assert scope["recipe"].stages == quatrain.make("gspo").stages


@pytest.mark.parametrize("name", ["sft", "reinforce", "rloo", "grpo", "dr-grpo", "dapo", "gspo", "dpo", "opd", "hpt", "ppo"])
def test_every_recipe_ejects_to_itself(name: str):
    scope: dict = {"__name__": "ejected"}
    exec(compile(quatrain.eject(quatrain.make(name), {}), "run.py", "exec"), scope)
    assert scope["recipe"].stages == quatrain.make(name).stages


@pytest.mark.parametrize(("content", "message"), [("x = ", "cannot be imported"), ("x = 1", "which recipe"), (None, "does not exist")])
def test_bad_recipe_files_are_refused(content: str | None, message: str, tmp_path: Path):
    path = tmp_path / "broken.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(QuatrainError, match=message):
        quatrain.make(str(path))
