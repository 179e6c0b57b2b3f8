"""Where a store is: a folder of its own, or a database with a folder for its files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from edgewatt.harness.api import UsageError

DATABASE = "edgewatt.db"
SECRETS = ("password", "sslpassword", "sslkey", "passfile")  # in the query of a PostgreSQL address


@dataclass(frozen=True)
class Place:
    """A store's database and the folder of its files. `shown` is the address without its password."""

    url: URL
    folder: Path
    shown: str
    file: Path | None = None  # SQLite: the database itself

    @property
    def is_writable(self) -> bool:
        """Whether this process may write there, as far as can be told without trying."""
        return all(may_write(p) for p in (self.folder, self.file) if p is not None and p.exists())

    def masked(self, text: str) -> str:
        """The first line of a message, without the password."""
        line = (text.strip().splitlines() or [""])[0]
        secrets = [self.url.password, *(self.url.query.get(k) for k in SECRETS)]
        for secret in (s for s in secrets if isinstance(s, str) and s):
            line = line.replace(secret, "***").replace(quote(secret, safe=""), "***")
        return line


def may_write(path: Path) -> bool:
    """Whether the user we act for may write there, as far as the file system tells."""
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def place(address: str | os.PathLike[str], traces: str | os.PathLike[str] | None = None) -> Place:
    """A folder, or `postgresql+psycopg://user@host/base?traces=/shared/folder`, or `sqlite:///file.db`.

    `traces` is the folder of traces and outputs where the address does not name it. UsageError for any other address.
    """
    if "://" not in str(address):
        folder = Path(address).expanduser().absolute()
        return Place(_sqlite(folder / DATABASE), folder, str(address), folder / DATABASE)
    try:
        url = make_url(str(address))
    except (ArgumentError, ValueError) as error:
        # The address itself may hold a password, so it is not repeated.
        raise UsageError(
            "--store: not an address; wanted a folder or postgresql+psycopg://user@host/database"
        ) from error
    query = dict(url.query)
    named = query.pop("traces", None)
    traces = traces or (named if isinstance(named, str) else None)
    backend = url.get_backend_name()
    shown = _hidden(url)
    if backend == "sqlite":
        if not url.database or url.database == ":memory:":
            raise UsageError(f"store {shown}: a store is kept in a file; wanted sqlite:///FILE or a folder")
        file = Path(url.database).expanduser().absolute()
        return Place(_sqlite(file), Path(traces).absolute() if traces else file.parent, shown, file)
    if backend != "postgresql":
        raise UsageError(
            f"store {shown}: {backend} is not supported; wanted a folder, sqlite:/// or postgresql+psycopg://"
        )
    if not traces:
        raise UsageError(f"store {shown}: the traces need a folder that all its users see; add ?traces=/shared/folder")
    url = url.set(drivername="postgresql+psycopg", query=query)
    return Place(url, Path(traces).expanduser().absolute(), shown)


def _sqlite(file: Path) -> URL:
    return URL.create("sqlite", database=str(file))


def read_only(file: Path) -> URL:
    """The address of an SQLite file that is opened for reading and never made."""
    return URL.create("sqlite", database=f"file:{quote(str(file))}", query={"mode": "ro", "uri": "true"})


def _hidden(url: URL) -> str:
    query: dict[str, Any] = {k: "***" if k in SECRETS else v for k, v in url.query.items()}
    base, mark, asked = url.set(query=query).render_as_string(hide_password=True).partition("?")
    return base + mark + asked.replace("%2A", "*").replace("%2F", "/")
