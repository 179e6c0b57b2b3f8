"""The home of runs: append-only, a run is whole or absent, whatever is killed and whenever (docs/decisions/0002).

A folder holds `edgewatt.db` (SQLite: everything but samples), `traces/ID/` (Parquet) and `outputs/ID/`. A team keeps
the same tables in PostgreSQL, and the two folders where all its users see them.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from sqlalchemy import Select, exists, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, selectinload

from edgewatt.harness.api import HarnessError, Items, Run, Trace, UsageError
from edgewatt.results import address as addresses
from edgewatt.results import database, records, schema, traces, writing
from edgewatt.results import items as item_times
from edgewatt.results.models import FlagRecord, RunRecord, TraceRecord

ROOM_BYTES = 64 << 20  # free space below which a run is not begun
LATEST = "latest"
SQLITE = b"SQLite format 3\0"  # how such a file begins; SQLite itself overwrites a file that is too short to tell


@dataclass(frozen=True)
class Row:
    """A run in a list: `error` is the kind it ended with, or ""; `voids` are the metrics its flags make unusable."""

    id: str
    created_utc: str
    device_name: str
    workload: str
    spec: Mapping[str, Any]
    error: str
    flags: tuple[str, ...]
    voids: tuple[str, ...]
    cell: str
    attempt: int

    @property
    def is_valid(self) -> bool:
        """Whether it ended well and no flag voids anything."""
        return not self.error and not self.voids


class Store:
    """Runs at an address: a folder, or a database URL with a folder for files. Holds nothing open between calls.

    Safe for several processes at once. `address` is what may be shown of it: a password is masked.
    """

    def __init__(
        self, address: str | os.PathLike[str], *, traces: str | os.PathLike[str] | None = None, create: bool = True
    ) -> None:
        """Opens the store, migrates an old one, clears away what a killed writer left; with `create`, makes a new one.

        UsageError where there is none, it is newer than this edgewatt, or cannot be read (or made).
        """
        self._place = addresses.place(address, traces)
        self.address, self.folder = self._place.shown, self._place.folder
        with database.complaints(self._place):
            self._find(create)
            self._is_writable = self._place.is_writable
            self._engine = database.engine(self._place, self._is_writable)
            try:
                schema.prepare(self._engine, self._is_writable and (create or self._place.file is not None))
            except UsageError as error:
                raise UsageError(f"store {self.address}: {error}") from error
            if self._is_writable:
                self._tidy()

    # -- writing

    def check(self) -> None:
        """UsageError if a run could not be stored now: read-only, or next to no room. To be asked before measuring."""
        self._check_writable()
        with database.complaints(self._place):
            if shutil.disk_usage(self.folder).free < ROOM_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with writing.claimed(self.folder, f"check-{os.getpid()}"):
                pass

    def add(self, run: Run) -> None:
        """Stores a run, whole or not at all; it is on disk when this returns.

        UsageError if it is there already, or the store is read-only, or the disk is full.
        """
        self._check_writable()
        with database.complaints(self._place), writing.claimed(self.folder, run.id) as temporary:
            if self._has(run.id):
                raise UsageError(f"store {self.address}: has a run {run.id} already, and a run is never changed")
            stored = self._written(run, temporary)
            try:
                writing.put_in_place(temporary, self.folder, run.id)
                with self._session(writes=True) as session:
                    self._lock(session, run.id)
                    session.add(stored)
            except BaseException:
                # The database may have taken it although the answer was lost; only it can tell, perhaps later.
                (temporary / writing.UNSETTLED).touch()
                with suppress(SQLAlchemyError):
                    if not self._has(run.id):
                        writing.remove(self.folder, run.id)
                    (temporary / writing.UNSETTLED).unlink()
                raise

    # -- reading

    def get(self, run: str, *, samples: bool = True) -> Run:
        """A run by its id, the start of it, or "latest", with every sample, bit for bit (NaNs are one NaN).

        Without `samples` its traces have their right lengths and hold only NaN, no items, and no file is opened.
        UsageError if no run, or more than one, is meant; HarnessError if a file is missing or damaged.
        """
        with database.complaints(self._place), self._session() as session:
            found = self._resolved(session, run)
            query = select(RunRecord).where(RunRecord.id == found)
            for parts in (RunRecord.phases, RunRecord.traces, RunRecord.measurements, RunRecord.flags):
                query = query.options(selectinload(parts))
            stored = session.scalars(query).one()
        if samples:
            kept = [self._trace(found, t) for t in stored.traces]
            items = self._items(stored)
        else:
            kept, items = [_without_samples(t) for t in stored.traces], Items.none()
        return records.run(stored, self.folder, kept, items)

    def window(self, run: str, meter: str, start_s: float, end_s: float) -> Trace:
        """One meter's samples from `start_s` to `end_s`, on the trace's clock; little else is read from disk."""
        with database.complaints(self._place), self._session() as session:
            found = self._resolved(session, run)
            query = select(TraceRecord).join(RunRecord).where(RunRecord.id == found).order_by(TraceRecord.position)
            known = {t.meter: t for t in session.scalars(query)}
        if meter not in known:
            raise UsageError(f"run {found} has no meter {meter}; it has {', '.join(known) or 'none'}")
        stored = known[meter]
        with self._reading(found, stored.file) as path:
            part = traces.read_window(path, start_s, end_s)
        return dataclasses.replace(part, channels=records.channels(stored), facts=stored.facts)

    def list(
        self,
        *,
        workload: str | None = None,
        device: str | None = None,
        since: str | date | None = None,
        limit: int | None = None,
        valid: bool = False,
    ) -> tuple[Row, ...]:
        """Runs by time, the newest last; with `limit`, only the newest ones.

        `device` is a device's name; `since` a moment (ISO 8601; without a zone: UTC); `valid` leaves out runs that
        failed and runs of which a flag voids something.
        """
        query = _filtered(workload, device, since, valid)
        columns = (
            RunRecord.number, RunRecord.id, RunRecord.created_utc, RunRecord.device_name, RunRecord.workload,
            RunRecord.spec, RunRecord.error_kind, RunRecord.cell, RunRecord.attempt,
        )  # fmt: skip
        newest = query.with_only_columns(*columns).limit(limit)
        with database.complaints(self._place), self._session() as session:
            rows = session.execute(newest).all()[::-1]
            wanted = [r.number for r in rows] if len(rows) <= 500 else None
            flags = select(FlagRecord.run, FlagRecord.flag, FlagRecord.voids).order_by(
                FlagRecord.run, FlagRecord.position
            )
            raised: dict[int, dict[str, tuple[str, ...]]] = {}
            for number, flag, voids in session.execute(
                flags if wanted is None else flags.where(FlagRecord.run.in_(wanted))
            ):
                known = raised.setdefault(number, {})
                known[flag] = (*known.get(flag, ()), *voids)
        return tuple(
            Row(
                r.id,
                r.created_utc,
                r.device_name,
                r.workload,
                r.spec,
                r.error_kind or "",
                tuple(raised.get(r.number, {})),
                tuple(dict.fromkeys(v for voids in raised.get(r.number, {}).values() for v in voids)),
                r.cell,
                r.attempt,
            )
            for r in rows
        )

    def latest(self, *, workload: str | None = None, device: str | None = None, valid: bool = False) -> Row | None:
        """The newest run, if there is one."""
        rows = self.list(workload=workload, device=device, valid=valid, limit=1)
        return rows[0] if rows else None

    # -- how

    def _find(self, create: bool) -> None:
        """The store's folder, there or made; UsageError if it cannot be one."""
        folder, file = self.folder, self._place.file
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"store {self.address}: a file, wanted a folder; name another --store")
        there = file.is_file() if file else folder.is_dir()
        if there and file and file.stat().st_size:
            with file.open("rb") as database_file:
                if database_file.read(len(SQLITE)) != SQLITE:
                    raise UsageError(f"store {self.address}: its {file.name} is not a store; name another --store")
        if not there and not create:
            raise UsageError(f"store {self.address}: there is no store; run something first or name another --store")
        if not there and file and folder.is_dir() and file.name == addresses.DATABASE:
            others = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
            if others and not file.is_file():  # another process may have made the store meanwhile
                some = ", ".join(others[:3])
                raise UsageError(f"store {self.address}: not a store, it holds {some}; name a new or an empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        if file and not there and not addresses.may_write(folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def _check_writable(self) -> None:
        if not self._is_writable:
            raise UsageError(f"store {self.address}: read-only; mend its permissions or name another --store")

    def _tidy(self) -> None:
        """Clears away what killed writers left; runs that the database has keep their files."""
        for run_id in writing.claims(self.folder):
            with writing.abandoned(self.folder, run_id) as is_abandoned:
                if is_abandoned and not self._has(run_id):
                    writing.remove(self.folder, run_id)

    @contextmanager
    def _session(self, writes: bool = False) -> Iterator[Session]:
        engine = self._engine.execution_options(writes=True) if writes else self._engine
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def _lock(self, session: Session, run_id: str) -> None:
        """PostgreSQL: whoever asks about this run waits until this transaction is over, even if its client is dead."""
        if self._place.file is None:
            key = {"key": schema.ADVISORY_LOCK, "id": run_id}
            session.execute(text("SELECT pg_advisory_xact_lock(:key, hashtext(:id))"), key)

    def _has(self, run_id: str) -> bool:
        with self._session() as session:
            self._lock(session, run_id)
            return session.scalar(select(exists().where(RunRecord.id == run_id))) or False

    def _resolved(self, session: Session, run: str) -> str:
        """The whole id that is meant."""
        if run == LATEST:
            newest = session.scalar(_filtered(None, None, None, False).with_only_columns(RunRecord.id).limit(1))
            if newest is None:
                raise UsageError(f"store {self.address}: empty; run something first or name another --store")
            return newest
        if run and session.scalar(select(exists().where(RunRecord.id == run))):
            return run
        query = select(RunRecord.id).where(RunRecord.id.startswith(run, autoescape=True)).order_by(RunRecord.number)
        found = session.scalars(query.limit(4)).all() if run else []
        if len(found) == 1:
            return found[0]
        if found:
            more = ", ..." if len(found) > 3 else ""
            raise UsageError(f"run {run!r} may be {', '.join(found[:3])}{more}; give more of its id")
        known = session.scalars(_filtered(None, None, None, False).with_only_columns(RunRecord.id).limit(2000)).all()
        near = difflib.get_close_matches(run, known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"the newest is {known[0]}" if known else "the store is empty"
        raise UsageError(f"store {self.address}: no run {run!r}; {hint}")

    def _written(self, run: Run, temporary: Path) -> RunRecord:
        """The rows of `run`, its files being written into `temporary`."""
        (temporary / "traces").mkdir()
        kept, outputs, items = [], {}, {}
        for k, trace in enumerate(run.traces):
            path = temporary / "traces" / f"{k}-{_file_name(trace.meter)}.parquet"
            traces.write(trace, path)
            kept.append(records.trace_record(k, trace, f"traces/{run.id}/{path.name}", writing.sha256(path)))
        if len(run.items) or run.items.names:
            path = temporary / "traces" / "items.parquet"
            item_times.write(run.items, path)
            items = {"file": f"traces/{run.id}/{path.name}", "n": len(run.items), "sha256": writing.sha256(path)}
        for k, (name, source) in enumerate(run.outputs.items()):
            into = temporary / "outputs" / (source.name if k == 0 else f"{k}-{source.name}")
            into.parent.mkdir(exist_ok=True)
            if not source.is_file():
                raise UsageError(f"run {run.id}: its output {name} is not a file at {source}; nothing was stored")
            shutil.copyfile(source, into)
            outputs[name] = f"outputs/{run.id}/{into.name}"
        return records.record(run, kept, outputs, items)

    def _trace(self, run: str, stored: TraceRecord) -> Trace:
        with self._reading(run, stored.file, stored.sha256) as path:
            trace = traces.read(path)
        return dataclasses.replace(trace, channels=records.channels(stored), facts=stored.facts)

    def _items(self, stored: RunRecord) -> Items:
        if not stored.items_file:
            return Items.none()
        with self._reading(stored.id, stored.items_file, stored.items_sha256) as path:
            return item_times.read(path)

    @contextmanager
    def _reading(self, run: str, file: str, sha256: str | None = None) -> Iterator[Path]:
        """A file of a run; HarnessError if it is missing, unreadable or not the one that was stored."""
        path = records.below(self.folder, file)
        try:
            if sha256 is not None and writing.sha256(path) != sha256:
                raise HarnessError(f"run {run}: {path} is not the file that was stored; restore it from a backup")
            yield path
        except FileNotFoundError as error:
            raise HarnessError(f"run {run}: {path} is missing; restore it from a backup") from error
        except (OSError, pa.ArrowException, ValueError, KeyError) as error:
            raise HarnessError(f"run {run}: {path} is damaged or unreadable; restore it from a backup") from error


def _filtered(workload: str | None, device: str | None, since: str | date | None, valid: bool) -> Select[Any]:
    """Runs that fit, the newest first."""
    query = select(RunRecord).order_by(RunRecord.created_s.desc(), RunRecord.number.desc())
    if workload is not None:
        query = query.where(RunRecord.workload == workload)
    if device is not None:
        query = query.where(RunRecord.device_name == device)
    if since is not None:
        query = query.where(RunRecord.created_s >= _moment(since))
    if valid:
        voiding = exists().where(FlagRecord.run == RunRecord.number, FlagRecord.is_voiding)
        query = query.where(RunRecord.error_kind.is_(None), ~voiding)
    return query


def _moment(since: str | date) -> float:
    """Seconds since 1970."""
    if isinstance(since, date):
        return records.seconds(since.isoformat())
    try:
        return records.seconds(since)
    except ValueError as error:
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M")
        raise UsageError(f"since {since!r}: not a moment; wanted a date or time such as {now[:10]} or {now}") from error


def _without_samples(stored: TraceRecord) -> Trace:
    """The trace's frame: as long and wide as it is, every number missing, in no memory."""
    channels = records.channels(stored)
    t_s, values = np.broadcast_to(np.nan, (stored.n,)), np.broadcast_to(np.nan, (stored.n, len(channels)))
    return Trace(stored.meter, stored.clock, channels, t_s, values, stored.facts)


def _file_name(meter: str) -> str:
    """A meter's name as part of a file's, on any file system."""
    return quote(meter, safe="").replace("%", "_")[:60] or "meter"
