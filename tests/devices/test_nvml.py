"""NVML against a stand-in for the driver's library that answers as its API reference says."""

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from edgewatt.devices import nvml
from edgewatt.devices.host import Host
from edgewatt.devices.nvml import Nvml


class NVMLError(Exception):
    pass


def library(cards: list[dict[str, Any]]) -> types.ModuleType:
    """A pynvml in which each card answers what its dict holds; what it lacks is not supported."""
    module: Any = types.ModuleType("pynvml")

    def getter(key: str) -> Callable[..., Any]:
        def get(handle: int, *_: Any) -> Any:
            if key not in cards[handle]:
                raise NVMLError("Not Supported")
            return cards[handle][key]

        return get

    module.NVMLError = NVMLError
    module.nvmlInit = module.nvmlShutdown = lambda: None
    module.nvmlDeviceGetCount = lambda: len(cards)
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetName = getter("name")
    module.nvmlDeviceGetTotalEnergyConsumption = getter("mj")
    module.nvmlDeviceGetPowerUsage = getter("mw")
    module.nvmlDeviceGetTemperature = getter("celsius")
    module.nvmlDeviceGetClockInfo = getter("mhz")
    module.nvmlDeviceGetCurrentClocksThrottleReasons = getter("reasons")
    module.nvmlDeviceGetArchitecture = getter("architecture")
    module.NVML_TEMPERATURE_GPU, module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM = 0, 1, 2
    module.NVML_DEVICE_ARCH_AMPERE = 7
    module.nvmlClocksThrottleReasonSwThermalSlowdown, module.nvmlClocksThrottleReasonHwThermalSlowdown = 0x20, 0x40
    return module  # type: ignore[no-any-return]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The cards of this machine; a test adds some."""
    found: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "pynvml", library(found))
    return found


ORIN: dict[str, Any] = {"name": b"Orin (nvgpu)"}
ADA: dict[str, Any] = {
    "name": "NVIDIA L4",
    "mj": 123_456,
    "mw": 33_250,
    "celsius": 41,
    "mhz": 2040,
    "reasons": 0,
    "architecture": 8,
}


def test_counter_is_the_root_and_power_hangs_below_it(cards: list[dict[str, Any]]) -> None:
    cards.append(ADA)
    (meter,) = Nvml.found_on(Host())
    assert {c.name: (c.unit, c.kind, c.boundary, c.parent) for c in meter.channels if c.is_energy} == {
        "gpu0 energy": ("J", "counter", "board", None),
        "gpu0 power": ("W", "gauge", "board", "gpu0 energy"),
    }


@pytest.mark.parametrize(
    ("name", "architecture", "seconds"),
    [("NVIDIA L4", 8, 1.0), ("NVIDIA A100-SXM4-40GB", 7, 0.0), ("Tesla T4", 6, 0.0)],
)
def test_power_averages_as_the_reference_says(
    cards: list[dict[str, Any]], name: str, architecture: int, seconds: float
) -> None:
    cards.append(ADA | {"name": name, "architecture": architecture})
    (meter,) = Nvml.found_on(Host())
    assert {c.averaging_s for c in meter.channels if c.quantity == "power"} == {seconds}


def test_readings_are_in_si_units(cards: list[dict[str, Any]]) -> None:
    cards.append(ADA | {"reasons": 0x40})
    (meter,) = Nvml.found_on(Host())
    columns, reading = nvml.source({"columns": [c.name for c in meter.channels]})
    assert dict(zip(columns, reading(), strict=True)) == {
        "gpu0 energy": pytest.approx(123.456),
        "gpu0 power": pytest.approx(33.25),
        "gpu0 temperature": 41.0,
        "gpu0 frequency": 2.04e9,
        "gpu0 memory frequency": 2.04e9,
        "gpu0 throttled": 1.0,
    }


def test_power_cap_is_not_thermal_throttling(cards: list[dict[str, Any]]) -> None:
    cards.append(ADA | {"reasons": 0x4})
    columns, reading = nvml.source({"columns": ["gpu0 throttled"]})
    assert (columns, reading()) == (["gpu0 throttled"], [0.0])


def test_reading_that_fails_once_is_missing(cards: list[dict[str, Any]]) -> None:
    cards.append(dict(ADA))
    _, reading = nvml.source({"columns": ["gpu0 energy", "gpu0 power"]})
    del cards[0]["mw"]
    assert reading() == [pytest.approx(123.456), None]


def test_library_that_answers_without_sensors_is_no_meter(cards: list[dict[str, Any]]) -> None:
    cards.append(ORIN)
    assert not Nvml.found_on(Host())
    (said,) = Nvml.problems(Host())
    assert "neither energy nor power" in said


def test_card_without_counter_has_power_as_root(cards: list[dict[str, Any]]) -> None:
    cards.append({k: v for k, v in ADA.items() if k != "mj"} | {"name": "Tesla P4", "architecture": 4})
    (meter,) = Nvml.found_on(Host())
    assert [(c.name, c.parent) for c in meter.channels if c.is_energy] == [("gpu0 power", None)]


def test_no_driver_is_said_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = library([])

    def refuse() -> None:
        raise NVMLError("NVML Shared Library Not Found")

    monkeypatch.setattr(broken, "nvmlInit", refuse)
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert not Nvml.found_on(Host())
    assert "no NVIDIA card or no driver" in Nvml.problems(Host())[0]


def test_real_library_has_every_name_that_is_used() -> None:
    pynvml = pytest.importorskip("pynvml")
    stand_in = library([])
    missing = [n for n in vars(stand_in) if n.lower().startswith("nvml") and not hasattr(pynvml, n)]
    assert not missing
