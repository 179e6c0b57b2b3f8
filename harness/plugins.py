"""Devices, meters and workloads by name, built-in ones and other people's alike, found by entry points."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from edgewatt.harness.api import Device, HarnessError, Meter, UsageError

Group = Literal["devices", "meters", "workloads"]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint in words: "did you mean X?", or all known names where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


@cache
def available(group: Group) -> dict[str, EntryPoint]:
    """Entry points of a group by name; a name offered twice is an error, not a lottery."""
    found: dict[str, EntryPoint] = {}
    for e in entry_points(group=f"edgewatt.{group}"):
        if e.name in found and found[e.name].value != e.value:
            raise UsageError(
                f"two plugins offer the {group[:-1]} {e.name}: {found[e.name].value} and {e.value}; uninstall one"
            )
        found[e.name] = e
    return found


def load(group: Group, name: str) -> Any:
    """The class a plugin offers under `name`; UsageError with the nearest name, or the missing extra."""
    known = available(group)
    if name not in known:
        raise UsageError(f"no {group[:-1]} is called {name!r}; {nearest(name, known)}")
    try:
        return known[name].load()
    except ImportError as error:
        raise UsageError(f"{group[:-1]} {name} cannot be loaded: {error}; install the extra it needs") from error
    except Exception as error:  # other people's code: it may raise anything
        raise _blame(group, name, f"loading {known[name].value}", error) from error


@contextmanager
def blamed(group: Group, name: str, what: str) -> Iterator[None]:
    """Inside, a plugin does `what`; anything it raises that is not a HarnessError becomes a UsageError naming it."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:  # other people's code: it may raise anything
        raise _blame(group, name, what, error) from error


def meters_found_on(device: Device) -> list[Meter]:
    """Every meter that a plugin finds on the device by itself."""
    found: list[Meter] = []
    for name in available("meters"):
        kind = load("meters", name)
        with blamed("meters", name, f"looking for it on {device.name}"):
            found += kind.found_on(device)
    return found


def _blame(group: Group, name: str, what: str, error: Exception) -> UsageError:
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return UsageError(
        f"{group[:-1]} plugin {name}: {what} raised {said}; mend its settings or the plugin, or uninstall it"
    )
