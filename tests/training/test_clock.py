"""The simulated clock, by hand."""

from __future__ import annotations

import pytest

from quatrain.errors import QuatrainError
from quatrain.training.clock import Clock


def test_a_row_costs_less_in_company_and_more_on_a_share_of_the_machine() -> None:
    clock = Clock(step=2.0, row=0.5, token=0.1, share=0.25)
    assert clock.decoding(1, False) == 2.5 and clock.decoding(8, False) == 6.0 < 8 * clock.decoding(1, False)
    assert clock.decoding(8, True) == 2.0 + 0.5 * 8 / 0.25
    assert clock.training(30, False) == pytest.approx(3.0) and clock.training(30, True) == pytest.approx(4.0)


@pytest.mark.parametrize("wrong", [{"step": -1.0}, {"share": 1.0}, {"share": 0.0}, {"token": -1e-9}])
def test_an_impossible_clock_is_refused(wrong: dict) -> None:
    with pytest.raises(QuatrainError, match="clock"):
        Clock(**wrong)
