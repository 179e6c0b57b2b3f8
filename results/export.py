"""Runs carried out of the store: a table of measurements (CSV, Parquet, with the raw samples beside it), or JSON."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from edgewatt.harness.api import Measurement, Run, UsageError
from edgewatt.harness.flags import is_void
from edgewatt.results.plain import dumped, plain
from edgewatt.results.store import Store

Format = Literal["csv", "parquet", "json"]

BEFORE = ("run", "created_utc", "device", "workload", "cell", "attempt", "error")
AFTER = (
    "metric", "value", "uncertainty", "unit", "phase", "n", "method", "meter", "boundary", "is_void", "flags",
)  # fmt: skip
SPEC = "spec."  # before the name of a parameter
BATCH = 5_000  # rows of a Parquet table written at once


def export(store: Store, ids: Sequence[str] | None, form: str, output: Path | TextIO) -> None:
    """Runs (`ids`, or all) written to a file or an open text stream; `parquet` to a new folder.

    csv: one row per measurement, its run's parameters in columns `spec.NAME`, its flags in one; a run without any
    measurement has one row with its error. json: `{"runs": [...]}`, each as `run --json` prints it. parquet: the same
    table as `measurements.parquet`, and the samples as `traces/RUN/*.parquet`. A file appears whole or not at all.
    """
    ids = [r.id for r in store.list()] if ids is None else list(dict.fromkeys(ids))
    if form not in ("csv", "parquet", "json"):
        raise UsageError(f"export: no format {form!r}; wanted csv, parquet or json")
    if form == "parquet":
        if not isinstance(output, Path):
            raise UsageError("export: parquet writes files; name a new folder")
        with _whole_folder(output) as folder:
            _write_parquet(store, ids, folder)
    elif isinstance(output, Path):
        with _whole_file(output) as file:
            _write_text(store, ids, form, file)
    else:
        _write_text(store, ids, form, output)


def _write_text(store: Store, ids: Sequence[str], form: str, file: TextIO) -> None:
    if form == "json":
        _write_json(store, ids, file)
    else:
        _write_csv(store, ids, file)


def _write_json(store: Store, ids: Sequence[str], file: TextIO) -> None:
    file.write('{"runs": [')
    for k, run_id in enumerate(ids):
        run = store.get(run_id, samples=False)
        file.write((",\n" if k else "\n") + dumped(run.as_json() | {"store": store.address}))
    file.write("\n]}\n")


def _write_csv(store: Store, ids: Sequence[str], file: TextIO) -> None:
    parameters = _parameters(store, ids)
    table = csv.DictWriter(file, [*BEFORE, *(SPEC + p for p in parameters), *AFTER], lineterminator="\n")
    table.writeheader()
    for run_id in ids:
        for row in _rows(store.get(run_id, samples=False), parameters):
            table.writerow({k: _cell(v) for k, v in row.items()})


def _write_parquet(store: Store, ids: Sequence[str], folder: Path) -> None:
    parameters = _parameters(store, ids)
    floats, integers, truths = ("value", "uncertainty"), ("n", "attempt"), ("is_void",)
    types = (
        dict.fromkeys(floats, pa.float64()) | dict.fromkeys(integers, pa.int64()) | dict.fromkeys(truths, pa.bool_())
    )
    types |= {SPEC + name: kind for name, kind in parameters.items()}
    names = [*BEFORE, *(SPEC + p for p in parameters), *AFTER]
    schema = pa.schema([(n, types.get(n, pa.string())) for n in names])
    with pq.ParquetWriter(folder / "measurements.parquet", schema, compression="zstd") as table:
        waiting: list[dict[str, Any]] = []
        for k, run_id in enumerate(ids):
            run = store.get(run_id, samples=False)
            for row in _rows(run, parameters):
                texts = {n: _cell(v) for n, v in row.items() if v is not None and schema.field(n).type == pa.string()}
                waiting.append(row | texts)
            if len(waiting) >= BATCH or (k + 1 == len(ids) and waiting):
                table.write_table(pa.Table.from_pylist(waiting, schema=schema))
                waiting = []
            if (there := store.folder / "traces" / run.id).is_dir():
                shutil.copytree(there, folder / "traces" / run.id)


def _parameters(store: Store, ids: Sequence[str]) -> dict[str, Any]:
    """Every parameter of these runs, with the Parquet type that holds all its values; text where they are mixed."""
    wanted = set(ids)
    kinds: dict[str, Any] = {}
    for row in store.list():
        if row.id in wanted:
            for name, value in row.spec.items():
                kind = _kind(value)
                known = kinds.setdefault(name, kind)
                if known is None or {known, kind} == {pa.int64(), pa.float64()}:
                    kinds[name] = kind if known is None else pa.float64()
                elif kind is not None and kind != known:
                    kinds[name] = pa.string()
    return {name: kind or pa.string() for name, kind in kinds.items()}


def _kind(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int) and abs(value) < 2**63:
        return pa.int64()
    return pa.float64() if isinstance(value, float) else pa.string()


def _rows(run: Run, parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    shared = {
        "run": run.id, "created_utc": run.created_utc, "device": run.device_name, "workload": run.workload,
        "cell": run.cell, "attempt": run.attempt, "error": run.error.kind if run.error else None,
    }  # fmt: skip
    shared |= {SPEC + p: run.spec.get(p) for p in parameters}
    for m in run.measurements or (None,):
        yield shared | _measured(run, m)


def _measured(run: Run, m: Measurement | None) -> dict[str, Any]:
    if m is None:
        return dict.fromkeys(AFTER) | {"flags": ";".join(f.flag for f in run.flags)}
    about = [f for f in run.flags if is_void(m, f)]
    raised = about or [f for f in run.flags if f.meter in ("", m.meter) or m.meter.startswith(f"{f.meter}/")]
    return {
        "metric": m.metric, "value": plain(m.value), "uncertainty": plain(m.uncertainty), "unit": m.unit,
        "phase": m.phase, "n": m.n, "method": m.method, "meter": m.meter, "boundary": m.boundary,
        "is_void": bool(about), "flags": ";".join(dict.fromkeys(f.flag for f in raised)),
    }  # fmt: skip


def _cell(value: Any) -> str:
    """As text: numbers with every digit, nothing for what is missing, JSON for lists and tables."""
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value)
    return value if isinstance(value, str) else dumped(value)


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[TextIO]:
    """A file that replaces `path` once it is complete; a device or a pipe, such as /dev/stdout, is written into."""
    with _writing(path):
        if path.exists() and not path.is_file():
            with path.open("w", encoding="utf-8", newline="") as file:
                yield file
            return
        path = path.resolve()  # what a link points to is replaced, not the link
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """A folder that becomes `path`, which must not be there yet, once it is complete."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"export: {path} is there already; name a new folder")
    with _writing(path):
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield folder
            folder.chmod(0o777 & ~_umask())
            folder.replace(path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A file that cannot be written is the asker's matter: one line."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"export: cannot write {path}: {error.strerror or error}; name another file") from error


def _umask() -> int:
    """What new files must not permit; there is no way to read it but to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
