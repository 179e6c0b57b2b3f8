"""Runs in the store: shown, told anew, completed and taken elsewhere."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from edgewatt.harness.commands.options import json_option, store_option
from edgewatt.harness.commands.stores import opened, undisturbed
from edgewatt.harness.commands.terminal import complain, print_json, say


@click.command(name="list")
@click.option("--workload", help="Only runs of this workload.")
@click.option("--device", help="Only runs on this device.")
@click.option("--since", metavar="DATE", help="Only runs made at or after this ISO 8601 date.")
@click.option("--valid", is_flag=True, help="Only runs that ended well and of which no flag voids anything.")
@click.option("--limit", type=click.IntRange(1), help="Only the newest ones.")
@store_option
@json_option
def list_runs(
    workload: str | None,
    device: str | None,
    since: str | None,
    valid: bool,
    limit: int | None,
    address: str,
    as_json: bool,
) -> None:
    """The runs in the store, newest last."""
    from edgewatt.reports import listing

    rows = opened(address).list(workload=workload, device=device, since=since, valid=valid, limit=limit)
    if as_json:
        import dataclasses

        print_json({"runs": [dataclasses.asdict(r) for r in rows]})
    else:
        say(listing.table(rows))


@click.command()
@click.argument("run")
@store_option
@json_option
def show(run: str, address: str, as_json: bool) -> None:
    """One run: its numbers with error bars, its flags in words. RUN is an id, the start of one, or "latest"."""
    from edgewatt.reports import text

    store = opened(address)
    found = store.get(run)
    if as_json:
        print_json(found.as_json() | {"store": store.address})
    else:
        say(text.summary(found))


@click.command()
@click.argument("run")
@store_option
@json_option
def recompute(run: str, address: str, as_json: bool) -> None:
    """Every number of RUN derived again from its raw samples, beside the stored one."""
    from edgewatt.harness import calibrate, measure
    from edgewatt.harness import settings as given
    from edgewatt.results.compare import difference

    store = opened(address)
    old = store.get(run)
    if old.workload == calibrate.WORKLOAD:
        new = calibrate.concluded(old)
    else:
        job = given.rebuilt(old)
        with tempfile.TemporaryDirectory(prefix="edgewatt-") as folder:
            new = measure.recompute(old, job, Path(folder))
    changes = difference(old.measurements, new.measurements)
    if as_json:
        print_json(new.as_json() | {"store": store.address, "changes": changes.as_json()})
    else:
        say(f"{old.id}: {changes.in_words()}")


@click.command()
@click.argument("run")
@click.argument("meters", nargs=-1, required=True, metavar="file:PATH[,KEY=VALUE]...")
@store_option
@json_option
def attach(run: str, meters: tuple[str, ...], address: str, as_json: bool) -> None:
    """RUN with recordings of other instruments added, stored as a new run. They are aligned by the pulses it played."""
    from edgewatt.harness import settings as given
    from edgewatt.harness.attach import attached
    from edgewatt.harness.devicefile import Entry
    from edgewatt.reports import text

    store = opened(address, writing=True)
    old = store.get(run)
    entry = Entry("host", "host")  # a recording asks nothing of any device
    with tempfile.TemporaryDirectory(prefix="edgewatt-") as folder, entry.open() as unit:
        new = attached(old, entry.attached(unit, meters), given.rebuilt(old), Path(folder))
        with undisturbed():
            store.add(new)
    new = store.get(new.id)
    if as_json:
        print_json(new.as_json() | {"store": store.address})
    else:
        say(text.summary(new))
        say(f"stored as {new.id} in {store.address}; {old.id} is as it was")


@click.command()
@click.argument("run")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write a file instead: FILE.jsonl or FILE.csv.")
@store_option
@json_option
def answers(run: str, output: Path | None, address: str, as_json: bool) -> None:
    """Each question that RUN asked beside its answer: tokens, time, energy and points."""
    from edgewatt.reports import answers as tables

    store = opened(address)
    found = tables.answers(store.get(run))
    if output is not None:
        tables.write(found, output)
        complain(f"wrote {output}")
    if as_json:
        print_json(found.as_json() | {"store": store.address})
    elif output is None:
        say(tables.table(found))


@click.command()
@click.argument("runs", nargs=-1)
@click.option("--format", "form", type=click.Choice(["csv", "parquet", "json"]), default="csv", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File or folder; default: stdout (csv, json).")
@store_option
def export(runs: tuple[str, ...], form: str, output: Path | None, address: str) -> None:
    """Runs (all, or those named) as a table, as JSON, or as Parquet with every raw sample."""
    from edgewatt.harness.api import UsageError
    from edgewatt.results import export as exporting

    if output is None and form == "parquet":
        raise UsageError("--format parquet writes files: name a folder with -o")
    store = opened(address)
    ids = [store.get(r).id for r in runs] or None
    exporting.export(store, ids, form, output or sys.stdout)
