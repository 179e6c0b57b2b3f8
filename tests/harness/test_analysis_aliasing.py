"""The flag `aliased`: a load that changes faster than a gauge is read; and loads that only look restless."""

import dataclasses

import numpy as np
import pytest

from edgewatt.harness import flags
from edgewatt.harness.analysis import analyse
from edgewatt.harness.api import Flag, Floats, Phase, Trace
from support import made_run as made
from support.waves import Wave, constant, sine, square, telegraph

READ_S = 0.4618  # what jtop and tegrastats are asked for


def read(
    of: tuple[Phase, ...], wave: Wave, every_s: float = READ_S, *, jitter: float = 0.0, noise_w: float = 0.0,
    quantum: float = 0.04, seed: int = 0, **channel: object,
) -> Trace:  # fmt: skip
    """Readings of a wave, rounded as a sensor does."""
    random = np.random.default_rng(seed)
    t = np.arange(of[0].start_s - 5.0, of[-1].end_s + 5.0, every_s) + every_s * random.random()
    t = np.sort(t + jitter * every_s * (random.random(len(t)) - 0.5))
    watts = wave.power(t) + noise_w * random.standard_normal(len(t))
    gauge = made.gauge(quantum=quantum, **channel)
    return Trace("jtop", "boottime", (gauge,), t, (np.round(watts / quantum) * quantum)[:, None], {})


def windows(seconds: float, repeats: int = 1, **more: float) -> tuple[Phase, ...]:
    return made.phases(repeats, window_s=seconds, **more)


def raised(of: tuple[Phase, ...], trace: Trace) -> list[Flag]:
    return [f for f in analyse(made.run(of, [trace]))[1] if f.flag == flags.ALIASED]


def in_windows(of: tuple[Phase, ...], wave: Wave, rest: Wave) -> Wave:
    """`wave` in the windows, `rest` elsewhere; for its power alone."""

    def power(t: Floats) -> Floats:
        inside = np.any([(t >= p.start_s - 0.5) & (t <= p.end_s + 0.5) for p in of if p.phase == "window"], axis=0)
        return np.where(inside, wave.power(t), rest.power(t))

    return dataclasses.replace(rest, power=power)


@pytest.mark.parametrize("seconds", [20.0, 46.0, 60.0])
@pytest.mark.parametrize("duty", [0.5, 0.1])
@pytest.mark.parametrize("phase_s", [0.0, 0.013, 0.05, 0.087])
def test_ten_hertz_read_twice_a_second_is_aliased(seconds: float, duty: float, phase_s: float) -> None:
    of = windows(seconds)
    wave = in_windows(of, square(2.0, 10.0, 0.1, 100.0 + phase_s, duty), constant(2.0))
    (flag,) = raised(of, read(of, wave))
    assert set(flag.voids) == set(flags.ENERGY_METRICS)
    assert flag.meter == "jtop"
    assert flag.detail.startswith("VDD_IN was read every 0.462 s; its readings in window 1 scatter by ")
    assert flag.detail.endswith("(limit 3%): use a faster meter, or longer windows")


def test_restless_idle_spoils_net_figures_alone() -> None:
    of = windows(60.0)
    wave = in_windows(of, constant(10.0), square(2.0, 10.0, 0.1, 100.0))
    (flag,) = raised(of, read(of, wave))
    assert set(flag.voids) == set(flags.NET_METRICS)
    assert "in idle" in flag.detail


def test_restless_idle_far_below_the_load_spoils_nothing() -> None:
    of = windows(60.0)
    assert raised(of, read(of, in_windows(of, constant(40.0), square(0.5, 1.0, 0.1, 100.0)))) == []


def test_loop_of_a_phase_that_is_aliased_gets_no_figure() -> None:
    of = windows(60.0, isolated_s=60.0)
    loop = next(p for p in of if p.phase == "detect")
    wave = square(2.0, 10.0, 0.1, 100.0)
    alone = dataclasses.replace(
        wave, power=lambda t: np.where((t > loop.start_s) & (t < loop.end_s), wave.power(t), 2.0)
    )
    run = made.run(of, [read(of, alone)])
    found, doubts, _ = analyse(run)
    (flag,) = [f for f in doubts if f.flag == flags.ALIASED]
    assert flag.voids == ()
    assert flag.detail.endswith("no figure is given for detect alone")
    assert not [m for m in found if m.phase == "detect" and m.metric == "energy_per_inference_j"]
    assert [m for m in found if m.phase == "preprocess" and m.metric == "energy_per_inference_j"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "wave",
    [
        pytest.param(constant(7.0), id="constant"),
        pytest.param(sine(3.0, 2.0, 10.0, 0.3), id="sine 0.1 Hz"),
        pytest.param(sine(3.0, 2.0, 5.0, 0.3), id="sine 0.2 Hz"),
        pytest.param(sine(3.0, 2.0, 3.0, 0.3), id="sine 0.3 Hz"),
        pytest.param(square(2.0, 10.0, 4.0, 99.0), id="steps every 2 s"),
        pytest.param(square(2.0, 10.0, 5.0, 99.0, 0.2), id="steps every 1 and 4 s"),
        pytest.param(telegraph(1.0, 9.0, np.cumsum(np.tile([2.0, 3.5, 2.5, 5.0], 60)) + 90), id="uneven steps"),
    ],
)
def test_loads_that_the_reads_follow_are_not(wave: Wave, seed: int) -> None:
    for seconds in (20.0, 60.0):
        of = windows(seconds)
        for noise_w in (0.0, 0.1):
            assert raised(of, read(of, wave, jitter=0.1, noise_w=noise_w, seed=seed)) == []


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("hertz", [5.0, 10.0, 20.0])
def test_coarse_steps_that_repeat_a_fast_load_do_not_hide_it(hertz: float, seed: int) -> None:
    of = windows(20.0)
    wave = in_windows(of, square(2.0, 10.0, 1 / hertz, 100.0), constant(2.0))
    assert len(raised(of, read(of, wave, jitter=0.1, noise_w=0.15, quantum=0.4, seed=seed))) == 1


@pytest.mark.parametrize("held_s", [1.0, 1.4, 5.0])
def test_sensor_that_holds_its_values_and_is_read_as_it_looks_is_not(held_s: float) -> None:
    of = windows(60.0)
    levels = np.random.default_rng(3).uniform(2.0, 10.0, 400)
    held = dataclasses.replace(constant(1.0), power=lambda t: levels[((t - 90) / held_s).astype(int) % 400])
    assert raised(of, read(of, in_windows(of, held, constant(2.0)), jitter=0.1)) == []


@pytest.mark.parametrize("seed", range(5))
def test_steps_to_ever_new_levels_look_like_a_sensor_that_holds_and_are_not(seed: int) -> None:
    of = windows(60.0)
    levels = np.random.default_rng(seed).uniform(1.0, 9.0, 200)
    stairs = dataclasses.replace(constant(1.0), power=lambda t: levels[np.minimum(((t - 90) / 2.1).astype(int), 199)])
    assert raised(of, read(of, stairs, jitter=0.1, seed=seed)) == []


def test_register_at_a_pace_of_its_own_is_judged_by_its_refreshes() -> None:
    of = windows(20.0)
    wave = in_windows(of, square(2.0, 10.0, 1 / 437, 100.0, 0.3), constant(2.0))
    made_at = read(of, dataclasses.replace(wave, power=lambda t: wave.power(np.floor(t / 0.04) * 0.04)), 0.02,
                   noise_w=0.0, quantum=0.001, age_s=0.02)  # fmt: skip
    noise = 0.1 * np.random.default_rng(1).standard_normal(len(made_at.t_s))
    held = made_at.values[:, 0] + noise[np.unique(np.floor(made_at.t_s / 0.04), return_inverse=True)[1]]
    (flag,) = raised(of, made.with_column(made_at, held))
    assert "read every 0.04 s" in flag.detail


def test_noise_that_averages_out_is_not() -> None:
    of = windows(20.0)
    assert raised(of, read(of, constant(6.0), 0.01, noise_w=2.0)) == []  # 2000 readings
    assert raised(of, read(of, constant(6.0), noise_w=0.3)) == []  # 43 readings


def test_reading_between_two_steps_of_the_sensor_is_not() -> None:
    of = windows(20.0)
    assert raised(of, read(of, constant(2.2), noise_w=0.05, quantum=0.4)) == []


def test_sensor_that_averages_between_its_readings_has_seen_it_all() -> None:
    of = windows(60.0)
    wave = in_windows(of, square(2.0, 10.0, 0.1, 100.0), constant(2.0))
    assert raised(of, read(of, wave, averaging_s=READ_S)) == []


def test_fast_load_read_a_hundred_times_a_second_is_judged_the_same_way() -> None:
    of = windows(20.0)
    assert raised(of, read(of, square(2.0, 10.0, 0.1, 100.0), 0.01)) == []
    (flag,) = raised(of, read(of, in_windows(of, square(2.0, 10.0, 1 / 437, 100.0, 0.1), constant(2.0)), 0.01))
    assert "read every 0.01 s" in flag.detail


def test_counters_are_never_aliased() -> None:
    of = windows(60.0)
    t = np.arange(of[0].start_s - 5.0, of[-1].end_s + 5.0, READ_S)
    wave = square(2.0, 10.0, 0.1, 100.0)
    joules = np.array([wave.energy(t[0], x) for x in t])
    assert raised(of, Trace("rapl", "boottime", (made.counter(),), t, joules[:, None], {})) == []


def test_rails_that_are_added_are_judged_together() -> None:
    of = windows(60.0)
    wave = in_windows(of, square(2.0, 10.0, 0.1, 100.0), constant(2.0))
    one = read(of, wave)
    other = made.gauge("VDD_SOC", quantum=0.04)
    both = dataclasses.replace(
        one,
        channels=(*one.channels, other),
        values=np.column_stack([one.values[:, 0], 12.0 - one.values[:, 0]]),  # what one draws the other does not
    )
    assert raised(of, both) == []
    (flag,) = raised(of, dataclasses.replace(both, values=np.column_stack([one.values[:, 0]] * 2)))
    assert "VDD_IN + VDD_SOC" in flag.detail
