"""Measuring: a run of a workload, and a calibration of the device's own sensor."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click

from edgewatt.harness.commands.options import devices_option, json_option, store_option
from edgewatt.harness.commands.reports import check_report, write_report
from edgewatt.harness.commands.stores import kept, opened, undisturbed
from edgewatt.harness.commands.terminal import FAILED, complain, print_json, say


@click.command()
@click.argument("workload")
@click.argument("more", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--device", default="host", show_default=True, help="host, KIND:ADDRESS, or a name of the device file.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the workload or protocol.")
@click.option("--repeats", type=int, help="Windows measured one after the other (default 3).")
@click.option("--strict", is_flag=True, help="Refuse inputs that cannot be used, instead of leaving them out.")
@click.option("--meter", "meters", multiple=True, metavar="KIND:ADDRESS[,KEY=VALUE]...",
              help="Attach a meter: what the device file says of one, in a line.")  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path), help="Also write the trade-off report here.")
@click.option("--calibrated", is_flag=True, help="Apply what `edgewatt calibrate` found of the device's own sensors.")
@devices_option
@store_option
@json_option
def run(
    workload: str,
    more: tuple[str, ...],
    device: str,
    settings: tuple[str, ...],
    repeats: int | None,
    strict: bool,
    meters: tuple[str, ...],
    report: Path | None,
    calibrated: bool,
    device_file: Path | None,
    address: str,
    as_json: bool,
) -> None:
    """Measure WORKLOAD on a device, in one go: time, energy and quality. `edgewatt run femtodet` needs nothing else."""
    from edgewatt.harness import calibration_file, measure
    from edgewatt.harness import settings as given
    from edgewatt.harness.devicefile import find
    from edgewatt.harness.progress import shown
    from edgewatt.reports import text

    values: dict[str, Any] = given.parsed([*settings, *more])  # `--set a=1 b=2` reads as two
    if repeats is not None:
        values["repeats"] = repeats
    if strict:
        values["strict"] = True
    job, protocol, controls = given.resolved(workload, values)
    entry = find(device, device_file)
    apply = partial(calibration_file.wanted, calibration_file.place(entry, device_file), entry)
    if report is not None:
        check_report(report)
    store = opened(address, writing=True)
    stored = False
    try:
        with (
            entry.open() as unit,
            tempfile.TemporaryDirectory(prefix="edgewatt-") as folder,
            shown(as_json) as progress,
        ):
            finished = measure.measure(
                unit, job, protocol, Path(folder),
                extra_meters=entry.attached(unit, meters), controls=controls, progress=progress,
                calibrations=apply if calibrated else None,
            )  # fmt: skip
            with undisturbed():
                home = kept(store, finished)
                stored = True
        finished = home.get(finished.id)
        if as_json:
            print_json(finished.as_json() | {"store": home.address})
        else:
            say(text.summary(finished))
            where = "" if home is store else f" --store {home.address}"
            say(f"stored as {finished.id} in {home.address}; see it: edgewatt report tradeoff -o report.html{where}")
        if report is not None:
            write_report("tradeoff", [finished], report)
    except KeyboardInterrupt:
        if not stored:
            raise
        complain(f"edgewatt: stopped by hand; run {finished.id} is stored")
        raise SystemExit(FAILED) from None
    if finished.error is not None:
        complain(f"{workload} on {device}: {finished.error.message}")
        raise SystemExit(FAILED)
    if home is not store:
        raise SystemExit(FAILED)


@click.command()
@click.argument("device", default="host")
@click.option("--meter", metavar="NAME|KIND:ADDRESS[,KEY=VALUE]...", help="The attached meter that is the reference.")
@click.option("--sensor", metavar="METER[/CHANNEL]", help="The device's own sensor; default: the widest it has.")
@click.option("--seconds", default=60.0, show_default=True, help="Length of the load; longer for slow sensors.")
@devices_option
@store_option
@json_option
def calibrate(
    device: str, meter: str | None, sensor: str | None, seconds: float, device_file: Path | None, address: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Fit DEVICE's own power sensor to an external meter, by a load in steps; `run --calibrated` then applies it."""
    from edgewatt.harness import calibrate as calibrating
    from edgewatt.harness import calibration_file
    from edgewatt.harness.api import UsageError
    from edgewatt.harness.devicefile import find
    from edgewatt.reports import text

    if not 10 <= seconds <= 3600:
        raise UsageError(f"--seconds {seconds:g}: wanted 10 to 3600")
    entry = find(device, device_file)
    path = calibration_file.place(entry, device_file)
    calibration_file.check(path)
    store = opened(address, writing=True)
    with entry.open() as unit:
        more = (meter,) if meter and ":" in meter else ()
        attached = entry.attached(unit, more)
        named = attached[-1].name if more else meter
        reference, own = calibrating.chosen(unit, attached, named, sensor)
        finished = calibrating.calibrate(unit, reference, own, sensor, seconds)
    with undisturbed():
        home = kept(store, finished)
        if finished.error is None:
            calibration_file.keep(path, entry, finished, home.address)
    finished = home.get(finished.id)
    if as_json:
        print_json(finished.as_json() | {"store": home.address, "file": str(path)})
    else:
        say(text.summary(finished))
        if finished.error is None:
            say(f"kept in {path}; apply it: edgewatt run WORKLOAD --device {device} --calibrated")
    if finished.error is not None:
        complain(f"{device}: {finished.error.message}")
        raise SystemExit(FAILED)
