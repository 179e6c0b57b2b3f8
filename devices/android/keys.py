"""The keys by which phones know this machine: those of adb itself, made if there are none."""

from __future__ import annotations

import base64
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgewatt.harness.api import UsageError


def signers(key: Path | None = None) -> list[Any]:
    """Signers for adb-shell, the one whose public half is offered to a new phone first.

    `key`, else ~/.android/adbkey, made (mode 600, its folder 700) if it is not there; then those of ADB_VENDOR_KEYS.
    UsageError if one cannot be read.
    """
    first = key or Path.home() / ".android" / "adbkey"
    if not first.exists():
        _make(first)
    others = [Path(p) for p in os.environ.get("ADB_VENDOR_KEYS", "").split(os.pathsep) if p]
    found = [k for p in others for k in (sorted(p.glob("*.adb_key")) if p.is_dir() else [p]) if k.is_file()]
    return [_signer(path) for path in dict.fromkeys([first, *found])]


def _make(path: Path) -> None:
    from adb_shell.auth.keygen import keygen

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:  # readable by its owner alone
            new = Path(folder) / path.name
            keygen(str(new))
            new.chmod(0o600)
            # Several may make one at once: the first is everybody's, and a private key tells its public half.
            with suppress(FileExistsError):
                os.link(new, path)
                Path(f"{new}.pub").replace(f"{path}.pub")
    except OSError as error:
        raise UsageError(f"{path}: no adb key can be made ({error.strerror}); name another with key") from error


def _signer(path: Path) -> Any:
    from adb_shell.auth.sign_pythonrsa import PythonRSASigner

    public = path.with_name(f"{path.name}.pub")
    try:
        return PythonRSASigner(public.read_text() if public.exists() else _public(path), path.read_text())
    except (OSError, ValueError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UsageError(f"{path}: is no adb key that can be read ({said}); name another with key") from error


def _public(path: Path) -> str:
    """The public half, where only the private one is there."""
    from adb_shell.auth.keygen import encode_pubkey

    encoded: bytes = encode_pubkey(str(path))
    return f"{base64.b64encode(encoded).decode()} edgewatt"
