"""The command line. The only file that sees everything; whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgewatt.harness.api import Run
    from edgewatt.results.store import Store

FAILED, USAGE = 1, 2

_store = click.option(
    "--store", "address", envvar="EDGEWATT_STORE", default="runs", show_default=True,
    help="Folder or database URL of the runs.",
)  # fmt: skip
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
_devices = click.option(
    "--devices", "device_file", type=click.Path(path_type=Path),
    help="Device file (TOML); default: $EDGEWATT_DEVICES, else ./devices.toml.",
)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="edgewatt", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Benchmark vision models on edge devices, with joules that carry an error bar and a boundary."""


# ---------------------------------------------------------------------------------------------------------------------
# Looking at devices


@cli.command()
@click.argument("names", nargs=-1, metavar="[DEVICE]...")
@_devices
@_json
@click.option("--seconds", default=1.0, show_default=True, help="How long each meter is watched.")
@click.option("--tcpip", metavar="SERIAL", help="Switch a phone on a cable to adb over the network, so that it can go.")
def devices(names: tuple[str, ...], device_file: Path | None, as_json: bool, seconds: float, tcpip: str | None) -> None:
    """What is connected (this host, phones on USB and the device file, or those named), its meters, what each can
    support."""
    from edgewatt.harness import survey
    from edgewatt.harness.api import UsageError
    from edgewatt.harness.devicefile import connected, entries, find

    if not 0 < seconds <= 3600:  # also not a number
        raise UsageError(f"--seconds {seconds:g}: wanted more than 0 and at most 3600")
    if tcpip is not None:
        from edgewatt.devices.android.transport import tcpip as switched

        address = switched(tcpip)
        if as_json:
            _print_json({"device": f"android:{address}"})
        else:
            _say(f"pull the cable and use it as android:{address}")
        return
    known = entries(device_file)
    wanted = [find(n, device_file) for n in names] or [*known.values(), *connected(known.values())]
    found = [survey.look(entry, seconds) for entry in wanted]
    if as_json:
        _print_json({"devices": found})
    else:
        _say(survey.in_words(found))


@cli.command()
@click.argument("device", default="host")
@click.option("--restore", is_flag=True, help="Put back settings that a harness which was killed left behind.")
@_devices
@_json
def doctor(device: str, device_file: Path | None, as_json: bool, restore: bool) -> None:
    """What would spoil a measurement on DEVICE, and how to mend it."""
    from edgewatt.harness import survey
    from edgewatt.harness.devicefile import find

    if restore:
        with find(device, device_file).open() as unit:
            back = dict(unit.restore())
        if as_json:
            _print_json({"device": device, "put_back": back})
        else:
            said = ", ".join(f"{k} = {v}" for k, v in back.items())
            _say(f"{device}: put back {said}" if said else f"{device}: nothing was left to be put back")
        return
    found = survey.doctor(find(device, device_file))
    if as_json:
        _print_json({"device": device, **found})
    else:
        _say(survey.doctor_in_words(device, found))


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


@cli.command()
@click.argument("workload")
@click.argument("more", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--device", default="host", show_default=True, help="host, KIND:ADDRESS, or a name of the device file.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the workload or protocol.")
@click.option("--repeats", type=int, help="Windows measured one after the other (default 3).")
@click.option("--strict", is_flag=True, help="Refuse inputs that cannot be used, instead of leaving them out.")
@click.option("--meter", "meters", multiple=True, metavar="KIND:ADDRESS", help="Attach a meter.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write the trade-off report here.")
@_devices
@_store
@_json
def run(
    workload: str,
    more: tuple[str, ...],
    device: str,
    settings: tuple[str, ...],
    repeats: int | None,
    strict: bool,
    meters: tuple[str, ...],
    report: Path | None,
    device_file: Path | None,
    address: str,
    as_json: bool,
) -> None:
    """Measure WORKLOAD on a device, in one go: time, energy and quality. `edgewatt run femtodet` needs nothing else."""
    from edgewatt.harness import measure
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
    if report is not None:
        _check_report(report)
    store = _open(address, writing=True)
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
            )  # fmt: skip
            with _undisturbed():
                home = _kept(store, finished)
                stored = True
        finished = home.get(finished.id)
        if as_json:
            _print_json(finished.as_json() | {"store": home.address})
        else:
            _say(text.summary(finished))
            where = "" if home is store else f" --store {home.address}"
            _say(f"stored as {finished.id} in {home.address}; see it: edgewatt report tradeoff -o report.html{where}")
        if report is not None:
            _write_report("tradeoff", [finished], report)
    except KeyboardInterrupt:
        if not stored:
            raise
        _complain(f"edgewatt: stopped by hand; run {finished.id} is stored")
        raise SystemExit(FAILED) from None
    if finished.error is not None:
        _complain(f"{workload} on {device}: {finished.error.message}")
        raise SystemExit(FAILED)
    if home is not store:
        raise SystemExit(FAILED)


# ---------------------------------------------------------------------------------------------------------------------
# Runs in the store


@cli.command(name="list")
@click.option("--workload", help="Only runs of this workload.")
@click.option("--device", help="Only runs on this device.")
@click.option("--since", metavar="DATE", help="Only runs made at or after this ISO 8601 date.")
@click.option("--valid", is_flag=True, help="Only runs that ended well and of which no flag voids anything.")
@click.option("--limit", type=click.IntRange(1), help="Only the newest ones.")
@_store
@_json
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

    rows = _open(address).list(workload=workload, device=device, since=since, valid=valid, limit=limit)
    if as_json:
        import dataclasses

        _print_json({"runs": [dataclasses.asdict(r) for r in rows]})
    else:
        _say(listing.table(rows))


@cli.command()
@click.argument("run")
@_store
@_json
def show(run: str, address: str, as_json: bool) -> None:
    """One run: its numbers with error bars, its flags in words. RUN is an id, the start of one, or "latest"."""
    from edgewatt.reports import text

    store = _open(address)
    found = store.get(run)
    if as_json:
        _print_json(found.as_json() | {"store": store.address})
    else:
        _say(text.summary(found))


@cli.command()
@click.argument("run")
@_store
@_json
def recompute(run: str, address: str, as_json: bool) -> None:
    """Every number of RUN derived again from its raw samples, beside the stored one."""
    from edgewatt.harness import measure
    from edgewatt.harness import settings as given
    from edgewatt.results.compare import difference

    store = _open(address)
    old = store.get(run)
    job = given.rebuilt(old)
    with tempfile.TemporaryDirectory(prefix="edgewatt-") as folder:
        new = measure.recompute(old, job, Path(folder))
    changes = difference(old.measurements, new.measurements)
    if as_json:
        _print_json(new.as_json() | {"store": store.address, "changes": changes.as_json()})
    else:
        _say(f"{old.id}: {changes.in_words()}")


@cli.command()
@click.argument("runs", nargs=-1)
@click.option("--format", "form", type=click.Choice(["csv", "parquet", "json"]), default="csv", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File or folder; default: stdout (csv, json).")
@_store
def export(runs: tuple[str, ...], form: str, output: Path | None, address: str) -> None:
    """Runs (all, or those named) as a table, as JSON, or as Parquet with every raw sample."""
    from edgewatt.harness.api import UsageError
    from edgewatt.results import export as exporting

    if output is None and form == "parquet":
        raise UsageError("--format parquet writes files: name a folder with -o")
    store = _open(address)
    ids = [store.get(r).id for r in runs] or None
    exporting.export(store, ids, form, output or sys.stdout)


# ---------------------------------------------------------------------------------------------------------------------
# Reports and tools


@cli.group()
def report() -> None:
    """Pages and figures: -o FILE.html (one self-contained page), .pdf or .svg."""


_output = click.option(
    "-o", "--output", type=click.Path(path_type=Path), default="report.html", show_default=True,
    help="Where to write; the suffix decides: .html, .pdf or .svg.",
)  # fmt: skip


@report.command()
@click.argument("runs", nargs=-1)
@_output
@_store
def tradeoff(runs: tuple[str, ...], output: Path, address: str) -> None:
    """Latency, energy and quality of one or several RUNS (default: the latest), with error bars and flags."""
    store = _open(address)
    _write_report("tradeoff", [store.get(r) for r in runs or ("latest",)], output)


@report.command()
@click.argument("run", default="latest")
@_output
@_store
def trace(run: str, output: Path, address: str) -> None:
    """Power, temperature and clocks of one RUN over time, its phases shaded."""
    _write_report("trace", [_open(address).get(run)], output)


@cli.group()
def convert() -> None:
    """Tools of the workloads: checkpoints to deployable models."""


@convert.command(name="femtodet")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="An mmcv .pth or a .safetensors file.")
@click.option("--variant", type=click.Choice(["voc", "coco_large"]), default="voc", show_default=True)
@click.option("--graphs", is_flag=True, help="Export the packaged graph structures anew from the torch code.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write into.")
def convert_femtodet(checkpoint: Path | None, variant: str, graphs: bool, output: Path) -> None:
    """FemtoDet as a deployable ONNX graph with every BatchNorm folded."""
    from edgewatt.harness.api import UsageError
    from edgewatt.workloads.femtodet import checkpoint as checkpoints
    from edgewatt.workloads.femtodet import fold, graph
    from edgewatt.workloads.femtodet.variants import VARIANTS

    chosen = VARIANTS[variant]
    if graphs:
        try:
            from edgewatt.workloads.femtodet import export as exporting
        except ImportError as error:
            raise UsageError(f"making graphs needs {error.name}; pip install 'edgewatt[torch]'") from error
        written = exporting.write_structures(output)
    elif checkpoint is not None:
        written = [graph.write(output, fold.folded(checkpoints.load(checkpoint, chosen), chosen), chosen)]
    else:
        raise UsageError("convert femtodet: name a --checkpoint, or ask for --graphs")
    for path in written:
        _say(str(path))


@cli.group()
def agent() -> None:
    """The program that samples and runs models on devices without Python."""


@agent.command(name="build")
@click.option("--abi", default="arm64-v8a", show_default=True, help="The phone's: arm64-v8a, armeabi-v7a, x86_64.")
@click.option(
    "--ndk", type=click.Path(path_type=Path), help="Android's NDK; without it arm64-v8a gets the sampler alone."
)
@click.option("--onnxruntime-include", "include", type=click.Path(path_type=Path), envvar="EDGEWATT_ORT_INCLUDE",
              help="Folder with onnxruntime_c_api.h, to run models.")  # fmt: skip
def build_agent(abi: str, ndk: Path | None, include: Path | None) -> None:
    """Compile the native agent for phones of one kind; it is then found by itself (docs/native-agent.md)."""
    from edgewatt.devices.android import build

    _say(str(build.build(abi, ndk=ndk, include=include)))


# ---------------------------------------------------------------------------------------------------------------------
# What the commands share


def _open(address: str, *, writing: bool = False) -> Store:
    """The store at an address; a command that only reads does not make one."""
    from edgewatt.results.store import Store

    store = Store(address, create=writing)
    if writing:
        store.check()
    return store


def _kept(store: Store, run: Run) -> Store:
    """Where the run is now: its store or, where that cannot take it any more (a full disk), one made for it alone."""
    from edgewatt.harness.api import HarnessError
    from edgewatt.results.store import Store

    try:
        store.add(run)
        return store
    except HarnessError as error:
        try:
            folder = tempfile.mkdtemp(prefix="edgewatt-kept-")
        except OSError:
            raise error from None
        try:
            refuge = Store(folder)
            refuge.add(run)
        except HarnessError:
            shutil.rmtree(folder, ignore_errors=True)
            raise error from None
        kept = f"the run is kept in {refuge.address}, a store of its own: move that folder to a safe place"
        _complain(_one_line(f"edgewatt: {error}; {kept}"))
        return refuge


def _check_report(path: Path) -> None:
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


def _write_report(kind: str, runs: list[Run], path: Path) -> None:
    from edgewatt.reports import trace as traces
    from edgewatt.reports import tradeoff as tradeoffs

    _check_report(path)
    if kind == "trace":
        traces.write(runs[0], path)
    else:
        tradeoffs.write(runs, path)
    _complain(f"wrote {path}")


def _print_json(value: dict[str, Any]) -> None:
    from edgewatt.results.plain import plain

    click.echo(json.dumps(plain(value), indent=1, allow_nan=False))


def _say(text: str) -> None:
    click.echo(_printable(text))


def _complain(text: str) -> None:
    click.echo(_printable(text), err=True)


def _printable(text: str) -> str:
    """Foreign text (a device's label, a file's name) fit for a terminal: control characters are escaped."""
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the run in hand is stored."""
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt_once(signum: int, frame: object) -> None:
    """The first Ctrl-C (or SIGTERM) stops what runs and lets it clean up; further ones are told to wait."""
    signal.signal(signal.SIGINT, lambda *_: _complain("stopping; one moment"))
    signal.signal(signal.SIGTERM, lambda *_: None)
    raise KeyboardInterrupt


def run_command(arguments: list[str] | None = None) -> int:
    """Runs one command; its exit status. Errors are one line on stderr, a traceback only with --debug."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments  # wherever it stands
    try:
        cli.main(args=[a for a in arguments if a != "--debug"], prog_name="edgewatt", standalone_mode=False)
        return 0
    except SystemExit as stop:
        return int(stop.code or 0)
    except (KeyboardInterrupt, click.Abort):
        _complain("edgewatt: stopped by hand; nothing was left half-written")
        return USAGE
    except click.ClickException as error:
        _complain(f"edgewatt: {error.format_message().rstrip('.')}; see `edgewatt --help`".replace("\n", " "))
        return USAGE
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  the reader went away; nothing more to say
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explained(error)


def _explained(error: Exception) -> int:
    from edgewatt.harness.api import HarnessError

    if isinstance(error, HarnessError):
        _complain(_one_line(f"edgewatt: {error}"))
    else:
        _complain(
            _one_line(f"edgewatt: unexpected {type(error).__name__}: {error}")[:500]
            + "; run again with `edgewatt --debug ...` to see where"
        )
    return USAGE  # FAILED is kept for a run that is stored with its error


def _one_line(text: str) -> str:
    """An error's text on one line, whatever it quotes."""
    return _printable(text).replace("\n", "\\n")


def _raise_again(ignored: sys.UnraisableHookArgs) -> None:
    """An interrupt inside a finaliser or a callback is swallowed by Python: it is sent again, a moment later."""
    if ignored.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(ignored)
        return
    _listen()
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    again = threading.Timer(0.01, signal.pthread_kill, (main_thread, signal.SIGINT))
    again.daemon = True  # a command that is over by then has nothing to interrupt
    again.start()


def _listen() -> None:
    signal.signal(signal.SIGINT, _interrupt_once)
    signal.signal(signal.SIGTERM, _interrupt_once)


def main() -> int:
    """Entry for the installed command."""
    sys.unraisablehook = _raise_again
    _listen()
    return run_command()
