"""Times from a sample counter and arrivals: nothing arrives early, so what lies below all arrivals is the truth."""

import time

import numpy as np
import pytest

from edgewatt.devices import arrival
from edgewatt.harness.api import Floats

BOOT_S = 86_400.0 * 30 + 0.123456  # a month of uptime: differences of large numbers


def late(n: int, seed: int, least_s: float = 0.0, mean_s: float = 2e-3) -> Floats:
    return least_s + np.random.default_rng(seed).exponential(mean_s, n)


def made(seconds: float, rate_hz: float, ppm: float, seed: int) -> tuple[Floats, Floats, Floats]:
    """The meter's clock, the true times, and arrivals that keep their order."""
    clock_s = np.arange(round(seconds * rate_hz)) / rate_hz + 17.0
    true_s = BOOT_S + clock_s * (1 + ppm * 1e-6)
    return clock_s, true_s, np.maximum.accumulate(true_s + late(len(clock_s), seed))


@pytest.mark.parametrize("ppm", [0, 300, -300, 4000])
def test_offset_and_drift_are_found_below_random_lateness(ppm: float) -> None:
    clock_s, true_s, arrival_s = made(120, 1000, ppm, 1)
    found = arrival.times(np.zeros(len(clock_s)), clock_s, arrival_s)
    assert np.max(np.abs(found.t_s - true_s)) < 0.2e-3
    assert found.drift * 1e6 == pytest.approx(ppm, abs=3)
    assert np.max(np.abs(found.t_s - true_s)) <= found.bound_s < 3e-3
    assert found.unplaced == 0


@pytest.mark.parametrize("seed", range(20))
def test_bound_holds_for_short_traces_of_slow_meters(seed: int) -> None:
    clock_s, true_s, arrival_s = made(20, 10, 40, seed)
    found = arrival.times(np.zeros(len(clock_s)), clock_s, arrival_s)
    assert np.nanmax(np.abs(found.t_s - true_s)) <= found.bound_s


def test_backlog_that_arrives_at_once_moves_nothing() -> None:
    clock_s, true_s, arrival_s = made(60, 1000, 300, 2)
    held = (true_s > true_s[20_000]) & (true_s < true_s[35_000])  # 15 of 60 s
    arrival_s = np.where(held, np.maximum(arrival_s, true_s[35_000]), arrival_s)
    found = arrival.times(np.zeros(len(clock_s)), clock_s, arrival_s)
    assert np.max(np.abs(found.t_s - true_s)) < 0.3e-3
    assert found.bound_s < 5e-3
    assert found.late_s[1] > 14


def test_rows_lost_uncounted_are_a_gap_where_they_were_lost() -> None:
    _, true_s, arrival_s = made(30, 1000, 100, 3)
    kept = (np.arange(30_000) < 12_000) | (np.arange(30_000) >= 14_500)
    segment = np.where(np.arange(30_000) < 12_000, 0.0, 1.0)[kept]
    found = arrival.times(segment, np.arange(kept.sum()) / 1000, arrival_s[kept])  # its counter knows of no loss
    assert np.max(np.abs(found.t_s - true_s[kept])) <= found.bound_s < 4e-3
    assert found.starts == (0, 12_000)
    assert np.diff(found.t_s)[11_999] == pytest.approx(2.501, abs=2 * found.bound_s)


def test_segments_between_which_nothing_was_lost_are_one() -> None:
    clock_s, true_s, arrival_s = made(30, 1000, 0, 4)
    segment = np.arange(30_000) // 900
    found = arrival.times(segment.astype(float), clock_s, arrival_s)
    assert found.starts == (0,)
    assert found.unplaced == 0 and np.max(np.abs(found.t_s - true_s)) <= found.bound_s


@pytest.mark.parametrize("ppm", [4000, -4000])
def test_drift_is_found_over_several_segments(ppm: float) -> None:
    _, true_s, arrival_s = made(60, 1000, ppm, 6)
    kept = np.ones(60_000, bool)
    kept[[*range(20_000, 21_000), *range(40_000, 43_000)]] = False
    segment = np.searchsorted([20_000, 40_000], np.arange(60_000), side="right")[kept].astype(float)
    found = arrival.times(segment, np.arange(kept.sum()) / 1000, arrival_s[kept])  # its counter knows of no loss
    assert found.drift * 1e6 == pytest.approx(ppm, abs=20)
    assert np.max(np.abs(found.t_s - true_s[kept])) <= found.bound_s < 4e-3


@pytest.mark.parametrize("speed", [1.15, 1.3, 3.0, 1000.0])
def test_backlog_that_drains_slowly_has_no_offset_of_its_own(speed: float) -> None:
    """2 s of a stall's backlog come at so much more than the meter's pace; then a second is lost uncounted."""
    _, true_s, arrival_s = made(30, 1000, 0, 7)
    backlog = slice(10_000, 12_000)
    arrival_s[backlog] = np.maximum(true_s[12_500] + np.arange(2000) / 1000 / speed, arrival_s[backlog])
    lost = int(np.searchsorted(true_s, arrival_s[11_999]))  # what is new comes when the backlog has, and no earlier
    kept = np.ones(30_000, bool)
    kept[12_000:lost] = False
    rows = np.arange(30_000)
    segment = np.where(rows < 10_000, 0.0, np.where(rows < 12_000, 1.0 + rows // 100, 1000.0))
    found = arrival.times(segment[kept], np.arange(kept.sum()) / 1000, arrival_s[kept])
    off_s = found.t_s - true_s[kept]
    assert np.nanmax(np.abs(off_s)) <= found.bound_s < 10e-3
    assert np.isfinite(off_s[:10_000]).all() and np.isfinite(off_s[12_000:]).all()


def test_rest_of_a_backlog_without_an_offset_of_its_own_is_not_placed() -> None:
    """The port hung for 3 s; the first of them were kept and came at once, the rest was lost, nobody knows how many."""
    clock_s, true_s, arrival_s = made(30, 1000, 0, 5)
    kept = (np.arange(30_000) < 11_000) | (np.arange(30_000) >= 13_000)
    held = (np.arange(30_000) >= 10_000) & (np.arange(30_000) < 13_000)
    arrival_s = np.where(held, true_s[13_000], arrival_s)[kept]
    segment = np.select([np.arange(30_000) < 10_000, np.arange(30_000) < 11_000], [0.0, 1.0], 2.0)[kept]
    clock_s = np.where(np.arange(30_000) < 13_000, clock_s, clock_s - 1.7)[kept]  # as if 300 had been lost
    found = arrival.times(segment, clock_s, arrival_s)
    assert found.unplaced == 1000 and np.isnan(found.t_s[10_000:11_000]).all()
    placed = np.isfinite(found.t_s)
    assert np.max(np.abs(found.t_s - true_s[kept])[placed]) <= found.bound_s < 4e-3


@pytest.mark.parametrize("seed", range(10))
def test_bound_holds_where_the_clock_broke_again_and_again(seed: int) -> None:
    draw = np.random.default_rng(seed)
    _, true_s, arrival_s = made(20, 1000, 50, 100 + seed)
    segment = np.sort(draw.integers(0, 20_000, 40)).searchsorted(np.arange(20_000), side="right")
    lost_s = np.cumsum(draw.choice([0, 64e-5, 5e-3, 0.03], 41))  # before each segment, uncounted
    found = arrival.times(segment.astype(float), true_s - BOOT_S - lost_s[segment], arrival_s)
    placed = np.isfinite(found.t_s)
    assert placed.mean() > 0.9
    assert np.max(np.abs(found.t_s - true_s)[placed]) <= found.bound_s < 0.02


def test_times_rise_and_a_coarse_clock_is_in_the_bound() -> None:
    clock_s, true_s, arrival_s = made(60, 1000, 0, 6)
    coarse_s = np.floor(clock_s / 0.01) * 0.01
    found = arrival.times(np.zeros(60_000), coarse_s, arrival_s, step_s=0.01)
    placed = np.isfinite(found.t_s)
    assert (np.diff(found.t_s[placed]) > 0).all() and placed.sum() == 60_000  # ten rows share a tick: spread over it
    assert np.max(np.abs(found.t_s - true_s)[placed]) <= found.bound_s


def test_hour_at_full_rate_takes_a_second_or_so() -> None:
    clock_s, _, arrival_s = made(1200, 5000, 25, 7)  # 6 million rows
    before = time.process_time()
    found = arrival.times(np.zeros(len(clock_s)), clock_s, arrival_s)
    assert time.process_time() - before < 10
    assert found.drift * 1e6 == pytest.approx(25, abs=0.5)


@pytest.mark.parametrize("seed", range(10))
def test_answers_lie_between_question_and_answer_also_where_the_link_became_quicker(seed: int) -> None:
    draw = np.random.default_rng(seed)
    asked_s = BOOT_S + np.arange(600) * 0.2
    trip_s = np.where(np.arange(600) < 300, 0.08, 0.05) + draw.gamma(2.0, 0.005, 600)
    true_s = asked_s + draw.uniform(0, 1, 600) * trip_s
    found = arrival.times_of_answers(asked_s + trip_s / 2, asked_s + trip_s)
    assert found.unplaced == 0 and found.starts == (0,) and np.isfinite(found.t_s).all()
    assert np.quantile(np.abs(found.t_s - true_s), 0.95) <= found.bound_s < 0.07


def test_nothing_is_nothing_and_wrong_lengths_are_refused() -> None:
    assert len(arrival.times(np.empty(0), np.empty(0), np.empty(0)).t_s) == 0
    one = arrival.times(np.zeros(1), np.zeros(1), np.full(1, 5.0))
    assert one.t_s[0] == 5.0
    with pytest.raises(ValueError, match="as many of each"):
        arrival.times(np.zeros(2), np.zeros(3), np.zeros(3))
