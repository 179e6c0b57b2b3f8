"""Devices by name: `host`, `KIND:ADDRESS`, or an entry of the device file, with the meters attached to it.

[devices.bench]
kind = "host"
sysfs = "/srv/fake-sys"
[devices.bench.meters.supply]
kind = "ppk2"
port = "/dev/ttyACM0"
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewatt.harness import plugins
from edgewatt.harness.api import Device, Meter, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RESERVED = ("kind", "address", "meters")
ADDRESSES = ("port", "path", "address")  # what an attached meter's place may be called


@dataclass(frozen=True)
class Entry:
    """One device as configured: its kind, its address, the kind's own options, and attached meters by name."""

    name: str
    kind: str
    address: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    meters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def open(self) -> Device:
        """The device; whoever asks for it closes it."""
        kind = plugins.load("devices", self.kind)
        with plugins.blamed("devices", self.kind, f"opening {self.name}"):
            device: Device = kind.from_config(self.name, self.address, self.options)
        return device

    def attached(self, device: Device, more: tuple[str, ...] = ()) -> list[Meter]:
        """The meters wired by hand: those of the device file, then `more`, each "KIND:ADDRESS[,KEY=VALUE]..."."""
        found = []
        for name, options in self.meters.items():
            rest = {k: v for k, v in options.items() if k not in ("kind", *ADDRESSES)}
            address = next((str(options[k]) for k in ADDRESSES if k in options), "")
            meter = _attached(str(options["kind"]), device, address, rest)
            meter.name = _name(name)
            found.append(meter)
        for text in more:
            kind, address, given = parsed(text)
            name = given.pop("name", "")
            meter = _attached(kind, device, address, given)
            meter.name = _name(name or meter.name)
            found.append(meter)
        return found


def parsed(text: str) -> tuple[str, str, dict[str, str]]:
    """Kind, address and options of "KIND:ADDRESS[,KEY=VALUE]..."; a comma without KEY= after it is no end.

    UsageError for a key that is given twice.
    """
    kind, _, rest = text.partition(":")
    address, *pairs = re.split(r",(?=[A-Za-z_][A-Za-z0-9_]*=)", rest)
    options: dict[str, str] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key in options:
            raise UsageError(f"--meter {text}: {key} is given twice; leave one out")
        options[key] = value
    return kind, address, options


def _name(name: str) -> str:
    """The name of a meter; one with a slash would be taken for a channel's."""
    if "/" in name:
        raise UsageError(f"a meter is called {name!r}; wanted a name without a slash")
    return name


def _attached(name: str, device: Device, address: str, options: Mapping[str, Any]) -> Meter:
    kind = plugins.load("meters", name)
    with plugins.blamed("meters", name, f"attaching it to {device.name} at {address!r}"):
        meter: Meter = kind.attached_to(device, address, **options)
    return meter


def entries(path: Path | None = None) -> dict[str, Entry]:
    """The devices of the device file, plus `host`, by name.

    The file is `path`, else the one named by EDGEWATT_DEVICES, else ./devices.toml where it exists.
    """
    named = path or (Path(os.environ["EDGEWATT_DEVICES"]) if os.environ.get("EDGEWATT_DEVICES") else None)
    found = {"host": Entry("host", "host")}
    if named is None and not Path("devices.toml").is_file():
        return found
    file = named or Path("devices.toml")
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"device file {file}: {error.strerror or error}; name another with --devices") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"device file {file} is not TOML: {error}") from error
    if foreign := sorted(content.keys() - {"devices"}):
        raise UsageError(f"device file {file}: found {foreign[0]!r}, wanted nothing but tables [devices.NAME]")
    tables = content.get("devices", {})
    if not isinstance(tables, Mapping):
        raise UsageError(f"device file {file}: `devices` is not a table; write [devices.NAME] and below it kind = ...")
    for name, table in tables.items():
        found[name] = _entry(file, name, table)
    return found


def connected(known: Iterable[Entry] = ()) -> list[Entry]:
    """Devices that are there without being named anywhere (phones on USB), beside those that are known."""
    told = {(e.kind, e.address) for e in known}
    found = []
    for kind in plugins.available("devices"):
        try:
            device = plugins.load("devices", kind)
        except UsageError:  # without the extra it needs nothing of this kind is used here
            continue
        with plugins.blamed("devices", kind, "looking for what is connected"):
            addresses = device.connected()
        found += [Entry(f"{kind}:{a}", kind, a) for a in addresses if (kind, a) not in told]
    return found


def find(name: str, path: Path | None = None) -> Entry:
    """The device called `name`: an entry of the device file, `host`, or `KIND:ADDRESS`."""
    known = entries(path)
    if name in known:
        return known[name]
    kind, colon, address = name.partition(":")
    if colon and kind in plugins.available("devices"):
        return Entry(name, kind, address)
    raise UsageError(f"no device is called {name!r}; {plugins.nearest(name, {*known, *plugins.available('devices')})}")


def _entry(file: Path, name: str, table: Any) -> Entry:
    where = f"device file {file}, [devices.{name}]"
    if not isinstance(table, Mapping):
        raise UsageError(f"{where}: found {type(table).__name__}, wanted a table with kind = ...")
    if not isinstance(table.get("kind"), str):
        raise UsageError(f'{where}: wanted kind = "...", one of {", ".join(sorted(plugins.available("devices")))}')
    if table["kind"] not in plugins.available("devices"):
        raise UsageError(
            f"{where}: no kind {table['kind']!r}; {plugins.nearest(table['kind'], plugins.available('devices'))}"
        )
    meters = table.get("meters", {})
    if not isinstance(meters, Mapping) or not all(isinstance(m, Mapping) and "kind" in m for m in meters.values()):
        raise UsageError(f"{where}: each meter is a table [devices.{name}.meters.NAME] with kind = ...")
    options = {k: v for k, v in table.items() if k not in RESERVED}
    return Entry(name, table["kind"], str(table.get("address", "")), options, meters)
