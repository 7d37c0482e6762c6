from __future__ import annotations

import io
import math

import pytest
import torch
from rich.console import Console

from quatrain.training.live import BLOCKS, LiveView, duration, short, sparkline


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=100)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None, _environ={"TERM": "xterm"})


def test_without_a_terminal_it_writes_plain_lines_now_and_then():
    console = plain()
    with LiveView(100, "grpo", console=console, every=3600.0) as view:
        assert view.plain
        for step in range(1, 101):
            view.update(step, {"reward": step / 100, "accuracy": 0.5, "gradient_norm": 3.0})
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2  # the first update and the last one
    assert lines[0].startswith("grpo  1/100  reward 0.010  accuracy 0.500")
    assert lines[1].startswith("grpo  100/100  reward 1.00") and "0s left" in lines[1]
    assert "\x1b" not in console.file.getvalue() and "gradient_norm" not in console.file.getvalue()
    assert console.file.getvalue().isascii()


def test_every_update_is_a_line_if_no_time_needs_to_pass():
    console = plain()
    with LiveView(3, "sft", console=console, every=0.0) as view:
        for step in (1, 2, 3):
            view.update(step, {"loss": 1.0 / step})
    assert len(console.file.getvalue().splitlines()) == 3


def test_an_interrupted_run_still_says_how_far_it_came():
    console = plain()
    with pytest.raises(KeyboardInterrupt), LiveView(100, "grpo", console=console, every=3600.0) as view:
        view.update(1, {"reward": 0.1})
        view.update(42, {"reward": 0.4})
        raise KeyboardInterrupt
    assert console.file.getvalue().splitlines()[-1].startswith("grpo  42/100  reward 0.400")


def test_a_pipe_is_plain_even_if_colour_is_forced(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with LiveView(1, "grpo") as view:
        view.update(1, {})
        assert view.plain
    assert "grpo  1/1" in capsys.readouterr().out


def test_in_a_terminal_it_draws_progress_and_histories_in_place():
    console = terminal()
    with LiveView(4, "grpo", console=console) as view:
        assert not view.plain
        for step in (1, 2, 3, 4):
            view.update(step, {"reward": float(step), "tokens_per_second": 1234.0})
        view.note("checkpoint [4] written")
    drawn = console.file.getvalue()
    assert "4/4" in drawn and "▁▃▆█" in drawn and "1.23k" in drawn and "tokens/s" in drawn
    assert "checkpoint [4] written" in drawn
    assert "entropy" not in drawn


@pytest.mark.parametrize("console", [plain, terminal])
@pytest.mark.parametrize(
    "metrics", [None, {}, {"reward": math.nan}, {"reward": math.inf, "ratio": None}, {"entropy": "x"}, {"ratio": torch.zeros(2)}]
)
def test_absent_and_impossible_metrics_are_no_error(console, metrics):
    with LiveView(0, "grpo", console=console(), every=0.0) as view:
        view.update(0, metrics)
        view.update(5, metrics)
        view.update(6, {"reward": torch.tensor(0.5)})
    assert "0.500" in view.console.file.getvalue()


def test_time_left_counts_from_where_the_run_resumed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("quatrain.training.live.time.monotonic", lambda: now[0])
    view = LiveView(100, "grpo", start=80, console=plain())
    assert "left" not in view.line()
    now[0] = 10.0
    view.update(90)
    assert view.line() == "grpo  90/100  10s elapsed  10s left"


def test_sparkline_shares_a_long_history_among_its_columns():
    assert sparkline([0.0] * 50 + [1.0] * 50, width=4) == "▁▁██"
    assert len(sparkline(range(1000), width=32)) == 32
    assert sparkline(range(1000), width=8) == BLOCKS
    assert sparkline([math.nan, 1.0, math.inf]) == "▄" and sparkline([]) == ""


def test_numbers_stay_short_over_the_whole_range():
    values = [sign * 10.0**exponent * 9.99 for exponent in range(-9, 12) for sign in (1, -1)]
    assert max(len(short(value)) for value in values) <= 8
    assert short(999.9) == "1.00k" and short(math.nan) == "–"
    assert duration(59.7) == "1m00s"
