"""The kernel's frequency governor as a control: written, read back, and put back however the run ends.

Source: Documentation/admin-guide/pm/cpufreq.rst.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from edgewatt.devices import sysfs
from edgewatt.harness.api import Facts, HarnessError, UsageError
from edgewatt.harness.plugins import nearest


@contextlib.contextmanager
def governor(root: Path, wanted: str) -> Iterator[Facts]:
    """Every processor under governor `wanted` inside; gives what was read back: {"governor": wanted}.

    UsageError, before anything was written, if there is no cpufreq, no such governor, no right to write, or another run
    that holds it: what that one puts back would be put back in the middle of this one.
    """
    policies = sysfs.folders(root / "devices" / "system" / "cpu" / "cpufreq", "policy*")
    if not policies:
        raise UsageError(f"governor={wanted}: this machine has no cpufreq (usual in a virtual machine); leave it out")
    before: dict[Path, str] = {}
    with contextlib.ExitStack() as locks:
        for policy in policies:
            file = policy / "scaling_governor"
            known = (sysfs.text(policy / "scaling_available_governors") or "").split()
            if wanted not in known:
                raise UsageError(f"governor={wanted}: {policy.name} does not have it; {nearest(wanted, known)}")
            try:
                fcntl.flock(locks.enter_context(file.open("r+b")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"governor={wanted}: another edgewatt holds {policy.name}; wait for its end") from None
            except OSError as error:
                raise UsageError(
                    f"governor={wanted}: {file} cannot be written ({error.strerror}); run as root"
                ) from error
            held = sysfs.text(file)
            if held is None:
                raise UsageError(f"governor={wanted}: {file} cannot be read, so it could not be put back; leave it out")
            before[file] = held
        try:
            for file in before:
                _write(file, wanted)
            yield {"governor": wanted}
        finally:
            failed = []
            for file, held in before.items():
                try:
                    _write(file, held)
                except HarnessError as error:
                    failed.append(str(error))
            if failed:
                raise HarnessError(f"the governor could not be put back: {'; '.join(failed)}")


def _write(file: Path, value: str) -> None:
    """Writes and reads back; HarnessError if the kernel holds something else afterwards."""
    try:
        file.write_text(value)
    except OSError as error:
        raise HarnessError(f"{file}: {value!r} was refused ({error.strerror})") from error
    held = sysfs.text(file)
    if held != value:
        raise HarnessError(f"{file}: wrote {value!r}, it says {held!r}")
