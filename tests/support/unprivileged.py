"""Being nobody for a while, so that a file only root may read is refused to a test that root runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def nobody(folder: Path) -> Iterator[None]:
    """Runs inside without root's rights; `folder` and what holds it can be entered meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    opened = {p: p.stat().st_mode for p in (folder, *folder.parents) if p.stat().st_uid == 0 and len(p.parts) > 2}
    for p, mode in opened.items():
        p.chmod(mode | 0o055)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        for p, mode in opened.items():
            p.chmod(mode)
