"""Runs in plain text, for a terminal."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

from edgewatt.harness.api import Run
from edgewatt.reports import conclusions
from edgewatt.reports.conclusions import Result

_WIDTH = 110  # columns that running text is wrapped at


def clean(text: object) -> str:
    """Text of a device on one line, without control characters (escape sequences, overrides of writing direction)."""
    return "".join(
        " " if c in "\n\t" else c for c in str(text) if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf")
    )


def columns(rows: Iterable[Sequence[str]], indent: str = "  ") -> str:
    """Rows of text in columns as wide as their widest entry."""
    cells = [[clean(c) for c in row] for row in rows]
    if not cells:
        return ""
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    return "\n".join(indent + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def summary(run: Run) -> str:
    """The run in some lines: every metric as "value ± uncertainty unit", then its doubts in words."""
    title = f"{run.workload} on {run.device_name}, {_count(conclusions.repeats(run), 'repeat')}, run {run.id}"
    lines = [clean(title)]
    if run.error:
        lines.append(clean(f"ended badly ({run.error.kind.replace('_', ' ')}): {run.error.message}"))
    if reason := conclusions.no_joules(run):
        lines += _wrapped(reason, "  ")
    shown = conclusions.results(run)
    brief = [r for r in shown if _is_brief(run, r)]
    if brief:
        lines.append(columns(_row(r) for r in brief))
    if len(brief) < len(shown):
        lines.append(f"  (and {len(shown) - len(brief)} more measurements: see the report)")
    if run.flags:
        lines.append("doubts")
    for d in conclusions.doubts(run):
        about = f"{d.flag.replace('_', ' ')} ({d.meter})" if d.meter else d.flag.replace("_", " ")
        void = f" Not usable: {'; '.join(d.voids)}." if d.voids else ""
        lines += _wrapped(f"{about}: {f'{d.meaning} Evidence: {d.detail}'.strip().rstrip('.')}.{void}", "  - ")
    if run.warnings:
        lines.append("warnings")
        for w in run.warnings:
            lines += _wrapped(w, "  - ")
    return "\n".join(lines)


_DETAILS = ("duration_s", "update_period_s", "energy_j", "energy_net_j", "first_latency_s")
# Shown for each phase of an item.
_SPLIT = (*conclusions.LATENCY, conclusions.ENERGY, conclusions.ENERGY_TOKEN, "flops_per_s", "bandwidth_utilisation")


def _is_brief(run: Run, r: Result) -> bool:
    """Whether a result belongs into the summary: the whole, and the phases' time and energy."""
    m = r.measurement
    if m.metric in _DETAILS:
        return False
    return m.metric in _SPLIT or (m.phase not in ("warmup", "load", *run.items.names) and "/" not in m.phase)


def _row(r: Result) -> tuple[str, str, str, str, str]:
    m = r.measurement
    where = ", ".join(p for p in ("" if m.phase in ("window", "run") else m.phase, m.meter, m.boundary) if p)
    void = () if r.is_valid else (f"void: {r.void_reason}",)
    notes = (*void, *(k for k in r.marks if k not in r.void_reason))
    # A voided number is in brackets, so that nobody copies it by accident.
    value = str(r.quantity) if r.is_valid else f"({r.quantity})"
    return (r.label, value, f"n={m.n}", where, "; ".join(notes))


def _wrapped(text: str, lead: str) -> list[str]:
    return textwrap.wrap(clean(text), _WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
