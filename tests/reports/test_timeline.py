import dataclasses

import numpy as np
import pytest

from edgewatt.harness.api import Channel, ClockOffset, Measurement, Phase
from edgewatt.reports.timeline import timeline
from support.hand_runs import bare_run, trace_of

COUNTER = Channel("package-0", "energy", "J", "counter", "CPU package", "package", wraps_at=1000.0)
RAIL = Channel("VDD", "power", "W", "gauge", "the board", "board")
TEMPERATURE = Channel("cpu", "temperature", "degC", "gauge", "CPU")
CLOCK = Channel("cpu0", "frequency", "Hz", "gauge", "core 0")
LOAD = Channel("all", "utilisation", "1", "gauge", "all cores")
WINDOW = Phase("window", 100.0, 110.0, 50)


def only(found):
    assert len(found.panels) == 1
    assert len(found.panels[0].series) == 1
    return found.panels[0].series[0]


def test_counter_is_shown_as_power_between_fresh_samples():
    t = np.arange(100.0, 110.0, 0.1)
    # 5 W for the first half, then 20 W
    joules = np.where(t < 105, 5 * (t - 100), 25 + 20 * (t - 105))
    s = only(timeline(bare_run(phases=[WINDOW], traces=[trace_of(COUNTER, t, joules)])))
    assert s.is_step
    assert s.is_difference
    y = s.points.y[np.isfinite(s.points.y)]
    np.testing.assert_allclose(y[s.points.x[np.isfinite(s.points.y)] < 4.95], 5.0, atol=1e-6)
    np.testing.assert_allclose(y[s.points.x[np.isfinite(s.points.y)] > 5.15], 20.0, atol=1e-6)


def test_repeated_reads_of_a_counter_are_not_zero_watts():
    t = np.arange(100.0, 110.0, 0.01)
    joules = np.floor((t - 100) / 0.1) * 0.3  # 3 W, renewed every 0.1 s, read every 0.01 s
    s = only(timeline(bare_run(phases=[WINDOW], traces=[trace_of(COUNTER, t, joules)])))
    y = s.points.y[np.isfinite(s.points.y)]
    np.testing.assert_allclose(y, 3.0, rtol=0.12)


def test_wrapped_counter_stays_positive():
    t = np.arange(100.0, 110.0, 0.1)
    joules = (995.0 + 4 * (t - 100)) % 1000.0
    s = only(timeline(bare_run(phases=[WINDOW], traces=[trace_of(COUNTER, t, joules)])))
    np.testing.assert_allclose(s.points.y[np.isfinite(s.points.y)], 4.0, atol=1e-6)


def test_counter_that_started_anew_is_an_event_and_a_break_and_never_negative():
    t = np.arange(100.0, 110.0, 0.1)
    joules = 10 + 4 * (t - 100)
    joules[50:] = 4 * (t[50:] - t[50])
    never_wraps = dataclasses.replace(COUNTER, wraps_at=None)
    found = timeline(bare_run(phases=[WINDOW], traces=[trace_of(never_wraps, t, joules)]))
    assert [(e.name, round(e.start_s, 1), round(e.end_s, 1)) for e in found.events] == [("restart", 4.9, 5.0)]
    y = only(found).points.y
    assert np.nanmin(y) > 0
    assert np.isnan(y[1:]).any()


def test_gap_is_an_event_and_a_break():
    t = np.concatenate([np.arange(100.0, 104.0, 0.1), np.arange(107.0, 110.0, 0.1)])
    found = timeline(bare_run(phases=[WINDOW], traces=[trace_of(RAIL, t, np.full(len(t), 5.0))]))
    (event,) = found.events
    assert event.name == "gap"
    assert event.start_s == pytest.approx(3.9)
    assert event.end_s == pytest.approx(7.0)
    assert event.words == "m: VDD: no reading for 3.1 s".replace("3.1 s", "3.100 s")
    s = only(found)
    inside = (s.points.x > 3.9) & (s.points.x < 7.0)
    assert np.isnan(s.points.y[inside]).all()


def test_idle_level_is_that_of_the_very_channel():
    t = np.arange(100.0, 110.0, 0.1)
    measured = [
        Measurement("power_w", 1.5, 0.1, "W", "idle", 2, "by hand", "m", "board"),
        Measurement("power_w", 7.5, 0.1, "W", "window", 2, "by hand", "m", "board"),
        Measurement("power_w", 9.5, 0.1, "W", "idle", 2, "by hand", "other", "board"),
    ]
    run = bare_run(phases=[WINDOW], traces=[trace_of(RAIL, t, np.full(len(t), 5.0))], measurements=tuple(measured))
    assert only(timeline(run)).idle == 1.5


def test_times_count_from_the_first_phase():
    t = np.arange(99.0, 111.0, 0.1)
    found = timeline(bare_run(phases=[WINDOW], traces=[trace_of(RAIL, t, np.ones(len(t)))]))
    assert found.start_s == pytest.approx(-1.0)
    assert [(p.name, p.start_s, p.end_s) for p in found.phases] == [("window", 0.0, 10.0)]
    assert found.phases[0].words == "window, repeat 1: 10 s, 50 items"


def test_panels_are_in_units_that_read_well():
    t = np.arange(100.0, 110.0, 1.0)
    traces = [
        trace_of(CLOCK, t, np.full(10, 2.4e9), "a"),
        trace_of(LOAD, t, np.full(10, 0.5), "b"),
        trace_of(TEMPERATURE, t, np.full(10, 55.0), "c"),
        trace_of(RAIL, t, np.full(10, 0.25), "d"),
    ]
    found = timeline(bare_run(phases=[WINDOW], traces=traces))
    assert [(p.quantity, p.unit, float(p.series[0].points.y[0])) for p in found.panels] == [
        ("power", "mW", 250.0),
        ("temperature", "°C", 55.0),
        ("frequency", "GHz", pytest.approx(2.4)),
        ("utilisation", "%", 50.0),
    ]


def test_meter_read_by_the_harness_is_moved_to_the_clock_of_the_phases():
    t = np.arange(0.0, 10.0, 0.1)
    trace = trace_of(RAIL, t, np.ones(len(t)), clock_of="harness")
    found = timeline(bare_run(phases=[WINDOW], traces=[trace], clock_offset=ClockOffset(100.0, 1e-4, n=20)))
    assert only(found).points.x[0] == pytest.approx(0.0)


def test_meter_on_a_clock_that_nothing_ties_is_not_drawn_but_told():
    trace = dataclasses.replace(trace_of(RAIL, [0.0, 1.0], [1.0, 1.0]), clock="realtime")
    found = timeline(bare_run(phases=[WINDOW], traces=[trace]))
    assert found.panels == ()
    assert found.notes == ("m is not drawn: its clock is realtime, the phases' is boottime",)


def test_thinned_series_are_counted():
    t = np.linspace(100, 110, 50_001)
    found = timeline(bare_run(phases=[WINDOW], traces=[trace_of(RAIL, t, np.sin(t))]))
    s = only(found)
    assert s.points.total == 50_001
    assert s.points.shown <= 4000


def test_channel_without_a_reading_is_told():
    found = timeline(bare_run(phases=[WINDOW], traces=[trace_of(RAIL, [100.0, 101.0], [np.nan, np.nan])]))
    assert found.notes == ("m: VDD is not drawn: it gave no reading",)


def test_run_without_anything_has_an_empty_timeline():
    found = timeline(bare_run())
    assert (found.panels, found.phases, found.events) == ((), (), ())
