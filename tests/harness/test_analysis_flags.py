"""Every flag on a meter: what raises it, and what just does not."""

import dataclasses

import numpy as np
import pytest

from edgewatt.harness import flags
from edgewatt.harness.analysis import analyse
from edgewatt.harness.api import Channel, ClockOffset, Flag, Floats, Phase, Run, RunError, Trace
from support import made_run as made

PHASES = made.phases(isolated_s=5.0)  # windows at 123 s and 170 s, 20 s each
WINDOWS = [p for p in PHASES if p.phase == "window"]
IDLES = [p for p in PHASES if p.phase == "idle"]


def raised(run: Run, flag: str) -> list[Flag]:
    return [f for f in analyse(run)[1] if f.flag == flag]


def only(run: Run, flag: str) -> Flag:
    """The one flag of that name; no other flag may void anything."""
    found = analyse(run)[1]
    mine = [f for f in found if f.flag == flag]
    assert len(mine) == 1, found
    assert not [f for f in found if f.flag != flag and f.voids], found
    return mine[0]


def during(trace: Trace, phase: Phase) -> Floats:
    return (trace.t_s >= phase.start_s) & (trace.t_s < phase.end_s)


def without(trace: Trace, gone: Floats) -> Trace:
    return dataclasses.replace(trace, t_s=trace.t_s[~gone], values=trace.values[~gone])


def between(trace: Trace, start_s: float, end_s: float) -> Floats:
    return (trace.t_s > start_s) & (trace.t_s < end_s)


def test_good_run_raises_nothing() -> None:
    for trace in (made.counted(PHASES), made.gauged(PHASES)):
        found, doubts, warnings = analyse(made.run(PHASES, [trace]))
        assert len(found) > 20
        assert doubts == ()
        assert warnings == ()


# charging


def battery(charging: Floats) -> Trace:
    trace = made.gauged(PHASES, channel=made.gauge("BAT0 power", "battery"), meter="battery-BAT0")
    channels = (*trace.channels, Channel("BAT0 charging", "charging", "1", "gauge", "1 while fed"))
    return dataclasses.replace(trace, channels=channels, values=np.column_stack([trace.values, charging]))


def test_one_charging_reading_in_a_window_voids_the_batterys_joules() -> None:
    charging = np.zeros(len(made.stamps(PHASES)))
    assert raised(made.run(PHASES, [battery(charging)]), "charging") == []
    inside = np.flatnonzero(during(made.gauged(PHASES), WINDOWS[0]))
    charging[inside[700]] = 1
    flag = only(made.run(PHASES, [battery(charging), made.counted(PHASES)]), "charging")
    assert flag.meter == "battery-BAT0"
    assert set(flag.voids) == set(flags.ENERGY_METRICS)
    assert "1 of 4000 readings in window" in flag.detail


def test_charging_in_idle_voids_net_figures_alone() -> None:
    trace = made.gauged(PHASES)
    charging = during(trace, IDLES[0]).astype(float)
    flag = only(made.run(PHASES, [battery(charging)]), "charging")
    assert set(flag.voids) == set(flags.NET_METRICS)


def test_charging_outside_of_windows_and_idle_harms_nothing() -> None:
    trace = made.gauged(PHASES)
    charging = during(trace, PHASES[0]).astype(float)
    assert raised(made.run(PHASES, [battery(charging)]), "charging") == []


def test_share_of_charging_that_the_meter_tells_voids() -> None:
    told = made.gauged(PHASES, charging=0.25)
    assert "25.0%" in only(made.run(PHASES, [told]), "charging").detail
    assert raised(made.run(PHASES, [made.gauged(PHASES, charging=0.0)]), "charging") == []


# stale


def stuck(seconds: float) -> Trace:
    """A gauge at 100 Hz that repeats one reading from 5 s into the first window."""
    trace = made.gauged(PHASES)
    at = WINDOWS[0].start_s + 5
    values = trace.values[:, 0].copy()
    frozen = between(trace, at, at + seconds)
    values[frozen] = values[frozen][0]
    return made.with_column(trace, values)


def test_sensor_that_repeats_itself_is_stale() -> None:
    # 20 periods of 10 ms are 0.2 s, a twentieth of the window is 1 s: more than 1 s is too long.
    flag = only(made.run(PHASES, [stuck(1.5)]), "stale")
    assert flag.meter == "hwmon"
    assert "limit 1 s" in flag.detail
    assert "energy_per_inference_j" in flag.voids
    assert raised(made.run(PHASES, [stuck(0.9)]), "stale") == []


def test_constant_power_that_never_changed_is_not_called_stale() -> None:
    constant = made.gauged(PHASES, [10.0] * len(PHASES), noise_w=0.0)
    _, doubts, warnings = analyse(made.run(PHASES, [constant]))
    assert not [f for f in doubts if f.voids]
    assert any("cannot be told" in w for w in warnings)


# gap, low_coverage


def test_gap_beyond_the_stated_limit_is_told_and_voids_nothing() -> None:
    trace = made.counted(PHASES, gap_limit_s=0.05)
    at = WINDOWS[1].start_s + 5
    flag = only(made.run(PHASES, [without(trace, between(trace, at, at + 0.1))]), "gap")
    assert flag.voids == ()
    assert "in window 2 (limit 0.05 s)" in flag.detail
    assert raised(made.run(PHASES, [without(trace, between(trace, at, at + 0.025))]), "gap") == []


def test_gap_of_one_of_two_chips_read_in_turn_is_told() -> None:
    whole = made.counted(PHASES, gap_limit_s=0.05)
    both = np.repeat(whole.values, 2, axis=1)
    both[::2, 0] = both[1::2, 1] = np.nan
    channels = tuple(dataclasses.replace(whole.channels[0], name=f"package-{k}") for k in range(2))
    at = WINDOWS[0].start_s + 5
    both[between(whole, at, at + 0.2), 1] = np.nan
    flag = only(made.run(PHASES, [dataclasses.replace(whole, channels=channels, values=both)]), "gap")
    assert "0.22 s without a reading in window 1 (limit 0.06 s)" in flag.detail


def test_gap_outside_the_windows_is_no_doubt() -> None:
    trace = made.counted(PHASES, gap_limit_s=0.05)
    at = PHASES[0].start_s - 3
    assert raised(made.run(PHASES, [without(trace, between(trace, at, at + 1))]), "gap") == []


def test_less_than_95_percent_coverage_voids() -> None:
    trace = made.gauged(PHASES)
    at = WINDOWS[0].start_s + 5
    flag = only(made.run(PHASES, [without(trace, between(trace, at, at + 1.2))]), "low_coverage")  # 6 % of 20 s
    assert set(flag.voids) == set(flags.ENERGY_METRICS)
    assert "limit 95%" in flag.detail
    assert raised(made.run(PHASES, [without(trace, between(trace, at, at + 0.9))]), "low_coverage") == []


def test_uncovered_idle_voids_net_figures_alone() -> None:
    trace = made.gauged(PHASES)
    at = IDLES[1].start_s + 2
    flag = only(made.run(PHASES, [without(trace, between(trace, at, at + 1))]), "low_coverage")
    assert set(flag.voids) == set(flags.NET_METRICS)


def test_missing_readings_are_a_gap_like_missing_samples() -> None:
    trace = made.gauged(PHASES)
    at = WINDOWS[0].start_s + 5
    values = np.where(between(trace, at, at + 1.2), np.nan, trace.values[:, 0])
    run = made.run(PHASES, [made.with_column(trace, values)])
    assert only(run, "low_coverage")
    assert raised(run, "gap")


def test_meter_that_stopped_early_gives_no_joules_but_a_reason() -> None:
    trace = made.counted(PHASES, ended="the reader was killed")
    early = without(trace, trace.t_s > WINDOWS[1].end_s - 1)
    found, doubts, warnings = analyse(made.run(PHASES, [early]))
    assert ("energy_j", "window") not in made.names(found)
    assert made.one(found, "energy_j", "load").value == pytest.approx(5.0)
    (flag,) = [f for f in doubts if f.voids]
    assert flag.flag == "gap"
    assert set(flag.voids) == set(flags.ENERGY_METRICS)
    assert any("the reader was killed" in w for w in warnings)


def slow_stream(window_s: float, hole_s: tuple[float, float], **notes: object) -> Run:
    """A board read every 0.4618 s by a service that was away for `hole_s` after the window began."""
    phases = made.phases(1, window_s=window_s, idle_s=50.0)
    trace = made.gauged(phases, rate_hz=1 / 0.4618, noise_w=0.1, meter="jtop", notes=notes)
    begin = next(p for p in phases if p.phase == "window").start_s
    return made.run(phases, [without(trace, between(trace, begin + hole_s[0], begin + hole_s[1]))])


def test_service_away_for_three_seconds_is_a_gap_with_its_reason() -> None:
    run = slow_stream(100.0, (40.0, 43.0), restarts=1, why=["no sample for 3.0 s"])
    flag = only(run, "gap")
    assert flag.voids == ()
    assert flag.detail.endswith("what gives its readings was started again 1 time(s) (no sample for 3.0 s)")
    assert made.one(analyse(run)[0], "energy_j").parts["gap"] > 0
    assert analyse(run)[2] == ()


def test_service_away_for_a_large_share_of_a_window_voids_its_joules() -> None:
    run = slow_stream(50.0, (20.0, 24.5), restarts=1, why=["the jtop service went away"])
    assert raised(run, "gap")
    (flag,) = raised(run, "low_coverage")
    assert set(flag.voids) == set(flags.ENERGY_METRICS)


def test_service_restarted_before_the_windows_is_a_warning() -> None:
    run = slow_stream(100.0, (-6.0, -2.0), restarts=2, why=["no sample for 3.0 s", "no sample for 3.1 s"])
    assert raised(run, "gap") == []
    (said,) = analyse(run)[2]
    assert said.startswith("jtop: what gives its readings was started again 2 time(s) (no sample for 3.0 s; ")


@pytest.mark.parametrize("notes", [None, 3, {"restarts": "2"}, {"restarts": 1, "why": "x"}, {"other_client": True}])
def test_notes_of_an_odd_shape_raise_nothing(notes: object) -> None:
    doubts = analyse(made.run(PHASES, [made.gauged(PHASES, notes=notes)]))[1]
    assert doubts == ()


def test_sampling_that_ended_in_a_window_gives_no_joules_for_it() -> None:
    trace = made.gauged(PHASES, ended="the jtop service is gone")
    cut = without(trace, trace.t_s > WINDOWS[1].end_s - 3.0)
    found, doubts, warnings = analyse(made.run(PHASES, [cut]))
    assert not [m for m in found if m.phase == "window" and m.metric.startswith(("energy", "power"))]
    assert [f.voids for f in doubts if f.flag == "gap"] == [flags.ENERGY_METRICS]
    assert "hwmon stopped before it was asked to: the jtop service is gone" in warnings


def test_service_at_the_pace_of_another_client_is_told() -> None:
    notes = {"other_client": True, "interval_asked_s": 0.4618, "interval_service_s": 2.0}
    flag = only(made.run(PHASES, [made.gauged(PHASES, meter="jtop", notes=notes)]), "shared_meter")
    assert flag.voids == ()
    assert "asked for a reading every 0.462 s, the service gives one every 2 s" in flag.detail
    same = {**notes, "other_client": False}
    assert raised(made.run(PHASES, [made.gauged(PHASES, meter="jtop", notes=same)]), "shared_meter") == []


# clock_skew


def outside(bound_s: float) -> Run:
    """A meter on the harness's clock; at the window's ends the power steps by 8 W."""
    levels = made.WATTS | {"warmup": 2.0}
    times, watts = made.knots(PHASES, levels)
    trace = made.counted(PHASES, levels, clock_of="harness")
    # Let the power change at the window's very edges, not in the middle of the pauses around it.
    edges = [(float(t), float(w)) for t, w in zip(times[:-1], watts, strict=True)]
    for w in WINDOWS:
        edges = [e for e in edges if not w.start_s - 0.6 < e[0] < w.end_s + 0.6] + [(w.start_s, 10.0), (w.end_s, 2.0)]
    edges.sort()
    at = np.array([t for t, _ in edges] + [times[-1]]), np.array([w for _, w in edges])
    trace = made.with_column(trace, made.joules(trace.t_s, at))
    return made.run(PHASES, [trace], clock_offset=ClockOffset(bound_s=bound_s))


def test_loosely_tied_clocks_void() -> None:
    # 8 W step at both ends, 200 J: 1 % is 2 J, so a bound of 0.5 s is too much and 0.05 s is not.
    found = [f for f in raised(outside(0.5), "clock_skew") if f.voids]
    assert any(set(f.voids) == set(flags.ENERGY_METRICS) and "within 500 ms" in f.detail for f in found)
    assert not [f for f in raised(outside(0.05), "clock_skew") if set(f.voids) == set(flags.ENERGY_METRICS)]


def test_meter_of_the_device_needs_no_offset() -> None:
    run = made.run(PHASES, [made.counted(PHASES)], clock_offset=ClockOffset(bound_s=0.5))
    assert raised(run, "clock_skew") == []


def test_trace_on_a_clock_that_nothing_ties_is_refused() -> None:
    stray = dataclasses.replace(made.counted(PHASES), clock="realtime")
    found, _, _ = analyse(made.run(PHASES, [stray]))
    flag = only(made.run(PHASES, [stray]), "clock_skew")
    assert "'realtime'" in flag.detail
    assert not any(m.metric in flags.ENERGY_METRICS for m in found)


# counter_reset


def restarted(at_s: float) -> Trace:
    """A counter at a million joules that starts at 0 again."""
    trace = made.counted(PHASES)
    used = trace.values[:, 0]
    after = trace.t_s >= at_s
    return made.with_column(trace, np.where(after, used - used[after][0], used + 1e6))


def test_counter_that_restarts_in_a_window_voids() -> None:
    flag = only(made.run(PHASES, [restarted(WINDOWS[0].start_s + 7)]), "counter_reset")
    assert set(flag.voids) == set(flags.ENERGY_METRICS)
    assert "1 time(s) in window" in flag.detail


def test_counter_that_restarts_in_idle_voids_net_figures_alone() -> None:
    flag = only(made.run(PHASES, [restarted(IDLES[1].start_s + 5)]), "counter_reset")
    assert set(flag.voids) == set(flags.NET_METRICS)


def test_counter_that_restarts_before_everything_harms_nothing() -> None:
    run = made.run(PHASES, [restarted(PHASES[0].start_s - 2)])
    assert raised(run, "counter_reset") == []
    assert made.one(analyse(run)[0], "energy_j").value == pytest.approx(400.0)


def test_counter_that_wraps_at_its_range_is_no_restart() -> None:
    trace = made.counted(PHASES, channel=made.counter(wraps_at=300.0))
    run = made.run(PHASES, [made.with_column(trace, trace.values[:, 0] % 300.0)])
    assert raised(run, "counter_reset") == []
    assert made.one(analyse(run)[0], "energy_j").value == pytest.approx(400.0)


# window_too_short


def test_window_shorter_than_a_hundred_update_periods_voids() -> None:
    # Edges of 2 T within 2 % ask for 100 T: at 5 Hz 20 s will do, at 4 Hz 25 s are wanted.
    phases = made.phases(window_s=21.0)
    assert raised(made.run(phases, [made.gauged(phases, rate_hz=5.0)]), "window_too_short")[0].voids == ()  # the slices
    slow = [f for f in raised(made.run(phases, [made.gauged(phases, rate_hz=4.0)]), "window_too_short") if f.voids]
    assert len(slow) == 1
    assert set(slow[0].voids) == set(flags.ENERGY_METRICS)
    assert "must last 25 s" in slow[0].detail
    assert "lasted 21 s" in slow[0].detail


def test_sensor_read_often_but_renewed_rarely_is_judged_by_its_renewals() -> None:
    phases = made.phases(window_s=40.0)
    trace = made.gauged(phases)
    held = np.floor(trace.t_s * 2).astype(int)  # a new reading every 0.5 s, seen 50 times
    values = trace.values[:, 0][np.searchsorted(held, held)]
    found, doubts, _ = analyse(made.run(phases, [made.with_column(trace, values)]))
    assert made.one(found, "update_period_s", "run").value == pytest.approx(0.5, rel=0.02)
    short = [f for f in doubts if f.flag == "window_too_short" and f.voids]
    assert len(short) == 1
    assert "must last 50 s" in short[0].detail


# not_steady


def rising(share: float) -> Trace:
    """Power that climbs by `share` within each window."""
    trace = made.gauged(PHASES)
    values = trace.values[:, 0].copy()
    for w in WINDOWS:
        k = during(trace, w)
        values[k] *= 1 + share * (trace.t_s[k] - w.start_s) / w.duration_s
    return made.with_column(trace, values)


def test_power_that_climbs_within_the_window_voids_that_meter_alone() -> None:
    # The thirds' means lie two thirds of the climb apart: 12 % gives 7.8 % of the first third, 6 % gives 4 %.
    flag = only(made.run(PHASES, [rising(0.12), made.counted(PHASES)]), "not_steady")
    assert flag.meter == "hwmon"
    assert set(flag.voids) == set(flags.ENERGY_METRICS)
    assert "limit 5%" in flag.detail
    assert raised(made.run(PHASES, [rising(0.06)]), "not_steady") == []


def test_idle_that_changed_voids_net_figures_alone() -> None:
    levels = [made.WATTS[p.phase] for p in PHASES]
    last = max(k for k, p in enumerate(PHASES) if p.phase == "idle")
    levels[last] = 3.0  # net 7.5 W, and 0.5 W either way
    flag = only(made.run(PHASES, [made.gauged(PHASES, levels)]), "not_steady")
    assert set(flag.voids) == set(flags.NET_METRICS)
    assert "2 W before window 2 and 3 W after it" in flag.detail
    levels[last] = 2.2  # 0.1 W either way of 7.9 W: 1.3 %
    assert raised(made.run(PHASES, [made.gauged(PHASES, levels)]), "not_steady") == []


def test_idle_that_differs_by_less_than_its_noise_is_steady() -> None:
    levels = [made.WATTS[p.phase] for p in PHASES]
    last = max(k for k, p in enumerate(PHASES) if p.phase == "idle")
    levels[last] = 2.5
    trace = made.gauged(PHASES, levels)
    slow = np.repeat(np.random.default_rng(5).normal(0, 1.0, len(trace.t_s) // 100 + 1), 100)[: len(trace.t_s)]
    noisy = np.where(during(trace, IDLES[1]) | during(trace, IDLES[2]), slow, 0.0)
    assert raised(made.run(PHASES, [made.with_column(trace, trace.values[:, 0] + noisy)]), "not_steady") == []


# rail_missing


def test_root_without_readings_gives_no_sum() -> None:
    t = made.stamps(PHASES)
    used = made.joules(t, made.knots(PHASES))
    channels = (made.counter("package-0"), made.counter("package-1"))
    values = np.column_stack([used, np.full(len(t), np.nan)])
    errors = {"package-1": {"count": 7, "text": "EIO"}}
    run = made.run(PHASES, [Trace("rapl", "boottime", channels, t, values, {"errors": errors})])
    found, doubts, _ = analyse(run)
    missing = [f for f in doubts if f.flag == "rail_missing"]
    assert [f.meter for f in missing] == ["rapl", "rapl/package-1"]
    assert "package-1: 7 errors, the last EIO" in missing[0].detail
    assert not [m for m in found if m.meter == "rapl" and m.metric in flags.ENERGY_METRICS]
    assert made.one(found, "power_w", meter="rapl/package-0").value == pytest.approx(10.0)


def test_silent_part_costs_only_itself() -> None:
    t = made.stamps(PHASES)
    used = made.joules(t, made.knots(PHASES))
    channels = (made.counter("package-0"), made.counter("core", parent="package-0"))
    values = np.column_stack([used, np.full(len(t), np.nan)])
    run = made.run(PHASES, [Trace("rapl", "boottime", channels, t, values)])
    assert only(run, "rail_missing").meter == "rapl/core"
    assert made.one(analyse(run)[0], "power_w", meter="rapl").value == pytest.approx(10.0)


# on_fallback, simulated


def test_model_that_ran_elsewhere_than_asked_voids() -> None:
    engine = {"provider_asked": "cuda", "provider_used": "CPUExecutionProvider", "fallback_share": 1.0}
    flag = only(made.run(PHASES, engine=engine), "on_fallback")
    assert {"latency_s", "energy_per_inference_j"} <= set(flag.voids)
    assert "asked for cuda" in flag.detail


def test_single_nodes_elsewhere_are_told() -> None:
    nodes = {"CUDAExecutionProvider": 95, "CPUExecutionProvider": 5}
    engine = {
        "provider_asked": "cuda",
        "provider_used": "CUDAExecutionProvider",
        "fallback_share": 0.05,
        "nodes": nodes,
    }
    flag = only(made.run(PHASES, engine=engine), "on_fallback")
    assert flag.voids == ()
    assert "5.0%" in flag.detail


def test_what_ran_elsewhere_is_named() -> None:
    engine = {
        "provider_asked": "tensorrt",
        "provider_used": "TensorrtExecutionProvider",
        "fallback_share": 0.25,
        "nodes": {"TensorrtExecutionProvider": 3, "CPUExecutionProvider": 1},
        "fallback_ops": ["NonMaxSuppression", "Resize"],
    }
    detail = only(made.run(PHASES, engine=engine), "on_fallback").detail
    assert detail.startswith("25.0% of the nodes ran elsewhere than on TensorrtExecutionProvider (limit 0 %): ")
    assert detail.endswith("; elsewhere ran NonMaxSuppression, Resize")


def test_model_where_it_was_asked_to_be_is_no_fallback() -> None:
    engine = {"provider_asked": "cpu", "provider_used": "CPUExecutionProvider", "fallback_share": 0.0}
    assert raised(made.run(PHASES, engine=engine), "on_fallback") == []
    assert raised(made.run(PHASES, engine={}), "on_fallback") == []


def test_simulated_device_is_told() -> None:
    assert only(made.run(PHASES, device={"simulated": True}), "simulated").voids == ()
    assert raised(made.run(PHASES, device={"simulated": False}), "simulated") == []


# What is odd costs what it concerns, and raises nothing


def test_run_that_crashed_keeps_the_joules_of_its_complete_windows() -> None:
    complete = PHASES[: PHASES.index(WINDOWS[1])]
    run = made.run(complete, [made.counted(PHASES)], made.items(PHASES), error=RunError("crashed", "SIGSEGV"))
    found, _, _ = analyse(run)
    assert made.one(found, "energy_j").value == pytest.approx(200.0)
    assert made.one(found, "energy_per_inference_j").value == pytest.approx(1.0)


def test_samples_that_go_back_in_time_are_left_out_and_said() -> None:
    trace = made.counted(PHASES)
    t = trace.t_s.copy()
    t[5000], t[6000] = t[5000] - 30.0, np.nan
    found, _, warnings = analyse(made.run(PHASES, [dataclasses.replace(trace, t_s=t)]))
    assert made.one(found, "energy_j").value == pytest.approx(400.0)
    assert any(w.startswith("rapl: 2 of ") for w in warnings)


def test_trace_without_samples_is_a_missing_rail() -> None:
    empty = Trace("rapl", "boottime", (made.counter(),), np.empty(0), np.empty((0, 1)))
    assert only(made.run(PHASES, [empty]), "rail_missing").meter == "rapl"


def test_channels_that_contain_each_other_give_no_sum_but_a_word() -> None:
    t = made.stamps(PHASES)
    used = made.joules(t, made.knots(PHASES))
    ring = (made.counter("a", parent="b"), made.counter("b", parent="a"))
    found, _, warnings = analyse(made.run(PHASES, [Trace("odd", "boottime", ring, t, np.column_stack([used, used]))]))
    assert {m.meter for m in found if m.metric == "power_w"} == {"odd/a", "odd/b"}
    assert any("contain each other" in w for w in warnings)


@pytest.mark.parametrize("seed", range(25))
def test_mangled_runs_raise_nothing_and_give_finite_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    phases = made.phases(int(rng.integers(1, 4)), isolated_s=float(rng.choice([0.0, 0.3, 5.0])))
    items = made.items(phases)
    traces = [made.counted(phases, rate_hz=float(rng.choice([1.0, 20.0, 300.0]))), made.gauged(phases, rate_hz=7.0)]
    for k, trace in enumerate(traces):
        values = trace.values.copy()
        values[rng.random(values.shape) < rng.choice([0.0, 0.1, 0.9])] = np.nan
        if rng.random() < 0.3:
            values[rng.integers(len(values)) :] = rng.choice([np.nan, 0.0, -5.0])
        if rng.random() < 0.3:
            values = np.full_like(values, rng.choice([np.nan, 0.0, 3.0]))
        keep = rng.random(len(values)) > rng.choice([0.0, 0.2, 0.97])
        t = trace.t_s + rng.normal(0, 0.02, len(values)) * (rng.random() < 0.3)
        traces[k] = dataclasses.replace(trace, t_s=t[keep], values=values[keep])
    if rng.random() < 0.3:
        traces[0] = without(traces[0], traces[0].t_s > phases[len(phases) // 2].end_s)
    if rng.random() < 0.3:
        keep = rng.random(len(items)) > 0.5
        columns = ("item", "picture", "phase", "part", "repeat", "start_s", "end_s")
        items = dataclasses.replace(items, **{c: getattr(items, c)[keep] for c in columns})
    dropped = [p for p in phases if rng.random() > 0.2]
    run = made.run(dropped, traces, items, error=RunError("killed", "SIGKILL") if rng.random() < 0.3 else None)
    found, doubts, _ = analyse(run)
    for m in found:
        assert np.isfinite(m.value), m
        assert m.uncertainty is None or np.isfinite(m.uncertainty), m
    assert all(f.flag in flags.NAMES for f in doubts)
    assert analyse(run) == analyse(run)


def test_sensor_that_hangs_for_most_of_a_run_is_stale() -> None:
    trace = made.gauged(PHASES)
    values = trace.values[:, 0].copy()
    frozen = trace.t_s > WINDOWS[0].start_s + 5
    assert np.mean(frozen) > 0.5
    values[frozen] = values[frozen][0]
    found = raised(made.run(PHASES, [made.with_column(trace, values)]), "stale")
    assert "repeated one reading for 15 s of window 1" in found[0].detail
    assert "energy_j" in found[0].voids


def test_counter_that_never_grows_is_stale() -> None:
    trace = made.counted(PHASES)
    flag = raised(made.run(PHASES, [made.with_column(trace, np.full(len(trace.t_s), 7.0))]), "stale")[0]
    assert flag.detail.startswith("package-0 counted nothing in ")
    assert "energy_j" in flag.voids


def test_load_that_switches_between_two_levels_is_not_stale() -> None:
    trace = made.gauged(PHASES, noise_w=0.0)
    assert raised(made.run(PHASES, [trace]), "stale") == []
