import numpy as np
import pytest

from edgewatt.harness.api import Items, Phase
from edgewatt.reports import latency
from support.hand_runs import bare_run, items_of


def run_of(latencies_s):
    items, window = items_of(latencies_s)
    return bare_run(items=items, phases=[window])


def test_item_lasts_from_its_first_phase_to_the_end_of_its_last():
    # Two items of two phases, half a millisecond between the phases of the second.
    start = np.array([1.0, 1.010, 1.020, 1.0305])
    end = np.array([1.010, 1.020, 1.030, 1.0405])
    ids = np.array([0, 0, 1, 1])
    zeros = np.zeros(4, np.int64)
    items = Items(("a", "b"), ids, ids, np.array([0, 1, 0, 1]), zeros, zeros, start, end)
    found = latency.latencies(bare_run(items=items, phases=[Phase("window", 1.0, 2.0, 2)]))
    np.testing.assert_allclose(found.latency_s, [0.020, 0.0205])


def test_items_of_the_warmup_are_in_no_figure():
    items, window = items_of([0.01] * 5)
    warm = Items(items.names, items.item, items.picture, items.phase, items.part, items.repeat, items.start_s,
                 items.end_s, ("warmup",))  # fmt: skip
    run = bare_run(items=warm, phases=[Phase("warmup", window.start_s, window.end_s, 5)])
    assert len(latency.latencies(run)) == 0
    assert latency.warmup_items(run) == 5


def test_histogram_counts_every_item_or_says_how_many_lie_beyond():
    values = [0.010, 0.011, 0.012, 0.013] * 250 + [0.5]
    found = latency.histogram(latency.latencies(run_of(values)))
    assert found.counts.sum() == 1000
    assert found.beyond == 1
    assert found.words == "1 item lies beyond the right edge; the slowest took 500.0 ms."
    assert found.unit == "ms"
    assert found.edges[0] == pytest.approx(10.0)


def test_histogram_of_equal_latencies_has_one_bar():
    found = latency.histogram(latency.latencies(run_of([0.25] * 8)))
    assert found.counts.max() == found.counts.sum() == 8
    assert found.words == ""


def test_ecdf_rises_by_one_item_at_a_time():
    x, share = latency.ecdf(latency.latencies(run_of([0.3, 0.1, 0.2, 0.4])))
    np.testing.assert_allclose(x, [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(share, [0.25, 0.5, 0.75, 1.0])


def test_ecdf_of_many_items_is_thinned_but_keeps_its_tail():
    rng = np.random.default_rng(3)
    values = rng.uniform(0.01, 0.02, 50_000)
    x, share = latency.ecdf(latency.latencies(run_of(values)), points=300)
    assert len(x) <= 600
    assert x[-1] == pytest.approx(values.max())
    assert share[-1] == 1.0
    # Uniform: the share grows linearly with the latency.
    np.testing.assert_allclose(share, (x - 0.01) / 0.01, atol=0.02)


def test_drift_shows_as_a_slope_of_the_medians():
    points, line = latency.over_time(latency.latencies(run_of(np.linspace(0.010, 0.020, 1000))), 10.0)
    there = np.isfinite(line.y)
    assert (points.shown, points.total) == (1000, 1000)
    assert line.y[there][0] == pytest.approx(0.0101, abs=1e-4)
    assert line.y[there][-1] == pytest.approx(0.0199, abs=1e-4)
    assert np.isnan(line.y[-1])  # the line ends with its window
