"""The same rails by Android's own tracer, without root: for phones whose rails nobody else shows.

Source: Perfetto, docs/data-sources/battery-counters.md and protos/perfetto/trace/power/power_rails.proto: microwatt
seconds since boot, each with the millisecond of CLOCK_BOOTTIME at which it was read. The tracer runs on the phone by
itself and writes a file there, which is fetched and decoded when sampling ends. Most makers publish no rails, and some
empty packets: whether there are any is told by tracing for a moment.
"""

from __future__ import annotations

import secrets
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewatt.devices.android import odpm, powerstats, rails
from edgewatt.harness.api import Channel, Device, Floats, HarnessError, Meter, Trace, UsageError

EACH_MS = 100  # the shortest interval the tracer takes; the chips behind it renew their readings every 20 to 160 ms
LONGEST_S = 7200.0  # a tracer whose harness has gone away ends by itself after so long
LARGEST_BYTES = 512 << 20
FOLDER = (
    "/data/misc/perfetto-traces"  # where the shell's tracer may write, and the shell may read (Android 9 and later)
)
QUANTUM_J = 1e-6

_PROBE_S = 1.0
_WAIT_S = 10.0  # for the tracer's first reading, and for its last words
_HAS = "command -v perfetto >/dev/null"
# $3: where its pid is written, so that it is not begun twice should the link be lost before its answer. $4: how the
# next harness ends it, should this one be killed.
_BEGIN = """
[ -s "$3" ] || {
  printf "%s" "$4" >"$3.undo"
  printf "%s" "$1" | perfetto --txt -c - -o "$2" --background >"$3" || { s=$?; cat "$3"; exit $s; }
}
cat "$3"
"""
_UNDO = """
p=$(cat {told}); p=${{p##*[!0-9]}}
case "$(cat /proc/$p/cmdline 2>/dev/null)" in *perfetto*) kill -TERM $p ;; esac
rm -f {path}
"""
_END = """
p=$1
lives() { case "$(cat /proc/$p/cmdline 2>/dev/null)" in *perfetto*) true ;; *) false ;; esac; }
lives && kill -TERM $p
i=0; while lives && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done
! lives
"""

CONFIG = """\
buffers {{ size_kb: 4096 fill_policy: RING_BUFFER }}
data_sources {{
  config {{
    name: "android.power"
    android_power_config {{
      battery_poll_ms: {each_ms}
      battery_counters: BATTERY_COUNTER_CHARGE
      battery_counters: BATTERY_COUNTER_CURRENT
      battery_counters: BATTERY_COUNTER_VOLTAGE
      collect_power_rails: true
    }}
  }}
}}
duration_ms: {duration_ms}
write_into_file: true
file_write_period_ms: 1000
flush_period_ms: 1000
"""


def config(each_ms: int = EACH_MS, longest_s: float = LONGEST_S) -> str:
    """What the tracer is asked for; ValueError below its shortest interval."""
    if each_ms < EACH_MS:
        raise ValueError(f"a reading every {each_ms} ms; the tracer takes {EACH_MS} ms or more")
    return CONFIG.format(each_ms=each_ms, duration_ms=round(longest_s * 1e3))


@dataclass(frozen=True)
class Decoded:
    """What a trace holds: of each rail its readings (ms of boot time, microwatt seconds) in order, without repeats."""

    rails: Mapping[str, tuple[tuple[int, int], ...]]
    readings: int  # all of them, repeats too
    battery: Mapping[str, int]  # the last of each counter that came


def decoded(trace: bytes) -> Decoded:
    """The rails of a trace; UsageError without the package `perfetto`, HarnessError for what is no trace."""
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos
    except ImportError as error:
        raise UsageError(
            f"rails by perfetto need its Python package ({error}): pip install 'edgewatt[android]'"
        ) from error
    told = protos.Trace()
    try:
        told.ParseFromString(trace)
    except Exception as error:  # the protobuf library's own kind, which has moved before
        raise HarnessError(f"the phone's trace of {len(trace)} bytes cannot be decoded: {error}; try again") from error
    names: dict[tuple[int, int], str] = {}
    found: dict[str, dict[int, int]] = {}
    battery: dict[str, int] = {}
    readings = 0
    for packet in told.packet:
        sequence = packet.trusted_packet_sequence_id
        if packet.HasField("power_rails"):
            for d in packet.power_rails.rail_descriptor:
                names[sequence, d.index] = str(d.rail_name)[: rails.LONGEST_NAME]
            for e in packet.power_rails.energy_data:
                if name := names.get((sequence, e.index)):
                    found.setdefault(name, {})[e.timestamp_ms] = e.energy
                    readings += 1
        if packet.HasField("battery"):
            for name in ("charge_counter_uah", "current_ua", "voltage_uv"):
                if packet.battery.HasField(name):
                    battery[name] = getattr(packet.battery, name)
    by_time = {name: tuple(sorted(at.items())) for name, at in found.items()}
    return Decoded(by_time, readings, battery)


def table(names: Sequence[str], told: Decoded) -> tuple[Floats, Floats]:
    """Stamps (m,) in s and joules (m, 1 + names) of the rails `names`, the sum of those that compute first.

    Rails with the same stamps were read together; one that is missing from the trace is NaN, and the sum with it.
    """
    together: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        together.setdefault(tuple(ms for ms, _ in told.rails.get(name, ())), []).append(name)
    parts = []
    for stamps, of in sorted(together.items(), key=lambda kv: kv[0][:1] or (np.inf,)):
        joules = np.array([[uws for _, uws in told.rails.get(name, ())] for name in of], np.float64).T * QUANTUM_J
        joules = joules.reshape(len(stamps), len(of))
        parts.append(rails.counted(of, np.array(stamps, np.float64) * 1e-3, joules))
    t_s, values = rails.merged(parts)
    order = [name for p in parts for name in p.names]
    return t_s, values[:, [0, *(1 + order.index(name) for name in names)]]


# ---------------------------------------------------------------------------------------------------------------------


class Tracer:
    """One trace that the phone writes by itself, from `start` to `stop`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pid = self._path = self._told = ""

    def start(self) -> None:
        """HarnessError with the tracer's own words if it does not begin."""
        self._path = f"{FOLDER}/edgewatt-{secrets.token_hex(8)}.pftrace"
        self._told = f"{self._device.scratch()}/tracer"
        undo = _UNDO.format(told=shlex.quote(self._told), path=shlex.quote(self._path))
        told = self._device.shell(_BEGIN, config(), self._path, self._told, undo)  # type: ignore[attr-defined]
        said = told.stdout.decode("utf-8", "replace").split()
        if told.status not in (0, None) or not said or not said[-1].isdigit():
            why = " ".join(f"{' '.join(said)} {told.stderr}".split())[:300] or f"status {told.status}"
            self._remove()
            raise HarnessError(f"{self._device.name}: perfetto does not start there: {why}")
        self._pid = said[-1]

    def stop(self) -> bytes:
        """The trace, fetched; nothing of it is left on the phone."""
        try:
            told = self._device.shell(_END, self._pid, timeout_s=30.0)  # type: ignore[attr-defined]
            with tempfile.TemporaryDirectory(prefix="edgewatt-") as folder:
                local = self._device.get(self._path, Path(folder))
                size = local.stat().st_size
                if size > LARGEST_BYTES:
                    raise HarnessError(f"{self._device.name}: a trace of {size / 1e6:.0f} MB; measure for less long")
                trace = local.read_bytes()
        finally:
            self._remove()
        if told.status not in (0, None):
            raise HarnessError(f"{self._device.name}: perfetto (pid {self._pid}) does not end there; kill it by hand")
        return trace

    def _remove(self) -> None:
        self._device.shell('rm -f "$1" "$2" "$2.undo"', self._path, self._told)  # type: ignore[attr-defined]


def found_on(device: Device) -> tuple[tuple[str, ...], str]:
    """The rails that a short trace shows, or why there are none; tried once."""
    known: tuple[tuple[str, ...], str] | None = getattr(device, "_perfetto", None)
    if known is None:
        known = _probed(device)
        device._perfetto = known  # type: ignore[attr-defined]
    return known


def _probed(device: Device) -> tuple[tuple[str, ...], str]:
    if device.shell(_HAS).status != 0:  # type: ignore[attr-defined]
        return (), f"{device.name} has no perfetto"
    try:
        decoded(b"")  # without the package nothing needs to be tried
        tracer = Tracer(device)
        tracer.start()
        time.sleep(_PROBE_S)
        told = decoded(tracer.stop())
    except UsageError as error:
        return (), str(error)
    except HarnessError as error:
        return (), f"{error}"
    names = tuple(name for name, at in told.rails.items() if at)
    if not names:
        return (), f"perfetto on {device.name} tells no power rails; attach a meter in the device file"
    if not rails.compute(names):
        return (), f"no rail of perfetto is known to feed the processor, found {', '.join(names)}; attach a meter"
    return names, ""


def _is_wanted(device: Device) -> bool:
    is_ours = device.kind == "android" and odpm.wanted(device, "perfetto")
    return is_ours and not odpm.usable(device) and not powerstats.usable(device)


class Perfetto(Meter):
    """Every rail the tracer tells, stamped by the phone when it was read; equal stamps are one reading."""

    name = "perfetto"
    clock = "boottime"
    period_s = EACH_MS * 1e-3

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        if not _is_wanted(device):
            return ()
        names, _ = found_on(device)
        return [cls(device, names)] if names else ()

    @classmethod
    def problems(cls, device: Device) -> Sequence[str]:
        if not _is_wanted(device):
            return ()
        names, why = found_on(device)
        if not names:
            return (f"perfetto: {why}",)
        unknown = rails.unmapped(names)
        return (f"perfetto: of unknown use, so in no sum: {', '.join(unknown)}",) if unknown else ()

    def __init__(self, device: Device, names: Sequence[str]) -> None:
        self.device, self._names = device, list(names)
        self.channels: tuple[Channel, ...] = rails.channels(self._names, quantum_j=QUANTUM_J, age_s=None)
        self._tracer: Tracer | None = None
        self._trace: Trace | None = None

    def start(self) -> None:
        if self._tracer is not None:
            raise RuntimeError(f"{self.name}: started already")
        tracer = Tracer(self.device)
        tracer.start()
        self._tracer, self._trace = tracer, None
        time.sleep(3 * self.period_s)  # the tracer tells nothing of its first reading

    def stop(self) -> Trace:
        if self._tracer is not None:
            tracer, self._tracer = self._tracer, None
            self._trace = self._traced(decoded(tracer.stop()))
        if self._trace is None:
            raise RuntimeError(f"{self.name}: never started")
        return self._trace

    def _traced(self, told: Decoded) -> Trace:
        t_s, values = table(self._names, told)
        gaps_s = np.diff(t_s)
        facts: dict[str, Any] = {
            "rate_asked_hz": 1 / self.period_s,
            "rate_hz": float(1 / gaps_s.mean()) if len(gaps_s) and gaps_s.mean() > 0 else None,
            "gap_p99_s": float(np.quantile(gaps_s, 0.99)) if len(gaps_s) else None,
            "gap_max_s": float(gaps_s.max()) if len(gaps_s) else None,
            "reads": told.readings,
            "refreshes": {name: len(told.rails.get(name, ())) for name in self._names},
            "unmapped": rails.unmapped(self._names),
            "battery_last": dict(told.battery),
        }
        missing = [name for name in self._names if name not in told.rails]
        if missing:
            facts["errors"] = {name: {"count": 0, "text": "not in the trace"} for name in missing}
        return Trace(self.name, self.clock, self.channels, t_s, values, facts)
