"""A real OpenSSH server on a free port of the loopback, with keys and a client configuration of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

BOARD = "board-under-test"


def program() -> str:
    """sshd, by its absolute path as it wants to be called; the test is skipped where there is none."""
    found = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no OpenSSH server here; install openssh-server and openssh-client")
    return found


class Sshd:
    """One server; `wrap` are words before its command (such as those that enter an emulated board), `environment` is
    set in its sessions."""

    def __init__(self, folder: Path, wrap: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        self.folder, self._wrap = folder, tuple(wrap)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("host_key", "client_key", "other_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        shutil.copy(folder / "client_key.pub", folder / "authorized_keys")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        host_key = (folder / "host_key.pub").read_text().split()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key[0]} {host_key[1]}\n")
        self.config = self.client()
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile {folder}/pid\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 100\nLogLevel ERROR\n"
            + (f"SetEnv {' '.join(f'{k}={v}' for k, v in environment.items())}\n" if environment else "")
        )
        self._server: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        """By its name in the client's configuration."""
        return f"ssh://{BOARD}"

    def client(self, name: str = "config", **changes: str) -> Path:
        """A configuration of the client, with some keys changed."""
        keys = {
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "User": getpass.getuser(),
            "IdentityFile": str(self.folder / "client_key"),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.folder / "known_hosts"),
            "StrictHostKeyChecking": "yes",
        } | changes
        path = self.folder / name
        path.write_text(f"Host {BOARD}\n" + "".join(f"  {k} {v}\n" for k, v in keys.items()))
        return path

    def start(self) -> None:
        """The server, answering on its port."""
        with suppress(PermissionError):
            Path("/run/sshd").mkdir(exist_ok=True)
        command = f'mkdir -p /run/sshd; exec {program()} -D -e -f "{self.folder}/sshd_config"'
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [*self._wrap, "sh", "-c", command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.05)

    def connections(self) -> list[int]:
        """The processes that serve a connection: children of the server, and those that act for the user."""
        server = int((self.folder / "pid").read_text())
        first = _children(server)
        return [*first, *(pid for parent in first for pid in _children(parent) if "sshd" in _name(pid))]

    def cut(self) -> None:
        """Every connection is gone at once, as when the server's machine drops them; the server stays."""
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Sent to what serves connections: SIGSTOP makes links that are open and carry nothing."""
        for pid in self.connections():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """Neither server nor connections are left."""
        if self._server is not None:
            with suppress(OSError, ValueError):
                self.signal(signal.SIGCONT)
                self.cut()
                os.kill(int((self.folder / "pid").read_text()), signal.SIGTERM)
            with suppress(ProcessLookupError):
                self._server.terminate()
            self._server.wait(10)
            self._server = None

    def __enter__(self) -> Sshd:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
