"""A device that is this process: whatever is put on it, it finds where it was."""

from __future__ import annotations

from pathlib import Path


class Here:
    """What a workload's `prepare` needs of a device."""

    name = "here"
    agent_kind = "python"

    def put(self, path: Path) -> str:
        return str(path)
