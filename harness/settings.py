"""`--set KEY=VALUE` turned into a workload's and a protocol's fields, checked by their types."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from edgewatt.harness import plugins
from edgewatt.harness.api import Run, UsageError, Workload
from edgewatt.harness.measure import Protocol

T = TypeVar("T")


def parsed(settings: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE texts as a dictionary; the last of a key counts."""
    found: dict[str, str] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {text!r}: wanted KEY=VALUE")
        if not value.strip():
            raise UsageError(f"--set {text!r}: has no value; give one, or leave {key.strip()} out for its default")
        found[key.strip()] = value
    return found


def resolved(name: str, settings: Mapping[str, Any]) -> tuple[Workload, Protocol, dict[str, Any]]:
    """The workload called `name`, the protocol, and the device controls ("controls.KEY") that `settings` ask for."""
    kind = plugins.load("workloads", name)
    own = {f.name for f in dataclasses.fields(kind)}
    general = {f.name for f in dataclasses.fields(Protocol)}
    controls = {k.removeprefix("controls."): v for k, v in settings.items() if k.startswith("controls.")}
    rest = {k: v for k, v in settings.items() if not k.startswith("controls.")}
    for key in rest:
        if key not in own | general:
            raise UsageError(f"--set {key}: {name} has no such parameter; {plugins.nearest(key, own | general)}")
    workload = build(kind, {k: v for k, v in rest.items() if k in own})
    protocol = build(Protocol, {k: v for k, v in rest.items() if k in general})
    return workload, protocol, controls


def rebuilt(run: Run) -> Workload:
    """The workload a stored run was made with, out of its spec."""
    kind = plugins.load("workloads", run.workload)
    workload: Workload = build(kind, {f.name: run.spec[f.name] for f in dataclasses.fields(kind) if f.name in run.spec})
    return workload


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass made of texts or JSON values, each turned into its field's type; UsageError in one line."""
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[T] = TypeAdapter(kind)
    try:
        return adapter.validate_python({k: _value(v) for k, v in values.items()})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(p) for p in first["loc"]) or "a value"
        is_list = first["type"] == "tuple_type"
        said = "wanted a list, such as [0,1]" if is_list else f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise UsageError(f"{key}={first.get('input')!r}: {said}") from error


def _value(value: Any) -> Any:
    """A text as pydantic takes it: JSON lists are lists, "none" is None; other things as they are."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("none", "null"):
        return None
    if value.startswith("["):
        try:
            return json.loads(value)
        except ValueError as error:
            raise UsageError(f"{value!r} is not a list: {error}") from error
    return value
