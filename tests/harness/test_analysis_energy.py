"""Energy figures against closed forms: constant power in each phase, items at known times."""

import dataclasses

import numpy as np
import pytest

from edgewatt.harness.analysis import analyse, supported
from edgewatt.harness.api import Channel, ClockOffset, Run, Trace
from support import made_run as made


def flagged(run: Run) -> set[str]:
    return {f.flag for f in analyse(run)[1]}


# Two windows of 20 s at 10 W with 200 items of 0.1 s each; idle at 2 W.


def test_counter_gives_energy_power_and_joules_per_item() -> None:
    phases = made.phases()
    found, flags, _ = analyse(made.run(phases, [made.counted(phases)]))
    energy = made.one(found, "energy_j")
    assert energy.value == pytest.approx(400.0, rel=1e-9)
    assert (energy.unit, energy.meter, energy.boundary, energy.n) == ("J", "rapl", "package", 2)
    assert made.one(found, "power_w").value == pytest.approx(10.0, rel=1e-9)
    assert made.one(found, "energy_per_inference_j").value == pytest.approx(1.0, rel=1e-9)
    assert made.one(found, "energy_per_inference_j").n == 400
    assert made.one(found, "energy_j", "idle").value == pytest.approx(60.0, rel=1e-9)  # three idles of 10 s
    assert made.one(found, "power_w", "load").value == pytest.approx(5.0, rel=1e-9)
    assert made.one(found, "energy_j", "warmup").value == pytest.approx(32.0, rel=1e-9)
    assert not any(f.voids for f in flags)


def test_net_is_what_is_above_idle() -> None:
    phases = made.phases()
    found, _, _ = analyse(made.run(phases, [made.counted(phases)]))
    assert made.one(found, "power_net_w").value == pytest.approx(8.0, rel=1e-9)
    assert made.one(found, "energy_net_j").value == pytest.approx(320.0, rel=1e-9)
    assert made.one(found, "energy_per_inference_net_j").value == pytest.approx(0.8, rel=1e-9)


def test_gauge_gives_the_same_within_its_bar() -> None:
    phases = made.phases()
    found, _, _ = analyse(made.run(phases, [made.gauged(phases)]))
    for metric, true in (("energy_j", 400.0), ("power_w", 10.0), ("energy_per_inference_j", 1.0), ("power_net_w", 8.0)):
        m = made.one(found, metric)
        assert m.value == pytest.approx(true, rel=5e-4)  # 0.01 W of noise, 1,000 samples in each idle
        assert m.uncertainty is not None
        assert 0 < m.uncertainty < 0.01 * true


def test_gain_error_is_taken_of_the_difference_above_idle() -> None:
    phases = made.phases()
    trace = made.counted(phases, channel=made.counter(gain_error=0.05))
    found, _, _ = analyse(made.run(phases, [trace]))
    assert made.one(found, "energy_j").parts["gain"] == pytest.approx(0.05 * 400)
    assert made.one(found, "power_w").parts["gain"] == pytest.approx(0.05 * 10)
    assert made.one(found, "power_net_w").parts["gain"] == pytest.approx(0.05 * 8)


def test_unpublished_gain_error_is_said() -> None:
    phases = made.phases()
    found, _, _ = analyse(made.run(phases, [made.counted(phases)]))
    assert "gain error is not published" in made.one(found, "power_w").method
    known = made.counted(phases, channel=made.counter(gain_error=0.01))
    assert "not published" not in made.one(analyse(made.run(phases, [known]))[0], "power_w").method


def test_uncertainty_is_the_root_of_the_squares_of_its_parts() -> None:
    phases = made.phases()
    levels = [made.WATTS[p.phase] + 0.5 * p.repeat for p in phases]
    found, _, _ = analyse(made.run(phases, [made.counted(phases, levels, channel=made.counter(gain_error=0.02))]))
    budgeted = [m for m in found if m.parts]
    assert len(budgeted) > 10
    for m in budgeted:
        assert m.uncertainty == pytest.approx(np.sqrt(sum(v**2 for v in m.parts.values()))), m.metric


def test_joules_per_item_are_sum_over_sum_not_mean_of_ratios() -> None:
    # 10 W for 20 s and 200 items, then 12 W for 40 s and 400 items: 680 J by 600, not (1.0 + 1.2) / 2.
    a, b = made.phases(1), made.phases(1, window_s=40.0)
    shift = a[-1].end_s + 1.0 - b[0].start_s
    later = [dataclasses.replace(p, start_s=p.start_s + shift, end_s=p.end_s + shift, repeat=1) for p in b]
    phases = (*a, *later)
    levels = [made.WATTS[p.phase] if (p.phase, p.repeat) != ("window", 1) else 12.0 for p in phases]
    found, _, _ = analyse(made.run(phases, [made.counted(phases, levels)]))
    m = made.one(found, "energy_per_inference_j")
    assert m.value == pytest.approx(680 / 600, rel=1e-9)
    assert m.parts["repeats"] > 0.05  # two repeats 0.2 J apart say little


def test_one_repeat_has_no_spread_and_says_so() -> None:
    phases = made.phases(1)
    found, flags, _ = analyse(made.run(phases, [made.counted(phases)]))
    m = made.one(found, "energy_per_inference_j")
    assert "repeats" not in m.parts
    assert "spread is unknown" in m.method
    assert ("few_samples", ()) in [(f.flag, f.voids) for f in flags]


def test_one_idle_stands_for_both_sides() -> None:
    phases = [p for p in made.phases(1) if p.phase != "idle" or p.start_s < 110]
    found, _, _ = analyse(made.run(phases, [made.counted(phases)]))
    m = made.one(found, "power_net_w")
    assert m.value == pytest.approx(8.0, rel=1e-9)
    assert "one side only" in m.method


def test_without_idle_there_is_no_net() -> None:
    phases = [p for p in made.phases() if p.phase != "idle"]
    found, _, _ = analyse(made.run(phases, [made.counted(phases)]))
    assert not {m.metric for m in found} & {"power_net_w", "energy_net_j", "energy_per_inference_net_j"}
    assert made.one(found, "power_w").value == pytest.approx(10.0)


# Several channels


def test_roots_of_one_boundary_are_added_and_named_as_a_sum() -> None:
    phases = made.phases()
    t = made.stamps(phases)
    used = made.joules(t, made.knots(phases))
    channels = (
        made.counter("package-0"),
        made.counter("package-1"),
        made.counter("package-0/core", parent="package-0"),
    )
    trace = Trace("rapl", "boottime", channels, t, np.column_stack([used, 0.5 * used, 0.25 * used]))
    found, _, _ = analyse(made.run(phases, [trace]))
    total = made.one(found, "power_w", meter="rapl")
    assert total.value == pytest.approx(15.0, rel=1e-9)
    assert total.method.startswith("sum of package-0 + package-1")
    assert made.one(found, "power_w", meter="rapl/package-0").value == pytest.approx(10.0, rel=1e-9)
    core = made.one(found, "power_w", meter="rapl/package-0/core")
    assert core.value == pytest.approx(2.5, rel=1e-9)
    assert {m.metric for m in found if m.meter == core.meter} == {"energy_j", "power_w"}


def test_other_boundaries_stand_beside_and_are_not_added() -> None:
    phases = made.phases()
    t = made.stamps(phases)
    used = made.joules(t, made.knots(phases))
    channels = (made.counter("dram", "dram"), made.counter("package-0"))
    found, _, _ = analyse(
        made.run(phases, [Trace("rapl", "boottime", channels, t, np.column_stack([0.1 * used, used]))])
    )
    package = made.one(found, "energy_per_inference_j", meter="rapl")
    assert (package.value, package.boundary) == (pytest.approx(1.0, rel=1e-9), "package")
    dram = made.one(found, "energy_per_inference_j", meter="rapl/dram")
    assert (dram.value, dram.boundary) == (pytest.approx(0.1, rel=1e-9), "dram")


def test_no_power_sensor_means_no_joules_and_one_plain_sentence() -> None:
    phases = made.phases()
    found, _, warnings = analyse(made.run(phases))
    assert not any("energy" in m.metric or "power" in m.metric for m in found)
    (said,) = warnings
    assert "no power sensor" in said
    assert "nothing is estimated" in said


# Phases of an item: sliced out of the window, or looped alone


def test_looped_phases_give_joules_per_item() -> None:
    phases = made.phases(isolated_s=5.0)
    found, flags, _ = analyse(made.run(phases, [made.counted(phases)]))
    # 0.02 s at 9 W, 0.07 s at 11 W, 0.01 s at 4 W; idle at 2 W
    assert made.one(found, "energy_per_inference_j", "preprocess").value == pytest.approx(0.18, rel=1e-9)
    assert made.one(found, "energy_per_inference_j", "detect").value == pytest.approx(0.77, rel=1e-9)
    assert made.one(found, "energy_per_inference_j", "detect").n == 142
    assert made.one(found, "energy_per_inference_j", "postprocess").value == pytest.approx(0.04, rel=1e-9)
    assert made.one(found, "energy_per_inference_net_j", "detect").value == pytest.approx(0.63, rel=1e-9)
    assert flags == ()


def test_loop_too_short_for_the_sensor_gets_no_number_but_a_reason() -> None:
    phases = made.phases(isolated_s=0.5)  # 100 Hz: 2 x 0.01 s / 2 % = 1 s would do
    found, flags, _ = analyse(made.run(phases, [made.counted(phases)]))
    assert ("energy_per_inference_j", "detect") not in made.names(found)
    assert ("energy_j", "detect") not in made.names(found)
    (flag,) = flags
    assert (flag.flag, flag.voids, flag.meter) == ("window_too_short", (), "rapl")
    assert "must last 1 s" in flag.detail
    assert "lasted 0.5 s" in flag.detail


def test_loops_that_cost_more_than_the_whole_are_told() -> None:
    phases = made.phases(isolated_s=5.0)
    quiet = analyse(made.run(phases, [made.counted(phases)]))[2]
    assert quiet == ()  # 0.18 + 0.77 + 0.04 = 0.99 J against 1.00 J an item
    watts = made.WATTS | {"detect": 15.0}  # 0.18 + 1.05 + 0.04 = 1.27 J
    (said,) = analyse(made.run(phases, [made.counted(phases, watts)]))[2]
    assert "looped alone add up to 1.27" in said
    assert "+27.0%" in said


def sliced_run(rate_hz: float, pause_s: float = 0.0, isolated_s: float = 0.0) -> Run:
    """Items of three phases at 5, 20 and 8 W, and 3 W in the pause after each item (at its expense)."""
    phases = made.phases(isolated_s=isolated_s)
    items = made.items(phases)
    last = items.phase == 2
    items = dataclasses.replace(items, end_s=items.end_s - pause_s * last)
    times, levels = made.knots(phases)
    edges = [(float(t), float(w)) for t, w in zip(times[:-1], levels, strict=True)]
    edges += [(s, (5.0, 20.0, 8.0)[k]) for s, k in zip(items.start_s, items.phase, strict=True)]
    edges += [(float(e), 3.0) for e in items.end_s[last]]
    edges.sort()
    at = np.array([t for t, _ in edges] + [times[-1]]), np.array([w for _, w in edges])
    t = made.stamps(phases, rate_hz)
    channel = made.counter(gain_error=0.01)
    return made.run(phases, [Trace("ppk2", "boottime", (channel,), t, made.joules(t, at)[:, None])], items)


@pytest.mark.parametrize("pause_s", [0.0, 0.004])
def test_slices_and_the_rest_sum_to_the_window(pause_s: float) -> None:
    found, _, _ = analyse(sliced_run(5000.0, pause_s))  # 0.2 ms: 20 periods fit into 10 ms and into 6 ms
    for metric in ("energy_j", "energy_per_inference_j"):
        shares = [m for m in found if m.metric == metric and m.phase.startswith("window/")]
        whole = made.one(found, metric)
        assert sum(m.value for m in shares) == pytest.approx(whole.value, rel=1e-9)
    assert {m.phase for m in shares} == {f"window/{p}" for p in (*made.ITEM, *(["other"] if pause_s else []))}


def test_slices_are_right_within_their_bars() -> None:
    found, _, _ = analyse(sliced_run(5000.0, 0.004))
    for name, true in {
        "preprocess": 0.02 * 5,
        "detect": 0.07 * 20,
        "postprocess": 0.006 * 8,
        "other": 0.004 * 3,
    }.items():
        m = made.one(found, "energy_per_inference_j", f"window/{name}")
        assert m.uncertainty is not None
        assert abs(m.value - true) <= m.uncertainty, name
        assert m.uncertainty < 0.05 * true or name == "other"


def test_phases_too_short_for_the_sensor_go_into_the_rest_and_the_sum_still_holds() -> None:
    run = sliced_run(500.0)  # 2 ms: detect (70 ms) holds 35 periods, the others 10 and 5
    found, flags, _ = analyse(run)
    shares = {m.phase: m for m in found if m.metric == "energy_j" and m.phase.startswith("window/")}
    assert set(shares) == {"window/detect", "window/other"}
    assert "preprocess, postprocess (too short" in shares["window/other"].method
    total = sum(m.value for m in shares.values())
    assert total == pytest.approx(made.one(found, "energy_j").value, rel=1e-9)
    (flag,) = flags
    assert (flag.flag, flag.voids) == ("window_too_short", ())
    assert "preprocess lasts 0.02 s, postprocess lasts 0.01 s" in flag.detail
    assert "0.04 s in the item, or 0.2 s in a loop" in flag.detail


def test_sensor_too_slow_for_slices_relies_on_the_loops() -> None:
    found, flags, _ = analyse(sliced_run(100.0, isolated_s=5.0))
    assert not any(m.phase.startswith("window/") for m in found)
    assert ("energy_per_inference_j", "detect") in made.names(found)
    assert flags == ()


def test_twenty_periods_support_a_phase_and_nineteen_do_not() -> None:
    assert supported(0.001, 0.02)
    assert not supported(0.001, 0.019)


# Clocks


def test_samples_on_the_harness_clock_are_moved_to_the_device_clock() -> None:
    phases = made.phases()
    trace = made.counted(phases, channel=made.counter(gain_error=0.01))
    early = dataclasses.replace(
        trace, t_s=trace.t_s - 1000.0, clock="monotonic", facts={"clock_of": "harness"}
    )  # device - harness = 1000 s
    offset = ClockOffset(offset_s=1000.0, bound_s=0.001)
    found, flags, _ = analyse(made.run(phases, [early], clock_offset=offset))
    assert made.one(found, "energy_j").value == pytest.approx(400.0, rel=1e-9)
    assert not any(f.voids for f in flags)


def test_drift_of_the_device_clock_is_followed() -> None:
    phases = made.phases()
    trace = made.counted(phases)
    # In harness time h, the device clock shows h + 5 + 1e-3 (h - 100): so h = (d - 5 + 0.1) / 1.001.
    h = (trace.t_s - 5.0 + 0.1) / 1.001
    early = dataclasses.replace(trace, t_s=h, facts={"clock_of": "harness"})
    found, _, _ = analyse(made.run(phases, [early], clock_offset=ClockOffset(5.0, 0.0, 1e-3, 100.0)))
    assert made.one(found, "energy_j").value == pytest.approx(400.0, rel=1e-9)


def test_same_run_gives_the_same_results_twice() -> None:
    phases = made.phases(3, isolated_s=5.0)
    run = made.run(phases, [made.gauged(phases), made.counted(phases)])
    assert analyse(run) == analyse(run)


def test_cost_of_sampling_and_update_period_are_reported_by_meter() -> None:
    phases = made.phases()
    found, _, _ = analyse(made.run(phases, [made.counted(phases, cpu_s_per_s=0.012)]))
    assert made.one(found, "sampler_cpu_s_per_s", "run").value == 0.012
    assert made.one(found, "update_period_s", "run").value == pytest.approx(0.01, rel=1e-6)


def test_cost_of_a_service_is_part_of_the_cost_of_sampling() -> None:
    phases = made.phases(1)
    notes = {"service_cpu_s_per_s": 0.05, "client_cpu_s_per_s": 0.01}  # the client's is the agent's, who waited for it
    found, _, _ = analyse(made.run(phases, [made.gauged(phases, meter="jtop", cpu_s_per_s=0.02, notes=notes)]))
    cost = made.one(found, "sampler_cpu_s_per_s", "run")
    assert cost.value == pytest.approx(0.07)
    assert cost.method.endswith("0.05 of it the service's that reads for it")
    unseen = made.gauged(phases, meter="jtop", cpu_s_per_s=0.02, notes={"service_cpu_s_per_s": None})
    alone = made.one(analyse(made.run(phases, [unseen]))[0], "sampler_cpu_s_per_s", "run")
    assert alone.value == 0.02
    assert alone.method.endswith("without the (unknown) one of the service that reads for it")


def test_health_only_meter_is_no_power_sensor() -> None:
    phases = made.phases()
    t = made.stamps(phases, 10)
    heat = Trace(
        "health", "boottime", (Channel("soc", "temperature", "degC", "gauge", "SoC"),), t, np.full((len(t), 1), 40.0)
    )
    _, _, warnings = analyse(made.run(phases, [heat]))
    assert any("no power sensor" in w for w in warnings)


def test_gauge_that_never_changed_has_no_error_bar() -> None:
    of = made.phases()
    constant = made.gauged(of, [12.0] * len(of), noise_w=0.0)
    found, _, warnings = analyse(made.run(of, [constant]))
    for metric in ("power_w", "energy_j", "energy_per_inference_j", "power_net_w"):
        m = made.one(found, metric)
        assert m.uncertainty is None
        assert "no error bar" in m.method
    assert made.one(found, "power_w").value == pytest.approx(12.0)
    assert any("have no error bars" in w for w in warnings)


def test_gauge_that_never_changed_is_known_to_its_step() -> None:
    of = made.phases()
    constant = made.gauged(of, [12.0] * len(of), noise_w=0.0, channel=made.gauge(quantum=0.1))
    found, _, _ = analyse(made.run(of, [constant]))
    # Anything from 11.95 to 12.05 W shows as 12.0 W.
    assert made.one(found, "power_w").uncertainty == pytest.approx(0.05, rel=0.2)
