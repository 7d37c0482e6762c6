from __future__ import annotations

import io
import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from rich.console import Console

from quatrain.errors import QuatrainError
from quatrain.reports.coefficients import (
    ratio_curve_plot,
    ratio_table,
    read_coefficients,
    strip_html,
    strip_plot,
    strip_text,
    write_coefficients,
)
from quatrain.reports.plots import inline_svg

RATIO = torch.linspace(0, 2, 201)
CLIPPED = (RATIO, torch.where(RATIO < 1.2, RATIO, 0.0), torch.where(RATIO > 0.8, -RATIO, 0.0))


def test_the_ratio_picture_names_every_recipe():
    svg = inline_svg(ratio_curve_plot({"grpo": CLIPPED, "reinforce": (RATIO, torch.ones(201), -torch.ones(201))}), "c")
    texts = {element.text for element in ElementTree.fromstring(svg).iter("text")}
    assert {"grpo", "reinforce", "ratio", "coefficient", "advantage +1", "advantage −1"} <= texts


def test_the_ratio_table_reads_the_curve():
    up, down = ratio_table({"grpo": CLIPPED}, at=(0.5, 1.0, 1.5))
    assert up == {"recipe": "grpo", "advantage": "+1", "ratio 0.5": 0.5, "ratio 1": 1.0, "ratio 1.5": 0.0}
    assert down == {"recipe": "grpo", "advantage": "−1", "ratio 0.5": 0.0, "ratio 1": -1.0, "ratio 1.5": -1.5}


def test_a_strip_shows_sign_strength_and_absence():
    fragment = strip_html(["7", " ", "<b>", "?"], torch.tensor([2.0, -1.0, 0.0, math.nan]))
    root = ElementTree.fromstring(fragment)
    spans = list(root.iter("span"))
    assert [span.text for span in spans] == ["7", "␣", "<b>", "?"]
    assert spans[0].attrib["style"] == "background:rgba(59,130,196,0.75)"  # the largest, raised
    assert spans[1].attrib["style"] == "background:rgba(207,90,80,0.38)"  # half of it, lowered
    assert spans[2].attrib["style"].endswith(",0.00)")
    assert spans[3].attrib == {"class": "none"}
    assert spans[0].attrib["title"] == "2"


def test_each_recipe_has_its_own_scale():
    roots = strip_html(["a"], {"grpo": torch.tensor([0.001]), "sft": torch.tensor([1.0])})
    assert roots.count("rgba(59,130,196,0.75)") == 2 and "largest |c| 0.001" in roots


def test_the_strip_as_a_figure_holds_every_token_also_when_folded():
    tokens = [f"t{index}" for index in range(30)]
    svg = inline_svg(strip_plot(tokens, {"grpo": torch.linspace(-1, 1, 30), "sft": torch.ones(30)}, width=12), "strip")
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert all(texts.count(token) == 2 for token in tokens) and "grpo" in texts and "sft" in texts
    ElementTree.fromstring(inline_svg(strip_plot([], torch.zeros(0)), "empty"))


def test_the_strip_in_the_terminal_is_the_text():
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(strip_text(["1+1", "=", "[b]2\n"], torch.tensor([math.nan, 0.5, -1.0])))
    assert console.file.getvalue() == "1+1=[b]2↵\n"


def test_what_is_kept_comes_back(tmp_path):
    strip = torch.tensor([0.5, math.nan])
    write_coefficients(tmp_path, {"grpo": CLIPPED}, ["a", "b"], {"grpo": strip})
    json.loads((tmp_path / "coefficients.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    curves, tokens, strips = read_coefficients(tmp_path)
    np.testing.assert_array_equal(curves["grpo"][1], CLIPPED[1].numpy().astype(float))
    np.testing.assert_array_equal(strips["grpo"], strip.numpy().astype(float))
    assert tokens == ["a", "b"] and read_coefficients(tmp_path / "elsewhere") is None


def test_lengths_that_differ_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(QuatrainError, match="'grpo'"):
        ratio_curve_plot({"grpo": (RATIO, RATIO[:3], RATIO)})
    with pytest.raises(QuatrainError, match="one coefficient per token"):
        strip_html(["a", "b"], torch.ones(3))
    (tmp_path / "coefficients.json").write_text('{"curves": [')
    with pytest.raises(QuatrainError, match="damaged"):
        read_coefficients(tmp_path)
