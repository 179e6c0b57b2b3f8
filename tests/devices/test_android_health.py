"""Temperatures, clocks, load and memory of phones: which files, in which unit, and what is no reading."""

from __future__ import annotations

import numpy as np
import pytest

from edgewatt.devices.android import health
from edgewatt.devices.android.health import AndroidHealth, ThermalStatus
from edgewatt.devices.snapshot import Snapshot
from support.recorded_phone import MISSING, NAMES, RecordedPhone, phone

THERMAL = "/sys/class/thermal"


def zones(**temps: str) -> Snapshot:
    files = {}
    for k, (kind, temp) in enumerate(temps.items()):
        files[f"{THERMAL}/thermal_zone{k}/type"] = {"text": f"{kind}\n"}
        files[f"{THERMAL}/thermal_zone{k}/temp"] = {"text": f"{temp}\n"}
    return Snapshot(files=files)


@pytest.mark.parametrize(
    ("raw", "celsius"),
    [
        (36_300, 36.3), (363, 36.3), (36, 36.0), (-5_000, -5.0), (99_999, 99.999), (128, 128.0), (131, 13.1),
        (0, None), (-256, None), (-256_000, None), (-5700, None), (-5_700_000, None), (999_999_999, None), (None, None),
    ],
)  # fmt: skip
def test_temperatures_are_in_degrees_whatever_the_unit(raw: int | None, celsius: float | None) -> None:
    scale = health.celsius_scale(raw)
    assert (None if scale is None or raw is None else raw * scale) == pytest.approx(celsius)


@pytest.mark.parametrize(("raw", "hertz"), [(650_000_000, 650e6), (848_000, 848e6), (302, 302e6), (150_000_000, 150e6)])
def test_clocks_of_graphics_are_in_hertz_whatever_the_unit(raw: int, hertz: float) -> None:
    assert raw * health.hertz_scale(raw) == pytest.approx(hertz)


def test_zones_that_read_a_code_or_no_temperature_are_left_out() -> None:
    seen = zones(BIG="60000", skin="363", vbat="4100", dead="-5700", off="0", sleeping="-256000", pa="29")
    found = {w.channel.name: w.scale for w in health.watched(seen)}
    assert found == {"zone BIG": 1e-3, "zone skin": 0.1, "zone pa": 1.0}


def test_zones_of_one_name_are_told_apart_and_only_the_telling_ones_of_many_are_read() -> None:
    seen = zones(**{f"xo-therm-{k}": "30000" for k in range(40)}, **{"cpu-0": "50000", "skin": "35000"})
    names = [w.channel.name for w in health.watched(seen)]
    assert len(names) == health.MOST_ZONES and {"zone cpu-0", "zone skin"} <= set(names)
    files = dict(zones(cpu="50000").files) | {
        f"{THERMAL}/thermal_zone7/type": {"text": "cpu"}, f"{THERMAL}/thermal_zone7/temp": {"text": "51000"},
    }  # fmt: skip
    assert [w.channel.name for w in health.watched(Snapshot(files=files))] == ["zone cpu", "zone cpu #2"]


def test_clusters_are_called_by_their_speed_and_not_by_their_number() -> None:
    found = {w.channel.name: w for w in health.watched(phone("pixel7").seen)}
    assert {"little", "mid", "big"} <= set(found)
    assert found["big"].path.endswith("policy6/scaling_cur_freq") and found["big"].scale == 1e3


def test_cooling_devices_of_the_processor_are_throttles_and_those_of_the_charger_are_not() -> None:
    files = {}
    for k, kind in enumerate(("thermal-cpufreq-0", "charger", "fcc", "tpu_cooling", "panel0-backlight")):
        files[f"{THERMAL}/cooling_device{k}/type"] = {"text": kind}
        files[f"{THERMAL}/cooling_device{k}/cur_state"] = {"text": "0"}
    found = health.watched(Snapshot(files=files))
    assert [(w.channel.name, w.channel.quantity) for w in found] == [
        ("thermal-cpufreq-0 0", "throttle"), ("tpu_cooling 3", "throttle"),
    ]  # fmt: skip


def test_load_is_the_share_of_ticks_that_were_not_idle() -> None:
    # user nice system idle iowait irq softirq steal
    rows = [[100, 0, 100, 700, 100, 0, 0, 0], [110, 0, 110, 760, 120, 0, 0, 0], [110, 0, 110, 760, 120, 0, 0, 0]]
    share = health.utilisation(np.array(rows, np.float64))
    assert np.isnan(share[0]) and share[1] == pytest.approx(0.2) and np.isnan(share[2])


def test_load_of_a_kernel_with_fewer_columns_is_had_from_those() -> None:
    rows = [[0, 0, 0, 0] + [np.nan] * 4, [30, 0, 30, 40] + [np.nan] * 4]
    assert health.utilisation(np.array(rows))[1] == pytest.approx(0.6)


@pytest.mark.parametrize("name", NAMES)
def test_every_phone_s_conditions_are_read(name: str) -> None:
    (meter,) = AndroidHealth.found_on(phone(name))  # type: ignore[arg-type]
    quantities = {c.quantity for c in meter.channels}
    assert {"utilisation", "memory", "temperature", "frequency"} <= quantities
    assert len({c.name for c in meter.channels}) == len(meter.channels)
    assert "battery" in [c.name for c in meter.channels]
    assert len(ThermalStatus.found_on(phone(name))) == 1  # type: ignore[arg-type]


def test_readings_come_in_their_units_and_codes_are_missing() -> None:
    seen = zones(BIG="60000", skin="363")
    ticks = [100, 0, 100, 700, 100, 0, 0, 0]
    rows = [
        (10**9, 1000, [*ticks, 8_000_000, 5_000_000, 61_000, 364]),
        (2 * 10**9, 1000, [*ticks, 8_000_000, MISSING, -256_000, 0]),
    ]
    (meter,) = AndroidHealth.found_on(RecordedPhone(seen, rows=rows))  # type: ignore[arg-type]
    meter.start()
    trace = meter.stop()
    assert trace.column("memory")[0] == 3_000_000 * 1024 and np.isnan(trace.column("memory")[1])
    assert trace.column("zone BIG")[0] == pytest.approx(61.0) and np.isnan(trace.column("zone BIG")[1])
    assert trace.column("zone skin")[0] == pytest.approx(36.4) and np.isnan(trace.column("zone skin")[1])
    assert trace.facts["scales"] == {"zone BIG": 1e-3, "zone skin": 0.1}


def test_phone_that_shows_nothing_still_has_load_and_memory() -> None:
    (meter,) = AndroidHealth.found_on(RecordedPhone(Snapshot()))  # type: ignore[arg-type]
    assert [c.name for c in meter.channels] == ["utilisation", "memory"]
    assert list(ThermalStatus.found_on(RecordedPhone(Snapshot()))) == []  # type: ignore[arg-type]


def test_other_devices_have_none_of_this() -> None:
    assert list(AndroidHealth.found_on(phone("pixel6", kind="host"))) == []  # type: ignore[arg-type]
    assert list(ThermalStatus.found_on(phone("pixel6", kind="host"))) == []  # type: ignore[arg-type]
