"""What would spoil a run on a phone, and what would not: battery, heat, screen, other work, made-up values."""

from __future__ import annotations

from typing import Any

import pytest

from edgewatt.devices.android import conditions, facts, health
from edgewatt.devices.android.conditions import gate, heat, screen_is_on, steady_nodes
from edgewatt.devices.android.device import Android
from edgewatt.devices.snapshot import Snapshot
from edgewatt.harness import flags
from edgewatt.harness.api import Flag
from support.android_lab import Phone
from support.fake_phone import CPUFREQ, FakePhone, clocks, tool

# The thermal service's dump in the order of Android's own; the cached section is old, and one sensor is not fitted.
THERMAL = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 3
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=99.6, mType=0, mName=AP, mStatus=0}
HAL Ready: true
HAL connection:
\tThermalHAL AIDL 1  connected: yes
Current temperatures from HAL:
\tTemperature{mValue=39.6, mType=0, mName=AP, mStatus=0}
\tTemperature{mValue=36.3, mType=2, mName=BAT, mStatus=0}
\tTemperature{mValue=35.8, mType=3, mName=SKIN, mStatus=0}
\tTemperature{mValue=0.0, mType=-1, mName=SUBBAT, mStatus=0}
\tTemperature{mValue=-5700.0, mType=4, mName=USB, mStatus=0}
\tTemperature{mValue=3.9, mType=6, mName=VBAT, mStatus=0}
\tTemperature{mValue=54.600002, mType=0, mName=cpu0-silver-usr, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=5, mName=tpu_cooling}
\tCoolingDevice{mValue=4, mType=1, mName=charger}
Temperature static thresholds from HAL:
\tTemperatureThreshold{mType=3, mName=SKIN, mHotThrottlingThresholds=[NaN, 39.0, 41.0, 43.0, 45.0, 47.0, 55.0], \
mColdThrottlingThresholds=[NaN, NaN, NaN, NaN, NaN, NaN, NaN]}
"""
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: false
  Wireless powered: false
  status: 3
  level: 67
  voltage: 3964
  temperature: 337
"""
# /proc/stat twice: between them 40 of 100 ticks were in use (10 user, 20 system, 5 softirq, 5 irq; 60 idle and iowait).
QUIET = "cpu  100 0 100 1000 50 0 0 0 0 0\ncpu  105 0 105 1085 55 0 0 0 0 0\n0-7\n"
LOADED = "cpu  100 0 100 1000 50 0 0 0 0 0\ncpu  110 0 120 1050 60 5 5 0 0 0\n0-7\n"


def phone(**answers: str) -> FakePhone:
    """A phone that is well, but for `answers`: thermal, battery, power, sys, stat."""
    told = {"thermal": THERMAL, "battery": BATTERY, "power": "  mWakefulness=Asleep\n", "sys": "62656572\n", **answers}
    names = {health.THERMAL: "thermal", facts.BATTERY: "battery", conditions.POWER: "power", conditions.SYS: "sys"}
    tools = {name: tool(told[key]) for name, key in names.items()}
    return FakePhone(files={**clocks(), "stat": answers.get("stat", QUIET)}, tools=tools)


def raised(of: FakePhone) -> dict[str, Flag]:
    found = list(gate(of))  # type: ignore[arg-type]
    assert all(f.flag in flags.NAMES and "\n" not in f.detail for f in found)
    return {f.flag: f for f in found}


def test_a_phone_that_is_well_raises_nothing() -> None:
    assert raised(phone()) == {}


def test_temperatures_are_those_of_the_hals_own_section_and_only_real_ones() -> None:
    now = heat(phone().seen)
    assert now.celsius == {
        "AP": (0, 39.6), "BAT": (2, 36.3), "SKIN": (3, 35.8), "cpu0-silver-usr": (0, 54.600002),
    }  # fmt: skip
    assert now.limits_c == {"SKIN": 43.0}
    assert now.cooling == {"tpu_cooling": (5, 0), "charger": (1, 4)}
    assert (now.status, now.is_forced) == (0, False)


def test_no_thermal_service_tells_nothing() -> None:
    for text in ("", "Can't find service: thermalservice\n"):
        now = heat(phone(thermal=text).seen)
        assert now.status is None and now.celsius == {} and now.cooling == {}


def test_a_thermal_status_is_throttling() -> None:
    flag = raised(phone(thermal=THERMAL.replace("Status: 0", "Status: 2")))["throttled"]
    assert "2 (moderate)" in flag.detail and flag.voids == ()


def test_a_forced_thermal_status_voids_time_and_joules() -> None:
    flag = raised(phone(thermal=THERMAL.replace("Override: false", "Override: true")))["throttled"]
    assert "cmd thermalservice reset" in flag.detail
    assert {"latency_s", "energy_j"} <= set(flag.voids)


def test_a_cooling_device_of_the_processor_is_throttling_and_the_chargers_is_not() -> None:
    flag = raised(phone(thermal=THERMAL.replace("mValue=0, mType=5", "mValue=3, mType=5")))["throttled"]
    assert "tpu_cooling" in flag.detail and "state 3" in flag.detail


@pytest.mark.parametrize(
    "old, new, name",
    [
        ("mValue=35.8, mType=3", "mValue=38.5, mType=3", "SKIN"),  # 43 is its limit, 5 K before it is near
        ("mValue=36.3, mType=2", "mValue=44.0, mType=2", "BAT"),
        ("mValue=54.600002", "mValue=91.0", "cpu0-silver-usr"),
    ],
)
def test_near_its_limit_or_past_what_is_usual_is_hot(old: str, new: str, name: str) -> None:
    flag = raised(phone(thermal=THERMAL.replace(old, new)))["hot"]
    assert name in flag.detail and "degC" in flag.detail


def test_without_the_service_the_kernels_zones_are_looked_at() -> None:
    old = phone(thermal="Can't find service: thermalservice\n")
    zone = "/sys/class/thermal/thermal_zone"
    old.files |= {f"{zone}0/type": "cpu-0-0-usr", f"{zone}0/temp": "93000"}
    old.files |= {f"{zone}1/type": "battery", f"{zone}1/temp": "41000"}
    assert "zone cpu-0-0-usr is at 93 degC" in raised(old)["hot"].detail


def test_a_charged_phone_voids_its_gauge_and_no_rails() -> None:
    for text in (BATTERY.replace("USB powered: false", "USB powered: true"), BATTERY.replace("status: 3", "status: 2")):
        flag = raised(phone(battery=text))["charging"]
        assert flag.meter == "gauge" and "energy_j" in flag.voids and "unplug" in flag.detail


def test_a_full_battery_that_nothing_feeds_is_not_charged() -> None:
    assert raised(phone(battery=BATTERY.replace("status: 3", "status: 5"))) == {}


def test_made_up_battery_values_void_the_gauge_with_the_step_that_ends_them() -> None:
    text = BATTERY.replace("state:\n", "state:\n  (UPDATES STOPPED -- use 'reset' to restart)\n")
    found = raised(phone(battery=text))
    assert "dumpsys battery reset" in found["stale"].detail and found["stale"].meter == "gauge"
    assert "energy_j" in found["stale"].voids and "charging" not in found


def test_a_low_battery_is_told_by_the_device_files_limit() -> None:
    low = phone(battery=BATTERY.replace("level: 67", "level: 19"))
    assert "19 % (wanted 20 % or more)" in raised(low)["low_battery"].detail
    low.options["min_battery"] = 15
    assert raised(low) == {}


@pytest.mark.parametrize(
    "text, is_on",
    [
        ("  mWakefulness=Awake\n", True),
        ("  mWakefulness=Dozing\n", False),
        ("  mWakefulness=Awake\nDisplay Power: state=OFF\n", False),
        ("  mWakefulness=Asleep\nDisplay Power: state=ON\n", True),
        ("Can't find service: power\n", None),
    ],
)
def test_the_screen_is_told_by_the_power_service(text: str, is_on: bool | None) -> None:
    seen = phone(power=text).seen
    assert screen_is_on(seen) is is_on
    assert ("screen_on" in raised(phone(power=text))) == bool(is_on)


def test_other_work_is_told_as_its_share_of_all_processors() -> None:
    assert "40% of 8 processors" in raised(phone(stat=LOADED))["busy"].detail
    assert raised(phone(stat=LOADED))["busy"].voids == ()


@pytest.mark.parametrize("text", ["", "cpu 1 2\ncpu 1 2\n", QUIET.split("\n")[0] * 2, "cpu  1 1 1 x 1\n" * 2])
def test_a_load_that_cannot_be_read_raises_nothing(text: str) -> None:
    assert conditions.busy(phone(stat=text))[0] is None  # type: ignore[arg-type]


def test_clocks_that_are_held_down_are_told() -> None:
    low = phone()
    low.files[f"{CPUFREQ}/policy6/scaling_max_freq"] = "1106000"
    assert "cores 6, 7 are held at 1.11 GHz of 2.80 GHz" in raised(low)["slow_clocks"].detail


def test_a_made_up_sys_is_a_simulated_phone() -> None:
    assert "FUSE" in raised(phone(sys="65735546\n"))["simulated"].detail


def test_warm_up_watches_the_biggest_cores_that_have_a_zone() -> None:
    zones = {"LITTLE": "36500", "BIG": "43100", "battery": "27700"}
    files = {}
    for k, (name, text) in enumerate(zones.items()):
        files |= {f"/sys/class/thermal/thermal_zone{k}/type": name, f"/sys/class/thermal/thermal_zone{k}/temp": text}
    (node,) = steady_nodes(Snapshot({p: {"text": t} for p, t in files.items()}))
    assert node["path"] == "/sys/class/thermal/thermal_zone1/temp" and node["scale"] == 1e-3
    assert steady_nodes(Snapshot()) == []


@pytest.mark.needs_android_lab
def test_an_emulated_phones_troubles_are_raised_and_go_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with Phone("pixel7") as phone_, Android.from_config("phone", phone_.address, {"agent": "shell"}) as device:

        def now() -> set[str]:
            return {f.flag for f in device.health()} - {"busy"}  # the lab's load is this machine's

        assert now() == {"simulated"}
        phone_.fault("battery-charging")
        assert now() == {"simulated", "charging"}
        phone_.fault("battery-charging", "off")
        phone_.fault("thermal-throttle", 0.5, 3, 60)
        assert now() == {"simulated", "throttled", "slow_clocks", "hot"}
        phone_.fault("thermal-throttle", "off")
        device.shell("dumpsys battery unplug; cmd thermalservice override-status 1")
        assert now() == {"simulated", "stale", "throttled"}
        device.shell("dumpsys battery reset; cmd thermalservice reset; dumpsys battery set level 9")
        assert "stale" in now()
        device.shell("dumpsys battery reset")
        assert now() == {"simulated"}
