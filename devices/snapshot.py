"""What a device's files and tools said at one moment, brought here in one round trip (agent/look.py).

Everything may be absent, unreadable or nonsense on some device: readers answer None.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Snapshot:
    """Texts of files by path, real places of folders, and the answers of tools by name."""

    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    real: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    free_bytes: int | None = None
    is_root: bool = False
    groups: tuple[str, ...] = ()

    @staticmethod
    def of(told: Mapping[str, Any]) -> Snapshot:
        """The snapshot in what `look` gave."""
        return Snapshot(
            told["files"], told["real"], told["tools"], told["free_bytes"], told["is_root"], tuple(told["groups"])
        )

    def text(self, path: str) -> str | None:
        """A file's text without surrounding blanks; None if it was absent, unreadable or empty."""
        return str(self.files.get(path, {}).get("text") or "").strip() or None

    def number(self, path: str) -> int | None:
        """The one integer a file held; None for anything else. Some drivers write a unit behind it ("3000 ma")."""
        match = re.fullmatch(r"([+-]?\d{1,18})(?: ?[A-Za-z]{1,3})?", self.text(path) or "")
        return int(match[1]) if match else None

    def problem(self, path: str) -> str | None:
        """What stood in the way of reading a number, in words; None if nothing did."""
        if path not in self.files:
            return f"{path} is not there"
        if error := self.files[path].get("error"):
            return f"{path} cannot be read: {error}"
        return None if self.number(path) is not None else f"{path} does not hold a number"

    def paths(self, pattern: str) -> list[str]:
        """Files that match, in natural order: hwmon2 before hwmon10. A `*` does not cross a slash."""
        depth = pattern.count("/")
        found = [p for p in self.files if p.count("/") == depth and fnmatch.fnmatchcase(p, pattern)]
        return sorted(found, key=natural)

    def answer(self, tool: str) -> str | None:
        """What a tool printed, if it is there and ended well."""
        told = self.tools.get(tool, {})
        return str(told.get("out", "")) if told.get("status") == 0 else None


def natural(path: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in names as numbers."""
    return [(int(s), "") if s.isdigit() else (-1, s) for s in re.split(r"(\d+)", path)]
