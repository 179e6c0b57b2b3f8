"""Rails out of the PowerStats service's dump: which number is read, and the joules that come of it."""

from __future__ import annotations

import numpy as np
import pytest

from edgewatt.devices.android import powerstats
from edgewatt.devices.android.powerstats import PowerStats
from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness.channels import groups
from edgewatt.harness.energy import energy
from support import waves
from support.recorded_phone import MISSING, RecordedPhone, phone

HEAD = "\n============= PowerStats HAL 2.0 energy meter ==============\n"
WITH_DELTA = HEAD + (
    "Elapsed time: 12 ms\n                           Channel    Cumulative Energy (      Delta   )\n"
    "       [S2M_VDD_CPUCL2]:CPU(BIG)         12345.67 mWs (          1.25)\n"
    "                [S2S_VDD_G3D]:GPU2            10.05 mWs (          0.00)\n"
    "        [VSYS_PWR_DISPLAY]:Display          3189.60 mWs (          0.00)\n"
    "            [S2M_VDD_CPUCL2]:AGAIN             1.00 mWs (          0.00)\n"
)
PLAIN = WITH_DELTA.replace("(          1.25)", "").replace("(          0.00)", "")


def dumping(text: str, status: int = 0, **more: object) -> RecordedPhone:
    return RecordedPhone(Snapshot(tools={powerstats.DUMP: {"status": status, "out": text, "err": ""}}), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "number"), [(WITH_DELTA, -2), (PLAIN, -1)])
def test_cumulative_energy_is_read_and_never_the_delta(text: str, number: int) -> None:
    fields = powerstats.found_in(dumping(text).seen)
    assert [(f["name"], f["line"]) for f in fields] == [
        ("S2M_VDD_CPUCL2", "[S2M_VDD_CPUCL2]:"), ("S2S_VDD_G3D", "[S2S_VDD_G3D]:"),
        ("VSYS_PWR_DISPLAY", "[VSYS_PWR_DISPLAY]:"),
    ]  # fmt: skip
    assert {f["number"] for f in fields} == {number} and {f["decimals"] for f in fields} == {2}


@pytest.mark.parametrize("name", ["pixel7", "pixel8"])
def test_phones_that_let_nobody_read_sysfs_are_measured_by_the_dump(name: str) -> None:
    (meter,) = PowerStats.found_on(phone(name))  # type: ignore[arg-type]
    figure, *_ = groups(meter.channels)
    assert figure.boundary == "rails" and figure.label == "sum of measured rails"
    assert "DISP" not in figure.roots[0].covers
    rails = {"pixel7": 16, "pixel8": 24}[name]
    assert len(meter.channels) == rails + 1


def test_chips_that_can_be_read_directly_come_first_unless_the_device_file_says_otherwise() -> None:
    assert list(PowerStats.found_on(phone("pixel6"))) == []  # type: ignore[arg-type]
    assert len(PowerStats.found_on(phone("pixel6", options={"power": "powerstats"}))) == 1  # type: ignore[arg-type]
    assert list(PowerStats.found_on(phone("pixel7", options={"power": "gauge"}))) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "Can't find service: x\n", HEAD, "   [A]:B  12 mWs\n", "[A]:B  -1.00 mWs ( 0.00)\n"]
)
def test_what_is_no_dump_gives_no_rails(text: str) -> None:
    assert list(PowerStats.found_on(dumping(text))) == []  # type: ignore[arg-type]
    assert list(PowerStats.problems(dumping(text))) == []  # type: ignore[arg-type]
    (said,) = PowerStats.problems(dumping(text, options={"power": "powerstats"}))  # type: ignore[arg-type]
    assert "prints no rails" in said


def test_phones_without_the_service_have_none() -> None:
    assert list(PowerStats.found_on(phone("sm8650"))) == []  # type: ignore[arg-type]


def test_rails_that_nobody_knows_are_told() -> None:
    text = "  [S6M_LLDO1]:LDO   212.64 mWs\n"
    assert "no rail is known" in PowerStats.problems(dumping(text))[0]  # type: ignore[arg-type]
    text += "  [S2S_VDD_GPU]:GPU   212.64 mWs\n"
    assert PowerStats.problems(dumping(text))[0].endswith("in no sum: S6M_LLDO1")  # type: ignore[arg-type]


def test_hundredths_of_a_milliwatt_second_become_joules_and_a_missing_rail_no_sum() -> None:
    rows = [(10**9 * k, 10**7, [1234567 + k * 50_000, 1005, 318_960]) for k in range(3)]
    rows.append((4 * 10**9, 10**7, [1434567, MISSING, 318_960]))
    (meter,) = PowerStats.found_on(dumping(PLAIN, rows=rows))  # type: ignore[arg-type]
    meter.start()
    trace = meter.stop()
    assert trace.column("S2M_VDD_CPUCL2")[0] == pytest.approx(12.34567)
    assert trace.values[:3, 0] == pytest.approx([0, 0.5, 1.0]) and np.isnan(trace.values[3, 0])
    assert trace.facts["read_s"] == pytest.approx(0.01)


def test_restart_of_a_small_rail_is_not_hidden_by_the_growth_of_the_others() -> None:
    rows = [(10**9 * k, 10**7, [100_000 * k, 1000 + k if k < 3 else 5, 0]) for k in range(6)]
    (meter,) = PowerStats.found_on(dumping(PLAIN, rows=rows))  # type: ignore[arg-type]
    meter.start()
    whole = meter.stop().values[:, 0]
    assert whole[3] == 0 and (np.diff(whole) < 0).sum() == 1


@pytest.mark.parametrize("kind", ["constant", "step", "sine", "square"])
def test_truth_is_inside_the_bars_of_known_powers(kind: str) -> None:
    """A command takes 5 to 60 ms, and reads its service at any moment of it; the chip behind samples at 125 Hz."""
    rng = np.random.default_rng([7, len(kind)])
    inside = 0
    n = 40
    for _ in range(n):
        wave = {
            "constant": waves.constant(rng.uniform(0.5, 5)),
            "step": waves.step(rng.uniform(0.5, 2), rng.uniform(2, 6), rng.uniform(6, 28)),
            "sine": waves.sine(rng.uniform(2, 4), rng.uniform(0.5, 1.5), rng.uniform(4, 12), rng.uniform(0, 6)),
            "square": waves.square(rng.uniform(0.5, 1), rng.uniform(2, 5), rng.uniform(5, 12), rng.uniform(0, 3)),
        }[kind]
        longest_s = rng.uniform(0.005, 0.06)
        began = rng.uniform(0, 1) + np.cumsum(rng.uniform(0.53, 0.56, 70))
        lasts = rng.uniform(0.7, 1.0, 70) * longest_s
        read = np.floor((began + rng.uniform(0, 1, 70) * lasts) * 125) / 125
        joules = wave.integral(read)
        rows = [
            (int((t + d / 2) * 1e9), int(d * 1e9), [int(j * 0.3 * 1e5), int(j * 0.1 * 1e5), 0])
            for t, d, j in zip(began, lasts, joules, strict=True)
        ]
        (meter,) = PowerStats.found_on(dumping(PLAIN, rows=rows))  # type: ignore[arg-type]
        meter.start()
        trace = meter.stop()
        start_s = rng.uniform(4, 8)
        end_s = start_s + rng.uniform(12, 25)
        told = energy(trace, trace.channels[0].name, start_s, end_s)
        inside += abs(told.energy_j - 0.4 * wave.energy(start_s, end_s)) <= told.uncertainty_j
    assert inside >= 0.95 * n
