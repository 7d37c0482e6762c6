"""Metrics of choosing policies by estimates, by hand; intervals by formula and by coverage."""

from __future__ import annotations

import math

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.evaluation.off_policy.intervals import INTERVALS, empirical_bernstein, find_interval, hoeffding, student
from quatrain.evaluation.off_policy.selection import portfolio, rank_correlation, regret, squared_error, top, wrong_calls

TRUE = torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_errors_and_ranks_by_hand():
    estimate = torch.tensor([1.0, 3.0, 2.0, 5.0])
    assert squared_error(estimate, TRUE) == 0.75
    assert rank_correlation(estimate, TRUE) == pytest.approx(0.8) and rank_correlation(-TRUE, TRUE) == pytest.approx(-1)
    assert math.isnan(rank_correlation(torch.ones(4), TRUE))
    assert regret(estimate, TRUE) == 0 and regret(-estimate, TRUE) == 3 and regret(-estimate, TRUE, k=2) == 1
    # good are 3 and 4; called good are those estimated at 2.5 or more: 2 and 4
    assert wrong_calls(estimate, TRUE, 2.5) == (0.5, 0.5)
    assert math.isnan(wrong_calls(estimate, TRUE, 0.0)[0]) and math.isnan(wrong_calls(estimate, TRUE, 9.0)[1])


def test_sharpe_ratio_by_hand():
    """Best three of four by estimate have true values 4, 2, 1; the behaviour policy 1.5: (4 − 1.5)/std, std² = (25/9 + 1/9 + 16/9)/2."""
    found = portfolio(torch.tensor([2.0, 3.0, 1.0, 4.0]), TRUE, 3, baseline=1.5)
    assert (found.best, found.worst, found.mean) == (4, 1, pytest.approx(7 / 3))
    assert found.std == pytest.approx(math.sqrt(42 / 18)) and found.sharpe == pytest.approx(2.5 / math.sqrt(42 / 18))
    assert found.violations == pytest.approx(1 / 3)


def test_sharpe_ratio_tells_apart_what_error_and_ranks_do_not():
    """Two estimators with one squared error and one rank correlation: one overestimates the worst policy, one underestimates the best."""
    true = torch.tensor([0.0, 1.0, 2.0, 3.0])
    over, under = torch.tensor([2.5, 1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 2.0, 0.5])
    assert squared_error(over, true) == squared_error(under, true)
    assert rank_correlation(over, true) == pytest.approx(rank_correlation(under, true))
    risky, blind = portfolio(over, true, 2, 0.5), portfolio(under, true, 2, 0.5)
    assert risky.sharpe != blind.sharpe and risky.violations == 0.5 and blind.violations == 0


def test_ends_of_the_portfolio():
    single = portfolio(TRUE, TRUE, 1, baseline=0.0)
    assert math.isnan(single.std) and math.isnan(single.sharpe) and single.best == 4
    assert portfolio(TRUE, torch.ones(4), 2, baseline=0.0).sharpe == math.inf
    assert math.isnan(portfolio(TRUE, torch.ones(4), 2, baseline=2.0).sharpe)
    assert portfolio(TRUE, TRUE, 2, baseline=9.0).sharpe == 0
    with pytest.raises(QuatrainError, match="best k"):
        top(TRUE, 5)


def test_intervals_by_formula():
    values = torch.tensor([0.0, 1.0] * 50)
    assert hoeffding(values, 0.95, width=2.0).high - 0.5 == pytest.approx(2 * math.sqrt(math.log(40) / 200))
    assert student(values).high - 0.5 == pytest.approx(1.984217 * float(values.std()) / 10, rel=1e-5)
    log = math.log(80)
    half = math.sqrt(2 * float(values.var()) * log / 100) + 7 * log / (3 * 99)
    assert empirical_bernstein(values, 0.95, width=1.0).high - 0.5 == pytest.approx(half)
    with pytest.raises(QuatrainError, match="did you mean 'bootstrap'"):
        find_interval("bootstrp")


@pytest.mark.parametrize("name", INTERVALS)
def test_intervals_cover(name: str):
    """Of 300 samples of 60 uniform numbers at least 92 % of 95 % intervals contain ½."""
    g, inside = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        found = find_interval(name)(torch.rand(60, generator=g).double(), 0.95)
        inside += found.low <= 0.5 <= found.high
    assert inside >= 276
