"""Statistics on data with known answers: by hand, by Student's, by scipy, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from quatrain.errors import QuatrainError
from quatrain.evaluation.statistics import (
    area_under_curve,
    detectable,
    first_reach,
    interquartile_mean,
    interval,
    median_reach,
    paired_interval,
    power,
    probability_of_improvement,
    stretch,
)


def identical_arms(kind: str, rows: int, seeds: int) -> np.ndarray:
    """[rows, seeds] paired differences of two arms that do not differ."""
    random = np.random.default_rng(len(kind) + seeds)

    def arm() -> np.ndarray:
        shape = (rows, seeds)
        if kind == "normal":
            return random.normal(size=shape)
        if kind == "lognormal":
            return random.lognormal(size=shape)
        if kind == "accuracy":
            return random.binomial(256, 0.5, shape) / 256
        return np.where(random.random(shape) < 0.2, 0.1, 0.8) + random.normal(0, 0.02, shape)  # a fifth of the runs collapse

    return arm() - arm()


def excludes_zero(differences: np.ndarray, **options: object) -> float:
    return float(np.mean([found.above or found.below for found in (interval(row, **options) for row in differences)]))


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize("kind", ["normal", "lognormal", "accuracy", "collapse"])
def test_of_200_comparisons_of_identical_arms_at_most_one_in_twenty_finds_a_difference(kind: str, seeds: int):
    most = stats.binom.ppf(0.99, 200, 0.05) / 200  # 0.09
    assert excludes_zero(identical_arms(kind, 200, seeds)) <= most


def test_the_interval_covers_at_its_nominal_rate_and_the_percentile_bootstrap_does_not():
    rows = identical_arms("normal", 1500, 5)
    assert 0.03 < excludes_zero(rows) < 0.055
    assert 0.08 < excludes_zero(rows, level=0.90) < 0.12
    plain = [
        stats.bootstrap((row,), np.mean, method="percentile", n_resamples=299, rng=np.random.default_rng(0)).confidence_interval
        for row in rows[:200]
    ]
    assert np.mean([low > 0 or high < 0 for low, high in plain]) > 0.1


def test_the_interquartile_mean_has_an_interval_that_covers_too():
    assert excludes_zero(identical_arms("normal", 1000, 8)[:200], statistic=interquartile_mean) <= 0.09


def test_several_tasks_are_strata():
    """A task's own level is no spread over seeds: 3 tasks × 5 seeds cover, and are as short as 15 seeds of one task nearly are."""
    random = np.random.default_rng(4)
    rows = random.normal(size=(150, 3, 5))
    wrong = np.mean([found.above or found.below for found in map(interval, rows)])
    assert wrong <= 0.1
    levels = np.array([[0.0], [10.0], [20.0]])
    one = interval(rows[0] + levels)
    assert one.value == pytest.approx(rows[0].mean() + 10)
    assert one.high - one.low == pytest.approx(interval(rows[0]).high - interval(rows[0]).low)


@pytest.mark.parametrize(("effect", "seeds"), [(1.0, 5), (2.0, 5), (1.0, 10)])
def test_a_planted_difference_is_found_with_the_predicted_power(effect: float, seeds: int):
    rows = np.random.default_rng(7).normal(effect, 1.0, (600, seeds))
    found = np.mean([interval(row).above for row in rows])
    assert found == pytest.approx(power(effect, seeds), abs=0.06)


def test_power_by_student():
    """Two hand-checkable ends: no effect is found in half of the false positives, a huge one always."""
    assert power(0.0, 5) == pytest.approx(0.025)
    assert power(10.0, 5) > 0.999
    assert power(detectable(5), 5) == pytest.approx(0.8, abs=1e-6)
    assert detectable(10) < detectable(5) < detectable(3)


def test_few_seeds_by_hand():
    """Differences 0 and 1: the resampled means are 0, ½, 1 with chances ¼, ½, ¼; t(1) = 12.706 and √2 stretch the half of ½."""
    found = interval([0.0, 1.0])
    half = 12.7062 / 1.95996 * np.sqrt(2) * 0.5
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), rel=1e-4)


def test_many_seeds_are_the_percentile_bootstrap_and_student():
    values = np.random.default_rng(1).normal(0.3, 1.0, 400)
    found = interval(values)
    assert stretch(400) == pytest.approx(1.0, abs=0.005)
    low, high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


def test_equal_differences_have_no_width_and_equal_arms_no_difference():
    found = paired_interval([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))
    same = paired_interval([0.5, 0.6], [0.5, 0.6])
    assert (same.value, same.above, same.below, same.within(0.0)) == (0.0, False, False, True)


def test_pairing_removes_what_seeds_share():
    random = np.random.default_rng(3)
    shared, noise = random.normal(0, 5, 6), random.normal(0, 0.1, 6)
    assert paired_interval(shared + 1 + noise, shared).above
    assert not paired_interval(shared + 1 + noise, shared[::-1]).above


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(QuatrainError, match="at least two seeds"):
        interval([0.4])
    with pytest.raises(QuatrainError, match="same shape"):
        paired_interval([0.4, 0.5], [0.4])


def test_interquartile_mean_of_rliable():
    """rliable: scipy's trim_mean with 25 % over all runs of all tasks."""
    scores = np.arange(16.0).reshape(4, 4)
    assert interquartile_mean(scores.reshape(-1)) == np.arange(4, 12).mean()


def test_probability_of_improvement_is_mann_whitney():
    random = np.random.default_rng(5)
    x, y = random.integers(0, 4, 7).astype(float), random.integers(0, 4, 7).astype(float)
    assert probability_of_improvement(x, y) == pytest.approx(stats.mannwhitneyu(x, y).statistic / 49)
    assert probability_of_improvement([x, y], [y, x]) == pytest.approx(0.5)  # two tasks that cancel
    assert probability_of_improvement([2.0, 3.0], [0.0, 1.0]) == 1.0


def test_area_is_the_mean_height_whatever_the_spacing():
    assert area_under_curve([0, 2], [0.0, 1.0]) == 0.5
    assert area_under_curve([0, 1, 1.5, 2], [0.0, 0.5, 0.75, 1.0]) == pytest.approx(0.5)
    assert area_under_curve([0, 1, 2], [0.0, np.nan, 1.0]) == 0.5
    assert np.isnan(area_under_curve([0], [np.nan]))


def test_reaching_is_censored_honestly():
    assert first_reach([0, 5, 9], [0.2, np.nan, 0.7], 0.7) == 9
    assert first_reach([0, 5], [0.2, 0.3], 0.7) == np.inf
    assert median_reach([7.0, 3.0, np.inf, 5.0, 4.0]) == (5.0, 4)
    assert median_reach([np.inf, np.inf, 1.0, 2.0, np.inf]) == (np.inf, 2)
    assert median_reach([1.0, np.inf]) == (np.inf, 1)
