"""The atlas: all systems are on it, the neighbours are right, and it is looked at in a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quatrain.cli import app
from quatrain.experiments.atlas import gather, strip_plot, write_atlas
from quatrain.experiments.diagnose.record import read_diagnoses, record_diagnosis, sentence
from quatrain.training.registry import entries

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of one system: a verdict that the page must show as it is, and a diagnosis."""
    folder = tmp_path_factory.mktemp("results")
    record = {
        "id": "gspo", "kind": "beats", "verdict": "contradicted", "says": "GSPO <learns> faster.",
        "metric": "accuracy", "budget": "updates",
        "settings": {"task": "letters"}, "seeds": [0, 1], "stand_in": "a small model", "why": "It is small.", "tolerance": None,
        "numbers": {"gspo": {"0": 0.25, "1": 0.5}, "grpo": {"0": 0.75, "1": float("nan")}}, "intervals": {"grpo": [-0.3, -0.5, -0.1]},
    }  # fmt: skip
    (folder / "gspo.json").write_text(json.dumps(record))
    record_diagnosis("rloo", folder / "diagnosis")
    return folder


@pytest.fixture(scope="module")
def page(results: Path) -> Path:
    return write_atlas(results / "atlas.html", results)


def test_every_system_is_on_the_page_with_its_verdict(page: Path):
    text = page.read_text()
    assert all(f"<code>{entry.name}</code>" in text for entry in entries())
    assert "GSPO &lt;learns&gt; faster." in text and 'data-verdict="contradicted"' in text and "a small model" in text
    assert "<script" not in text and "src=" not in text  # static: nothing runs, nothing is fetched


def test_neighbours_and_parts_are_read_off_the_recipes(results: Path):
    systems = {system.name: system for system in gather(results)}
    gspo = systems["gspo"]
    assert gspo.word == "contradicted" and systems["topr"].word == "not run"
    assert set(gspo.parts) >= {"denominator", "bound"} and gspo.sources == ("OnPolicy",)
    assert systems["dr-grpo"].neighbour in ("grpo", "dapo") and set(systems["sft"].sources) == {"Demonstrations"}


def test_a_term_of_its_own_is_no_list_of_parts(results: Path):
    grpo = {system.name: system for system in gather(results)}["grpo"]
    assert grpo.terms == ("kl",) and set(grpo.parts) <= {"bound", "aggregation", "advantage"}


def test_a_diagnosis_says_what_rloo_is(results: Path):
    told = sentence(read_diagnoses(results / "diagnosis")["rloo"])
    assert told.startswith("Against reward on tree: cosine 1.000, bias none found, scale 1.000") and told.endswith("No faults.")


def test_dots_are_where_the_numbers_are():
    record = {"kind": "beats", "metric": "accuracy", "numbers": {"a": {"0": 0.0, "1": 1.0}, "b": {"0": 0.5}}}
    drawn = strip_plot(record)
    assert [part.split('"')[0] for part in drawn.split('cx="')[1:]] == ["170.0", "540.0", "355.0"]
    assert strip_plot({**record, "kind": "equal"}) == ""


def test_a_report_is_of_a_run_or_the_atlas():
    found = CliRunner().invoke(app, ["report"])
    assert found.exit_code and "or the atlas" in str(found.exception)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_draws_it(page: Path, width: int, tmp_path: Path):
    picture = tmp_path / "atlas.png"
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        f"--screenshot={picture}",
        f"file://{page}",
    ]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    from PIL import Image

    drawn = Image.open(picture).convert("L")
    assert drawn.width == width and len(set(drawn.getdata())) > 50  # text, not a blank page
