"""NVIDIA cards through NVML, probed by value: on some boards the library answers and the sensors do not.

Sources: NVML API reference. nvmlDeviceGetTotalEnergyConsumption is a counter in mJ since the driver was loaded (Volta
and later); nvmlDeviceGetPowerUsage is in mW, a mean of the last second on Ampere (not GA100) and later. What both are
made of samples the power only part of the time (about 25 % on A100 and H100, arXiv 2312.02741): loads that alternate
in step with it are seen wrongly, steady ones are not. The counter is preferred; windows should be long.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgewatt.devices import sysfs
from edgewatt.devices.agent_meter import AgentMeter
from edgewatt.harness.api import Channel, Device, Meter

RATE_HZ = 50.0  # the sensors refresh every 20 to 100 ms (arXiv 2312.02741, table 1)
_MOST_W = 2000.0
_GA100 = ("A100", "A30", "A800")  # their power is instantaneous by the API reference


class Nvml(AgentMeter):
    """Every NVIDIA card of this machine: energy, power, temperature, clocks and what holds the clocks back."""

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        if not sysfs.is_here(device):
            return ()
        channels, _ = _survey()
        if not any(c.is_energy for c in channels):
            return ()
        job = {
            "rate_hz": min(RATE_HZ, float(getattr(device, "rate_hz", RATE_HZ))),
            "source": "edgewatt.devices.nvml:source",
            "params": {"columns": [c.name for c in channels]},
        }
        return [cls(device, "nvml", tuple(channels), job, None, clock=device.clock)]

    @classmethod
    def problems(cls, device: Device) -> Sequence[str]:
        """Why a card is not used as a meter, each with the next step."""
        return _survey()[1] if sysfs.is_here(device) else ()


def source(params: Mapping[str, Any]) -> tuple[list[str], Callable[[], list[float | None]]]:
    """Columns and a reading in SI units of the channels named in `params["columns"]`. For the agent."""
    pynvml: Any = importlib.import_module("pynvml")
    pynvml.nvmlInit()
    columns = list(params["columns"])
    getters = []
    for column in columns:
        card, _, quantity = column.partition(" ")
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(card.removeprefix("gpu")))
        getters.append(functools.partial(_READINGS[quantity], pynvml, handle))

    def reading() -> list[float | None]:
        return [_value(getter, pynvml.NVMLError) for getter in getters]

    return columns, reading


def _value(getter: Callable[[], float], error: type[Exception]) -> float | None:
    try:
        return float(getter())
    except error:
        return None


# What is read of a card, in SI units: quantity -> (pynvml, handle) -> value.
_READINGS: dict[str, Callable[[Any, Any], float]] = {
    "energy": lambda nvml, card: nvml.nvmlDeviceGetTotalEnergyConsumption(card) * 1e-3,
    "power": lambda nvml, card: nvml.nvmlDeviceGetPowerUsage(card) * 1e-3,
    "temperature": lambda nvml, card: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU),
    "frequency": lambda nvml, card: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM) * 1e6,
    "memory frequency": lambda nvml, card: nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_MEM) * 1e6,
    # 1 while the card holds its clocks down because it is hot (software or hardware thermal slowdown)
    "throttled": lambda nvml, card: float(
        bool(
            nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card)
            & (nvml.nvmlClocksThrottleReasonSwThermalSlowdown | nvml.nvmlClocksThrottleReasonHwThermalSlowdown)
        )
    ),
}
_UNITS = {
    "temperature": ("temperature", "degC"),
    "frequency": ("frequency", "Hz"),
    "memory frequency": ("frequency", "Hz"),
    "throttled": ("throttled", "1"),
}


def _survey() -> tuple[list[Channel], list[str]]:
    """The channels of all cards that read sanely, and what is wrong with the others."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return [], ["NVML: the package nvidia-ml-py is not installed; pip install nvidia-ml-py to measure NVIDIA cards"]
    channels: list[Channel] = []
    problems: list[str] = []
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError, OSError) as error:
        return [], [f"NVML: {error} (no NVIDIA card or no driver; nvidia-smi shows whether the driver works)"]
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            found, wrong = _card(nvml, index)
            channels += found
            problems += wrong
    except nvml.NVMLError as error:  # a card that fell off its bus takes the others' count with it
        problems.append(f"NVML: {error}; nvidia-smi shows the state of the cards")
    finally:
        nvml.nvmlShutdown()
    return channels, problems


def _card(nvml: Any, index: int) -> tuple[list[Channel], list[str]]:
    """The channels of one card that give a value now."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    model = _text(nvml.nvmlDeviceGetName(handle))
    seen = {q: _value(functools.partial(read, nvml, handle), nvml.NVMLError) for q, read in _READINGS.items()}
    prefix, covers = f"gpu{index} ", f"NVIDIA {model.removeprefix('NVIDIA ')} with its memory"
    channels: list[Channel] = []
    problems: list[str] = []
    energy_j, power_w = seen["energy"], seen["power"]
    if energy_j is not None and energy_j > 0:
        channels.append(Channel(prefix + "energy", "energy", "J", "counter", covers, "board"))
    if power_w is not None and 0 < power_w <= _MOST_W:
        parent = channels[0].name if channels else None
        averaging_s = _averaging_s(nvml, handle, model)
        channels.append(
            Channel(prefix + "power", "power", "W", "gauge", covers, "board", parent=parent, averaging_s=averaging_s)
        )
    if not channels:
        problems.append(f"NVML: card {index} ({model}) tells neither energy nor power; left out")
    for quantity, (name, unit) in _UNITS.items():
        if seen[quantity] is not None:
            channels.append(Channel(prefix + quantity, name, unit, "gauge", f"NVIDIA card {index}"))
    return channels, problems


def _averaging_s(nvml: Any, handle: Any, model: str) -> float | None:
    """How long a power reading averages, by the API reference; None where it does not say."""
    try:
        is_ampere_or_later = nvml.nvmlDeviceGetArchitecture(handle) >= nvml.NVML_DEVICE_ARCH_AMPERE
    except (nvml.NVMLError, AttributeError):
        return None
    if not is_ampere_or_later or any(name in model for name in _GA100):
        return 0.0
    return 1.0


def _text(name: str | bytes) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name
