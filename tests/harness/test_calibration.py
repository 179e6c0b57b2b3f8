"""A sensor made by hand out of a known power: what was put in is found, inside the intervals, as often as they say."""

import json

import numpy as np
import pytest

from edgewatt.harness import calibration
from edgewatt.harness.api import Channel, Trace

LEVELS = (2.0, 5.0, 3.0, 8.0, 2.5, 6.0, 9.0, 2.0, 7.0, 4.0)
LENGTHS = (7.3, 5.1, 6.7, 4.3, 8.9, 5.7, 6.1, 4.9, 7.9, 6.3)
EDGES = np.concatenate([[0.0], np.cumsum(LENGTHS)])


def joules(t):
    """Energy of the steps since 0, in closed form; before and after, the first and the last level."""
    ends = np.concatenate([[0.0], np.cumsum(np.multiply(LEVELS, LENGTHS))])
    inside = np.interp(t, EDGES, ends)
    return inside + np.minimum(t, 0) * LEVELS[0] + np.maximum(t - EDGES[-1], 0) * LEVELS[-1]


def mean_w(end, span):
    return (joules(end) - joules(end - span)) / span


def reference(seed=1, rate_hz=1000.0, noise_w=0.02):
    t = np.arange(-10.0, EDGES[-1] + 10.0, 1 / rate_hz)
    values = mean_w(t, 1 / rate_hz) + noise_w * np.random.default_rng(seed).standard_normal(len(t))
    channel = Channel("power", "power", "W", "gauge", "all", "dc-input", averaging_s=1 / rate_hz, gain_error=0.005)
    return Trace("supply", "boottime", (channel,), t, values[:, None])


def sensor(seed=1, *, gain=1.05, offset_w=0.2, delay_s=0.15, averaging_s=0.3, period_s=0.1, noise_w=0.03, **more):
    """Readings at jittered times: (mean power over the averaging window before, less the offset) by the gain."""
    random = np.random.default_rng(1000 + seed)
    t = np.arange(-9.0, EDGES[-1] + 9.0, period_s) + random.uniform(0, period_s / 2) * np.ones(1)
    t = t + 0.1 * period_s * random.uniform(-1, 1, len(t))
    values = (mean_w(t - delay_s, averaging_s) - offset_w) / gain + noise_w * random.standard_normal(len(t))
    return Trace("own", "boottime", (Channel("VDD", "power", "W", "gauge", "board", "dc-input", **more),), t,
                 values[:, None])  # fmt: skip


def fitted(own, truth=None):
    return calibration.fit(truth or reference(), "power", own, own.channels[0].name)


def test_all_four_are_found():
    f = fitted(sensor())
    assert f.gain == pytest.approx(1.05, abs=0.003)
    assert f.offset_w == pytest.approx(0.2, abs=0.02)
    assert f.delay_s == pytest.approx(0.15, abs=0.02)
    assert f.averaging_s == pytest.approx(0.3, abs=0.04)
    assert f.scatter_w == pytest.approx(0.03, rel=0.15)
    assert f.explained > 0.99


@pytest.mark.parametrize("period_s, delay_s, averaging_s", [
    pytest.param(0.05, 0.02, 0.05, marks=pytest.mark.soak), (0.1, 0.15, 0.3), (0.5, 0.4, 0.5),
])  # fmt: skip
def test_intervals_hold_the_truth_as_often_as_they_say(period_s, delay_s, averaging_s):
    hits = np.zeros(4)
    rounds = 20
    for seed in range(rounds):
        own = sensor(seed, period_s=period_s, delay_s=delay_s, averaging_s=averaging_s)
        f = fitted(own, reference(seed))
        hits += [
            abs(f.gain - 1.05) <= f.gain_error,
            abs(f.offset_w - 0.2) <= f.offset_error_w,
            abs(f.delay_s - delay_s) <= f.delay_error_s,
            abs(f.averaging_s - averaging_s) <= f.averaging_error_s,
        ]
        assert f.gain_error < 0.02
        assert f.delay_error_s < max(0.2, period_s), "an interval that holds everything says nothing"
    assert np.all(hits >= 0.85 * rounds), hits


def test_a_gap_in_either_costs_readings_and_nothing_else():
    own, truth = sensor(), reference()
    own_values, true_values = own.values.copy(), truth.values.copy()
    own_values[(own.t_s > 12) & (own.t_s < 15)] = np.nan
    true_values[(truth.t_s > 30) & (truth.t_s < 33)] = np.nan
    holed = Trace("own", "boottime", own.channels, own.t_s, own_values)
    f = fitted(holed, Trace("supply", "boottime", truth.channels, truth.t_s, true_values))
    assert f.gain == pytest.approx(1.05, abs=0.003)
    assert f.delay_s == pytest.approx(0.15, abs=0.02)
    assert f.n < fitted(own, truth).n - 30


def test_a_power_that_stands_still_gives_the_gain_alone():
    t = np.arange(0, 60, 0.001)
    random = np.random.default_rng(3)
    truth = Trace("supply", "boottime", reference().channels, t, 5 + 0.02 * random.standard_normal((len(t), 1)))
    at = np.arange(1, 59, 0.1)
    own = Trace("own", "boottime", sensor().channels, at, 5 / 1.05 + 0.02 * random.standard_normal((len(at), 1)))
    f = fitted(own, truth)
    assert abs(f.gain - 1.05) <= f.gain_error < 0.01
    assert f.offset_w == 0
    assert (f.offset_error_w, f.delay_s, f.averaging_s) == (None, None, None)
    assert "the gain alone" in f.words


@pytest.mark.parametrize("own", [sensor(), sensor(noise_w=0.5), sensor(period_s=1.0, averaging_s=2.0)])
def test_a_sensor_that_moves_while_the_reference_stands_still_is_refused(own):
    truth = reference()
    still = np.full((len(truth.t_s), 1), 5.0)
    with pytest.raises(calibration.FitError, match=r"sensor showed .* W while the reference stayed between 5 and 5 W"):
        fitted(own, Trace("supply", "boottime", truth.channels, truth.t_s, still))


@pytest.mark.parametrize("least_w", [-0.001, 0.0])
def test_a_reference_that_reads_nothing_when_idle_gives_a_finite_error(least_w):
    t = np.arange(0, 60, 0.01)
    true_w = np.where(t % 7 < 3.3, 0.5, least_w)
    noise = 0.002 * np.random.default_rng(4).standard_normal((len(t), 1))
    truth = Trace("supply", "boottime", reference().channels, t, true_w[:, None] + noise)
    at = t[100:-100:10]
    own = Trace("own", "boottime", sensor().channels, at, true_w[100:-100:10, None] / 1.02)
    f = fitted(own, truth)
    assert f.gain == pytest.approx(1.02, abs=0.02) and 0 < f.relative_error < 0.2
    json.dumps(f.as_json(), allow_nan=False)


def test_a_sensor_of_something_else_is_refused_with_figures():
    own = sensor()
    other = np.random.default_rng(5).permutation(own.values[:, 0])
    with pytest.raises(calibration.FitError, match=r"explains \d+\.\d% .*limit 80%"):
        fitted(Trace("own", "boottime", own.channels, own.t_s, other[:, None]))


def test_a_curve_is_refused_as_no_straight_line():
    own = sensor(offset_w=0.0, gain=1.0, noise_w=0.01)
    with pytest.raises(calibration.FitError, match="no straight line"):
        fitted(Trace("own", "boottime", own.channels, own.t_s, np.minimum(own.values, 5.0)))


def test_a_counter_gives_gain_offset_and_delay():
    t = np.arange(-9.0, EDGES[-1] + 9.0, 0.1)
    counted = (joules(t - 0.2) - joules(t[0] - 0.2) - 0.3 * (t - t[0])) / 0.95
    channel = Channel("E", "energy", "J", "counter", "board", "dc-input", age_s=0.0)
    f = fitted(Trace("own", "boottime", (channel,), t, counted[:, None]))
    assert f.gain == pytest.approx(0.95, abs=0.002)
    assert f.offset_w == pytest.approx(0.3, abs=0.02)
    assert abs(f.delay_s - 0.2) <= f.delay_error_s < 0.1
    assert f.averaging_s is None


def test_a_slow_reference_gives_no_averaging():
    f = fitted(sensor(period_s=0.02, averaging_s=0.02), reference(rate_hz=2.0))
    assert abs(f.gain - 1.05) <= max(f.gain_error, 0.003)
    assert f.averaging_s is None
    assert "cannot be told" in f.words
