"""What stands in other people's files, as far as it reaches a message or a path: made harmless, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from edgewatt.harness.api import UsageError

_NAMED = 3  # keys named in a message


def safe_name(source: Path, place: str, name: Any) -> str:
    """A relative file name that stays inside its folder; UsageError otherwise."""
    if not isinstance(name, str) or not name.strip():
        raise UsageError(f"{source}: {place}: its file name is {shown(name)}; wanted the name of a picture")
    path = PureWindowsPath(name)  # splits at both kinds of slash, and knows drives
    if ".." in path.parts or path.anchor or not name.isprintable():
        raise UsageError(
            f"{source}: {place}: the file name {shown(name)} leads out of the folder of pictures; "
            "wanted a plain name below it"
        )
    return name


def shown(value: Any) -> str:
    """A foreign value as it may be printed: quoted, its control characters escaped, short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def printable(text: str) -> str:
    """A name out of a file as it may be printed: unquoted, other characters as question marks, short."""
    return "".join(c if c.isprintable() else "?" for c in text[:160])


def one_line(error: BaseException) -> str:
    """What a library says of a file, which may quote it."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def listed(keys: Sequence[str]) -> str:
    """The first few keys of a checkpoint."""
    return ", ".join(printable(k) for k in keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")
