"""Runs in the store as lines of text, for `edgewatt list`."""

from collections.abc import Iterable

from edgewatt.reports.text import columns
from edgewatt.results.store import Row


def table(rows: Iterable[Row]) -> str:
    """The runs of a list, a line each; one line that says so where there are none."""
    lines = [("run", "date", "workload", "device", "parameters", "state")]
    for r in rows:
        keys = ("variant", "precision", "dataset", "size", "engine", "weights")
        spec = [f"{k}={r.spec[k]}" for k in keys if r.spec.get(k) not in (None, "", 0)]
        lines.append((r.id, r.created_utc[:19], r.workload, r.device_name, " ".join(spec), _state(r)))
    return columns(lines, indent="") if len(lines) > 1 else "no runs"


def _state(r: Row) -> str:
    if r.error:
        return f"ended badly: {r.error.replace('_', ' ')}"
    names = ", ".join(dict.fromkeys(f.replace("_", " ") for f in r.flags))
    if r.voids:
        return f"void in part: {names}"
    return f"valid, doubts: {names}" if names else "valid"
