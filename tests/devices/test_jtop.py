"""jtop as a stream, for facts and for settings: its words by hand, and its real service on emulated boards."""

import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgewatt.devices.agent import jtop
from edgewatt.devices.agent.jtop import Stamps, rails, watts
from edgewatt.devices.agent.nvpmodel import RefusedError
from support.agents import wait_gone
from support.jetson_lab import PROFILES, Bench, profile

# The shapes of jtop 7.2.2's `power` on a board with a total rail (Orin Nano) and on one without (AGX Orin).
ORIN_NANO: dict[str, Any] = {
    "rail": {
        "VDD_CPU_GPU_CV": {
            "volt": 5056, "curr": 421, "warn": 32760, "crit": 32760, "power": 2128, "online": True, "avg": 999,
        },
        "VDD_SOC": {"volt": 5056, "curr": 300, "warn": 32760, "crit": 32760, "power": 1516, "online": True, "avg": 999},
    },
    "tot": {
        "volt": 5064, "curr": 1203, "warn": 32760, "crit": 32760, "power": 6091, "online": True, "avg": 999,
        "name": "VDD_IN",
    },
}  # fmt: skip
AGX_ORIN: dict[str, Any] = {
    "rail": {
        name: {"volt": 5000, "curr": 400, "power": 2000, "online": True, "avg": 1} for name in ("VDD_CPU_CV", "X")
    },
    "tot": {"power": 4000, "avg": 2},
}

# ---------------------------------------------------------------------------------------------------------------------
# its words


def test_total_that_is_a_rail_is_found_by_its_name() -> None:
    assert {name: watts(r) for name, r in rails(ORIN_NANO).items()} == pytest.approx(
        {"VDD_CPU_GPU_CV": 2.128, "VDD_SOC": 1.516, "VDD_IN": 6.091}
    )


def test_total_that_is_a_sum_is_no_rail() -> None:
    assert set(rails(AGX_ORIN)) == {"VDD_CPU_CV", "X"}


@pytest.mark.parametrize("power", [None, {}, [], {"rail": None, "tot": None}, {"rail": {"X": 3}, "tot": 4}])
def test_power_of_another_shape_has_no_rails(power: Any) -> None:
    assert rails(power) == {}


@pytest.mark.parametrize(
    ("rail", "expected"),
    [
        ({"power": 2128, "online": True, "avg": 1}, 2.128),
        ({"power": 2128}, 2.128),
        ({"volt": 5000, "curr": 1500, "online": True}, 7.5),
        ({"power": 2128, "online": False}, None),
        ({"volt": 5000}, None),
        ({"avg": 2000}, None),
        ({"power": True}, None),
        ({"power": float("nan")}, None),
        (None, None),
    ],
)
def test_power_is_the_reading_of_now_in_watts(rail: Any, expected: float | None) -> None:
    assert watts(rail) == (pytest.approx(expected) if expected is not None else None)


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ({"temp": 45.5, "online": True}, 45.5),
        ({"temp": -256, "online": False}, None),
        ({"temp": -256.0, "online": True}, None),
        ({"temp": -12.5, "online": True}, -12.5),
        ({}, None),
        (None, None),
    ],
)
def test_zone_that_sleeps_has_no_temperature(zone: Any, expected: float | None) -> None:
    assert jtop.celsius(zone) == expected


def test_facts_hold_si_units_and_no_serial_number() -> None:
    told = jtop.told(
        {
            "power": ORIN_NANO,
            "hardware": {"Model": "M", "Module": "N", "L4T": "36.4.3", "Jetpack": "6.2", "Serial Number": "1421000001"},
            "libraries": {"CUDA": "12.6.68", "OpenCV": "4.8.0", "OpenCV-Cuda": False, "cuDNN": "9.3.0", "TensorRT": ""},
            "cpu": [
                {"online": True, "governor": "schedutil", "freq": {"min": 115200, "max": 1344000, "cur": 729600}},
                {"online": False},
            ],
            "gpu": {"gpu": {"freq": {"min": 306000, "max": 918000, "cur": 306000}}},
            "emc": {"cur": 3199000},
            "temperature": {"cpu": {"temp": 45.0, "online": True}, "cv0": {"temp": -256, "online": False}},
            "mode": {"id": 1, "name": "25W"},
            "modes": ["15W", "25W", "MAXN_SUPER"],
            "can_switch": [True, True, False],
        }
    )
    assert "1421000001" not in json.dumps(told, allow_nan=False)
    assert told["clocks"] == {
        "cpu": {
            "min_hz": 115_200_000, "max_hz": 1_344_000_000, "now_hz": 729_600_000, "online": 1,
            "governors": ["schedutil"],
        },
        "gpu": {"min_hz": 306_000_000, "max_hz": 918_000_000, "now_hz": 306_000_000},
        "emc": {"now_hz": 3_199_000_000},
    }  # fmt: skip
    assert told["temperatures_c"] == {"cpu": 45.0, "cv0": None}
    assert told["libraries"] == {"cuda": "12.6.68", "opencv": "4.8.0", "cudnn": "9.3.0"}
    assert told["power_modes"] == {"0": "15W", "1": "25W", "2": "MAXN_SUPER"} and told["power_modes_now"] == [0, 1]
    assert told["rails"]["VDD_IN"]["power_w"] == pytest.approx(6.091) and told["total"] == "VDD_IN"
    assert told["rails"]["VDD_IN"]["voltage_v"] == pytest.approx(5.064)


def test_facts_of_a_board_that_tells_nothing_are_empty() -> None:
    told = jtop.told(dict.fromkeys(("power", "hardware", "libraries", "cpu", "gpu", "emc", "clocks", "fans", "mode")))
    assert told["rails"] == {} and told["model"] is None and told["clocks"]["gpu"]["now_hz"] is None


# ---------------------------------------------------------------------------------------------------------------------
# its time


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def test_sample_was_taken_between_the_services_uptime_and_its_arrival() -> None:
    stamps = Stamps(ns(100.0))
    assert stamps.of(100.50, ns(100.54), 0.5) == (pytest.approx(ns(100.52), abs=2), pytest.approx(ns(0.04), abs=2))


def test_sample_that_was_delivered_before_is_not_new() -> None:
    stamps = Stamps(ns(100.0))
    assert stamps.of(100.50, ns(100.54), 0.5)
    assert stamps.of(100.50, ns(102.0), 0.5) is None


def test_sample_of_an_earlier_session_is_not_new() -> None:
    stamps = Stamps(ns(100.0))
    assert stamps.of(73.20, ns(100.2), 0.5) is None
    assert stamps.of(100.30, ns(100.34), 0.5)


def test_uptime_of_another_clock_leaves_the_arrival() -> None:
    """A container shows how long it has been up itself."""
    stamps = Stamps(ns(1000.0))
    assert stamps.of(3.20, ns(1000.2), 0.5) is None  # may be old
    assert stamps.of(3.70, ns(1000.7), 0.5) == (ns(1000.45), ns(0.5))
    assert stamps.of(3.70, ns(1001.2), 0.5) is None


def test_sample_without_uptime_is_none() -> None:
    assert Stamps(0).of(None, ns(5.0), 0.5) is None


# ---------------------------------------------------------------------------------------------------------------------
# where it cannot be used


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for the service's socket, on a board that has jetson-stats."""
    place = tmp_path / "jtop.sock"
    monkeypatch.setattr(jtop, "SOCKET", str(place))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: object() if name == "jtop" else found(name, *a))
    return place


def test_absent_service_is_named_with_the_next_step(elsewhere: Path) -> None:
    assert jtop.facts({})["problem"] == (
        f"the jtop service is not running (no {elsewhere}); start it: sudo systemctl restart jtop"
    )
    with pytest.raises(RefusedError, match="not running"):
        jtop.stream({"rails": ["VDD_IN"], "interval_s": 0.5})
    with pytest.raises(RefusedError, match="not running"), jtop.held({"power_mode": "MAXN"}):
        pass


def test_socket_that_nobody_listens_to_is_a_dead_service(elsewhere: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(elsewhere))
    assert "the jtop service is dead" in jtop.facts({})["problem"]


def test_absent_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    assert "has no jetson-stats; install it" in jtop.facts({})["problem"]


@pytest.mark.parametrize(
    "params",
    [{}, {"rails": []}, {"rails": [1]}, {"rails": ["X"], "interval_s": 0}, {"rails": ["X"], "interval_s": "a"}],
)
def test_senseless_stream_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(RefusedError):
        jtop.stream(params)


@pytest.mark.parametrize("percent", [-1, 101, float("nan"), "fast"])
def test_senseless_fan_speed_is_refused(percent: Any) -> None:
    with pytest.raises(RefusedError, match="wanted 0 to 100 percent"), jtop.held({"fan_speed": percent}):
        pass


# ---------------------------------------------------------------------------------------------------------------------
# its real service

lab = pytest.mark.needs_jetson_lab

STREAM = """
    import json, os, sys, threading, time
    from edgewatt.devices.agent import jtop

    opened = jtop.stream(json.loads(sys.argv[1]))
    late_s, end = 0.0, []
    threading.Thread(target=lambda: end.append(sys.stdin.read()), daemon=True).start()
    while not end:
        begun_s = time.monotonic()
        reading = opened.read(0.2)
        late_s = max(late_s, time.monotonic() - begun_s - 0.2)
        if reading:
            print(json.dumps(reading), flush=True)
    begun_s = time.monotonic()
    opened.close()
    print(json.dumps({
        "notes": opened.notes, "late_s": late_s, "close_s": time.monotonic() - begun_s,
        "left": len(jtop.family(os.getpid())) - 1,
    }), flush=True)
"""


class Streaming:
    """A stream in a process on the board; `stop` tells how it went."""

    def __init__(self, bench: Bench, interval_s: float, names: list[str]) -> None:
        words = [sys.executable, "-c", textwrap.dedent(STREAM), json.dumps({"interval_s": interval_s, "rails": names})]
        self.process = bench.start(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.samples: list[tuple[int, int, list[float | None]]] = []

    def take(self, n: int) -> None:
        """Waits for `n` more samples."""
        for _ in range(n):
            line = self.process.stdout.readline()  # type: ignore[union-attr]
            assert line, "the stream ended"
            self.samples.append(json.loads(line))

    def stop(self) -> dict[str, Any]:
        said, _ = self.process.communicate(timeout=20)
        *samples, end = map(json.loads, said.splitlines())
        self.samples += samples
        assert end["left"] == 0 and end["late_s"] < 2.5, end
        held: dict[str, Any] = end
        return held

    @property
    def t_s(self) -> list[float]:
        return [t * 1e-9 for t, _, _ in self.samples]

    def joules(self, column: int) -> float:
        """Trapezoids between first and last sample."""
        pairs = itertools.pairwise(zip(self.t_s, [v[column] for _, _, v in self.samples], strict=True))
        return sum((b - a) * (p + q) / 2 for (a, p), (b, q) in pairs)  # type: ignore[operator]


def facts_on(bench: Bench, before: str = "") -> dict[str, Any]:
    code = f"import json\nfrom edgewatt.devices.agent import jtop\n{before}\nprint(json.dumps(jtop.facts({{}})))"
    done = bench.exec([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


HELD = """
    import json, sys
    from edgewatt.devices.agent import jtop

    try:
        with jtop.held(json.loads(sys.argv[1])) as read_back:
            print(json.dumps(read_back), flush=True)
            sys.stdin.read()
    except Exception as error:
        print(json.dumps({"error": str(error), "is_refusal": getattr(error, "is_refusal", False)}), flush=True)
    else:
        print(json.dumps(read_back), flush=True)
"""


def hold(bench: Bench, **params: Any) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", textwrap.dedent(HELD), json.dumps(params)]
    return bench.start(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def refused(bench: Bench, **params: Any) -> str:
    """Why it cannot be asked of the board."""
    told = failed(bench, **params)
    assert told["is_refusal"]
    return str(told["error"])


def failed(bench: Bench, **params: Any) -> dict[str, Any]:
    """How setting a board failed: the error, in one line, and whether it is a refusal."""
    said, _ = hold(bench, **params).communicate(timeout=60)
    told: dict[str, Any] = json.loads(said)
    assert "\n" not in told["error"]
    return told


def mode(bench: Bench) -> list[str]:
    return bench.exec(["nvpmodel", "-q"]).stdout.split("NV Power Mode: ")[1].split()


def are_locked(bench: Bench) -> bool:
    code = "from edgewatt.devices.agent import nvpmodel; print(nvpmodel.are_locked())"
    return bench.exec([sys.executable, "-c", code]).stdout.strip() == "True"


@pytest.fixture
def orin() -> Iterator[Bench]:
    with Bench("jtop", "orin-nano-8gb-jp6") as bench:
        yield bench


RAILS = {
    "agx-orin-64gb-jp5": ("VDD_GPU_SOC", "VDD_CPU_CV"),
    "orin-nano-8gb-jp6": ("VDD_IN", "VDD_SOC"),
    "xavier-nx-jp4": ("VDD_IN", "VDD_CPU_GPU_CV"),
}


def undisturbed(notes: dict[str, Any], interval_s: float) -> None:
    """The notes of a stream that had its interval, and to which nothing happened."""
    assert notes["interval_s"] == pytest.approx(interval_s, rel=0.05)
    assert notes["interval_service_s"] == pytest.approx(interval_s)
    assert (notes["restarts"], notes["why"], notes["other_client"]) == (0, [], False)
    assert 0 < notes["service_cpu_s_per_s"] < 0.5


@lab
@pytest.mark.soak
@pytest.mark.parametrize("name", PROFILES)
def test_constant_and_sine_are_within_a_percent_of_the_truth(name: str) -> None:
    steady, wavy = RAILS[name]
    waves = {
        steady: {"kind": "constant", "w": 7.0},
        wavy: {"kind": "sine", "mean": 3.0, "amp": 2.0, "hz": 0.2, "phase": 0},
    }
    with Bench("jtop", name, waves=waves, ideal=True) as bench:
        stream = Streaming(bench, 0.4618, [steady, wavy])
        stream.take(2)
        while stream.t_s[-1] - stream.t_s[0] < 20:
            stream.take(1)
        end = stream.stop()
        truth = bench.truth(stream.t_s[0], stream.t_s[-1])["rails"]
    assert stream.joules(0) == pytest.approx(truth[steady]["joules"], rel=0.01)
    assert stream.joules(1) == pytest.approx(truth[wavy]["joules"], rel=0.01)
    undisturbed(end["notes"], 0.4618)


@lab
def test_rails_were_read_within_the_time_that_a_sample_states() -> None:
    slow = {"kind": "sine", "mean": 120, "amp": 100, "hz": 0.01, "phase": 0}  # rises for 25 s
    with Bench("jtop", "orin-nano-8gb-jp6", waves={"VDD_IN": slow}, ideal=True) as bench:
        stream = Streaming(bench, 0.5, ["VDD_IN"])
        stream.take(12)
        undisturbed(stream.stop()["notes"], 0.5)
        epoch_s = bench.epoch_s()
    for t_ns, length_ns, (power_w,) in stream.samples:
        assert power_w is not None
        read_s = epoch_s + math.asin((power_w - 120) / 100) / (2 * math.pi * 0.01)
        assert abs(read_s - t_ns * 1e-9) <= length_ns * 0.5e-9 + 0.003  # a step of the sensor is 1 ms here


@lab
@pytest.mark.parametrize("name", PROFILES)
def test_facts_of_a_board(name: str) -> None:
    with Bench("jtop", name) as bench:
        told = facts_on(bench)
        board = bench.profile
    assert "problem" not in told
    assert told["model"] == board["devicetree"]["model"] and told["l4t"] == board["l4t"]
    modes = {str(m["id"]): m["name"] for m in board["nvpmodel"]["modes"]}
    default = board["nvpmodel"]["default"]
    masks = [m.get("tpc_mask") for m in board["nvpmodel"]["modes"]]
    assert told["power_modes"] == modes
    assert told["power_mode"] == {"id": default, "name": modes[str(default)]}
    assert told["power_modes_now"] == [k for k, mask in enumerate(masks) if mask == masks[default]]
    assert told["jetson_clocks"] == {"is_on": False, "status": "inactive"}
    labels = {c["label"] for m in board["monitors"] for c in m["channels"] if c["label"] != "NC"}
    assert set(told["rails"]) == labels
    assert told["total"] == ("VDD_IN" if "VDD_IN" in labels else None)
    asleep = {z["type"].split("-")[0] for z in board["thermal"] if z.get("offline")}
    assert {z for z, c in told["temperatures_c"].items() if c is None} == asleep
    assert told["clocks"]["emc"]["now_hz"] == pytest.approx(board["emc"]["hz"], rel=1e-3)
    assert board["devicetree"]["serial-number"] not in json.dumps(told)
    assert told["jtop_version"] and told["service_pid"]


@lab
def test_service_killed_and_started_again_leaves_a_gap(orin: Bench) -> None:
    stream = Streaming(orin, 0.4618, ["VDD_IN"])
    stream.take(4)
    orin.kill_service()
    time.sleep(1.5)
    orin.start_service()
    before = len(stream.samples)
    stream.take(6)
    notes = stream.stop()["notes"]
    gaps_s = [b - a for a, b in itertools.pairwise(stream.t_s)]
    assert notes["restarts"] == 1 and notes["why"] and notes["interval_s"] == pytest.approx(0.4618, rel=0.1)
    assert before <= len(stream.samples) and 1.5 < max(gaps_s) < 12 and sorted(gaps_s)[-2] < 1.4
    assert notes["service_pid"] in range(1, 1 << 22) and notes["service_cpu_s_per_s"] > 0


@lab
def test_service_whose_sampler_alone_is_gone_is_left_and_found_again(orin: Bench) -> None:
    stream = Streaming(orin, 0.4618, ["VDD_IN"])
    stream.take(3)
    os.kill(orin.service_pids()[-1], signal.SIGKILL)  # the service then ends by itself, as systemd would see it
    deadline_s = time.monotonic() + 10
    while orin.service_pids() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    orin.kill_service()
    orin.start_service()
    stream.take(4)
    assert stream.stop()["notes"]["restarts"] >= 1


@lab
def test_service_that_hangs_is_waited_for(orin: Bench) -> None:
    stream = Streaming(orin, 0.4618, ["VDD_IN"])
    stream.take(3)
    orin.kill_service(signal.SIGSTOP)
    time.sleep(6)
    assert "is stopped" in facts_on(orin)["problem"]
    orin.kill_service(signal.SIGCONT)
    stream.take(6)
    end = stream.stop()
    assert end["notes"]["restarts"] >= 1 and any("no sample for" in w for w in end["notes"]["why"])
    assert any("is stopped" in w for w in end["notes"]["why"])


@lab
def test_stream_of_a_service_that_hangs_can_be_closed(orin: Bench) -> None:
    stream = Streaming(orin, 0.4618, ["VDD_IN"])
    stream.take(2)
    orin.kill_service(signal.SIGSTOP)
    time.sleep(1)
    end = stream.stop()
    assert end["close_s"] < 4
    orin.kill_service(signal.SIGKILL)


@lab
def test_session_ends_with_the_process_that_opened_it(orin: Bench) -> None:
    stream = Streaming(orin, 0.4618, ["VDD_IN"])
    stream.take(2)
    children = jtop.family(stream.process.pid)[1:]
    assert len(children) == 1
    stream.process.kill()
    wait_gone(children[0], within_s=2.5)


@lab
@pytest.mark.parametrize("theirs_s", [2.0, pytest.param(0.25, marks=pytest.mark.soak)])
def test_interval_of_another_client_is_told(orin: Bench, theirs_s: float) -> None:
    """A client's own loop would end by itself here: nothing comes for three of its intervals of 0.4618 s."""
    code = (
        f"import time; from jtop import jtop; j = jtop({theirs_s}); j.start(); print('on', flush=True); time.sleep(99)"
    )
    other = orin.start([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert other.stdout and other.stdout.readline() == b"on\n"
    stream = Streaming(orin, 0.4618, ["VDD_IN"])
    stream.take(5)
    notes = stream.stop()["notes"]
    other.kill()
    assert notes["other_client"] and notes["interval_service_s"] == theirs_s and notes["restarts"] == 0
    assert notes["interval_s"] == pytest.approx(theirs_s, rel=0.1) and notes["interval_asked_s"] == 0.4618


@lab
def test_interval_that_an_earlier_client_left_is_waited_out(orin: Bench) -> None:
    orin.exec([sys.executable, "-c", "from jtop import jtop; j = jtop(2.0); j.start()"])
    stream = Streaming(orin, 0.4618, ["VDD_IN"])
    stream.take(5)
    notes = stream.stop()["notes"]
    assert not notes["other_client"] and notes["interval_service_s"] == pytest.approx(0.4618)
    assert notes["restarts"] == 0


@lab
def test_interval_that_is_too_short_is_clamped_and_told(orin: Bench) -> None:
    stream = Streaming(orin, 0.01, ["VDD_IN"])
    stream.take(10)
    notes = stream.stop()["notes"]
    assert notes["interval_asked_s"] == 0.01 and notes["interval_service_s"] == pytest.approx(0.1)
    assert "0.1 s is the shortest" in notes["clamped"]


@lab
def test_rail_whose_file_fails_now_and_then_is_missing_then() -> None:
    board = profile("orin-nano-8gb-jp6")
    board["monitors"][0]["channels"][2]["error_window"] = {"period": 3, "from": 1, "to": 2, "errno": "EIO"}
    with Bench("jtop", board) as bench:
        stream = Streaming(bench, 0.25, ["VDD_IN", "VDD_SOC", "NO_SUCH_RAIL"])
        stream.take(26)
        stream.stop()
    total, soc, never = zip(*(values for _, _, values in stream.samples), strict=True)
    assert None not in total and set(never) == {None}
    assert 4 <= soc.count(None) <= 16


@lab
def test_user_outside_the_group_is_told_how_to_join(orin: Bench) -> None:
    become = "import os, jtop as loaded\njtop.version()\nos.setgroups([]); os.setgid(65534); os.setuid(65534)"
    assert "sudo usermod -aG jtop $USER" in facts_on(orin, become)["problem"]


@lab
def test_client_of_another_version_is_told(orin: Bench, tmp_path: Path) -> None:
    import jtop as package

    copy = shutil.copytree(Path(package.__file__).parent, tmp_path / "jtop")
    named = copy / "__init__.py"
    named.write_text(re.sub(r'__version__ = "[^"]+"', '__version__ = "6.1.0"', named.read_text()))
    problem = facts_on(orin, f"import sys; sys.path.insert(0, {str(tmp_path)!r})")["problem"]
    assert "do not match" in problem and "6.1.0" in problem and "jtop_python" in problem


@lab
def test_settings_are_read_back_and_put_back(orin: Bench) -> None:
    process = hold(orin, power_mode="maxn_super", jetson_clocks=True, fan_speed=40)
    assert process.stdin and process.stdout
    read_back = json.loads(process.stdout.readline())
    before = {"id": 1, "name": "25W"}
    assert read_back["power_mode"] == {"id": 2, "name": "MAXN_SUPER", "before": before}
    assert read_back["jetson_clocks"] is True and read_back["fan_speed"] == pytest.approx(40, abs=1)
    assert mode(orin) == ["MAXN_SUPER", "2"] and are_locked(orin)
    process.stdin.close()
    after = json.loads(process.stdout.readline())["after"]
    assert after["power_mode"] == before and after["jetson_clocks"] is False and after["fan_profile"] == "manual"
    assert after["fan_speed"] != pytest.approx(40, abs=1) and "fan" not in after
    assert mode(orin) == ["25W", "1"] and not are_locked(orin)


@lab
def test_settings_that_hold_already_are_left(orin: Bench) -> None:
    said, _ = hold(orin, power_mode="25W", jetson_clocks=False).communicate(timeout=60)
    read_back, end = map(json.loads, said.splitlines())
    assert read_back["power_mode"]["id"] == 1 and read_back["jetson_clocks"] is False
    assert end["after"] == {"power_mode": {"id": 1, "name": "25W"}, "jetson_clocks": False}
    assert "Set new NV Power Model" not in orin.service_log()


@lab
def test_mode_that_needs_a_restart_is_not_taken_and_the_rest_put_back() -> None:
    with Bench("jtop", "agx-orin-64gb-jp5") as bench:
        told = failed(bench, power_mode="MODE_15W")
        error = told["error"]
        assert not told["is_refusal"]  # it was asked for, and the board did not follow
        assert "sudo nvpmodel -m 1, reboot" in error and "stays in mode MODE_30W (2)" in error
        assert mode(bench) == ["MODE_30W", "2"]


@lab
def test_what_was_set_before_a_refusal_is_put_back(orin: Bench) -> None:
    error = refused(orin, power_mode="15W", fan_profile="manuel")
    assert "did you mean manual?" in error
    assert mode(orin) == ["25W", "1"] and "Set new NV Power Model ID 0" in orin.service_log()


@lab
def test_unknown_mode_is_refused_with_those_there_are(orin: Bench) -> None:
    assert "15W (0), 25W (1), MAXN_SUPER (2)" in refused(orin, power_mode="35W")


@lab
def test_settings_are_put_back_by_the_tools_when_the_service_is_gone(orin: Bench) -> None:
    process = hold(orin, power_mode=0, jetson_clocks=True)
    assert process.stdin and process.stdout and json.loads(process.stdout.readline())["power_mode"]["name"] == "15W"
    orin.kill_service()
    process.stdin.close()
    end = json.loads(process.stdout.readline())
    assert end["after"] == {"jetson_clocks": False, "power_mode": {"id": 1, "name": "25W"}}
    assert mode(orin) == ["25W", "1"] and not are_locked(orin)


@lab
def test_fan_that_cannot_be_put_back_is_told(orin: Bench) -> None:
    process = hold(orin, fan_speed=80)
    assert process.stdin and process.stdout and json.loads(process.stdout.readline())["fan_speed"] > 79
    orin.kill_service()
    process.stdin.close()
    end = json.loads(process.stdout.readline())
    assert "not put back: fan (by hand: jtop" in end["error"] and not end["is_refusal"]
