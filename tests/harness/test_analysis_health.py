"""Temperature, clocks, load and throttling over the windows, against hand-computed values."""

from collections.abc import Callable

import numpy as np
import pytest

from edgewatt.harness.analysis import analyse
from edgewatt.harness.api import Channel, Flag, Floats, Run, Trace
from support import made_run as made

PHASES = made.phases(2)
FIRST, LAST = [p for p in PHASES if p.phase == "window"]

UNITS = {"temperature": "degC", "frequency": "Hz", "utilisation": "1", "throttle": "1", "throttled": "1"}


def channel(name: str, quantity: str, kind: str = "gauge") -> Channel:
    return Channel(name, quantity, UNITS[quantity], "counter" if kind == "counter" else "gauge", name)


def health(*columns: tuple[Channel, Callable[[Floats], Floats]], meter: str = "health") -> Trace:
    """A meter at 10 Hz whose channels follow the given functions of time."""
    t = made.stamps(PHASES, 10.0)
    return Trace(meter, "boottime", tuple(c for c, _ in columns), t, np.column_stack([f(t) for _, f in columns]))


def constant(value: float) -> Callable[[Floats], Floats]:
    return lambda t: np.full(len(t), value)


def ramp(first: float, last: float) -> Callable[[Floats], Floats]:
    """From `first` before the first window, in a line through all windows, to `last` after the last."""
    return lambda t: np.interp(t, [FIRST.start_s, LAST.end_s], [first, last])


def throttled(run: Run) -> list[Flag]:
    return [f for f in analyse(run)[1] if f.flag == "throttled"]


def test_hottest_channel_gives_mean_and_maximum() -> None:
    inside = lambda t: ((t >= FIRST.start_s) & (t < FIRST.end_s)) | ((t >= LAST.start_s) & (t < LAST.end_s))  # noqa: E731
    trace = health(
        (channel("board", "temperature"), constant(41.0)),
        (channel("cpu", "temperature"), lambda t: np.where(inside(t), 50.0 + 5 * (t > LAST.start_s), 90.0)),
    )
    found, _, _ = analyse(made.run(PHASES, [trace]))
    mean = made.one(found, "temperature_c")
    assert mean.value == pytest.approx(52.5, abs=0.1)
    assert "cpu, the hottest of 2" in mean.method
    assert made.one(found, "temperature_max_c").value == pytest.approx(55.0, abs=40 * 0.001)
    assert mean.uncertainty == pytest.approx(12.706 * 2.5, rel=0.01)  # two windows 5 degrees apart: t(1) x 2.5


def test_clocks_and_load_of_cores_are_averaged_and_the_lowest_kept() -> None:
    trace = health(
        (channel("cpu0", "frequency"), constant(1.0e9)),
        (channel("cpu1", "frequency"), constant(2.0e9)),
        (channel("cpu", "utilisation"), constant(0.75)),
    )
    found, _, _ = analyse(made.run(PHASES, [trace]))
    assert made.one(found, "frequency_hz").value == pytest.approx(1.5e9)
    assert made.one(found, "frequency_min_hz").value == pytest.approx(1.5e9)
    assert made.one(found, "utilisation").value == pytest.approx(0.75)
    assert "the mean of 2 cpu channels" in made.one(found, "frequency_hz").method


def test_kinds_of_clocks_are_kept_apart() -> None:
    trace = health((channel("cpu0", "frequency"), constant(1e9)), (channel("gpu", "frequency"), constant(5e8)))
    found, _, _ = analyse(made.run(PHASES, [trace]))
    assert made.one(found, "frequency_hz", meter="health/cpu").value == pytest.approx(1e9)
    assert made.one(found, "frequency_hz", meter="health/gpu").value == pytest.approx(5e8)


def test_missing_readings_are_passed_over_and_a_silent_channel_is_told() -> None:
    trace = health(
        (channel("cpu", "temperature"), lambda t: np.where(np.arange(len(t)) % 3 == 0, np.nan, 60.0)),
        (channel("gpu", "temperature"), constant(np.nan)),
    )
    found, doubts, warnings = analyse(made.run(PHASES, [trace]))
    assert made.one(found, "temperature_c").value == pytest.approx(60.0)
    assert any("health/gpu" in w for w in warnings)
    assert not [f for f in doubts if f.voids]


def test_memory_comes_from_the_engine() -> None:
    found, _, _ = analyse(made.run(PHASES, engine={"peak_memory_bytes": 183500800, "model_bytes": 291234}))
    assert made.one(found, "peak_memory_bytes", "run").value == 183500800
    assert made.one(found, "model_bytes", "run").value == 291234
    assert made.one(found, "model_bytes", "run").uncertainty is None


# throttled


def test_clock_that_falls_while_it_gets_hotter_voids() -> None:
    falling = lambda t: np.where(t > LAST.start_s + 5, 0.94e9, 1e9)  # noqa: E731
    hot = health((channel("cpu0", "frequency"), falling), (channel("soc", "temperature"), ramp(60.0, 85.0)))
    (flag,) = throttled(made.run(PHASES, [hot]))
    assert {"latency_s", "energy_per_inference_j", "throughput_fps"} <= set(flag.voids)
    assert "from 1000 MHz to 940 MHz in window 2 (-6.0%, limit -5%)" in flag.detail


def test_clock_that_falls_by_less_than_5_percent_is_no_throttling() -> None:
    falling = lambda t: np.where(t > LAST.start_s + 5, 0.96e9, 1e9)  # noqa: E731
    hot = health((channel("cpu0", "frequency"), falling), (channel("soc", "temperature"), ramp(60.0, 85.0)))
    assert throttled(made.run(PHASES, [hot])) == []


def test_clock_that_falls_while_it_stays_cool_is_no_throttling() -> None:
    falling = lambda t: np.where(t > LAST.start_s + 5, 0.5e9, 1e9)  # noqa: E731
    cool = health((channel("cpu0", "frequency"), falling), (channel("soc", "temperature"), constant(40.0)))
    assert throttled(made.run(PHASES, [cool])) == []
    blind = health((channel("cpu0", "frequency"), falling))
    (flag,) = throttled(made.run(PHASES, [blind]))
    assert flag.voids == ()  # told, since nothing shows why


def test_idle_core_that_clocks_down_is_no_throttling() -> None:
    wandering = lambda t: np.where(t > FIRST.start_s + 5, 0.4e9, 1e9)  # noqa: E731
    trace = health(
        (channel("cpu0", "frequency"), constant(1e9)),
        (channel("cpu1", "frequency"), wandering),
        (channel("soc", "temperature"), ramp(60.0, 85.0)),
    )
    assert throttled(made.run(PHASES, [trace])) == []


def test_throttle_counter_that_rises_in_a_window_voids_unless_the_clock_held() -> None:
    count = channel("core_throttle_count", "throttle", "counter")
    rising = lambda t: np.where(t > FIRST.start_s + 5, 8.0, 3.0)  # noqa: E731
    (flag,) = throttled(made.run(PHASES, [health((count, rising))]))
    assert "rose from 3 to 8 in window 1" in flag.detail
    assert "latency_s" in flag.voids
    held = health((count, rising), (channel("cpu0", "frequency"), constant(1e9)))
    (flag,) = throttled(made.run(PHASES, [held]))
    assert flag.voids == ()
    before = lambda t: np.where(t > FIRST.start_s - 2, 8.0, 3.0)  # noqa: E731
    assert throttled(made.run(PHASES, [health((count, before))])) == []


def test_throttle_state_above_zero_in_a_window_voids() -> None:
    state = channel("GPU throttled", "throttled")
    (flag,) = throttled(made.run(PHASES, [health((state, lambda t: (t > LAST.end_s - 5) * 1.0))]))
    assert "above 0 for 25.0% of window 2" in flag.detail
    assert throttled(made.run(PHASES, [health((state, lambda t: (t > LAST.end_s + 1) * 1.0))])) == []


def test_clock_that_never_changed_has_no_error_bar() -> None:
    trace = health((channel("cpu0", "frequency"), constant(2.4e9)))
    found, _, _ = analyse(made.run(PHASES, [trace]))
    frequency = made.one(found, "frequency_hz")
    assert (frequency.value, frequency.uncertainty) == (2.4e9, None)
