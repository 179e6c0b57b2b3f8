"""Phones through the whole command: every emulated profile, a real adb daemon, faults in the middle of a run.

Phones are made and measured several at once, so that a dozen runs take the time of a few.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conftest import Scenario
from edgewatt.devices.android import transport
from edgewatt.devices.android.device import Android
from edgewatt.harness import clocks
from support import agents
from support.android_lab import PROFILES, Phone, real_adbd
from support.command import Command
from support.lab_phone import LabPhone, flags, models_on, voided
from support.picture_sets import coco, write_coco

pytestmark = [pytest.mark.needs_android_lab, pytest.mark.needs_compiler, pytest.mark.slow, pytest.mark.timeout(600)]

CHECKED = {"adb", "agent", "power sensor", "battery", "charging", "thermal status", "room", "settings", "root"}
SENSOR = {
    "pixel6": {"powerstats", "gauge"}, "pixel7": {"powerstats", "gauge"}, "pixel8": {"powerstats", "gauge"},
    "sm8650": {"gauge"}, "sm8250-ma": {"gauge"}, "sm8350-inv": {"gauge"},
}  # fmt: skip
SHORT = ("max_window_s=2", "isolated_s=0")


def native() -> Path:
    """The native agent, with models."""
    if not agents.ort_include():
        pytest.skip("no onnxruntime_c_api.h here (EDGEWATT_ORT_INCLUDE names its folder)")
    return agents.native()


@pytest.fixture(scope="module")
def agent() -> Path:
    return native()


def folder(base: Path, name: str) -> Path:
    made = base / name
    made.mkdir()
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Every phone


QUICKEST = ("repeats=1", "idle_s=0.2", "window_s=0.4", "isolated_s=0", "warmup_min_s=0.1", "warmup_max_s=1")


def commands_work(of: str, base: Path) -> None:
    with Phone(of) as phone:
        lab = LabPhone(base, phone.address, native())
        (seen,) = lab.json("devices", "phone")["devices"]
        assert seen["error"] is None and seen["has_energy"]
        assert seen["facts"]["agent"]["kind"] == "native"
        energy = {m["meter"] for m in seen["meters"] if any(c["is_energy"] for c in m["channels"])}
        assert energy == SENSOR[of], (of, energy, seen["absent"])
        told = {c["name"]: c for c in lab.json("doctor", "phone")["checks"]}
        assert set(told) >= CHECKED and told["agent"]["is_well"] and told["power sensor"]["is_well"], told
        run = lab.run("max_window_s=4")
        assert run["error"] is None and {"simulated", "synthetic_weights"} <= set(flags(run))
        assert run["engine"]["provider_used"] == "CPUExecutionProvider" and not run["engine"]["fallback_ops"]
        energies = {m["meter"]: m for m in run["measurements"] if (m["metric"], m["phase"]) == ("energy_j", "window")}
        assert set(energies) >= SENSOR[of] and energies["gauge"]["boundary"] == "battery"
        if "powerstats" in SENSOR[of]:
            assert energies["powerstats"]["method"].startswith("sum of measured rails:")
            assert energies["powerstats"]["boundary"] == "rails"
        cost = {m["meter"] for m in run["measurements"] if m["metric"] == "sampler_cpu_s_per_s"}
        assert cost >= SENSOR[of]
        assert not models_on(phone.name)


def ap_and_detections_are_those_of_the_host(base: Path) -> None:
    write_coco(base / "set", coco(count=4))
    options = (f"data={base / 'set' / 'instances.json'}", "size=160", "score_threshold=0", "seed=3")
    command = Command(folder(base, "host"))
    here = command.json("run", "femtodet", "--set", *QUICKEST, *options)
    with Phone("pixel8") as phone:
        there = LabPhone(folder(base, "phone"), phone.address, native()).run(*SHORT, *options)

    def quality(run: dict[str, Any]) -> dict[str, float]:
        return {
            m["metric"]: m["value"] for m in run["measurements"] if m["unit"] == "1" and m["metric"].startswith("ap")
        }

    assert quality(there) == pytest.approx(quality(here), abs=1e-9) and "ap" in quality(there)
    found = [json.loads(Path(r["outputs"]["detections.json"]).read_text()) for r in (here, there)]
    assert len(found[0]) == len(found[1]) > 0
    for mine, other in zip(*(sorted(f, key=lambda d: (d["image_id"], -d["score"])) for f in found), strict=True):
        assert mine["score"] == pytest.approx(other["score"], abs=1e-5)
        assert mine["bbox"] == pytest.approx(other["bbox"], abs=0.05)


def authorisation_that_is_refused_is_one_line_and_nothing_was_started(base: Path) -> None:
    with Phone("pixel8", auth="reject") as phone:
        lab = LabPhone(base, phone.address, native())
        process = lab.start("run", "femtodet", "--device", "phone")
        said = lab.ended(process, status=2)
        lines = [line for line in said.strip().splitlines() if "Allow" in line]
        assert lines and "did not let us in" in said.strip().splitlines()[-1]


def killed_harness_leaves_what_doctor_puts_back(base: Path) -> None:
    with Phone("pixel8") as phone:
        lab = LabPhone(base, phone.address, native())

        def brightness() -> str:
            device = lab.entry().open()
            assert isinstance(device, Android)
            with device:
                return device.shell("settings get system screen_brightness").text.strip()

        before = brightness()
        process = lab.start_run(
            "window_s=60", "max_window_s=60", "isolated_s=0", "controls.brightness=41", on=phone.name
        )
        process.kill()
        process.communicate()
        assert brightness() == "41" != before
        assert not models_on(phone.name)  # ended at the next connection
        (told,) = [c for c in lab.json("doctor", "phone")["checks"] if c["name"] == "settings"]
        assert told["is_well"] is False and "edgewatt doctor phone --restore" in told["detail"], told
        lab.ended(lab.start("doctor", "phone", "--restore"))
        assert brightness() == before
        (told,) = [c for c in lab.json("doctor", "phone")["checks"] if c["name"] == "settings"]
        assert told["is_well"], told


@pytest.mark.parametrize(
    "scenario",
    [
        authorisation_that_is_refused_is_one_line_and_nothing_was_started,
        ap_and_detections_are_those_of_the_host,
        *(
            pytest.param(
                partial(commands_work, of),
                id=f"commands work on a {of}",
                marks=() if of in ("pixel8", "sm8650") else pytest.mark.soak,
            )
            for of in PROFILES
        ),
        pytest.param(killed_harness_leaves_what_doctor_puts_back, marks=pytest.mark.soak),
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_this_holds_through_the_whole_command(
    agent: Path, outcome: Callable[[Scenario], None], scenario: Scenario
) -> None:
    outcome(scenario)


def test_phone_without_an_agent_is_sampled_by_its_shell_and_runs_no_model(tmp_path: Path) -> None:
    with Phone("sm8650", proto="legacy") as phone:
        lab = LabPhone(tmp_path, phone.address, "shell")
        (seen,) = lab.json("devices", "phone", "--seconds", "2")["devices"]
        assert seen["error"] is None and seen["has_energy"]
        rates = {m["meter"]: m["rate_hz"] for m in seen["meters"]}
        assert rates["gauge"] > 2
        told = {c["name"]: c for c in lab.json("doctor", "phone")["checks"]}
        assert told["agent"]["is_well"] is None and "models cannot run" in told["agent"]["detail"]
        said = lab.ended(lab.start("run", "femtodet", "--device", "phone"), status=2)
        assert len(said.strip().splitlines()) == 1 and "native agent" in said


@pytest.mark.needs_realadbd
def test_commands_work_on_a_real_daemon_without_joules(tmp_path: Path, agent: Path) -> None:
    with real_adbd() as address:
        lab = LabPhone(tmp_path, address, agent)
        (seen,) = lab.json("devices", "phone")["devices"]
        assert seen["error"] is None and not seen["has_energy"]
        assert lab.json("doctor", "phone")["checks"]
        run = lab.run()
        assert run["error"] is None
        assert {m["metric"] for m in run["measurements"]} >= {"latency_s", "throughput_fps"}
        assert not any(m["metric"].startswith("energy") for m in run["measurements"])


# ---------------------------------------------------------------------------------------------------------------------
# Joules through the whole command


def test_load_of_the_model_is_followed_by_the_rails(tmp_path: Path, agent: Path) -> None:
    with Phone("pixel6", wave=("load", 1.0, 2.5)) as phone:
        run = LabPhone(tmp_path, phone.address, agent, root=True).run("window_s=12", "isolated_s=0", "max_window_s=12")
        assert run["error"] is None
        (window,) = [p for p in run["phases"] if p["phase"] == "window"]
        truth = phone.truth(window["start_s"], window["end_s"])
        (total,) = [
            m for m in run["measurements"] if (m["metric"], m["phase"], m["meter"]) == ("energy_j", "window", "odpm")
        ]
        (rails,) = [m["channels"] for m in run["meters"] if m["meter"] == "odpm"]
        names = {c["name"] for c in rails if c["parent"] == "sum of measured rails"}
        true_j = sum(r["joules"] for r in truth["rails"] if r["rail"] in names)
        assert true_j > 10  # the model did draw
        assert total["value"] == pytest.approx(true_j, rel=0.01)
        assert abs(total["value"] - true_j) <= total["uncertainty"]


@pytest.mark.soak
def test_window_that_is_too_short_for_the_gauge_is_told_with_the_one_that_would_do(tmp_path: Path, agent: Path) -> None:
    with Phone("sm8250-ma") as phone:
        run = LabPhone(tmp_path, phone.address, agent).run("window_s=3", *SHORT[1:], "max_window_s=3")
        assert "window_too_short" in voided(run, "gauge")
        assert " s " in flags(run, "gauge")["window_too_short"]


@pytest.mark.parametrize(("skew_s", "drift"), [(5.0, 200e-6), (-5.0, -200e-6)])
def test_clock_that_is_off_and_drifts_moves_no_energy(
    tmp_path: Path, agent: Path, monkeypatch: pytest.MonkeyPatch, skew_s: float, drift: float
) -> None:
    """Seen from the phone, this machine's clock is off and runs at another pace; the line between them tells both."""
    real = transport.now_ns
    start_ns = real()
    monkeypatch.setattr(transport, "now_ns", lambda: real() + int(skew_s * 1e9) + int((real() - start_ns) * drift))
    with Phone("sm8650") as phone:
        device = LabPhone(tmp_path, phone.address, agent).entry().open()
        assert isinstance(device, Android)
        with device:
            before = device.clock_offset()
            time.sleep(8)
            after = device.clock_offset()
            line = clocks.line(before, after)
            asked_s = transport.now_ns() * 1e-9
            device_s = float(device.shell("read -r t x </proc/uptime; echo $t").text)
            answered_s = transport.now_ns() * 1e-9
    # the device's clock as the line gives it for two moments of ours, around what the device itself said between them
    first_s, last_s = (s + line.offset_s + line.drift * (s - line.at_s) for s in (asked_s, answered_s))
    assert first_s - line.bound_s - transport.UPTIME_STEP_S <= device_s <= last_s + line.bound_s
    assert line.drift == pytest.approx(-drift, abs=max(2 * (before.bound_s + after.bound_s) / 8, 50e-6))


# ---------------------------------------------------------------------------------------------------------------------
# Faults in the middle of a run: each ends in a stored run with its flags or one clear error, and the next run works


@dataclass
class Case:
    """A fault on a phone of its own: what is done before the command, and while its model works."""

    profile: str
    during: tuple[object, ...] = ()
    before: tuple[object, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = ("window_s=14", "max_window_s=14", "isolated_s=0")
    status: int = 0
    after: tuple[object, ...] = ()  # said to the lab before the next run
    up_s: float = 0.0  # how long the phone has been up before
    run: dict[str, Any] = field(default_factory=dict)
    next_run: dict[str, Any] = field(default_factory=dict)
    left: list[int] = field(default_factory=list)


CASES = {
    "dropped": Case("pixel8", ("drop-connection",)),
    "away for 20 s": Case("sm8650", ("offline", 20), settings=("window_s=30", "max_window_s=30", "isolated_s=0")),
    "slow": Case("pixel7", before=("slow", 100, 10_000_000), after=("slow", "off")),  # each way
    "throttled": Case("pixel6", ("thermal-throttle",), options={"root": True}, after=("thermal-throttle", "off")),
    "counters restarted": Case("pixel6", ("counter-reset",), options={"root": True}),
    "charged": Case("sm8250-ma", ("battery-charging",), after=("battery-charging", "off")),
    # Its uptime alone tells of it (its boot id is this machine's): that has to be more before than afterwards.
    "restarted": Case("pixel7", ("reboot", 2), status=1, up_s=25),
    "denied": Case("pixel6", ("permission-denied",), after=("permission-denied", "off")),
}


def case(*names: str) -> Any:
    """The cases a test is about; most of them wait for the soak run."""
    marks = dict.fromkeys(("away for 20 s", "slow", "throttled", "counters restarted", "denied"), pytest.mark.soak)
    return pytest.mark.parametrize("name", [pytest.param(n, marks=marks.get(n, ())) for n in names])


@pytest.fixture(scope="module")
def faulty(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, agent: Path
) -> Iterator[Callable[[str], Case]]:
    """All the cases that are asked for, run four at a time: they mostly wait."""
    base = tmp_path_factory.mktemp("faults")
    asked = [i.callspec.params["name"] for i in request.session.items if "faulty" in getattr(i, "fixturenames", ())]

    def whole(name: str) -> Case:
        case = CASES[name]
        with Phone(case.profile) as phone:
            time.sleep(case.up_s)
            lab = LabPhone(folder(base, name.replace(" ", "-")), phone.address, agent, **case.options)
            if case.before:
                phone.fault(*map(str, case.before))
            process = lab.start_run(*case.settings, "controls.brightness=40", on=phone.name)
            if case.during:
                time.sleep(5)
                phone.fault(*map(str, case.during))
            case.run = json.loads(lab.ended(process, case.status, timeout_s=300))
            if case.after:
                phone.fault(*map(str, case.after))
            case.left = models_on(phone.name)
            case.next_run = lab.run(*SHORT)
        return case

    with ThreadPoolExecutor(4) as four:
        done = {name: four.submit(whole, name) for name in dict.fromkeys(asked)}
        yield lambda name: done[name].result()


@case(*CASES)
def test_fault_is_stored_leaves_nothing_and_the_next_run_works(faulty: Callable[[str], Case], name: str) -> None:
    case = faulty(name)
    assert not case.left
    assert case.next_run["error"] is None
    assert bool(case.run["error"]) is bool(case.status), case.run["error"]
    back = case.run["spec"]["controls_read_back"]
    assert back["brightness"]["screen_brightness"] == "40", back
    assert back["after"]["brightness"]["screen_brightness"] != "40", back


@case("dropped", "away for 20 s")
def test_no_sample_is_lost_with_the_link(faulty: Callable[[str], Case], name: str) -> None:
    run = faulty(name).run
    assert run["error"] is None
    for meter in run["meters"]:
        facts = meter["facts"]
        assert "ended" not in facts, (meter["meter"], facts)
        if meter["meter"] == "health":
            whole_s = run["phases"][-1]["end_s"] - run["phases"][0]["start_s"]
            assert meter["samples"] >= 0.95 * whole_s * facts["rate_asked_hz"]
            assert facts["gap_max_s"] < 3, facts


@case("restarted")
def test_restart_is_told_as_what_it_is(faulty: Callable[[str], Case], name: str) -> None:
    error = faulty(name).run["error"]
    assert error["kind"] == "lost_link" and "restarted" in error["message"], error


@case("throttled")
def test_throttling_is_flagged(faulty: Callable[[str], Case], name: str) -> None:
    assert "throttled" in flags(faulty(name).run)


@case("counters restarted")
def test_counters_that_restart_are_flagged(faulty: Callable[[str], Case], name: str) -> None:
    run = faulty(name).run
    assert "counter_reset" in flags(run, "odpm"), run["flags"]


@case("charged")
def test_charging_in_the_middle_voids_the_batterys_joules(faulty: Callable[[str], Case], name: str) -> None:
    run = faulty(name).run
    assert "charging" in voided(run, "gauge"), run["flags"]


# ---------------------------------------------------------------------------------------------------------------------
# Several phones at once


@pytest.mark.soak
def test_four_phones_at_once_do_not_disturb_each_other(tmp_path: Path, agent: Path) -> None:
    waves = [("constant", w) for w in (1.0, 2.0, 3.0, 4.0)]
    settings = ("window_s=6", "max_window_s=6", "isolated_s=0", "threads=1")
    with ExitStack() as stack:
        phones = [stack.enter_context(Phone("sm8650", wave=w)) for w in waves]
        labs = [LabPhone(folder(tmp_path, str(k)), p.address, agent) for k, p in enumerate(phones)]

        began = time.monotonic()
        labs[0].run(*settings)
        alone_s = time.monotonic() - began
        began = time.monotonic()
        with ThreadPoolExecutor(4) as four:
            runs = list(four.map(lambda lab: lab.run(*settings), labs))
        together_s = time.monotonic() - began
        print(f"one phone {alone_s:.1f} s, four phones {together_s:.1f} s: {together_s / alone_s:.2f}x")
        for phone, run, wave in zip(phones, runs, waves, strict=True):
            assert run["error"] is None
            (window,) = [p for p in run["phases"] if p["phase"] == "window"]
            (found,) = [m for m in run["measurements"] if (m["metric"], m["phase"]) == ("energy_j", "window")]
            assert found["value"] / (window["end_s"] - window["start_s"]) == pytest.approx(wave[1], rel=0.05)
            true_j = phone.truth(window["start_s"], window["end_s"])["total_joules"]
            assert abs(found["value"] - true_j) <= found["uncertainty"]
            for meter in run["meters"]:
                assert meter["facts"]["rate_hz"] == pytest.approx(meter["facts"]["rate_asked_hz"], rel=0.1)
