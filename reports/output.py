"""Where a report goes: the form by the file's suffix, the file whole or not at all."""

import os
import tempfile
from pathlib import Path

from edgewatt.harness.api import UsageError

FORMS = (".html", ".pdf", ".svg")


def form(path: Path) -> str:
    """The form a report is written in, by the suffix of its file: ".html", ".pdf" or ".svg"; UsageError for others."""
    suffix = path.suffix.lower()
    if suffix not in FORMS:
        found = repr(path.suffix) if path.suffix else "none"
        raise UsageError(f"report {path}: found suffix {found}, wanted .html, .pdf or .svg; rename the file")
    return suffix


def write(path: Path, content: bytes) -> None:
    """The file is replaced whole: a reader, or a full disk, never leaves half a report. UsageError if it cannot be."""
    folder = path.resolve().parent
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise UsageError(
            f"report {path}: cannot write into {folder} ({error.strerror}); name another folder"
        ) from error
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        part.chmod(0o666 & ~_umask())  # a temporary file is private, a report is not
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(f"report {path}: cannot be written ({error.strerror}); name another file") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
