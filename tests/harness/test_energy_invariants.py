"""What must hold for any samples at all: energy adds up, is linear, and exact where the rule is."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewatt.harness.api import Channel, Trace
from edgewatt.harness.energy import energies, energy

QUICK = settings(max_examples=60, deadline=None, database=None, derandomize=True)


def trace(t, values, kind="gauge", **channel):
    quantity, unit = ("power", "W") if kind == "gauge" else ("energy", "J")
    c = Channel("x", quantity, unit, kind, "all of it", **channel)
    return Trace("m", "boottime", (c,), np.asarray(t, float), np.asarray(values, float)[:, None])


@st.composite
def samples(draw):
    """Times on an uneven grid, and powers (0.1 to 50 W) at them."""
    n = draw(st.integers(6, 60))
    steps = draw(st.lists(st.floats(0.01, 1.0), min_size=n, max_size=n))
    watts = draw(st.lists(st.floats(0.1, 50.0), min_size=n, max_size=n, unique=True))  # repeats: see test_energy
    return np.cumsum(steps), np.array(watts)


kinds = st.sampled_from(["gauge", "counter"])
shares = st.floats(0.05, 0.95)


def readings(kind, t, watts):
    """Gauge: the powers. Counter: the sum of power x time up to each sample."""
    return watts if kind == "gauge" else 100 + np.concatenate([[0.0], np.cumsum(watts[1:] * np.diff(t))])


@QUICK
@given(samples(), kinds, shares)
def test_adjacent_windows_add_up(s, kind, share):
    t, watts = s
    one = trace(t, readings(kind, t, watts), kind)
    start, end = t[1], t[-2]
    middle = start + share * (end - start)
    halves = energies(one, "x", [[start, middle], [middle, end]]).energy_j
    assert np.isclose(halves.sum(), energies(one, "x", [[start, end]]).energy_j[0], rtol=1e-9)
    assert np.isclose(energy(one, "x", start, middle).energy_j, halves[0], rtol=1e-9)


@QUICK
@given(samples(), kinds, st.floats(0.001, 1000.0))
def test_scaling_the_power_scales_energy_and_bar(s, kind, factor):
    t, watts = s
    v = readings(kind, t, watts)
    a = energy(trace(t, v, kind, gain_error=0.01), "x", t[1], t[-2], clock_bound_s=0.01)
    b = energy(trace(t, v * factor, kind, gain_error=0.01), "x", t[1], t[-2], clock_bound_s=0.01)
    assert np.isclose(b.energy_j, factor * a.energy_j, rtol=1e-6)
    assert np.isclose(b.uncertainty_j, factor * a.uncertainty_j, rtol=1e-3)


@QUICK
@given(samples(), kinds, st.floats(0.1, 50.0))
def test_constant_power_is_exact_however_it_is_sampled(s, kind, level_w):
    t, _ = s
    one = trace(t, readings(kind, t, np.full(len(t), level_w)), kind)
    e = energy(one, "x", t[1], t[-2])
    assert np.isclose(e.energy_j, level_w * (t[-2] - t[1]), rtol=1e-9)
    assert abs(e.energy_j - level_w * (t[-2] - t[1])) <= e.uncertainty_j


@QUICK
@given(samples(), st.floats(-5.0, 5.0), st.floats(10.0, 50.0))
def test_trapezoid_is_exact_for_a_ramp(s, slope, level):
    t, _ = s
    e = energy(trace(t, level + slope * t / t[-1]), "x", t[1], t[-2])
    true = level * (t[-2] - t[1]) + slope / t[-1] * (t[-2] ** 2 - t[1] ** 2) / 2
    assert np.isclose(e.energy_j, true, rtol=1e-9)
    assert abs(e.energy_j - true) <= e.uncertainty_j


@QUICK
@given(samples(), kinds, st.integers(-1000, 100000))
def test_when_it_was_measured_does_not_matter(s, kind, later_s):
    t, watts = s
    v = readings(kind, t, watts)
    a = energy(trace(t, v, kind), "x", t[1], t[-2])
    b = energy(trace(t + later_s, v, kind), "x", t[1] + later_s, t[-2] + later_s)
    assert np.isclose(a.energy_j, b.energy_j, rtol=1e-6)
    assert a.n == b.n


@QUICK
@given(samples())
def test_counter_and_gauge_of_the_same_power_agree(s):
    t, watts = s
    # A gauge's trapezoid, counted: on the samples themselves both give the same energy.
    counted = np.concatenate([[0.0], np.cumsum(np.diff(t) * (watts[1:] + watts[:-1]) / 2)])
    gauge, counter = (trace(t, v, k) for v, k in ((watts, "gauge"), (counted, "counter")))
    assert np.isclose(energy(gauge, "x", t[2], t[-3]).energy_j, energy(counter, "x", t[2], t[-3]).energy_j, rtol=1e-9)


@QUICK
@given(samples(), kinds, st.data())
def test_bar_is_finite_and_its_parts_are_not_negative(s, kind, data):
    t, watts = s
    v = readings(kind, t, watts)
    v[data.draw(st.lists(st.integers(1, len(t) - 2), max_size=len(t) // 3))] = np.nan
    start = data.draw(st.floats(t[0], t[-1] - 0.01))
    end = data.draw(st.floats(start + 0.001, t[-1]))
    e = energies(trace(t, v, kind, quantum=0.1), "x", [[start, end]])
    for name, part in e.parts.items():
        assert part[0] >= 0 and np.isfinite(part[0]), name
    assert 0 <= e.coverage[0] <= 1
