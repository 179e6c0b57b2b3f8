"""Files of benchmarks, read as untrusted input: what is wrong is a UsageError of one line that names the place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgewatt.harness.api import UsageError
from edgewatt.workloads.foreign import shown

LARGEST_FILE = 2 << 30  # bytes; the largest official file, GQA's training questions, has about 1 GB
LONGEST_TEXT = 100_000  # characters of a question, an answer or a name


def file_in(path: Path, name: str, wanted: str) -> Path:
    """`path` itself if it is a file, else the file `name` in it."""
    try:
        if path.is_file():
            return path
        if not path.is_dir():
            raise UsageError(f"{path}: no such file or folder; wanted {wanted}")
        if (path / name).is_file():
            return path / name
        there = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be looked into ({why(error)}); wanted {wanted}") from error
    has = ", ".join(map(shown, there[:5])) + (f" and {len(there) - 5} more" if len(there) > 5 else "")
    raise UsageError(f"{path}: has no {name}; wanted {wanted}; it holds {has or 'nothing'}")


def why(error: OSError | ValueError) -> str:
    """What the system says is wrong, without the path that it repeats."""
    return error.strerror or "unreadable" if isinstance(error, OSError) else str(error)


def check_size(path: Path, wanted: str) -> None:
    """UsageError if the file is larger than any of its kind, or not there."""
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({why(error)}); wanted {wanted}") from error
    if size > LARGEST_FILE:
        raise UsageError(f"{path}: has {size} bytes, more than any file of its kind; wanted {wanted}")


def content(path: Path, wanted: str) -> bytes:
    """What is in the file."""
    check_size(path, wanted)
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({why(error)}); wanted {wanted}") from error


def json_in(path: Path, wanted: str) -> Any:
    """The JSON value in the file."""
    return _parsed(content(path, wanted), path, "the file", wanted)


def json_lines(path: Path, wanted: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each object of a file of JSON lines stands ("line 3"), and the object; empty lines are passed over."""
    for number, line in enumerate(content(path, wanted).split(b"\n"), start=1):
        if line.strip():
            place = f"line {number}"
            yield place, entry(_parsed(line, path, place, wanted), path, place)


def _parsed(text: bytes, path: Path, place: str, wanted: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {place} is not JSON ({str(error)[:100]}); wanted {wanted}") from error


def entry(value: Any, path: Path, place: str) -> Mapping[str, Any]:
    """The value, which has to be an object."""
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {place}: is {shown(value)}; wanted an object")
    return value


def text(facts: Mapping[str, Any], key: str, path: Path, place: str) -> str:
    """A field that has to be a text of sane length, which UTF-8 can hold."""
    return checked_text(facts.get(key), f"its {key}", path, place)


def checked_text(value: Any, what: str, path: Path, place: str) -> str:
    """The value, which has to be a text of sane length that UTF-8 can hold."""
    if not isinstance(value, str):
        raise UsageError(f"{path}: {place}: {what} is {shown(value)}; wanted a text")
    if len(value) > LONGEST_TEXT:
        raise UsageError(f"{path}: {place}: {what} has {len(value)} characters; wanted at most {LONGEST_TEXT}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{path}: {place}: {what} is {shown(value)}, half a character; mend the file") from error
    return value


def whole(facts: Mapping[str, Any], key: str, path: Path, place: str) -> int:
    """A field that has to be a whole number from 0."""
    value = facts.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise UsageError(f"{path}: {place}: its {key} is {shown(value)}; wanted a whole number")
    return value


def number_or_text(facts: Mapping[str, Any], key: str, path: Path, place: str) -> str | int:
    """A field that names something: a text or a whole number."""
    return text(facts, key, path, place) if isinstance(facts.get(key), str) else whole(facts, key, path, place)
