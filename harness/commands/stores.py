"""The store as commands use it: opened, and given a run that must not be lost."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgewatt.harness.commands.terminal import complain, one_line

if TYPE_CHECKING:
    from edgewatt.harness.api import Run
    from edgewatt.results.store import Store


def opened(address: str, *, writing: bool = False) -> Store:
    """The store at an address; a command that only reads does not make one."""
    from edgewatt.results.store import Store

    store = Store(address, create=writing)
    if writing:
        store.check()
    return store


def kept(store: Store, run: Run) -> Store:
    """Where the run is now: its store or, where that cannot take it any more (a full disk), one made for it alone."""
    from edgewatt.harness.api import HarnessError
    from edgewatt.results.store import Store

    try:
        store.add(run)
        return store
    except HarnessError as error:
        try:
            folder = tempfile.mkdtemp(prefix="edgewatt-kept-")
        except OSError:
            raise error from None
        try:
            refuge = Store(folder)
            refuge.add(run)
        except HarnessError:
            shutil.rmtree(folder, ignore_errors=True)
            raise error from None
        told = f"the run is kept in {refuge.address}, a store of its own: move that folder to a safe place"
        complain(one_line(f"edgewatt: {error}; {told}"))
        return refuge


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the run in hand is stored."""
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
