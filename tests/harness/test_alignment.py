"""A recording is tied to the device's clock by the pulses in it, within the bound that is told, or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from edgewatt.harness.alignment import Alignment, AlignmentError, align

CHIP_S = 0.3
BEFORE = ((1, 2), (3, 1), (2, 2), (1, 1), (2, 0))  # busy and idle, in chips
AFTER = ((3, 3), (4, 1), (1, 2), (1, 0))


@dataclass
class Story:
    """A run with pulses before and after its job, as a recorder on a clock of its own sees it.

    Written by hand: levels between times, sampled, with the recorder's faults put in one after the other.
    """

    seed: int
    offset_s: float = 0.0
    drift: float = 0.0
    rate_hz: float = 1000.0
    length_s: float = 60.0
    noise_w: float = 0.4
    job_w: float = 4.0
    pulse_w: float = 2.0
    idle_w: float = 1.5
    average_s: float = 0.0
    quantum_w: float = 0.01
    jitter: float = 0.25  # of the pulses' lengths, told apart by run
    lead_s: float = 7.0  # of the recording before the first pulse
    cut_start_s: float = 0.0
    cut_end_s: float = 0.0
    ends: list[np.ndarray[Any, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        start = 5000.0 + self.rng.uniform(0, 1000)
        self.changes: list[tuple[float, float]] = [(-1e12, self.idle_w)]
        now = self._pulses(start, BEFORE) + 2.0
        stop = start + self.length_s
        while now < stop:  # the job: load, idle, windows of some watts
            seconds = self.rng.uniform(0.5, 6.0)
            self.changes.append((now, self.idle_w + self.job_w * self.rng.uniform(0, 1)))
            now += seconds
        self.changes.append((now, self.idle_w))
        self.end_s = self._pulses(now + 2.0, AFTER)
        self.start_s = start

    def _pulses(self, now: float, pattern: tuple[tuple[int, int], ...]) -> float:
        rows = []
        for busy, idle in pattern:
            busy_s, idle_s = (CHIP_S * n * self.rng.uniform(1 - self.jitter, 1 + self.jitter) for n in (busy, idle))
            rows.append((now, now + busy_s))
            self.changes += [(now, self.idle_w + self.pulse_w), (now + busy_s, self.idle_w)]
            now += busy_s + idle_s
        self.ends.append(np.array(rows))
        return float(rows[-1][1])

    def recorded(self) -> tuple[Any, Any]:
        begin, end = self.start_s - self.lead_s + self.cut_start_s, self.end_s + 5.0 - self.cut_end_s
        n = int((end - begin) * self.rate_hz)
        period = (1 + 0.2 * self.rng.uniform(-1, 1, n)) / self.rate_hz
        device_t = begin + np.cumsum(period)
        times = np.array([c[0] for c in self.changes])
        levels = np.array([c[1] for c in self.changes])
        if self.average_s:
            base = np.concatenate([[0.0], np.cumsum(np.diff(times[1:]) * levels[1:-1])])

            def joules(t: Any) -> Any:
                k = np.clip(np.searchsorted(times[1:], t, side="right") - 1, -1, len(base) - 1)
                after = base[np.maximum(k, 0)] + (t - times[1:][np.maximum(k, 0)]) * levels[1:][np.maximum(k, 0)]
                return np.where(k < 0, (t - times[1]) * levels[0], after)

            watts = (joules(device_t) - joules(device_t - self.average_s)) / self.average_s
        else:
            watts = levels[np.searchsorted(times, device_t, side="right") - 1]
        watts = watts + self.rng.normal(0, self.noise_w, n)
        watts = np.round(watts / self.quantum_w) * self.quantum_w
        keep = self.rng.uniform(size=n) > 0.01
        return (device_t + self.lag(device_t))[keep], watts[keep]

    def lag(self, device_t: Any) -> Any:
        return self.offset_s + self.drift * (device_t - self.start_s)

    def worst_error_s(self, found: Alignment, delay_s: float = 0.0) -> float:
        """The largest error of a time anywhere in the run."""
        device_t = np.linspace(self.start_s, self.end_s, 101)
        return float(np.max(np.abs(found.on_device(device_t + self.lag(device_t) + delay_s) - device_t)))


def told(found: pytest.ExceptionInfo[AlignmentError]) -> str:
    return str(found.value)


def test_offset_and_drift_are_recovered_in_200_noisy_recordings() -> None:
    rng = np.random.default_rng(7)
    errors, bounds = [], []
    for seed in range(200):
        story = Story(
            seed,
            offset_s=rng.uniform(-5, 5) + rng.choice([0.0, -4000.0, 1.7e9]),  # the same clock, from 0, since 1970
            drift=rng.uniform(-300e-6, 300e-6),
            length_s=rng.uniform(20, 100),
            noise_w=rng.uniform(0.1, 1.6),  # of pulses of 2 W
            job_w=rng.uniform(0, 20),
        )
        found = align(*story.recorded(), story.ends)
        errors.append(story.worst_error_s(found))
        bounds.append(found.bound_s)
        assert found.drift == pytest.approx(story.drift, abs=2 * found.bound_s / 20)
    assert max(errors) <= 0.020
    assert np.mean(np.array(errors) <= bounds) >= 0.95
    assert max(bounds) <= 0.040 and np.median(bounds) <= 0.010  # a bound that says nothing would always hold


@pytest.mark.parametrize("average_s", [0.01, 0.03, 0.06])
def test_recorder_that_averages_is_late_by_no_more_than_the_bound(average_s: float) -> None:
    for seed in range(5):
        story = Story(seed, offset_s=3.0, drift=80e-6, average_s=average_s, noise_w=0.3)
        found = align(*story.recorded(), story.ends)
        assert story.worst_error_s(found) <= found.bound_s  # of its clock, whose readings are late
        assert story.worst_error_s(found, delay_s=average_s / 2) <= 0.005  # of the power that it shows
        assert found.bound_s <= 0.010 + average_s


@pytest.mark.parametrize("rate_hz", [20.0, 50.0, 10_000.0])
def test_slow_and_fast_recorders_are_aligned_within_their_bound(rate_hz: float) -> None:
    for seed in range(8):
        story = Story(seed, offset_s=-2.0, drift=-200e-6, rate_hz=rate_hz, noise_w=0.2, length_s=25)
        found = align(*story.recorded(), story.ends)
        assert story.worst_error_s(found) <= min(found.bound_s, 0.7 / rate_hz + 0.005)


def test_clock_further_off_than_the_run_is_long_is_found() -> None:
    story = Story(3, offset_s=-60.0, lead_s=75.0)
    assert story.worst_error_s(align(*story.recorded(), story.ends)) < 0.005


def test_one_end_gives_an_offset_with_a_wider_bound_and_says_so() -> None:
    for seed in range(5):
        late = Story(seed, offset_s=2.0, drift=250e-6, cut_end_s=15.0)
        found = align(*late.recorded(), late.ends)
        assert found.drift == 0 and "after the job are not in the recording" in found.note
        assert late.worst_error_s(found) <= found.bound_s <= 0.015 + 320e-6 * (late.end_s - late.start_s)
        early = Story(seed, offset_s=2.0, drift=-250e-6, cut_start_s=20.0)
        found = align(*early.recorded(), early.ends)
        assert "before the job are not in the recording" in found.note and early.worst_error_s(found) <= found.bound_s


def test_gap_in_the_pulses_costs_no_more_than_its_edges() -> None:
    story = Story(5, offset_s=1.0, drift=100e-6)
    t, p = story.recorded()
    at = story.ends[0][2, 1] + story.lag(story.ends[0][2, 1])  # one edge is missing
    keep = (t < at - 0.2) | (t > at + 0.15)
    found = align(t[keep], p[keep], story.ends)
    assert story.worst_error_s(found) <= min(found.bound_s, 0.005)


def refusal(t: Any, p: Any, ends: Any) -> str:
    with pytest.raises(AlignmentError) as found:
        align(t, p, ends)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_recording_without_the_pulses_is_refused() -> None:
    for seed in range(10):
        story = Story(seed, pulse_w=0.0)
        assert "correlation" in refusal(*story.recorded(), story.ends)


def test_noise_and_flat_lines_are_refused() -> None:
    rng = np.random.default_rng(1)
    story = Story(1)
    t = np.arange(0, 80, 0.001)
    for p in (rng.normal(2, 1, len(t)), np.full(len(t), 2.0), np.cumsum(rng.normal(0, 0.01, len(t)))):
        assert "correlation" in refusal(t, p, story.ends)


@pytest.mark.parametrize("period_s", [0.3, 0.6, 0.9, 1.2, 2.4])
def test_periodic_load_is_not_taken_for_the_pulses(period_s: float) -> None:
    story = Story(2, pulse_w=0.0, job_w=0.0)
    t, p = story.recorded()
    refusal(t, p + 2.0 * ((t % period_s) < period_s / 2), story.ends)


def test_pulses_under_another_load_are_found_rightly_or_not_at_all() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        story = Story(seed, offset_s=1.0)
        t, p = story.recorded()
        p = p + rng.uniform(0.5, 20) * ((t % rng.uniform(0.2, 3)) < 0.15)
        try:
            found = align(t, p, story.ends)
        except AlignmentError:
            continue
        assert story.worst_error_s(found) <= max(found.bound_s, 0.020)


def test_pulses_of_another_run_are_refused() -> None:
    for seed in range(20):
        other = Story(seed + 100, offset_s=1.0, length_s=40)
        ends = Story(seed, length_s=40).ends
        moved = [e - ends[0][0, 0] + other.ends[0][0, 0] for e in ends]
        refusal(*other.recorded(), moved)
        # even if it is cut so that one end alone can be looked for
        t, p = other.recorded()
        keep = t < t[0] + 20
        refusal(t[keep], p[keep], moved)


def test_pulses_buried_below_the_noise_are_refused_or_found_rightly() -> None:
    for seed in range(10):
        story = Story(seed, noise_w=6.0, pulse_w=0.5, job_w=30.0)
        try:
            found = align(*story.recorded(), story.ends)
        except AlignmentError:
            continue
        assert story.worst_error_s(found) <= found.bound_s


def test_same_run_twice_in_a_recording_is_ambiguous() -> None:
    story = Story(4)
    t, p = story.recorded()
    again = t + (t[-1] - t[0]) + 1.0
    assert "more than once" in refusal(np.concatenate([t, again]), np.concatenate([p, p]), story.ends)


def test_slow_recording_is_refused_with_the_rate_it_needs() -> None:
    story = Story(1, rate_hz=4.0)
    assert "readings a second" in refusal(*story.recorded(), story.ends)
    fast = Story(1, average_s=0.4)  # often told, and slow all the same
    refusal(*fast.recorded(), fast.ends)


def test_first_stamp_of_a_clock_that_was_not_set_is_refused_with_its_gap() -> None:
    story = Story(1)
    t, p = story.recorded()
    said = refusal(np.r_[0.0, t + 1.7e9], np.r_[1.0, p], story.ends)
    assert "1.7e+09 s of that between two readings" in said and "cut off" in said


def test_run_without_pulses_and_empty_recordings_are_refused() -> None:
    story = Story(1)
    t, p = story.recorded()
    assert "no pulses were played" in refusal(t, p, [])
    assert "too few" in refusal(t[:5], p[:5], story.ends)
    assert "correlation" in refusal(t[:1000], p[:1000], story.ends)
