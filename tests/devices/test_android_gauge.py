"""The battery gauge of phones: which unit and sign it tells its current in, and whether its error bars hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgewatt.devices.android import gauge
from edgewatt.devices.android.gauge import BatteryGauge
from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness.api import Trace, UsageError
from edgewatt.harness.channels import groups
from edgewatt.harness.energy import energy
from support import waves
from support.recorded_phone import MISSING, Done, RecordedPhone, phone

BATTERY = "/sys/class/power_supply/battery"
CHARGING, DISCHARGING, FULL = 1, 2, 4  # places among the kernel's words


def battery(folder: str = BATTERY, **texts: str | None) -> Snapshot:
    """A phone with one battery on the charger's socket; None: no such file."""
    files = {"type": "Battery", "status": "Discharging", "voltage_now": "4000000", "current_now": "-500000"} | texts
    made = {f"{folder}/{name}": {"text": f"{text}\n"} for name, text in files.items() if text is not None}
    made["/sys/class/power_supply/usb/type"] = {"text": "USB\n"}
    made["/sys/class/power_supply/usb/online"] = {"text": "0\n"}
    return Snapshot(files=made)


def counting(currents: list[int], ua: float) -> Any:
    """A shell in which current_now reads `currents`, a quarter of a second apart, and the counter loses `ua` uA."""
    lines = [f"{100 + k / 4} {c} {3_000_000 - round(ua * k / 4 / 3600)}" for k, c in enumerate(currents)]
    return lambda *_, **__: Done(0, ("\n".join(lines) + "\n").encode())


def told(device: RecordedPhone) -> tuple[str, int, str]:
    """Unit, sign and the reason they were told by."""
    found, why = gauge.found_on(device)  # type: ignore[arg-type]
    return (found.unit, found.sign, found.why) if found else ("", 0, why)


# ---------------------------------------------------------------------------------------------------------------------
# Unit and sign


# What is known of the lab's phones: README, table of profiles.
@pytest.mark.parametrize(
    ("name", "unit", "sign"),
    [("sm8650", "uA", 1), ("sm8250-ma", "mA", -1), ("sm8350-inv", "uA", -1), ("pixel6", "uA", 1), ("pixel8", "uA", 1)],
)
def test_units_and_signs_of_known_phones_are_told(name: str, unit: str, sign: int) -> None:
    device = phone(name)
    assert told(device)[:2] == (unit, sign)
    (meter,) = BatteryGauge.found_on(device)  # type: ignore[arg-type]
    said = {1: "negative", -1: "positive"}[sign]
    assert f"current_now in {unit}, {said} while discharging" in meter.channels[0].covers
    assert groups(meter.channels)[0].boundary == "battery"


@pytest.mark.parametrize(
    ("current", "status", "unit", "sign"),
    [
        ("-20001", "Discharging", "uA", 1), ("20001", "Discharging", "uA", -1), ("-4999", "Discharging", "mA", 1),
        ("-1202147", "Charging", "uA", -1),  # Xiaomi Mi 6: negative while charging
        ("480", "Charging", "mA", 1),
    ],
)  # fmt: skip
def test_what_no_phone_draws_tells_the_unit_and_the_status_tells_the_sign(
    current: str, status: str, unit: str, sign: int
) -> None:
    assert told(RecordedPhone(battery(current_now=current, status=status)))[:2] == (unit, sign)


def test_reading_that_may_be_either_is_told_by_the_charge_counter() -> None:
    seen = battery(current_now="-12000", charge_counter="3000000")
    # 12 mA take 20 uAh in 6 s, too few steps for many gauges but enough here; 12 A would take 20000.
    assert told(RecordedPhone(seen, shell=counting([-12000] * 24, 12_000)))[:2] == ("uA", 1)
    seen = battery(current_now="6000", charge_counter="3000000", status="Unknown")
    assert told(RecordedPhone(seen, shell=counting([6000] * 24, 6_000_000)))[:2] == ("mA", -1)


@pytest.mark.parametrize(
    ("current", "status", "shell", "wanted"),
    [
        ("-12000", "Discharging", counting([-12000] * 24, 0), "current_unit"),  # the counter stands still
        ("-12000", "Discharging", counting([-12000] * 24, 380_000), "current_unit"),  # neither 12 mA nor 12 A
        ("-500000", "Full", counting([-500000, 500000] * 12, 0), "current_sign"),
        ("0", "Discharging", counting([0] * 24, 100_000), "current_unit and current_sign"),
        ("-500000", "Unknown", lambda *_, **__: Done(1, b"", "Permission denied"), "current_sign"),
        ("-500000", "Unknown", lambda *_, **__: Done(0, b"\x00\xff garbage\n1 x y\n"), "current_sign"),
    ],
)  # fmt: skip
def test_unit_or_sign_that_nothing_tells_is_refused_with_what_would(
    current: str, status: str, shell: Any, wanted: str
) -> None:
    device = RecordedPhone(battery(current_now=current, status=status, charge_counter="3000000"), shell=shell)
    assert list(BatteryGauge.found_on(device)) == []  # type: ignore[arg-type]
    (said,) = BatteryGauge.problems(device)  # type: ignore[arg-type]
    assert said.startswith("gauge: ") and f"write {wanted} into the device file" in said


def test_device_file_has_the_last_word_and_is_checked() -> None:
    seen = battery(current_now="-12000")
    assert told(RecordedPhone(seen, options={"current_unit": "mA", "current_sign": -1}))[:2] == ("mA", -1)
    for wrong in ({"current_unit": "A"}, {"current_sign": "positive"}, {"current_sign": 0}):
        with pytest.raises(UsageError, match="wanted"):
            gauge.found_on(RecordedPhone(seen, options=wrong))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# Which battery


def test_millivolts_are_volts_too_and_no_voltage_at_all_is_refused() -> None:
    found, _ = gauge.found_in(battery(voltage_now="4352"))
    assert found and found.volts_per_unit == 1e-3
    found, why = gauge.found_in(battery(voltage_now="12"))
    assert found is None and "no voltage of a phone's battery" in why


def test_fuel_gauge_under_another_name_is_found_and_a_pen_s_battery_is_not() -> None:
    found, _ = gauge.found_in(battery("/sys/class/power_supply/bms", type="BMS"))
    assert found and found.name == "bms"
    found, why = gauge.found_in(battery("/sys/class/power_supply/pen", scope="Device"))
    assert found is None and "no battery" in why
    found, why = gauge.found_in(battery(voltage_now=None))
    assert found is None and "voltage_now is not there" in why


def test_over_a_cable_the_gauge_is_refused_and_the_way_out_is_said() -> None:
    device = phone("sm8650", is_usb=True, address="R5CT1234")
    assert list(BatteryGauge.found_on(device)) == []  # type: ignore[arg-type]
    (said,) = BatteryGauge.problems(device)  # type: ignore[arg-type]
    assert "Wi-Fi adb" in said and "edgewatt devices --tcpip R5CT1234" in said


def test_other_devices_and_other_wishes_give_no_gauge() -> None:
    assert list(BatteryGauge.found_on(phone("sm8650", kind="host"))) == []  # type: ignore[arg-type]
    assert list(BatteryGauge.found_on(phone("sm8650", options={"power": "none"}))) == []  # type: ignore[arg-type]
    assert len(BatteryGauge.found_on(phone("pixel6"))) == 1  # type: ignore[arg-type]  # beside the rails


# ---------------------------------------------------------------------------------------------------------------------
# Readings


def sampled(seen: Snapshot, columns: list[list[int]]) -> Trace:
    rows = [(k * 125_000_000 + 5, 1_000_000, row) for k, row in enumerate(columns)]
    (meter,) = BatteryGauge.found_on(RecordedPhone(seen, rows=rows))  # type: ignore[arg-type]
    meter.start()
    return meter.stop()


def test_power_is_voltage_times_current_of_the_same_sample() -> None:
    trace = sampled(
        battery(charge_counter="3000000"),
        [[4_000_000, -500_000, 3_000_000, DISCHARGING, 0], [3_900_000, -600_000, 2_999_999, DISCHARGING, 0]],
    )
    assert trace.column("battery power") == pytest.approx([2.0, 2.34])
    assert trace.column("battery current") == pytest.approx([0.5, 0.6])
    assert trace.column("battery charge") == pytest.approx([10_800, 10_799.9964])
    assert trace.column("battery charging").tolist() == [0, 0]
    assert trace.facts["current_unit"] == "uA" and trace.facts["current_sign"] == 1


@pytest.mark.parametrize(
    "row",
    [
        [4_000_000, -500_000, CHARGING, 0], [4_000_000, -500_000, FULL, 0],
        [4_000_000, -500_000, DISCHARGING, 1],  # a supply is there, whatever the status says
        [4_000_000, 500_000, DISCHARGING, 0],  # a current into the battery
    ],
)  # fmt: skip
def test_every_sign_of_outside_power_is_charging(row: list[int]) -> None:
    trace = sampled(battery(), [[4_000_000, -500_000, DISCHARGING, 0], row])
    assert trace.column("battery charging").tolist() == [0, 1]


def test_missing_readings_are_missing() -> None:
    trace = sampled(battery(), [[4_000_000, MISSING, MISSING, MISSING], [MISSING, -500_000, DISCHARGING, 0]])
    assert np.isnan(trace.column("battery power")).all()
    assert np.isnan(trace.column("battery charging")[0]) and trace.column("battery charging")[1] == 0


@pytest.mark.parametrize("options", [{"current_unit": "mA"}, {"current_sign": -1}])
def test_charge_counter_that_contradicts_what_was_applied_leaves_no_power(options: dict[str, Any]) -> None:
    wave = waves.constant(2.0)
    trace = emulated(wave, np.random.default_rng(1), 0.5, "instant", options=options)
    assert np.isnan(trace.column("battery power")).all()
    assert "the charge counter moved 1 x as fast" in trace.facts["errors"]["battery power"]["text"]


# ---------------------------------------------------------------------------------------------------------------------
# Known powers


def emulated(
    wave: waves.Wave, rng: np.random.Generator, period_s: float, kind: str, *, unit: float = 1e-6, **more: Any
) -> Trace:
    """What comes of a gauge that renews V, I and the charge every `period_s`, of the moment or of the mean since."""
    ticks = rng.uniform(0, 1) + np.arange(0, 130, period_s) * (1 + rng.normal(0, 1e-4))
    ticks += rng.uniform(0, 0.02, len(ticks)) * period_s
    mean = np.diff(wave.integral(ticks), prepend=np.nan) / np.diff(ticks, prepend=np.nan)
    watts = wave.power(ticks) if kind == "instant" else mean
    open_v, ohm = 4.1 - 1e-5 * ticks, 0.06
    volts = (open_v + np.sqrt(open_v**2 - 4 * ohm * watts)) / 2
    amperes = watts / volts
    coulombs = 10_000 - np.concatenate([[0.0], np.cumsum(np.diff(ticks) * amperes[1:])])
    reads = ticks[2] + np.cumsum(rng.uniform(0.124, 0.130, 900))
    reads = reads[reads < ticks[-1]]
    k = np.searchsorted(ticks, reads, side="right") - 1
    rows = [
        (round(t * 1e9), 200_000, [round(volts[i] * 1e6), -round(amperes[i] / unit), round(coulombs[i] / 3.6e-3), 2, 0])
        for t, i in zip(reads, k, strict=True)
    ]
    first = rows[0][2]
    seen = battery(voltage_now=str(first[0]), current_now=str(first[1]), charge_counter=str(first[2]))
    (meter,) = BatteryGauge.found_on(RecordedPhone(seen, rows=rows, **more))  # type: ignore[arg-type]
    meter.start()
    return meter.stop()


CASES = [
    (power, kind, period_s, unit)
    for power in ("constant", "step", "sine", "square", "load")
    for kind, period_s, unit in (
        ("mean", 0.5, 1e-6),
        ("instant", 1.0, 1e-3),
        ("mean", 1.0, 1e-6),
        ("instant", 0.25, 1e-6),
    )
]


def drawn(power: str, rng: np.random.Generator, period_s: float) -> waves.Wave:
    """A power of that kind, slow enough for the gauge to follow it."""
    low, high = rng.uniform(0.5, 1.5), rng.uniform(2.0, 5.0)
    if power == "constant":
        return waves.constant(high)
    if power == "step":
        return waves.step(low, high, rng.uniform(20, 60))
    if power == "sine":
        return waves.sine((low + high) / 2, (high - low) / 2, rng.uniform(8, 30) * period_s, rng.uniform(0, 6))
    if power == "square":
        return waves.square(low, high, rng.uniform(8, 30) * period_s, rng.uniform(0, 9))
    turns = np.cumsum(rng.exponential(10 * period_s, 200))
    return waves.telegraph(low, high, turns)


@pytest.mark.parametrize(("power", "kind", "period_s", "unit"), CASES)
def test_truth_is_inside_the_bar_whatever_the_gauge_averages(
    power: str, kind: str, period_s: float, unit: float
) -> None:
    rng = np.random.default_rng([3, len(power), int(period_s * 100), len(kind)])
    inside, n, bars = 0, 16, []
    for _ in range(n):
        wave = drawn(power, rng, period_s)
        trace = emulated(wave, rng, period_s, kind, unit=unit)
        start_s = rng.uniform(10, 30)
        end_s = start_s + rng.uniform(40, 80)
        told = energy(trace, "battery power", start_s, end_s)
        inside += abs(told.energy_j - wave.energy(start_s, end_s)) <= told.uncertainty_j
        bars.append(told.uncertainty_j / told.energy_j)
        assert trace.facts["update_period_s"] == pytest.approx(period_s, rel=0.02)
    assert inside >= 0.93 * n and np.median(bars) < 0.06
