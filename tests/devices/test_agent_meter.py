"""Meters sampled by an agent: what arrives is what was in the files, and what went wrong is said."""

import base64
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewatt.devices.agent_meter import AgentMeter
from edgewatt.devices.transport import Subprocess
from edgewatt.harness.api import AgentProcess, Channel, Exit, Floats, HarnessError
from support.agents import alive

POWER = Channel("VDD_IN", "power", "W", "gauge", covers="the module")
ENERGY = Channel("package-0", "energy", "J", "counter", covers="the package", wraps_at=262143.328850)


@pytest.fixture
def here() -> Iterator[Subprocess]:
    with Subprocess() as t:
        yield t


def job(*paths: Path, **more: Any) -> dict[str, Any]:
    return {"rate_hz": 200, "batch_s": 0.05, "nodes": [{"path": str(p)} for p in paths], **more}


def sampled_for(meter: AgentMeter, seconds: float) -> Any:
    meter.start()
    time.sleep(seconds)
    return meter.stop()


def test_integers_of_the_files_become_si_values(here: Any, tmp_path: Path) -> None:
    (tmp_path / "uw").write_text("5120000\n")
    (tmp_path / "uj").write_text("262143328850\n")
    meter = AgentMeter(here, "board", [POWER, ENERGY], job(tmp_path / "uw", tmp_path / "uj"), [1e-6, 1e-6])
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    trace = sampled_for(meter, 0.5)
    assert (trace.meter, trace.clock, trace.channels) == ("board", "boottime", (POWER, ENERGY))
    assert np.unique(trace.column("VDD_IN")) == pytest.approx(5.12)
    assert np.unique(trace.column("package-0")) == pytest.approx(262143.328850)
    assert len(trace.t_s) > 20 and (np.diff(trace.t_s) > 0).all()
    assert before < trace.t_s[0] < trace.t_s[-1] < time.clock_gettime(time.CLOCK_BOOTTIME)
    assert "ended" not in trace.facts and trace.facts["errors"] == {} and trace.facts["missing"] == 0


def test_facts_tell_how_it_was_sampled(here: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    facts = sampled_for(AgentMeter(here, "m", [POWER], job(tmp_path / "a", gap_limit_s=0.02)), 0.2).facts
    assert facts["rate_asked_hz"] == 200 and facts["gap_limit_s"] == 0.02 and facts["scheduling"]
    for key in ("rate_hz", "gap_p99_s", "gap_max_s", "read_s", "cpu_s_per_s"):
        assert facts[key] > 0, key
    assert facts["gaps_over_limit"] >= 0


def test_counter_that_wraps_is_handed_on_as_it_was_read(here: Any, tmp_path: Path) -> None:
    path = tmp_path / "uj"
    path.write_text("262143000000")
    meter = AgentMeter(here, "rapl", [ENERGY], job(path), [1e-6])
    meter.start()
    (tmp_path / "new").write_text("5")
    (tmp_path / "new").replace(path)
    time.sleep(0.5)
    values = meter.stop().column("package-0")
    assert values[0] == pytest.approx(262143.0) and values[-1] == pytest.approx(5e-6)


def test_missing_readings_are_nan_and_counted_by_channel(here: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1000")
    trace = sampled_for(AgentMeter(here, "m", [POWER, ENERGY], job(tmp_path / "a", Path("/proc/self/mem"))), 0.1)
    assert (trace.column("VDD_IN") == 1000).all() and np.isnan(trace.column("package-0")).all()
    assert trace.facts["missing"] == len(trace.t_s) == trace.facts["errors"]["package-0"]["count"]
    assert trace.facts["errors"]["package-0"]["text"] == "Input/output error"


def test_columns_may_be_combined_into_a_channel(here: Any, tmp_path: Path) -> None:
    class Battery(AgentMeter):
        def converted(self, raw: Floats) -> Floats:
            return raw[:, :1] * 1e-6 * raw[:, 1:] * 1e-6

    (tmp_path / "uv").write_text("3850000")
    (tmp_path / "ua").write_text("-400000")
    trace = sampled_for(Battery(here, "battery", [POWER], job(tmp_path / "uv", tmp_path / "ua")), 0.05)
    assert trace.values == pytest.approx(np.full((len(trace.t_s), 1), -1.54))


def test_source_gives_floats_and_its_failures_are_missing(here: Any) -> None:
    what = {"rate_hz": 200, "source": "support.fake_source:counting", "params": {"first": 10, "raise_at": 13}}
    trace = sampled_for(AgentMeter(here, "m", [POWER, ENERGY], what, [1.0, 2.0]), 0.2)
    assert list(trace.column("VDD_IN")[:3]) == [10, 11, 12] and np.isnan(trace.values[3]).all()
    second = trace.column("package-0")
    assert second[0] == 1.0 and np.isnan(second[1]) and second[2] == 1.0  # 11 is the third of its three
    assert trace.facts["errors"]["count"] == {"count": 1, "text": "the bus is stuck"}


def test_meter_whose_files_cannot_be_read_does_not_start(here: Any, tmp_path: Path) -> None:
    meter = AgentMeter(here, "rapl", [POWER], job(tmp_path / "none"))
    with pytest.raises(HarnessError, match="rapl: no sample: nothing can be read: VDD_IN: No such file or directory"):
        meter.start()


def test_agent_that_dies_at_once_is_told_with_its_last_words(here: Any) -> None:
    here.python = "/bin/false"
    with pytest.raises(HarnessError, match="m: no sample: the agent ended \\(status 1\\)"):
        AgentMeter(here, "m", [POWER], {"nodes": [{"path": "/x"}]}).start()


def test_agent_killed_midway_leaves_its_samples_and_the_reason(here: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    meter = AgentMeter(here, "m", [POWER], job(tmp_path / "a"))
    meter.start()
    time.sleep(0.6)
    assert meter._process is not None
    os.kill(meter._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    time.sleep(0.1)
    trace = meter.stop()
    assert trace.facts["ended"] == "SIGKILL" and len(trace.t_s) >= 10
    assert trace.facts["rate_hz"] == pytest.approx(1 / np.diff(trace.t_s).mean())


def test_sampling_that_ended_by_itself_says_so(here: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    trace = sampled_for(AgentMeter(here, "m", [POWER], job(tmp_path / "a", duration_s=0.05)), 1.0)
    assert trace.facts["ended"] == "done" and trace.t_s[-1] - trace.t_s[0] < 0.5


def test_meter_may_be_started_again_and_stopped_twice(here: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    meter = AgentMeter(here, "m", [POWER], job(tmp_path / "a"))
    with pytest.raises(RuntimeError, match="never started"):
        meter.stop()
    first = sampled_for(meter, 0.05)
    assert meter.stop() is first
    second = sampled_for(meter, 0.05)
    assert second.t_s[0] > first.t_s[-1]


def test_no_thread_and_no_process_is_left(here: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    threads = threading.active_count()
    meter = AgentMeter(here, "m", [POWER], job(tmp_path / "a"))
    meter.start()
    assert meter._process is not None
    pid = meter._process.pid  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="started already"):
        meter.start()
    meter.stop()
    assert threading.active_count() == threads and not alive(pid)


# ---------------------------------------------------------------------------------------------------------------------
# an agent that does not keep to the protocol


class Scripted(AgentProcess):
    """An agent that says what it is told to."""

    def __init__(self, said: list[Mapping[str, Any]]) -> None:
        self._said = iter(said)

    def events(self, silence_s: float | None = None) -> Iterator[Mapping[str, Any]]:
        return self._said

    def stop(self, grace_s: float = 5.0) -> Exit:
        return Exit(0, None, "")


class Stage:
    def __init__(self, *said: Mapping[str, Any]) -> None:
        self.said = list(said)

    def start(self, verb: str, job: Any) -> AgentProcess:
        return Scripted(self.said)


def packed(values: list[int], form: str = "<i8") -> str:
    return base64.b64encode(np.array(values, form).tobytes()).decode()


HELLO = {"event": "hello", "protocol": 1, "clock": "monotonic"}
SAMPLING = {"event": "sampling", "t_ns": 1, "columns": ["a"], "scheduling": "nice 0"}
END = {"event": "end", "reason": "stopped"}


def frame(t_ns: list[int], values: list[int], **more: Any) -> dict[str, Any]:
    n = len(t_ns)
    return {
        "event": "frames",
        "n": n,
        "t_ns": packed(t_ns),
        "read_ns": packed([1] * n),
        "values": packed(values),
        "form": "int64",
        **more,
    }


def staged(*said: Mapping[str, Any]) -> Any:
    meter = AgentMeter(Stage(*said), "m", [POWER], {"rate_hz": 10, "nodes": [{"path": "/x"}]}, [1e-3])  # type: ignore[arg-type]
    meter.start()
    return meter.stop()


def test_clock_is_the_one_the_agent_names() -> None:
    trace = staged(HELLO, SAMPLING, frame([10**9, 2 * 10**9], [1500, -(2**63)]), END)
    assert trace.clock == "monotonic"
    assert list(trace.t_s) == [1.0, 2.0]
    assert trace.values[0, 0] == 1.5 and np.isnan(trace.values[1, 0])


@pytest.mark.parametrize(
    "bad",
    [
        {"n": 3},
        {"t_ns": "not base64!"},
        {"t_ns": packed([1])},
        {"values": packed([1, 2, 3])},
        {"values": packed([1, 2, 3, 4])},
        {"values": 5},
        {"form": "int7"},
        {"read_ns": None},
    ],
)
def test_frame_that_cannot_be_decoded_is_a_gap_and_named(bad: dict[str, Any]) -> None:
    good = [frame([10**9], [1]), frame([4 * 10**9], [2])]
    trace = staged(HELLO, SAMPLING, good[0], frame([2 * 10**9, 3 * 10**9], [8, 9]) | bad, good[1], END)
    assert list(trace.t_s) == [1.0, 4.0]
    assert "cannot be decoded" in trace.facts["refused_lines"][0]


def test_stamps_that_go_back_are_left_out_and_counted() -> None:
    trace = staged(HELLO, SAMPLING, frame([10**9, 3 * 10**9, 2 * 10**9, 3 * 10**9, 4 * 10**9], [1, 2, 3, 4, 5]), END)
    assert list(trace.t_s) == [1.0, 3.0, 4.0] and list(trace.values[:, 0]) == [0.001, 0.002, 0.005]
    assert trace.facts["out_of_order"] == 2


def test_other_protocol_is_refused() -> None:
    with pytest.raises(HarnessError, match="speaks protocol 2"):
        staged(HELLO | {"protocol": 2}, SAMPLING, END)


def test_no_frames_at_all_is_an_empty_trace() -> None:
    trace = staged(HELLO, SAMPLING, END)
    assert trace.t_s.shape == (0,) and trace.values.shape == (0, 1)
