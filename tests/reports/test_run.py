from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.reports.coefficients import write_coefficients
from quatrain.reports.provenance import provenance
from quatrain.reports.run import comparison_report, end, read_run, run_report
from quatrain.training.logging import MetricsLog, SamplesLog

SECTIONS = ["Results", "Learning curves", "Sampled answers", "Recipe", "Coefficients", "Configuration", "Provenance"]
VOID = {"meta", "br", "img", "hr", "input", "link"}


class Page(HTMLParser):
    """What a browser would make of the page: elements, attributes, headings, visible text, and whether every tag is closed."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.attributes, self.headings, self.texts = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "h2":
            self.headings.append(text)
        if self.open and self.open[-1] not in ("style", "title"):
            self.texts.append(text)

    @property
    def text(self):
        return " ".join(self.texts)


def make_run(folder, name="grpo", seed=0, gain=0.05, metrics=("reward", "entropy", "kl", "length")):
    with MetricsLog(folder, tensorboard=False) as log, SamplesLog(folder) as samples:
        for step in range(1, 11):
            values = dict.fromkeys(metrics, 0.1 + gain * step + 0.01 * seed)
            values |= {"tokens": 100.0 * step, "seconds": 2.0 * step}
            if step % 5 == 0:
                values |= {"accuracy": gain * step, "pass@8": gain * step + 0.1}
                samples.write(
                    step, [{"prompt": f"{step}+1=", "completion": f"<script>alert({step})</script>", "answer": "6", "reward": 1.0}]
                )
            log.write(step, values, "warm-up" if step < 4 else "rl")
    facts = {
        "name": name,
        "task": "addition",
        "seed": seed,
        "explain": "bound  Clip(0.2)",
        "config": {"group": 8, "sampling": {"stop": ["\n"]}},
    }
    (folder / "run.json").write_text(json.dumps({**facts, **provenance()}))
    write_coefficients(folder, {name: (torch.tensor([0.0, 1.0]),) * 3}, ["6", "<i>"], {name: torch.tensor([1.0, -1.0])})
    return folder


def assert_self_contained(path, page):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert all(value.startswith(("#", "data:")) for name, value in page.attributes if name in ("src", "href") and value)
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_a_run_becomes_one_self_contained_page_with_every_section(tmp_path):
    path = run_report(make_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page = Page(path)
    assert page.headings == SECTIONS
    assert_self_contained(path, page)
    for expected in ("Reward", "Held-out accuracy", "Entropy", "KL", "Length", "warm-up", "Clip(0.2)", "sampling.stop", "'\\n'", "torch"):
        assert expected in page.text, expected
    assert page.tags.count("svg") == 6  # five panels and the coefficient picture
    assert not list(tmp_path.rglob("*.partial"))


def test_hostile_texts_are_shown_and_not_run(tmp_path):
    folder = make_run(tmp_path / "run", name="<img src=x onerror=alert(1)>")
    page = Page(run_report(folder))
    assert "<script>alert(10)</script>" in page.text and "script" not in page.tags and "img" not in page.tags
    assert "<img src=x onerror=alert(1)>" in page.text and "<i>" in page.text


def test_the_table_states_first_last_lowest_and_highest(tmp_path):
    text = re.sub(r"<[^>]+>", " ", run_report(make_run(tmp_path / "run")).read_text())
    # Ten updates: a tenth is one, so first and last are the ends of reward = 0.1 + 0.05·step; accuracy is 0.25 then 0.5.
    flat = " ".join(text.split())
    assert "accuracy pass@8 reward" in flat
    assert re.search(r"first 0\.250 0\.350 0\.150", flat) and re.search(r"last 0\.500 0\.600 0\.600", flat)


def test_a_run_that_recorded_next_to_nothing_says_so_without_broken_figures(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(1, {"loss": math.nan}, "sft")
    page = Page(run_report(tmp_path))
    assert page.headings == SECTIONS and "svg" not in page.tags
    for sentence in (
        "No reward, return or accuracy",
        "No metrics were recorded",
        "No answers were kept",
        "kept no coefficient picture",
        "not record its config",
    ):
        assert sentence in page.text, sentence
    assert "nan" not in page.text.lower().split()


def test_a_run_without_lines_is_still_a_page(tmp_path):
    MetricsLog(tmp_path, tensorboard=False).close()
    assert Page(run_report(tmp_path)).headings == SECTIONS


def test_what_is_missing_among_the_usual_is_named(tmp_path):
    page = Page(run_report(make_run(tmp_path / "run", metrics=("reward",))))
    assert "Not recorded in this run: entropy, kl, length." in page.text


def test_supervised_runs_show_their_loss_first(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        for step in range(3):
            log.write(step, {"loss": 1.0 / (step + 1), "gradient_norm": 1.0}, "sft")
    page = Page(run_report(tmp_path))
    assert page.text.index("Loss") < page.text.index("Diagnostics") < page.text.index("Gradient norm")


def test_a_very_long_completion_is_cut_with_a_count(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as log, SamplesLog(tmp_path) as samples:
        log.write(1, {"reward": 0.0}, "rl")
        samples.write(1, [{"prompt": "p", "completion": "x" * 100_000, "reward": 0.0}])
    path = run_report(tmp_path)
    assert "(94,000 more characters)" in path.read_text() and path.stat().st_size < 60_000


def test_arms_are_compared_with_intervals_over_seeds(tmp_path):
    folders = [
        make_run(tmp_path / f"{name}-{seed}", name, seed, gain) for name, gain in (("grpo", 0.03), ("hpt", 0.06)) for seed in range(3)
    ]
    path = comparison_report(folders, tmp_path / "compare.html", title="GRPO & HPT")
    page = Page(path)
    assert_self_contained(path, page)
    assert page.headings == [*SECTIONS[:3], "Recipes", *SECTIONS[4:]]
    assert "GRPO & HPT" in page.text and "2 arms · 6 runs · task addition" in page.text
    # reward at the end of hpt: 0.70, 0.71, 0.72 over seeds; half width 4.302653 · 0.01/√3 = 0.025.
    assert "0.710 ± 0.025" in page.text
    assert "<strong>0.710 ± 0.025</strong>" in path.read_text()
    assert "Held-out accuracy at equal sampled tokens" in page.text


def test_a_comparison_takes_the_callers_rows_and_shows_what_differs(tmp_path):
    first, second = make_run(tmp_path / "a", "grpo"), make_run(tmp_path / "b", "gspo")
    facts = json.loads((second / "run.json").read_text())
    facts["config"]["group"] = 16
    (second / "run.json").write_text(json.dumps(facts))
    page = Page(
        comparison_report([first, second], tmp_path / "c.html", rows=[{"system": "base", "accuracy": 0.0625}], note="Measured apart.")
    )
    assert "base" in page.texts and "0.062" in page.text and "Measured apart." in page.text
    at = page.texts.index("group")
    assert page.texts[at + 1 : at + 3] == ["8", "16"]


def test_arms_with_unequal_lengths_and_metrics_are_drawn(tmp_path):
    first, second = make_run(tmp_path / "a", "grpo"), tmp_path / "b"
    with MetricsLog(second, tensorboard=False) as log:
        log.write(1, {"loss": 3.0}, "sft")
    assert "svg" in Page(comparison_report([first, second], tmp_path / "c.html")).tags


def test_the_end_of_a_noisy_metric_is_a_mean_and_of_an_evaluation_its_last():
    steps, values = np.arange(40), np.arange(40.0)
    history = {"reward": (steps, values), "accuracy": (steps, np.where(values < 39, values, np.nan))}
    assert end(history, "reward") == 37.5 and end(history, "reward", first=True) == 1.5
    assert end(history, "accuracy") == 38.0 and math.isnan(end(history, "kl"))


def test_stages_start_where_their_name_changes(tmp_path):
    assert read_run(make_run(tmp_path / "run")).stages == {"warm-up": 1, "rl": 4}


def test_wrong_folders_and_files_are_refused(tmp_path):
    with pytest.raises(QuatrainError, match="no run folder"):
        run_report(tmp_path)
    with pytest.raises(QuatrainError, match="nothing to compare"):
        comparison_report([], tmp_path / "c.html")
    folder = make_run(tmp_path / "run")
    (folder / "run.json").write_text("{")
    with pytest.raises(QuatrainError, match=r"run\.json is damaged"):
        run_report(folder)


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path):
    folder = make_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(QuatrainError, match="cannot be written"):
        run_report(folder, tmp_path / "file" / "report.html")


def test_provenance_names_versions_and_cores():
    found = provenance()
    assert found["versions"]["torch"] == torch.__version__ and found["machine"]["cores"] >= 1
    json.dumps(found)
