"""What tests of workloads may ask for."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import vqa_files


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch computes on one thread: its sums are the same each time, and small networks are done sooner."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """The files of a benchmark, by its name, where they may be changed."""
    return lambda name: shutil.copytree(vqa_files.golden(name), tmp_path / name)
