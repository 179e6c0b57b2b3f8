"""Error bars against closed forms, scipy, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from edgewatt.harness.statistics import mean_t, quantile, quantiles_of_groups, ratio_of_sums


@pytest.mark.parametrize("q", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_quantile_is_numpys(q):
    x = np.random.default_rng(1).exponential(size=501)
    assert quantile(x, q, 0)[0] == np.quantile(x, q)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.37])
def test_half_width_is_that_of_a_bootstrap_done_by_hand(q):
    random = np.random.default_rng(2)
    x = random.exponential(size=400)
    draws = np.quantile(random.choice(x, (4000, len(x))), q, axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert quantile(x, q, 7)[1] == pytest.approx((high - low) / 2, rel=0.15)


@pytest.mark.parametrize(("q", "n"), [(0.5, 30), (0.5, 300), (0.9, 300), (0.99, 3000)])
def test_interval_of_a_quantile_holds_the_truth(q, n):
    random = np.random.default_rng(3)
    true = -np.log(1 - q)  # of the exponential distribution
    inside = []
    for k in range(400):
        value, half = quantile(random.exponential(size=n), q, k)
        inside.append(abs(value - true) <= half)
    assert np.mean(inside) > 0.88  # short of 95 % for few values, as bootstraps of quantiles are


def test_same_seed_gives_the_same_bar():
    x = np.random.default_rng(5).normal(size=100)
    assert quantile(x, 0.9, 1) == quantile(x, 0.9, 1)
    assert ratio_of_sums(x + 9, x + 8, 1) == ratio_of_sums(x + 9, x + 8, 1)


def test_ratio_is_of_sums_not_a_mean_of_ratios():
    # 10 J for 1 item, 10 J for 9 items: 2 J an item; the mean of 10 and 1.11 would be 5.6.
    assert ratio_of_sums([10, 10], [1, 9], 0)[0] == pytest.approx(2.0)


@pytest.mark.parametrize("n", [3, 5, 10, 40])
def test_interval_of_a_ratio_holds_the_truth(n):
    random = np.random.default_rng(6)
    inside = []
    for k in range(400):
        items = random.uniform(80, 120, n)
        joules = 2.5 * items * (1 + 0.05 * random.standard_normal(n))
        value, half = ratio_of_sums(joules, items, k)
        inside.append(abs(value - 2.5) <= half)
    assert np.mean(inside) > 0.92


def test_equal_repeats_leave_no_spread():
    assert ratio_of_sums([4, 4, 4], [2, 2, 2], 0) == (2.0, pytest.approx(0.0, abs=1e-12))


def test_mean_is_students():
    x = np.random.default_rng(7).normal(10, 3, 12)
    low, high = stats.t.interval(0.95, len(x) - 1, loc=x.mean(), scale=stats.sem(x))
    value, half = mean_t(x)
    assert value == pytest.approx(x.mean())
    assert half == pytest.approx((high - low) / 2)


def test_two_values_by_hand():
    # Mean 2, standard deviation sqrt(2), t(0.975, 1) = 12.706: 12.706 x sqrt(2) / sqrt(2).
    assert mean_t([1, 3]) == (2.0, pytest.approx(12.706, abs=0.001))


def test_missing_values_are_left_out():
    assert mean_t([1, np.nan, 3])[0] == 2.0
    assert quantile([1, np.nan, 3], 0.5, 0)[0] == 2.0


def test_what_cannot_be_known_is_nan():
    assert np.isnan(mean_t([])[0]) and np.isnan(quantile([], 0.5, 0)[0])
    for value, half in (mean_t([5.0]), quantile([5.0], 0.5, 0), ratio_of_sums([10], [2], 0)):
        assert value == 5.0 and np.isnan(half)


def test_unequal_rows_are_refused():
    with pytest.raises(ValueError, match="equal rows"):
        ratio_of_sums([1, 2], [1], 0)


def test_quantile_of_groups_is_as_wide_as_that_of_one_value_each():
    """101 groups of ten equal values: the median's interval runs from the 41st to the 61st group (binomial)."""
    values = np.repeat(np.arange(1.0, 102.0), 10)
    ((value, width),) = quantiles_of_groups(values, values, [0.5], 1)
    assert value == 51
    assert width == pytest.approx(10, abs=2)


def test_quantile_of_groups_that_are_all_alike_is_known():
    values, groups = np.tile(np.arange(10.0), 20), np.repeat(np.arange(20), 10)
    assert quantiles_of_groups(values, groups, [0.5, 0.9], 1) == [(4.5, 0), (pytest.approx(8.1), 0)]


def test_quantile_of_one_group_has_no_interval():
    ((value, width),) = quantiles_of_groups([1.0, 2.0, 3.0], [7, 7, 7], [0.5], 1)
    assert value == 2 and np.isnan(width)


def test_quantile_of_many_groups_agrees_with_plain_draws_of_them():
    """Two hundred groups of fifty values around a middle of their own, more than the ranks that are told apart."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(200, 1)) + 0.3 * rng.normal(size=(200, 50))
    plain = [np.quantile(values[rng.integers(0, 200, 200)], [0.5, 0.9]) for _ in range(1000)]
    found = quantiles_of_groups(values.ravel(), np.repeat(np.arange(200), 50), [0.5, 0.9], 1)
    for (value, width), q, spread in zip(found, (0.5, 0.9), np.std(plain, axis=0), strict=True):
        assert value == np.quantile(values, q)
        assert width == pytest.approx(1.97 * spread, rel=0.15)
