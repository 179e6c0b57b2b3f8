"""What phones say of themselves: as public dumps show it, and where it is missing, odd, or hostile."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgewatt.devices.android import facts
from edgewatt.devices.android.facts import CPUS
from edgewatt.devices.android.look import look
from edgewatt.devices.android.transport import Adb
from edgewatt.devices.snapshot import Snapshot
from support.android_lab import LAB, Phone, real_adbd
from support.fake_phone import SERIAL, clocks, properties, tool

# `dumpsys battery` of a plugged phone, and of one with a log behind its state (both shortened).
PLUGGED = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 500000
  Max charging voltage: 5000000
  Charge counter: 3270000
  status: 5
  health: 2
  present: true
  level: 100
  scale: 100
  voltage: 4352
  temperature: 274
  technology: Li-ion
"""
UNPLUGGED = PLUGGED.replace("USB powered: true", "USB powered: false").replace("status: 5", "status: 3")
WITH_LOG = UNPLUGGED.replace("level: 100", "level: 67") + "\nBattery event log:\n  level: 12\n  USB powered: true\n"
STOPPED = UNPLUGGED.replace("state:\n", "state:\n  (UPDATES STOPPED -- use 'reset' to restart)\n")


def seen(getprop: str = "", battery: str = "", files: dict[str, str] | None = None, uname: str = "") -> Snapshot:
    told = {facts.PROPERTIES: getprop, facts.BATTERY: battery, facts.KERNEL: uname}
    tools = {name: tool(out) if out else tool("", 127) for name, out in told.items()}
    return Snapshot({p: {"text": t} for p, t in (files or {}).items()}, {}, tools)


def test_a_new_phone_tells_its_chip_by_name() -> None:
    told = facts.facts(
        seen(
            properties(
                ro__soc__manufacturer="QTI", ro__soc__model="SM8845", ro__board__platform="canoe",
                ro__product__model="PLR110", ro__build__version__release="16", ro__build__version__sdk="36",
                ro__product__cpu__abi="arm64-v8a", ro__product__cpu__abilist="arm64-v8a,armeabi-v7a",
            )
        )
    )  # fmt: skip
    assert (told["soc"], told["model"], told["abi"]) == ("QTI SM8845", "PLR110", "arm64-v8a")
    assert told["abis"] == ["arm64-v8a", "armeabi-v7a"]
    assert (told["os"]["name"], told["os"]["sdk"]) == ("Android 16", 36)


def test_an_older_phone_tells_its_platform() -> None:
    assert facts.soc(seen(properties(ro__board__platform="kona", ro__hardware="qcom"))) == "kona"
    assert facts.soc(seen(properties(ro__hardware="exynos2100"))) == "exynos2100"


def test_the_serial_number_itself_is_kept_nowhere() -> None:
    told = facts.facts(seen(properties()))
    assert SERIAL not in json.dumps(told)
    assert len(told["serial"]) == 12 and told["serial"] == facts.serial(seen(properties(ro__other="1")))


def test_properties_that_are_no_lines_of_the_form_are_left_out() -> None:
    text = "[ro.product.model]: [Pixel 6]\nro.x: y\n[a b]: [c]\n[ro.multi]: [one\ntwo]\n[ro.product.model]: [other]\n"
    assert facts.properties(seen(text)) == {"ro.product.model": "Pixel 6"}


def test_control_characters_do_not_come_through() -> None:
    model = f"Pi\x1b[31mxel\x07 {'6' * 500}"
    found = facts.facts(seen(properties(ro__product__model=model)))["model"]
    assert found.startswith("Pi[31mxel 666") and len(found) == facts.LONGEST


@pytest.mark.parametrize(
    "text, level, is_powered, stopped",
    [
        (PLUGGED, 100, True, False),
        (UNPLUGGED, 100, False, False),
        (WITH_LOG, 67, False, False),
        (STOPPED, 100, False, True),
        (UNPLUGGED.replace("  Wireless", "  Dock powered: true\n  Wireless"), 100, True, False),
        (UNPLUGGED.replace("\n", "\r\n"), 100, False, False),
    ],
)
def test_battery_state_is_that_of_its_own_block(text: str, level: int, is_powered: bool, stopped: bool) -> None:
    snapshot = seen(battery=text)
    assert facts.battery(snapshot)["level"] == level
    assert facts.is_powered(snapshot) is is_powered
    assert facts.updates_stopped(snapshot) is stopped
    assert facts.facts(snapshot)["battery"]["temperature_c"] == 27.4


def test_no_battery_service_tells_nothing() -> None:
    for text in ("", "Can't find service: battery\n", "level: 5\n"):
        snapshot = seen(battery=text)
        assert facts.battery(snapshot) == {} and facts.is_powered(snapshot) is None
        assert facts.facts(snapshot)["battery"] is None


def test_clusters_are_told_with_their_cores_and_clocks() -> None:
    little, big = facts.policies(seen(files=clocks() | {f"{CPUS}/cpu6/cpu_capacity": "1024"}))
    assert (little.cores, little.least_hz, little.most_hz) == ((0, 1, 2, 3), 300e6, 1803e6)
    assert (big.cores, big.steps_hz, big.capacity) == ((6, 7), (500e6, 1106e6, 2802e6), 1024)
    assert facts.facts(seen(files=clocks()))["governor"] == "sched_pixel"


@pytest.mark.parametrize(
    "text, cores",
    [("0-3", [0, 1, 2, 3]), ("0 1 2", [0, 1, 2]), ("0-1,4", [0, 1, 4]), ("", []), ("a", []), ("1-", [])],
)
def test_lists_of_processors_are_read_in_both_forms(text: str, cores: list[int]) -> None:
    assert facts.cpu_list(text) == cores


def test_what_is_no_android_tells_kernel_processors_and_memory() -> None:
    files = {
        "/proc/version": "Linux version 6.1.0-28-amd64 (debian-kernel@lists.debian.org)",
        "/proc/meminfo": "MemTotal:       16314584 kB\nMemFree:  1 kB",
        f"{CPUS}/present": "0-3",
        "/etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
    }
    told = facts.facts(seen(files=files, uname="6.1.0-28-amd64 x86_64\n"))
    assert told["os"]["kernel"] == "6.1.0-28-amd64" and told["os"]["name"] == "Debian GNU/Linux 13 (trixie)"
    assert (told["cpus"], told["memory_bytes"], told["abi"]) == (4, 16314584 * 1024, "x86_64")
    assert told["model"] is None and told["serial"] is None and told["battery"] is None


def test_a_phone_that_tells_nothing_at_all_gives_facts_all_the_same() -> None:
    told = facts.facts(Snapshot())
    assert told["clusters"] == [] and told["abi"] is None and told["os"]["kernel"] is None


@pytest.mark.needs_android_lab
@pytest.mark.parametrize("profile", ["pixel6", "pixel8", "sm8250-ma"])
def test_phones_of_the_lab_tell_what_their_profiles_say(profile: str, tmp_path: Any) -> None:
    wanted = json.loads((LAB / "profiles" / f"{profile}.json").read_text("utf-8"))
    with Phone(profile) as phone:
        adb = Adb(phone.address, key=tmp_path / "adbkey")
        try:
            told = facts.facts(look(adb.shell, facts.PATTERNS, facts.TOOLS))
        finally:
            adb.close()
    props = wanted["props"]
    assert told["model"] == props["ro.product.model"] and told["os"]["build_type"] == props["ro.build.type"]
    assert told["os"]["build"] == props.get("ro.build.fingerprint")
    assert (told["soc"] or "").endswith(props.get("ro.soc.model") or props["ro.board.platform"])
    assert [c["cpus"] for c in told["clusters"]] == [c["cpus"] for c in wanted["cpus"]]
    assert [c["most_hz"] for c in told["clusters"]] == [max(c["freqs"]) * 1e3 for c in wanted["cpus"]]
    assert told["battery"]["level"] == pytest.approx(100 * wanted["battery"]["soc"], abs=1)
    assert told["battery"]["status"] == "discharging" and told["abi"] == "x86_64"


@pytest.mark.needs_realadbd
def test_a_plain_system_behind_a_real_adb_daemon_tells_kernel_and_memory(tmp_path: Any) -> None:
    with real_adbd() as address:
        adb = Adb(address, key=tmp_path / "adbkey")
        try:
            told = facts.facts(look(adb.shell, facts.PATTERNS, facts.TOOLS))
        finally:
            adb.close()
    assert told["os"]["kernel"] and told["memory_bytes"] > 1 << 20 and told["abi"] == "x86_64"
    assert told["model"] is None and told["serial"] is None
