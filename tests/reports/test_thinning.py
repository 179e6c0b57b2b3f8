import numpy as np

from edgewatt.reports.thinning import drawn


def test_few_points_are_all_drawn():
    x = np.arange(100.0)
    found = drawn(x, x * 2, points=100)
    assert (found.shown, found.total) == (100, 100)
    np.testing.assert_array_equal(found.y, x * 2)


def test_long_series_is_thinned_and_keeps_a_single_spike():
    x = np.arange(200_000.0)
    y = np.zeros(200_000)
    y[123_456] = 50.0
    y[77_777] = -30.0
    found = drawn(x, y, points=1000)
    assert found.total == 200_000
    assert found.shown <= 1010
    assert 50.0 in found.y
    assert -30.0 in found.y
    assert (found.x[0], found.x[-1]) == (0.0, 199_999.0)


def test_missing_value_breaks_the_line_there():
    y = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    found = drawn(np.arange(5.0), y)
    np.testing.assert_array_equal(found.y, [1, 2, np.nan, 4, 5])
    assert (found.shown, found.total) == (4, 4)


def test_gap_between_readings_breaks_the_line_though_none_is_missing():
    x = np.array([0.0, 1.0, 10.0, 11.0])
    found = drawn(x, np.ones(4), breaks=np.array([[1.0, 10.0]]))
    np.testing.assert_array_equal(found.y, [1, 1, np.nan, 1, 1])
    np.testing.assert_array_equal(found.x, [0, 1, 5.5, 10, 11])


def test_gap_survives_thinning_with_both_its_edges():
    x = np.concatenate([np.arange(0, 50_000.0), np.arange(60_000, 110_000.0)])
    found = drawn(x, np.sin(x / 100), breaks=np.array([[49_999.0, 60_000.0]]), points=500)
    assert found.shown < 600
    at = int(np.flatnonzero(np.isnan(found.y))[0])
    assert (found.x[at - 1], found.x[at + 1]) == (49_999.0, 60_000.0)


def test_as_many_gaps_as_points_do_not_undo_the_thinning():
    y = np.ones(100_000)
    y[::2] = np.nan
    found = drawn(np.arange(100_000.0), y, points=400)
    assert len(found.x) < 1000


def test_nothing_readable_draws_nothing():
    assert drawn(np.arange(3.0), np.full(3, np.nan)).shown == 0
    assert len(drawn(np.empty(0), np.empty(0)).x) == 0
