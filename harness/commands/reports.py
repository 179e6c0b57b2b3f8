"""Reports: pages and figures of stored runs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgewatt.harness.commands.options import store_option
from edgewatt.harness.commands.stores import opened
from edgewatt.harness.commands.terminal import complain

if TYPE_CHECKING:
    from edgewatt.harness.api import Run

_output = click.option(
    "-o", "--output", type=click.Path(path_type=Path), default="report.html", show_default=True,
    help="Where to write; the suffix decides: .html, .pdf or .svg.",
)  # fmt: skip


@click.group()
def report() -> None:
    """Pages and figures: -o FILE.html (one self-contained page), .pdf or .svg."""


@report.command()
@click.argument("runs", nargs=-1)
@_output
@store_option
def tradeoff(runs: tuple[str, ...], output: Path, address: str) -> None:
    """Latency, energy and quality of one or several RUNS (default: the latest), with error bars and flags."""
    store = opened(address)
    write_report("tradeoff", [store.get(r) for r in runs or ("latest",)], output)


@report.command()
@click.argument("run", default="latest")
@_output
@store_option
def trace(run: str, output: Path, address: str) -> None:
    """Power, temperature and clocks of one RUN over time, its phases shaded."""
    write_report("trace", [opened(address).get(run)], output)


@report.command(name="meters")
@click.argument("run", default="latest")
@_output
@store_option
def report_meters(run: str, output: Path, address: str) -> None:
    """Two meters of one RUN side by side: both powers, their ratio and lag, and how far they agree."""
    write_report("meters", [opened(address).get(run)], output)


@report.command(name="published")
@click.argument("runs", nargs=-1)
@click.option("--system", type=click.Choice(["mobilevlm", "imp", "femtodet"]), help="Only figures of this system.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="published.html", show_default=True,
              help="Where to write; the suffix decides: .html, .pdf, .svg or .csv.")  # fmt: skip
@store_option
def report_published(runs: tuple[str, ...], system: str | None, output: Path, address: str) -> None:
    """Published figures beside ours (RUNS, default: all), and why a row is or is not comparable."""
    from edgewatt.reports import published

    found: list[Run] = []
    if runs:
        store = opened(address)
        found = [store.get(r) for r in runs]
    elif "://" in address or Path(address).exists():  # without a store: theirs alone
        found = published.runs_of(opened(address), system or "")
    published.write(found, output, system or "")
    complain(f"wrote {output}")


def check_report(path: Path) -> None:
    """Refuses a report path that could not be written, before anything is measured."""
    from edgewatt.harness.api import UsageError

    if path.suffix not in (".html", ".pdf", ".svg"):
        raise UsageError(f"report {path}: found suffix {path.suffix!r}, wanted .html, .pdf or .svg")
    folder = path.resolve().parent
    try:
        with tempfile.TemporaryFile(dir=folder):  # asks the file system itself: root is told yes by everything else
            pass
        if path.is_dir():
            raise UsageError(f"report {path}: is a folder; name a file")
    except OSError as error:
        raise UsageError(
            f"report {path}: cannot write into {folder} ({error.strerror}); make that folder or name another"
        ) from error


def write_report(kind: str, runs: list[Run], path: Path) -> None:
    """Writes one, and says where."""
    from edgewatt.reports import trace as traces
    from edgewatt.reports import tradeoff as tradeoffs

    check_report(path)
    if kind == "trace":
        traces.write(runs[0], path)
    elif kind == "meters":
        from edgewatt.reports import meters

        meters.write(runs[0], path)
    else:
        tradeoffs.write(runs, path)
    complain(f"wrote {path}")
