"""A Jetson's condition: what is recorded beside its energy, and what would spoil a measurement that starts now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgewatt.devices.agent_meter import AgentMeter
from edgewatt.devices.jetson import facts
from edgewatt.devices.jetson.rails import Rail
from edgewatt.devices.snapshot import Snapshot
from edgewatt.devices.thermometers import COLDEST_C, HOTTEST_C
from edgewatt.harness.api import Channel, Device, Flag, Meter

if TYPE_CHECKING:
    from edgewatt.devices.jetson.device import Jetson

RATE_HZ = 4.0  # conditions change in seconds, and every reading wakes the processor
_BUSY_SHARE = 0.2  # of all processors' time; what uses more than this competes with what is measured
_NEAR_LIMIT_K = 10.0


class JetsonHealth(AgentMeter):
    """Load, memory, temperatures, clocks of processors, GPU and memory, and what holds the clocks down."""

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        if device.kind != "jetson":
            return ()
        board: Jetson = device  # type: ignore[assignment]
        watched = [*nodes(board.seen), *alarms(board.rails)]
        channels = (
            Channel("utilisation", "utilisation", "1", "gauge", "all processors, mean"),
            Channel("memory", "memory", "B", "gauge", "the board, in use"),
            *(channel for channel, _ in watched),
        )
        params = {"nodes": [{"name": channel.name, **node} for channel, node in watched]}
        job = {"rate_hz": RATE_HZ, "source": "edgewatt.devices.agent.conditions:source", "params": params}
        return [cls(device, "health", channels, job, clock=device.clock)]


def nodes(seen: Snapshot) -> Iterator[tuple[Channel, dict[str, Any]]]:
    """Channels and how the agent reads them: file, scale, and the range outside of which a value is no reading."""
    for name, path, celsius, _ in facts.zones(seen):
        if celsius is not None or name.lower().startswith("gpu"):  # the GPU's sensor wakes up with it
            channel = Channel(name, "temperature", "degC", "gauge", f"thermal zone {name}")
            yield channel, {"path": path, "scale": 1e-3, "least": COLDEST_C, "most": HOTTEST_C}
    for cpu in facts.online(seen):
        path = f"{facts.CPUS}/{cpu}/cpufreq/scaling_cur_freq"
        yield Channel(cpu, "frequency", "Hz", "gauge", f"the core {cpu}"), {"path": path, "scale": 1e3}
    for k, folder in enumerate(facts.gpu_folders(seen)):
        name = "gpu" if k == 0 else f"gpu{k}"
        yield Channel(f"{name} clock", "frequency", "Hz", "gauge", "the GPU"), {"path": f"{folder}/cur_freq"}
        if seen.number(f"{folder}/device/load") is not None:
            node = {"path": f"{folder}/device/load", "scale": 1e-3, "least": 0, "most": 1}
            yield Channel(f"{name} load", "utilisation", "1", "gauge", "the GPU"), node
    if seen.number(facts.EMC):
        yield Channel("emc clock", "frequency", "Hz", "gauge", "the memory"), {"path": facts.EMC}
    for path in seen.paths("/sys/class/thermal/cooling_device*/cur_state"):
        kind = seen.text(path.replace("cur_state", "type")) or ""
        if seen.number(path) is not None and "fan" not in kind.lower():
            name = f"{kind or 'cooling'} {path.split('/')[-2].removeprefix('cooling_device')}"
            yield Channel(name, "throttle", "1", "gauge", f"how far {kind} is held down"), {"path": path}
    for path in seen.paths("/sys/class/hwmon/hwmon*/oc*_event_cnt"):
        if seen.number(path) is not None:
            name = path.rsplit("/", 1)[1]
            yield Channel(name, "throttled", "1", "counter", "over-current events since boot"), {"path": path}


def alarms(found: Sequence[Rail]) -> Iterator[tuple[Channel, dict[str, Any]]]:
    """The chips' alarms: too much current on a rail, at which the board slows itself down."""
    for rail in found:
        for path in rail.alarms:
            which = "limit" if "crit" in path else "warning"
            covers = f"1 while the current of {rail.name} is above its {which}"
            yield Channel(f"{rail.name} over-current {which}", "throttle", "1", "gauge", covers), {"path": path}


def steady_nodes(seen: Snapshot) -> list[dict[str, Any]]:
    """What warm-up watches beside latency: the processors' temperature, steady within 1 degree C."""
    awake = [(name, path) for name, path, celsius, _ in facts.zones(seen) if celsius is not None]
    for wanted in ("tj", "cpu"):
        for name, path in awake:
            if name.lower().startswith(wanted):
                return [{"name": name, "path": path, "scale": 1e-3, "tolerance": 1.0}]
    return []


def gate(device: Jetson) -> Iterator[Flag]:
    """Doubts about a run that starts now, each with numbers."""
    seen = device.look()
    kind = (seen.answer("sys") or "").strip()
    if kind and kind != "sysfs":
        detail = f"/sys of {device.name} is a {kind}, which no kernel fills: no figure says anything of hardware"
        yield Flag("simulated", (), detail)
    if device.power_source == "ina3221":
        for problem in device.problems:
            yield Flag("rail_missing", (), f"{problem}; no figure has it in", "ina3221")
    told = device.call("edgewatt.devices.agent.conditions:busy", {"seconds": 0.3})
    share = told.get("share")
    if share is not None and share > _BUSY_SHARE:
        yield Flag(
            "busy",
            (),
            f"{share:.0%} of {told.get('processors')} processors were in use before the run (quiet: below "
            f"{_BUSY_SHARE:.0%}); what else computes there slows the run and is counted in its joules",
        )
    for name, _, celsius, limit in facts.zones(seen):
        if celsius is not None and limit is not None and celsius > limit - _NEAR_LIMIT_K:
            detail = f"{name} is at {celsius:.0f} degC before the run, it slows down at {limit:.0f}; let it cool"
            yield Flag("hot", (), detail)
    for path in seen.paths("/sys/class/thermal/cooling_device*/cur_state"):
        state, of = seen.number(path), seen.text(path.replace("cur_state", "type")) or path
        if state and "fan" not in of.lower():
            yield Flag("throttled", (), f"{of} is held down (state {state}) before the run; let the board cool")
