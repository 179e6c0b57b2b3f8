"""What every plugin must keep, as checks an author can call from a test: AssertionError says what was not kept.

def test_my_meter():
    conformance.check_meter(MyMeter(...), seconds=1.0)
"""

import json
from pathlib import Path

import numpy as np

from edgewatt.harness.api import Device, Meter, Trace, Workload
from edgewatt.harness.measure import Protocol, measure, watched

UNITS = {
    "power": "W",
    "energy": "J",
    "voltage": "V",
    "current": "A",
    "temperature": "degC",
    "frequency": "Hz",
    "utilisation": "1",
    "memory": "B",
}


def check_meter(meter: Meter, seconds: float = 0.5) -> Trace:
    """A meter starts, samples for `seconds`, stops, and does it again; the second trace is handed back."""
    names = [c.name for c in meter.channels]
    assert names, f"{meter.name}: has no channels"
    assert len(set(names)) == len(names), f"{meter.name}: two channels share a name: {names}"
    for channel in meter.channels:
        wanted = UNITS.get(channel.quantity)
        assert wanted in (None, channel.unit), f"{channel.name}: {channel.quantity} in {channel.unit}, wanted {wanted}"
        assert not channel.is_energy or channel.boundary, f"{channel.name}: joules without a boundary"
        assert channel.quantity != "energy" or channel.kind == "counter", f"{channel.name}: energy is a counter"
        assert channel.quantity != "power" or channel.kind == "gauge", f"{channel.name}: power is a gauge"
        assert channel.parent is None or channel.parent in names, f"{channel.name}: no such parent {channel.parent}"
    for _ in range(2):
        trace = watched(meter, seconds)
        _check_trace(meter, trace)
    return trace


def check_device(device: Device, folder: Path) -> None:
    """A device describes itself, carries files there and back, runs its agent, and closes twice; `folder` is ours."""
    json.dumps(dict(device.describe()), allow_nan=False)
    sent = folder / "sent"
    sent.write_bytes(b"\x00edgewatt\n" * 100)
    remote = device.put(sent)
    assert device.put(sent) == remote, "the same file put twice lies in two places"
    back = folder / "back"
    back.mkdir()
    assert device.get(remote, back).read_bytes() == sent.read_bytes(), "a file did not come back as it was sent"
    process = device.start("hello", {})
    events = [e["event"] for e in process.events(silence_s=30)]
    ended = process.stop()
    assert events and events[0] == "hello" and events[-1] == "end", f"hello answered {events}"
    assert ended.status == 0, f"hello ended with {ended}"
    assert device.scratch() != device.scratch(), "two runs would share a folder"
    offset = device.clock_offset()
    assert offset.bound_s >= 0, f"clock offset with a negative bound: {offset}"
    device.close()
    device.close()


def check_workload(workload: Workload, device: Device, into: Path) -> None:
    """A workload runs shortly, and its score comes out again from what it saved."""
    protocol = Protocol(repeats=1, idle_s=0.1, window_s=0.5, isolated_s=0.2, warmup_min_s=0.1, warmup_max_s=5)
    run = measure(device, workload, protocol, into)
    assert run.error is None, f"the run ended with {run.error}"
    json.dumps(run.as_json(), allow_nan=False)
    assert any(m.metric == "latency_s" for m in run.measurements), "no latency came out"
    raw = {n: p for n, p in run.outputs.items() if n.startswith("raw/")}
    assert raw, "the runner saved nothing"


def _check_trace(meter: Meter, trace: Trace) -> None:
    assert trace.meter == meter.name, f"{meter.name}: its trace says {trace.meter}"
    assert trace.channels == tuple(meter.channels), f"{meter.name}: its trace has other channels"
    assert trace.values.shape == (len(trace.t_s), len(trace.channels)), f"{meter.name}: values {trace.values.shape}"
    assert len(trace.t_s) > 1, f"{meter.name}: fewer than two samples"
    assert bool(np.all(np.diff(trace.t_s) > 0)), f"{meter.name}: times do not rise"
    assert not np.isinf(trace.values).any(), f"{meter.name}: infinite readings"
    for k, channel in enumerate(trace.channels):
        if channel.kind == "counter" and channel.wraps_at is None:
            seen = trace.values[~np.isnan(trace.values[:, k]), k]
            assert bool(np.all(np.diff(seen) >= 0)), f"{channel.name}: a counter that fell"
