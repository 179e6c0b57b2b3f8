"""Power rails in sysfs: which chips and rails there are, what their readings stand for, and the joules they give."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgewatt.devices.android import odpm, rails
from edgewatt.devices.android.odpm import Odpm
from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness.api import Floats, Trace
from edgewatt.harness.channels import groups, parts
from edgewatt.harness.energy import energy
from support import waves
from support.recorded_phone import MISSING, Done, RecordedPhone, phone, snapshot

# The second chip of a Pixel 6 as a public script shows it (google/oboe), in the order of its channels.
PIXEL6_SECOND = (
    "VSYS_PWR_WLAN_BT", "L2S_VDD_AOC_RET", "S9S_VDD_AOC", "S5S_VDDQ_MEM", "S10S_VDD2L", "S4S_VDD2H_MEM",
    "S2S_VDD_G3D", "VSYS_PWR_DISPLAY",
)  # fmt: skip
DEVICES = "/sys/bus/iio/devices"


def one_chip(text: str, hz: str | None = "125.000000", name: str = "s2mpg10-odpm") -> Snapshot:
    """A phone with one chip whose energy_value holds `text`, and another IIO sensor before it."""
    files = {
        f"{DEVICES}/iio:device0/name": {"text": "bma255\n"},
        f"{DEVICES}/iio:device3/name": {"text": f"{name}\n"},
        f"{DEVICES}/iio:device3/energy_value": {"text": text},
    }
    if hz:
        files[f"{DEVICES}/iio:device3/sampling_rate"] = {"text": f"{hz}\n"}
    return Snapshot(files=files)


def sampled(seen: Snapshot, columns: list[list[int]], **more: object) -> Trace:
    """The trace of a phone whose agent read these columns every 40 ms."""
    rows = [(k * 40_000_000 + 5, 1_000_000, row) for k, row in enumerate(columns)]
    device = RecordedPhone(seen, rows=rows, **more)  # type: ignore[arg-type]
    (meter,) = Odpm.found_on(device)  # type: ignore[arg-type]
    meter.start()
    return meter.stop()


TWO_RAILS = "t=1000\nCH0(T=1000)[S2M_VDD_CPUCL2], 500\nCH1(T=1000)[VSYS_PWR_DISPLAY], 900\n"


def test_chips_are_found_by_their_name_and_rails_by_their_lines() -> None:
    found, problems = odpm.chips(snapshot("pixel6"))
    assert problems == []
    assert [c.name for c in found] == ["s2mpg10-odpm", "s2mpg11-odpm"]
    assert found[1].rails == PIXEL6_SECOND
    assert found[0].lines[3] == "CH3(" and found[0].sampling_hz == 125.0
    assert [f["line"] for f in found[0].fields][:2] == ["t=", "CH0("]


def test_channel_without_its_own_time_is_read_too() -> None:
    found, _ = odpm.chips(one_chip("t=5\nCH1[S2M_VDD_CPU2], 17\nCH10[S2S_VDD_GPU], 3\n", hz=None))
    assert found[0].lines == ("CH1[", "CH10[") and found[0].sampling_hz is None
    assert len(found[0].fields) == 3


def test_rails_of_one_name_are_used_once_and_told() -> None:
    found, problems = odpm.chips(one_chip("t=5\nCH0[S2M_VDD_CPU2], 17\nCH1[S2M_VDD_CPU2], 3\n"))
    assert found[0].rails == ("S2M_VDD_CPU2",) and found[0].lines == ("CH0[",)
    assert "S2M_VDD_CPU2" in problems[0]


@pytest.mark.parametrize("text", ["", "t=\n", "no rails here", "CH0[S2M_VDD_CPU2], 1\n", "t=1\nCH0[A], -4\n"])
def test_text_that_is_no_energy_value_is_said_and_left_out(text: str) -> None:
    device = RecordedPhone(one_chip(text))
    assert list(Odpm.found_on(device)) == []  # type: ignore[arg-type]
    (said,) = Odpm.problems(device)  # type: ignore[arg-type]
    assert said.startswith("odpm: s2mpg10-odpm: ") and "energy_value" in said


def test_phone_that_lets_nobody_read_has_no_rails_here_and_says_why() -> None:
    device = phone("pixel7")
    assert list(Odpm.found_on(device)) == []  # type: ignore[arg-type]
    said = Odpm.problems(device)  # type: ignore[arg-type]
    assert "Permission denied" in said[0] and "adb root" in said[0]


def test_other_devices_and_other_wishes_give_no_rails() -> None:
    assert list(Odpm.found_on(phone("sm8650"))) == []  # type: ignore[arg-type]
    assert list(Odpm.found_on(phone("pixel6", options={"power": "gauge"}))) == []  # type: ignore[arg-type]
    assert list(Odpm.found_on(phone("pixel6", kind="host"))) == []  # type: ignore[arg-type]
    assert len(Odpm.found_on(phone("pixel6", options={"power": "odpm"}))) == 1  # type: ignore[arg-type]


def test_figure_is_the_sum_of_compute_rails_and_display_and_radios_stand_by_themselves() -> None:
    (meter,) = Odpm.found_on(phone("pixel6"))  # type: ignore[arg-type]
    figure, *others = groups(meter.channels)
    assert figure.boundary == "rails" and figure.label == "sum of measured rails"
    covers = figure.roots[0].covers
    assert covers.partition(": ")[2].startswith("S10M_VDD_TPU + S2M_VDD_CPUCL2")
    assert "DISPLAY" not in covers and "MODEM" not in covers and "WLAN" not in covers
    assert {g.boundary: g.label for g in others} == {
        "radios": "sum of VSYS_PWR_MODEM + VSYS_PWR_RFFE + VSYS_PWR_WLAN_BT",
        "display": "VSYS_PWR_DISPLAY",
    }
    assert "S2M_VDD_CPUCL2" in [c.name for c in parts(meter.channels)]


def test_rails_of_unknown_use_are_listed_and_in_no_sum() -> None:
    seen = one_chip("t=5\nCH0[S2M_VDD_CPU2], 17\nCH1[S6M_LLDO1], 3\nCH2[S8S_VDD_GMC], 3\n")
    device = RecordedPhone(seen)
    (meter,) = Odpm.found_on(device)  # type: ignore[arg-type]
    assert meter.channels[0].covers == "1 rail of the processor and its memory: S2M_VDD_CPU2"
    assert list(Odpm.problems(device)) == ["odpm: of unknown use, so in no sum: S6M_LLDO1, S8S_VDD_GMC"]  # type: ignore[arg-type]


def test_rails_that_are_all_unknown_make_no_figure() -> None:
    device = RecordedPhone(one_chip("t=5\nCH0[S6M_LLDO1], 3\n"))
    assert list(Odpm.found_on(device)) == []  # type: ignore[arg-type]
    assert "no rail is known" in Odpm.problems(device)[0]  # type: ignore[arg-type]


# The table of specs: (name, what it feeds, where its joules are counted).
@pytest.mark.parametrize(
    ("name", "boundary", "feeds"),
    [
        ("S2M_VDD_CPUCL2", "rails", "big"), ("S2M_VDD_CPU2", "rails", "big"), ("S3M_VDD_CPUCL1", "rails", "middle"),
        ("S3M_VDD_CPU1", "rails", "middle"), ("S4M_VDD_CPUCL0", "rails", "little"), ("S4M_VDD_CPU", "rails", "little"),
        ("S2S_VDD_G3D", "rails", "GPU"), ("S2S_VDD_GPU", "rails", "GPU"), ("S10M_VDD_TPU", "rails", "TPU"),
        ("S1M_VDD_MIF", "rails", "memory interface"), ("S5M_VDD_INT", "rails", "interconnect"),
        ("S4S_VDD2H_MEM", "rails", "DRAM"), ("S5S_VDDQ_MEM", "rails", "DRAM"), ("S10S_VDD2L", "rails", "DRAM"),
        ("S9S_VDD_AOC", "rails", "always-on"), ("L2S_VDD_AOC_RET", "rails", "always-on"),
        ("VSYS_PWR_DISPLAY", "display", "display"), ("VSYS_PWR_DISP_G1", "display", "display"),
        ("VSYS_PWR_MODEM", "radios", "radios"), ("VSYS_PWR_RFFE", "radios", "radios"),
        ("VSYS_PWR_WLAN_BT", "radios", "radios"), ("S6M_LLDO1", "other rails", "unknown"),
        ("S10S_VDD_INFRA_MM_GPU_M", "other rails", "unknown"), ("S8S_VDD_GMC", "other rails", "unknown"),
        ("S9S_VDD_INFRA", "other rails", "unknown"), ("", "other rails", "unknown"),
    ],
)  # fmt: skip
def test_what_a_rail_feeds_is_told_by_its_name(name: str, boundary: str, feeds: str) -> None:
    known = rails.rail(name)
    assert known.boundary == boundary and feeds in known.feeds and known.name == name


def test_repeats_are_no_readings_and_stamps_are_the_chip_s_own() -> None:
    trace = sampled(
        one_chip(TWO_RAILS),
        [[1000, 500, 900, 1000, 1000]] * 4 + [[1160, 700, 950, 1160, 1160]] * 4 + [[1320, 800, 990, 1320, 1320]],
    )
    # A sample lasts 8 ms at 125 Hz; a reading stands for half of one before its stamp.
    assert trace.t_s == pytest.approx([0.996, 1.156, 1.316])
    assert trace.column("S2M_VDD_CPUCL2") == pytest.approx([500e-6, 700e-6, 800e-6])
    assert trace.column("VSYS_PWR_DISPLAY") == pytest.approx([900e-6, 950e-6, 990e-6])
    assert trace.values[:, 0] == pytest.approx([0, 200e-6, 300e-6])
    assert trace.facts["reads"] == 9 and trace.facts["refreshes"] == {"s2mpg10-odpm": 3}


def test_counter_that_falls_is_a_restart_and_is_never_unwrapped() -> None:
    rows = [[1000 + 160 * k, 10**12 + 3 * 10**5 * k, 900, 1000, 1000] for k in range(20)]
    rows += [[1000 + 160 * k, 3 * 10**5 * (k - 20), 900, 1000, 1000] for k in range(20, 60)]
    trace = sampled(one_chip(TWO_RAILS), rows)
    assert trace.facts["restarts"] == {"s2mpg10-odpm": 1}
    told = energy(trace, trace.channels[0].name, 2.0, 9.0)
    assert told.resets == 1
    assert told.energy_j == pytest.approx(0.3 / 0.16 * 7.0, rel=0.02)  # 0.3 J every 160 ms


def test_restart_that_shows_in_a_channel_s_own_time_alone_is_one() -> None:
    rows = [[1000 + 160 * k, 100 * k, 900, 1000 + 160 * k, 1000 + 160 * k] for k in range(3)]
    rows += [[1480, 350, 900, 20, 1480]]
    trace = sampled(one_chip(TWO_RAILS), rows)
    assert trace.facts["restarts"] == {"s2mpg10-odpm": 1}
    assert trace.values[:, 0] == pytest.approx([0, 100e-6, 200e-6, 0])


def test_two_chips_with_stamps_of_their_own_make_one_trace() -> None:
    seen = snapshot("pixel6")
    rows = []
    for k in range(6):
        first, second = 1000 + 160 * k, 1003 + 160 * k
        rows.append([first, *[10**6 * k] * 8, *[first] * 8, second, *[2 * 10**6 * k + 37_500] * 8, *[second] * 8])
    trace = sampled(seen, rows)
    assert len(trace.t_s) == 12 and (np.diff(trace.t_s) > 0).all()
    cpu, gpu = trace.column("S2M_VDD_CPUCL2"), trace.column("S2S_VDD_G3D")
    assert np.isfinite(cpu).sum() == np.isfinite(gpu).sum() == 6
    assert not (np.isfinite(cpu) & np.isfinite(gpu)).any()
    # Second chip: 12.5 J/s, read 3 ms later, so 37.5 mJ more: at the first chip's stamps it stood at 2 J x k.
    whole = trace.values[np.isfinite(trace.values[:, 0]), 0]
    of_first, of_second = 6, 6  # of eight each, two are radios, and radios and display
    assert np.diff(whole) == pytest.approx([of_first * 1.0 + of_second * 2.0] * (len(whole) - 1))
    assert len(whole) == 5  # at its first stamp nobody knows the second chip


def test_missing_readings_are_missing_and_a_sum_without_them_is_none() -> None:
    rows = [[1000 + 160 * k, MISSING, 900, MISSING, 1000] for k in range(4)]
    trace = sampled(one_chip(TWO_RAILS), rows)
    assert np.isnan(trace.column("S2M_VDD_CPUCL2")).all() and np.isnan(trace.values[:, 0]).all()
    assert np.isfinite(trace.column("VSYS_PWR_DISPLAY")).all()


def test_rails_assigned_anew_meanwhile_are_told() -> None:
    texts = iter([b"CH0[S2M_VDD_CPUCL2]:CPU\n", b"CH0[S1M_VDD_MIF]:MIF\n"])
    rows = [[1000 + 160 * k, 100 * k, 900, 1000, 1000] for k in range(3)]
    trace = sampled(one_chip(TWO_RAILS), rows, shell=lambda *_, **__: Done(0, next(texts)))
    assert trace.facts["enabled_rails_changed"] == ["s2mpg10-odpm"]


# ---------------------------------------------------------------------------------------------------------------------
# What comes of a known power


def read_chip(wave: waves.Wave, shares: list[float], reads_s: Floats, hz: float) -> Floats:
    """Columns that reads of one chip give: it samples at `hz`, its driver asks it again after 20 samples."""
    rows, last, stamp, held = [], -np.inf, 0, [0] * len(shares)
    for t in reads_s:
        if t - last >= 20 / hz:
            joules = float(wave.integral(np.array(np.floor(t * hz) / hz)))
            last, stamp, held = t, int(t * 1000), [int(joules * share * 1e6) for share in shares]
        rows.append([stamp, *held, *[stamp] * len(shares)])
    return np.array(rows, np.float64)


def powers(rng: np.random.Generator) -> dict[str, waves.Wave]:
    return {
        "constant": waves.constant(rng.uniform(0.5, 5)),
        "step": waves.step(rng.uniform(0.5, 2), rng.uniform(2, 6), rng.uniform(5, 25)),
        "sine": waves.sine(rng.uniform(2, 4), rng.uniform(0.5, 1.5), rng.uniform(1, 8), rng.uniform(0, 6)),
        "square": waves.square(rng.uniform(0.5, 1), rng.uniform(2, 5), rng.uniform(1, 6), rng.uniform(0, 3)),
    }


@pytest.mark.parametrize("kind", ["constant", "step", "sine", "square"])
def test_joules_of_known_powers_are_within_one_percent_and_inside_their_bars(kind: str) -> None:
    found, _ = odpm.chips(snapshot("pixel6"))
    rng = np.random.default_rng([20261126, len(kind)])
    inside, worst, wide = 0, 0.0, 0.0
    n = 40
    for _ in range(n):
        wave = powers(rng)[kind]
        hz = float(rng.choice([62.5, 125.0, 250.0, 1000.0]))
        chips = [dataclasses.replace(c, sampling_hz=hz) for c in found]
        reads_s = rng.uniform(0, 1) + np.cumsum(rng.uniform(0.038, 0.045, 800))
        shares = rng.uniform(0.01, 0.1, 16)
        raw = np.hstack([
            read_chip(wave, list(shares[:8]), reads_s, hz),
            read_chip(wave, list(shares[8:]), reads_s + 0.002, hz),
        ])  # fmt: skip
        t_s, values, _ = odpm.merged(chips, raw)
        channels = rails.channels([r for c in chips for r in c.rails], quantum_j=1e-6, age_s=0.0)
        trace = Trace("odpm", "boottime", channels, t_s, values, {"read_s": 1 / hz})
        added = [k for k, c in enumerate(channels[1:]) if c.parent]
        start_s = rng.uniform(3, 8)
        end_s = start_s + rng.uniform(10, 18)
        told = energy(trace, channels[0].name, start_s, end_s)
        truth_j = wave.energy(start_s, end_s) * float(sum(shares[k] for k in added))
        inside += abs(told.energy_j - truth_j) <= told.uncertainty_j
        worst = max(worst, abs(told.energy_j / truth_j - 1))
        wide = max(wide, told.uncertainty_j / truth_j)
    assert worst < 0.01 and inside >= 0.95 * n and wide < 0.03


def test_counter_that_leaps_is_counted_from_there_and_the_leap_is_no_energy() -> None:
    """Rails of 1 W and 2 W read five times a second; the first leaps by 4294 J, and starts at 0 again later."""
    t_s = np.arange(100) * 0.2
    shown = np.outer(t_s, [1.0, 2.0])
    shown[50:, 0] += 4294.0
    shown[80:, 0] -= shown[80, 0]
    found = rails.counted(["S2M_VDD_CPUCL2", "S4M_VDD_CPUCL0"], t_s, shown)
    assert np.flatnonzero(found.fell).tolist() == [50, 80]
    steps = np.diff(found.joules, axis=0)
    assert np.delete(steps[:, 0], [49, 79]) == pytest.approx(0.2) and steps[:, 1] == pytest.approx(0.4)
    _, values = rails.merged([found])
    assert (np.diff(values[:, 0]) < 0).sum() == 2  # the sum starts anew at both
    assert np.nanmax(np.diff(values[:, 0])) == pytest.approx(0.6)


def test_counters_without_a_reading_are_none() -> None:
    found = rails.counted(["S2M_VDD_CPUCL2"], np.empty(0), np.empty((0, 1)))
    assert len(found.fell) == 0 and rails.merged([found])[1].shape == (0, 2)
