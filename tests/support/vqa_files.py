"""The benchmarks' official files, cut small (tests/data/vqa): where they are, opened, and refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgewatt.harness.api import UsageError
from edgewatt.workloads.vqa import dataset

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "vqa"
FOLDERS = {"gqa": "gqa", "pope": "pope", "textvqa": "textvqa", "scienceqa": "sqa", "mme": "mme/ground_truth"}


def golden(name: str) -> Path:
    return GOLDEN / FOLDERS.get(name, name)


def opened(name: str, path: Path, **options: Any) -> Any:
    return dataset.open(name, path, **{"with_pictures": False} | options)


def refusal(call: Any, *args: Any, **options: Any) -> str:
    """What `call` says, in one line."""
    with pytest.raises(UsageError) as refused:
        call(*args, **options)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def changed(path: Path, change: Any) -> None:
    """The JSON file with its content changed in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def changed_line(path: Path, number: int, change: Any) -> None:
    """The JSON lines with one of them changed in place."""
    lines = path.read_text().splitlines()
    line = json.loads(lines[number - 1])
    change(line)
    lines[number - 1] = json.dumps(line)
    path.write_text("\n".join(lines))
