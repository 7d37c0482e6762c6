from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from quatrain.errors import QuatrainError
from quatrain.reports.plots import bars_plot, curves_plot, inline_svg, moving_average, save, seed_band


def test_a_learning_curve_is_well_formed_and_self_contained():
    figure = curves_plot(
        {"grpo": ([0, 10, 20], [0.1, 0.5, 0.7]), "hpt": ([0, 10, 20], [[0.1, 0.6, 0.8], [0.2, 0.5, np.nan]])}, title="Reward"
    )
    svg = inline_svg(figure, 'reward & "more"')
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == 'reward & "more"' and root.attrib["role"] == "img"
    texts = [element.text for element in root.iter("text")]
    assert {"Reward", "grpo", "hpt", "update"} <= set(texts)
    assert "http" not in svg and "<script" not in svg and "xmlns" not in svg
    assert "var(--ink)" in svg


def test_two_figures_on_a_page_share_no_structural_ids():
    ids = [set(re.findall(r'\sid="([^"]+)"', inline_svg(curves_plot({"a": ([0, 1], [0.0, k])}), "a"))) for k in (1.0, 2.0)]
    assert not any(name.startswith(("figure", "axes", "patch", "line2d", "text")) for name in ids[0] | ids[1])


def test_the_same_data_give_the_same_bytes():
    drawn = [inline_svg(curves_plot({"a": (range(5), range(5))}, title="A"), "a") for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("suffix, head", [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_files_of_both_kinds_have_something_in_them(tmp_path, suffix, head):
    path = save(bars_plot({"base": 0.1, "grpo": (0.5, 0.45, 0.55), "none": float("nan")}, title="Accuracy"), tmp_path / f"bars.{suffix}")
    content = path.read_bytes()
    assert content.startswith(head) and len(content) > 2000


def test_curves_without_a_value_and_no_curves_at_all_are_still_figures():
    for curves in ({}, {"kl": ([], [])}, {"kl": ([1, 2], [np.nan, np.inf])}, {"a": ([1], [2.0])}):
        ElementTree.fromstring(inline_svg(curves_plot(curves, title="KL", marks={"sft": 0.0}), "kl"))
    ElementTree.fromstring(inline_svg(bars_plot({}), "nothing"))


def test_names_with_dollar_signs_and_angle_brackets_are_text():
    svg = inline_svg(curves_plot({"a$x_1$": ([0, 1], [0, 1]), "<b>": ([0, 1], [1, 0])}, title="$\\frac$"), "t")
    texts = {element.text for element in ElementTree.fromstring(svg).iter("text")}
    assert {"a$x_1$", "<b>", "$\\frac$"} <= texts


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(QuatrainError, match="'grpo'"):
        curves_plot({"grpo": ([0, 1, 2], [1.0, 2.0])})


def test_a_long_curve_is_drawn_with_few_points():
    long = inline_svg(curves_plot({"a": (np.arange(60_000), np.random.default_rng(0).normal(size=60_000))}), "long")
    assert len(long) < 80_000


def test_the_band_is_the_t_interval_of_the_mean():
    mean, low, high = seed_band(np.array([[1.0, 5.0, np.nan], [2.0, np.nan, np.nan], [3.0, np.nan, np.nan]]))
    # Three values 1, 2, 3: s = 1, t_{0.975, 2} = 4.302653, half width 4.302653/√3.
    np.testing.assert_allclose([mean[0], high[0] - mean[0], mean[0] - low[0]], [2.0, 2.484138, 2.484138], rtol=1e-6)
    assert (mean[1], low[1], high[1]) == (5.0, 5.0, 5.0)
    assert np.isnan([mean[2], low[2], high[2]]).all()


def test_the_moving_average_is_centred_and_keeps_a_line():
    line = np.arange(20.0)
    np.testing.assert_allclose(moving_average(line, 7), line)
    np.testing.assert_allclose(moving_average(np.array([0.0, 3.0, 0.0, 3.0]), 3), [0.0, 1.0, 2.0, 3.0])
    smoothed = moving_average(np.array([1.0, np.nan, 3.0, 2.0]), 3)
    assert np.isnan(smoothed[1]) and smoothed[2] == 2.5


def test_importing_the_reports_does_not_import_matplotlib():
    code = "import sys, quatrain.reports.run, quatrain.reports.table; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
