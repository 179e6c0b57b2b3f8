"""Other people's plugins: what they raise, and how it is told."""

from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from edgewatt.harness import plugins
from edgewatt.harness.api import Device, HarnessError, Meter, UsageError
from edgewatt.harness.devicefile import Entry


class Faulty(Meter):
    error: Exception = RuntimeError("two\nlines")

    @classmethod
    def found_on(cls, device: Device) -> Sequence[Meter]:
        raise cls.error

    @classmethod
    def attached_to(cls, device: Device, address: str, **options: Any) -> Meter:
        raise cls.error


class Busy(Faulty):
    error = HarnessError("port: busy")


class Bench:
    name = "bench"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, EntryPoint]]:
    """Entry points of meters, to be filled in by name."""
    offered: dict[str, EntryPoint] = {}
    monkeypatch.setattr(plugins, "available", lambda group: offered)
    yield offered


def offer(offered: dict[str, EntryPoint], name: str, value: str) -> None:
    offered[name] = EntryPoint(name, value, "edgewatt.meters")


@pytest.fixture
def loaded(installed: dict[str, EntryPoint], monkeypatch: pytest.MonkeyPatch) -> None:
    offer(installed, "faulty", "somewhere:Faulty")
    offer(installed, "busy", "somewhere:Busy")
    monkeypatch.setattr(plugins, "load", lambda group, name: {"faulty": Faulty, "busy": Busy}[name])


@pytest.mark.usefixtures("loaded")
def test_meter_that_fails_while_it_looks_is_named_in_one_line() -> None:
    with pytest.raises(UsageError) as told:
        plugins.meters_found_on(Bench())  # type: ignore[arg-type]
    assert str(told.value) == (
        "meter plugin faulty: looking for it on bench raised RuntimeError: two lines; "
        "mend its settings or the plugin, or uninstall it"
    )


@pytest.mark.usefixtures("loaded")
def test_meter_that_fails_while_it_is_attached_is_named_in_one_line() -> None:
    with pytest.raises(UsageError, match="meter plugin faulty: attaching it to bench at 'COM1' raised RuntimeError"):
        Entry("bench", "host").attached(Bench(), ("faulty:COM1",))  # type: ignore[arg-type]


@pytest.mark.usefixtures("loaded")
def test_error_that_a_plugin_foresaw_stays_its_own() -> None:
    with pytest.raises(HarnessError, match=r"^port: busy$"):
        Entry("bench", "host").attached(Bench(), ("busy:COM1",))  # type: ignore[arg-type]


def test_plugin_that_cannot_be_loaded_is_named(installed: dict[str, EntryPoint]) -> None:
    offer(installed, "gone", "os:NoSuchMeter")
    with pytest.raises(UsageError, match="meter plugin gone: loading os:NoSuchMeter raised AttributeError"):
        plugins.load("meters", "gone")
