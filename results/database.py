"""The database under a store: how it is opened, how its transactions begin, and what its complaints mean in a line."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from edgewatt.harness.api import HarnessError, TransientError, UsageError
from edgewatt.results.address import Place, read_only
from edgewatt.results.plain import dumped

BUSY_S = 60.0  # how long a writer waits for another; a transaction lasts some milliseconds


def engine(place: Place, is_writable: bool) -> Engine:
    """The database of `place`. No connection outlives its use, so that there is nothing to close."""
    options: dict[str, Any] = {"poolclass": NullPool, "json_serializer": dumped}
    if place.file is None:
        try:
            return create_engine(place.url, connect_args={"connect_timeout": 10}, **options)
        except ImportError as error:
            raise UsageError(f"store {place.shown}: needs psycopg; pip install 'edgewatt[postgres]'") from error
    url = place.url if is_writable else read_only(place.file)
    made = create_engine(url, connect_args={"timeout": BUSY_S}, **options)

    @event.listens_for(made, "connect")
    def connected(connection: sqlite3.Connection, _: object) -> None:
        # Transactions are begun below, by us: the driver would leave CREATE TABLE outside of them.
        connection.isolation_level = None
        # A rollback journal, not WAL: it can be read from a read-only folder, and one short transaction a run is all.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(made, "begin")
    def begun(connection: Connection) -> None:
        # A writer says so from the start: two that read first and then both wanted to write would block one another.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return made


@contextmanager
def complaints(place: Place) -> Iterator[None]:
    """What goes wrong inside is raised as one line with the next step, and without the password."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = error.orig if isinstance(error, DBAPIError) else None
        raise _meant(place, str(cause or error), error) from error
    except OSError as error:
        raise _meant(place, error.strerror or str(error), error) from error


def _meant(place: Place, said: str, error: Exception) -> HarnessError:
    line, lower = place.masked(said), said.lower()
    store = f"store {place.shown}"
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in lower or "no space left" in lower:
        return UsageError(f"{store}: the disk is full, nothing was stored; make room or name another --store")
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) or "readonly" in lower or "read-only" in lower:
        return UsageError(f"{store}: cannot be written ({line}); mend its permissions or name another --store")
    if "not a database" in lower or "malformed" in lower:
        return UsageError(f"{store}: its {place.file and place.file.name} is damaged, or not a store ({line})")
    if "locked" in lower:
        return TransientError(f"{store}: another process kept it locked for {BUSY_S:.0f} s; try again when it is done")
    if place.file is None and isinstance(error, OperationalError):
        return UsageError(f"{store}: the database does not answer ({line}); check the address and the server")
    if "unable to open" in lower:
        return UsageError(f"{store}: cannot be opened ({line}); check its permissions")
    if isinstance(error, OSError):
        return UsageError(f"{store}: {line}; name another --store")
    return HarnessError(f"{store}: {line}")
