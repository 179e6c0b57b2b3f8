"""The installed `edgewatt` command, run as a user would run it."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PLUGIN = Path(__file__).parent / "plugin"

# A run of a few seconds: enough for every phase to be there, too short for anybody's figures.
QUICK = (
    "repeats=1", "idle_s=0.3", "window_s=0.6", "isolated_s=0.3", "warmup_min_s=0.2", "warmup_max_s=3",
)  # fmt: skip


def executable() -> str:
    """The command beside this interpreter, else the one on the PATH."""
    beside = Path(sys.executable).parent / "edgewatt"
    found = str(beside) if beside.exists() else shutil.which("edgewatt")
    assert found, "the edgewatt command is not installed"
    return found


@dataclass
class Command:
    """`edgewatt` in a folder of its own; every process it starts carries `marker` in its environment."""

    folder: Path
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("EDGEWATT_STORE", "EDGEWATT_DEVICES")}
        path = os.pathsep.join(filter(None, (str(PLUGIN), kept.get("PYTHONPATH", ""))))
        cache = os.environ.get("EDGEWATT_CACHE", str(self.folder / "cache"))
        return kept | {"PYTHONPATH": path, "EDGEWATT_TEST_MARKER": self.marker, "EDGEWATT_CACHE": cache}

    def start(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        """The command, started and not waited for."""
        return subprocess.Popen(
            [executable(), *map(str, arguments)], cwd=self.folder, env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(
        self, *arguments: str | Path, status: int = 0, timeout_s: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        """The command run to its end, which must be `status` and without a traceback."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"edgewatt {arguments} did not end in {timeout_s} s\n{out}\n{err}") from None
        assert "Traceback" not in err and "Traceback" not in out, err + out
        assert process.returncode == status, f"status {process.returncode}, wanted {status}\n{out}\n{err}"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def json(self, *arguments: str | Path, status: int = 0) -> dict[str, Any]:
        """What the command printed with --json."""
        found: dict[str, Any] = json.loads(self(*arguments, "--json", status=status).stdout)
        return found

    def refused(self, *arguments: str | Path) -> str:
        """The one line with which the command refused (status 2, nothing on stdout)."""
        done = self(*arguments, status=2)
        assert done.stdout == ""
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, f"wanted one line, found: {done.stderr}"
        return lines[0]

    def left_running(self) -> list[int]:
        """Processes that this command started, directly or not, and that still run."""
        found = []
        for proc in Path("/proc").glob("[0-9]*"):
            try:
                environment = (proc / "environ").read_bytes()
                state = (proc / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if self.marker.encode() in environment and state != "Z":
                found.append(int(proc.name))
        return found
