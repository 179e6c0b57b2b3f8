"""Rails out of Perfetto's traces: traces made here with the same protos, and a tracer that a script plays."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewatt.devices.android import perfetto
from edgewatt.devices.android.perfetto import Perfetto
from edgewatt.harness.api import HarnessError, UsageError
from edgewatt.harness.channels import groups
from edgewatt.harness.energy import energy
from support.recorded_phone import Done, RecordedPhone, phone

text_format = pytest.importorskip("google.protobuf.text_format")
protos = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")

RAILS = ("S2M_VDD_CPUCL2", "S2S_VDD_G3D", "VSYS_PWR_DISPLAY")


@pytest.fixture(autouse=True)
def shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script needs no second to think."""
    monkeypatch.setattr(perfetto, "_PROBE_S", 0.1)


def traced(readings: list[tuple[int, list[int | None]]], *, describe: bool = True, empty: int = 0) -> bytes:
    """A trace: for each (ms, microwatt seconds of RAILS) a packet, the rails described in the first of them."""
    trace = protos.Trace()
    for _ in range(empty):
        trace.packet.add().power_rails.SetInParent()
    for k, (ms, energies) in enumerate(readings):
        packet = trace.packet.add()
        packet.timestamp = ms * 1_000_000 + 3_000_000
        packet.trusted_packet_sequence_id = 5
        if k == 0 and describe:
            for index, name in enumerate(RAILS):
                d = packet.power_rails.rail_descriptor.add()
                d.index, d.rail_name, d.subsys_name, d.sampling_rate = index, name, "x", 125
        for index, uws in enumerate(energies):
            if uws is not None:
                e = packet.power_rails.energy_data.add()
                e.index, e.timestamp_ms, e.energy = index, ms, uws
    battery = trace.packet.add()
    battery.timestamp, battery.battery.current_ua, battery.battery.voltage_uv = 1, -1469687, 4100000
    return bytes(trace.SerializeToString())


def steady(n: int = 300, watts: tuple[float, ...] = (1.0, 0.5, 2.0), each_ms: int = 160) -> bytes:
    """Constant powers, each reading told twice, as by a tracer that is faster than the chip."""
    at = [(1000 + k * each_ms, [round(w * k * each_ms * 1e3) for w in watts]) for k in range(n)]
    return traced([x for reading in at for x in (reading, reading)])


class Tracing:
    """A phone's shell and files in a folder here; `perfetto` there is a script that plays `trace`."""

    def __init__(self, folder: Path, trace: bytes | None, refusal: str = "") -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "traces").mkdir()
        if trace is not None:
            (folder / "trace").write_bytes(trace)
            body = f"echo '{refusal}' >&2; exit 1"
            # The tracer that stays has "perfetto" in its name, as on a phone.
            script = folder / "bin" / "perfetto"
            stay = folder / "perfetto-stays"
            stay.write_text(f"#!/bin/sh\ntrap 'cp {folder}/trace \"$1\"; exit 0' TERM\nwhile :; do sleep 0.05; done\n")
            stay.chmod(0o755)
            if not refusal:
                body = (
                    f"cat > {folder}/config\n"
                    'while [ "$1" != -o ]; do shift; done\n'
                    f'{stay} "$2" >/dev/null 2>&1 </dev/null &\nsleep 0.1; echo $!\n'
                )
            script.write_text(f"#!/bin/sh\n{body}\n")
            script.chmod(0o755)

    def shell(self, script: str, *words: str, timeout_s: float = 30.0) -> Done:
        words = tuple(w.replace(perfetto.FOLDER, f"{self.folder}/traces") for w in words)
        done = subprocess.run(
            ["sh", "-c", script, "sh", *words],
            env={"PATH": f"{self.folder}/bin:/usr/bin:/bin"}, capture_output=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr.decode())

    def get(self, remote: str, into: Path) -> Path:
        here = Path(remote.replace(perfetto.FOLDER, f"{self.folder}/traces"))
        if not here.exists():
            raise HarnessError(f"{remote} cannot be fetched")
        target = into / here.name
        target.write_bytes(here.read_bytes())
        return target


def device(tracing: Tracing, **more: Any) -> RecordedPhone:
    made = phone("sm8650", shell=tracing.shell, **more)
    made.get = tracing.get  # type: ignore[attr-defined]
    made.scratch = lambda: str(tracing.folder)  # type: ignore[attr-defined]
    return made


def test_rails_are_found_by_a_short_trace_and_measured_by_a_long_one(tmp_path: Path) -> None:
    tracing = Tracing(tmp_path, steady())
    (meter,) = Perfetto.found_on(device(tracing))  # type: ignore[arg-type]
    figure, *_ = groups(meter.channels)
    assert figure.label == "sum of measured rails"
    assert figure.roots[0].covers.endswith(": S2M_VDD_CPUCL2 + S2S_VDD_G3D")
    meter.start()
    trace = meter.stop()
    assert trace.clock == "boottime" and len(trace.t_s) == 300  # each told twice
    assert trace.facts["reads"] == 3 * 600 and trace.facts["refreshes"]["S2S_VDD_G3D"] == 300
    told = energy(trace, trace.channels[0].name, 5.0, 25.0)
    assert told.energy_j == pytest.approx(1.5 * 20, rel=1e-3)
    assert energy(trace, "VSYS_PWR_DISPLAY", 5.0, 25.0).energy_j == pytest.approx(40, rel=1e-3)
    assert list((tmp_path / "traces").iterdir()) == []  # nothing is left on the phone
    config = (tmp_path / "config").read_text()
    assert "collect_power_rails: true" in config and "battery_poll_ms: 100" in config


def test_tracer_whose_answer_was_lost_is_not_begun_twice(tmp_path: Path) -> None:
    tracing = Tracing(tmp_path, steady())
    made = device(tracing)
    once = tracing.shell
    said = []

    def twice(script: str, *words: str, timeout_s: float = 30.0) -> Done:
        if "--background" in script:
            said.append(once(script, *words, timeout_s=timeout_s).stdout)
        done = once(script, *words, timeout_s=timeout_s)
        said.append(done.stdout)
        return done

    made.shell = twice  # type: ignore[attr-defined]
    tracer = perfetto.Tracer(made)  # type: ignore[arg-type]
    tracer.start()
    assert said[0] == said[1] and said[0].strip().isdigit()
    assert tracer.stop() == steady()
    assert not list(tmp_path.glob("tracer*"))


def test_tracer_of_a_killed_harness_can_be_undone(tmp_path: Path) -> None:
    tracing = Tracing(tmp_path, steady())
    tracer = perfetto.Tracer(device(tracing))  # type: ignore[arg-type]
    tracer.start()
    pid = int((tmp_path / "tracer").read_text())
    subprocess.run(["sh", str(tmp_path / "tracer.undo")], check=True)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_tracer_that_is_asked_for_less_than_it_can_is_not_asked() -> None:
    told = text_format.Parse(perfetto.config(250), protos.TraceConfig())
    (source,) = told.data_sources
    assert source.config.name == "android.power" and source.config.android_power_config.battery_poll_ms == 250
    assert source.config.android_power_config.collect_power_rails and told.write_into_file
    with pytest.raises(ValueError, match="100 ms or more"):
        perfetto.config(99)


def test_empty_packets_are_no_rails_and_that_is_said(tmp_path: Path) -> None:
    made = device(Tracing(tmp_path, traced([], empty=3)))
    assert list(Perfetto.found_on(made)) == []  # type: ignore[arg-type]
    (said,) = Perfetto.problems(made)  # type: ignore[arg-type]
    assert "tells no power rails" in said and "attach a meter" in said


def test_phone_without_the_tracer_and_one_whose_tracer_refuses_say_so(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (said,) = Perfetto.problems(device(Tracing(tmp_path / "a", None)))  # type: ignore[arg-type]
    assert said.endswith("has no perfetto")
    (said,) = Perfetto.problems(device(Tracing(tmp_path / "b", b"", refusal="Service busy")))  # type: ignore[arg-type]
    assert "does not start there: Service busy" in said


@pytest.mark.parametrize("trace", [b"\xff\xff\xff", b"not a trace at all", b"\x0a\xff"])
def test_what_is_no_trace_is_one_clear_error(trace: bytes) -> None:
    with pytest.raises(HarnessError, match="cannot be decoded"):
        perfetto.decoded(trace)


def test_readings_without_a_name_are_left_out() -> None:
    assert perfetto.decoded(traced([(1000, [1, 2, 3])], describe=False)).rails == {}


def test_last_battery_counters_are_kept() -> None:
    assert perfetto.decoded(traced([])).battery == {"current_ua": -1469687, "voltage_uv": 4100000}


def test_missing_package_is_one_sentence_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "perfetto.protos.perfetto.trace", None)
    with pytest.raises(UsageError, match=r"pip install 'edgewatt\[android\]'"):
        perfetto.decoded(b"")


def test_rails_with_stamps_of_their_own_are_one_table_and_a_missing_one_leaves_no_sum() -> None:
    readings = [(1000 + 100 * k, [1000 * k, None, 7 * k]) for k in range(5)]
    readings += [(1002 + 100 * k, [None, 2000 * k, None]) for k in range(5)]
    told = perfetto.decoded(traced(readings))
    t_s, values = perfetto.table(RAILS, told)
    assert len(t_s) == 10 and np.isfinite(values[:, 1]).sum() == np.isfinite(values[:, 2]).sum() == 5
    sums = values[np.isfinite(values[:, 0]), 0]
    assert np.diff(sums) == pytest.approx([0.003] * (len(sums) - 1)) and len(sums) >= 4
    _, values = perfetto.table((*RAILS, "S1M_VDD_MIF"), told)
    assert np.isnan(values[:, 0]).all() and np.isnan(values[:, 4]).all()


def test_better_sources_and_other_wishes_leave_the_tracer_alone(tmp_path: Path) -> None:
    for name, options in (("pixel6", {}), ("pixel7", {}), ("sm8650", {"power": "gauge"})):
        made = phone(name, options=options, shell=lambda *_, **__: pytest.fail("asked"))
        assert list(Perfetto.found_on(made)) == []  # type: ignore[arg-type]
