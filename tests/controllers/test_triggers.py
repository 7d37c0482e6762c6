"""Triggers: the round that pulls, and that it is remembered."""

from __future__ import annotations

import pytest

from quatrain.controllers.triggers import LeavesWindow, z_score
from quatrain.errors import QuatrainError
from quatrain.training.state import State
from tests.toy import ToyTask


def rounds(series: list[float], trigger: LeavesWindow, state: State | None = None) -> list[int]:
    """The places in the series at which the knob was set."""
    state = state or State(ToyTask(), {})
    return [place for place, value in enumerate(series) if trigger(state, {"entropy": value})]


def test_it_pulls_at_the_first_outlier_after_the_window_and_once():
    series = [1.0, 2.0, 1.0, 2.0, 1.5, 2.9, 3.1, 9.0]  # σ = 0.5 or less, μ = 1.5 or so
    assert z_score(3.1, [1.0, 2.0, 1.0, 2.0]) == pytest.approx(3.2)
    assert rounds(series, LeavesWindow("alpha", window=4, threshold=2.5)) == [5]
    assert rounds(series, LeavesWindow("alpha", window=4, threshold=5.0)) == [7]
    assert rounds([9.0, -9.0, 9.0], LeavesWindow("alpha", window=3, threshold=0.1)) == []  # the window is not full
    assert rounds([1.0, 1.0, 1.0, 1.0], LeavesWindow("alpha", window=2, threshold=0.1)) == []  # no spread


def test_a_fall_counts_as_a_rise_does_and_a_silent_round_does_not():
    trigger = LeavesWindow("alpha", window=2, threshold=3.0, value=0.25)
    state = State(ToyTask(), {})
    assert [trigger(state, {"entropy": x} if x else {}) for x in (1.0, 2.0, 0.0, -0.1)] == [{}, {}, {}, {"alpha": 0.25}]


@pytest.mark.parametrize("cut", range(7))
def test_resumed_it_pulls_at_the_same_round(cut: int):
    series, trigger = [1.0, 2.0, 1.0, 2.0, 1.5, 2.9, 3.1, 9.0], LeavesWindow("alpha", window=4, threshold=5.0)
    before = State(ToyTask(), {})
    rounds(series[:cut], trigger, before)
    after = State(ToyTask(), {})
    after.load_state_dict(before.state_dict())
    assert [cut + place for place in rounds(series[cut:], trigger, after)] == [7]


def test_bad_options():
    with pytest.raises(QuatrainError, match="two values"):
        LeavesWindow("alpha", window=1)
    with pytest.raises(QuatrainError, match="above 0"):
        LeavesWindow("alpha", threshold=0.0)
