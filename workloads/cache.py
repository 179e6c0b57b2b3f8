"""Files that workloads make once and keep, each in a folder named by its content or recipe: graphs, drawn scenes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs

from edgewatt.harness.api import UsageError


def root() -> Path:
    """EDGEWATT_CACHE, or the user's cache folder."""
    return Path(os.environ.get("EDGEWATT_CACHE") or platformdirs.user_cache_dir("edgewatt", appauthor=False)).absolute()


def home() -> Path:
    """The part of it that is the workloads'."""
    return root() / "workloads"


def made(name: str, make: Callable[[Path], object]) -> Path:
    """The cached folder `name`, whole: filled by `make(folder)` if it is not there yet.

    Several processes may do this at the same time: each fills a folder of its own, and the first to finish gives the
    name to its own. UsageError if the cache cannot be written.
    """
    folder = home() / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        try:
            unfinished.chmod(0o755)
            make(unfinished)
            try:
                unfinished.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UsageError(
            f"the cache {root()} cannot be written ({error.strerror}); set EDGEWATT_CACHE to a folder that can"
        ) from error
    return folder
