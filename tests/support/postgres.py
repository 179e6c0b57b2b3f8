"""A PostgreSQL server of the test's own: a new cluster, on loopback, with a password, gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534  # the server refuses to run as root
PASSWORD = "p@ss/w:rd"


def programs() -> Path | None:
    """The folder of all its programs: where Debian puts the newest, or where initdb on the PATH comes from."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    named = shutil.which("initdb")
    there = [p.parent for p in (*found[::-1], *([Path(named).resolve()] if named else []))]
    return next((p for p in there if (p / "pg_isready").exists() and (p / "createdb").exists()), None)


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """The port of a running server with a user `lab` and its PASSWORD, and a database `lab`; stopped by its pid."""
    bin_ = programs()
    assert bin_
    # Not below pytest's own folder, which others may not enter.
    base = Path(tempfile.mkdtemp(prefix="edgewatt-pg-"))
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    if user:
        os.chown(base, NOBODY, NOBODY)
    secret = base / "secret"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    options = {"cwd": base, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}, **user}
    with (folder / "postgres.log").open("wb") as log:
        made = [
            "-D",
            base / "data",
            "-U",
            "lab",
            "-A",
            "scram-sha-256",
            f"--pwfile={secret}",
            "--no-sync",
            "-E",
            "UTF8",
        ]
        subprocess.run([bin_ / "initdb", *made], check=True, stdout=log, stderr=log, **options)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": base, "fsync": "off"}
        asked = [word for k, v in settings.items() for word in ("-c", f"{k}={v}")]
        process = subprocess.Popen([bin_ / "postgres", "-D", base / "data", *asked], stdout=log, stderr=log, **options)
    try:
        _wait(bin_, port, process, folder)
        made = [bin_ / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "lab", "lab"]
        subprocess.run(made, check=True, env=os.environ | {"PGPASSWORD": PASSWORD})
        yield port
    finally:
        process.send_signal(signal.SIGINT)  # "fast shutdown"
        process.wait(30)
        shutil.rmtree(base)


def _wait(bin_: Path, port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 30
    asked = [bin_ / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(asked, check=False).returncode:
        assert process.poll() is None, (folder / "postgres.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
