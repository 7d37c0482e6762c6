from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from quatrain.errors import QuatrainError
from quatrain.reports.table import Estimate, html_table, layout, markdown_table, results_table

ROWS = [
    {"arm": "base", "accuracy": 0.061, "tokens": 0},
    {"arm": "grpo", "accuracy": Estimate.around(0.5, 0.025), "tokens": 1_024_000},
    {"arm": "hpt", "accuracy": Estimate(0.625, 0.6, 0.7), "tokens": 990_000, "seconds": 61.25},
]


def bold(rows, best=None):
    names, cells = layout(rows, best)
    return {(rows[index]["arm"], names[column]) for index, line in enumerate(cells) for column, cell in enumerate(line) if cell.best}


def test_numbers_intervals_and_gaps_as_text():
    names, cells = layout(ROWS)
    assert names == ["arm", "accuracy", "tokens", "seconds"]
    assert [[cell.text for cell in line] for line in cells] == [
        ["base", "0.061", "0", "–"],
        ["grpo", "0.500 ± 0.025", "1,024,000", "–"],
        ["hpt", "0.625 [0.600, 0.700]", "990,000", "61.2"],
    ]


def test_the_best_value_is_bold_in_its_direction():
    assert bold(ROWS) == {("hpt", "accuracy")}
    assert bold(ROWS, {"tokens": "min", "accuracy": "min"}) == {("base", "tokens"), ("base", "accuracy")}
    assert bold(ROWS, {}) == set()


def test_what_prints_alike_is_equally_good_and_a_lone_value_is_not_judged():
    rows = [{"arm": "a", "reward": 0.50001}, {"arm": "b", "reward": 0.50002}, {"arm": "c", "reward": 0.2}]
    assert bold(rows) == {("a", "reward"), ("b", "reward")}
    assert bold(rows[:2]) == set()
    assert bold([{"arm": "a", "reward": 0.5}, {"arm": "b", "reward": math.nan}]) == set()


def test_a_wrong_direction_is_refused():
    with pytest.raises(QuatrainError, match="largest or smallest"):
        layout(ROWS, {"accuracy": "up"})


def test_the_terminal_table_aligns_numbers_right():
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(results_table(ROWS, title="results"))
    lines = [line.strip() for line in console.file.getvalue().splitlines()]
    assert any(line.startswith("results") for line in lines)
    base, grpo = (next(line for line in lines if line.startswith(name)) for name in ("base", "grpo"))
    ends = [line.index(number) + len(number) for line, number in ((base, "0.061"), (grpo, "0.500 ± 0.025"))]
    assert ends[0] == ends[1]


def test_names_are_never_taken_for_markup():
    console = Console(file=io.StringIO(), width=60, color_system=None)
    console.print(results_table([{"arm": "[red]x[/red]", "note": "a|b*c"}]))
    assert "[red]x[/red]" in console.file.getvalue()
    assert "a\\|b\\*c" in markdown_table([{"note": "a|b*c"}])
    assert "&lt;b&gt;" in html_table([{"<b>": 1}]) and "<b>" not in html_table([{"<b>": 1}])


def test_small_and_large_numbers_keep_their_digits():
    assert [line[0].text for line in layout([{"lr": 1e-4}, {"lr": 2.5e-5}])[1]] == ["0.000100", "0.000025"]
    assert [line[0].text for line in layout([{"x": math.inf}, {"x": 2.0}, {"x": None}])[1]] == ["∞", "2.00", "–"]


def test_no_rows_make_an_empty_table():
    assert layout([]) == ([], [])
