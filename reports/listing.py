"""Runs in the store as lines of text, for `edgewatt list`."""

from collections.abc import Iterable

from edgewatt.reports.text import columns
from edgewatt.results.store import Row


def table(rows: Iterable[Row]) -> str:
    """One line a run: id, when, device, workload, how it ended, its flags."""
    lines = [
        (r.id, r.created_utc, r.device_name, r.workload, r.error.replace("_", " ") or "ended well", ", ".join(r.flags))
        for r in rows
    ]
    return (
        columns([("run", "created", "device", "workload", "end", "flags"), *lines], indent="") if lines else "no runs"
    )
