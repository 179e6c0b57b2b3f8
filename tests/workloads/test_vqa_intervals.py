"""Intervals against closed forms, and draws of questions against what they promise."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewatt.workloads.vqa.intervals import bootstrap, wilson
from edgewatt.workloads.vqa.sampling import drawn


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3 (Wilson without continuity correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_as_published(right, n, low, high):
    assert wilson(right / n, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_without_trials_is_refused():
    with pytest.raises(ValueError, match="no trials"):
        wilson(0.5, 0)


@settings(deadline=None, database=None)
@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share(counts):
    right, n = counts
    low, high = wilson(right / n, n)
    assert 0 <= low <= right / n + 1e-12
    assert right / n - 1e-12 <= high <= 1


def test_bootstrap_of_a_mean_is_that_of_the_normal_distribution():
    values = np.repeat([0.0, 1.0], 500)
    low, high = bootstrap(lambda w: w @ values / w.sum(axis=1), [None] * 1000, 0)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.5 / 1000**0.5, 0.5 + 1.96 * 0.5 / 1000**0.5), abs=0.004)


def test_bootstrap_keeps_each_stratum_at_its_size():
    strata = ["a"] * 3 + ["b"] * 5

    def check(weights):
        assert set(weights[:, :3].sum(axis=1)) == {3}
        assert set(weights[:, 3:].sum(axis=1)) == {5}
        return weights[:, 0]

    assert bootstrap(check, strata, 0) is not None


def test_bootstrap_is_repeated_by_its_seed():
    values = np.arange(50.0)

    def mean(weights):
        return weights @ values / weights.sum(axis=1)

    assert bootstrap(mean, [0] * 50, 3) == bootstrap(mean, [0] * 50, 3) != bootstrap(mean, [0] * 50, 4)


def test_bootstrap_of_a_single_group_tells_nothing():
    assert bootstrap(lambda w: w[:, 0], ["a"], 0) is None
    assert bootstrap(lambda w: w[:, 0], ["a", "b", "b"], 0) is None
    assert bootstrap(lambda w: w[:, 0], [], 0) is None
    assert bootstrap(lambda w: w[:, 0] * np.nan, ["a", "a"], 0) is None


# ---------------------------------------------------------------------------------------------------------------------
# Draws


@settings(deadline=None, database=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.integers(1, 50), st.integers(0, 9))
def test_draw_takes_whole_groups_in_order(groups, limit, seed):
    strata = [g % 3 for g in groups]
    taken = drawn(groups, strata, limit, seed)
    assert taken == sorted(set(taken))
    assert taken == drawn(groups, strata, limit, seed)
    kept = {groups[k] for k in taken}
    assert taken == [k for k, g in enumerate(groups) if g in kept]
    assert len(taken) <= limit or len(kept) == 1


def test_every_question_is_drawn_as_often():
    counts = collections.Counter(k for seed in range(2000) for k in drawn(range(20), [None] * 20, 5, seed))
    # 500 of 2000 each, with a standard deviation of 19.4; none of twenty may be five of them off.
    assert min(counts.values()) > 403
    assert max(counts.values()) < 597


def test_strata_are_drawn_from_alike():
    strata = ["small"] * 4 + ["large"] * 96
    taken = collections.Counter(strata[k] for k in drawn(range(100), strata, 20, 0))
    assert taken == {"small": 4, "large": 16}
    taken = collections.Counter(strata[k] for k in drawn(range(100), strata, 6, 0))
    assert taken == {"small": 3, "large": 3}
