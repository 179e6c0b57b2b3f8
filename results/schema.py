"""The version of a store's tables: made, brought up to date, or refused, under a lock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text

from edgewatt.harness.api import UsageError

if TYPE_CHECKING:
    from alembic.config import Config

VERSION = "0001"
MIGRATIONS = Path(__file__).parent / "migrations"
ADVISORY_LOCK = 0x656477  # any number that only stores of ours use: "edw"


def version(connection: Connection) -> str | None:
    """The version of the tables there; None in an empty database. UsageError if they are not a store's."""
    tables = inspect(connection).get_table_names()
    if not tables:
        return None
    if "alembic_version" in tables and "runs" in tables:
        return str(connection.scalar(text("SELECT version_num FROM alembic_version")))
    raise UsageError(f"a database, but not a store of edgewatt: it holds {', '.join(sorted(tables)[:3])}")


def prepare(engine: Engine, may_write: bool) -> None:
    """The tables made, or migrated, where they are not of this version; two processes at once do it once.

    UsageError for a newer store, for tables that are not ours, and for an old store that cannot be written.
    """
    with engine.connect() as connection:
        found = version(connection)
    if found == VERSION:
        return
    if found and not is_known(found):
        raise UsageError(f"its tables are of version {found}, this edgewatt knows up to {VERSION}; upgrade edgewatt")
    if not may_write:
        raise UsageError(
            f"its tables are of version {found}, not {VERSION}, and it is read-only; open it writable once"
        )
    from alembic import command

    with engine.execution_options(writes=True).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        # SQLite is locked as a whole by the transaction itself. Whoever waited finds the work done.
        if version(connection) != VERSION:
            configuration = config()
            configuration.attributes["connection"] = connection
            command.upgrade(configuration, VERSION)


def is_known(revision: str) -> bool:
    """Whether we have the migration that made that version."""
    from alembic.script import ScriptDirectory

    return any(s.revision == revision for s in ScriptDirectory.from_config(config()).walk_revisions())


def config() -> Config:
    """Alembic's configuration: our migrations, no file."""
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    configuration.set_main_option("path_separator", "os")
    return configuration
