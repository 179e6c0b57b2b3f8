"""What the native agent saves: each output tensor of each item, one after the other (docs/agent-protocol.md, `run`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewatt.harness.api import HarnessError

INDEX = "outputs.json"
_TYPES = {"float32": "<f4", "float16": "<f2", "float64": "<f8", "int64": "<i8", "int32": "<i4", "uint8": "u1"}


@dataclass(frozen=True)
class Tensors:
    """Items in the order of the files, and each output by its name: (items, *shape), read from its file as needed."""

    folder: Path
    items: tuple[int, ...]
    tensors: Mapping[str, npt.NDArray[Any]]
    files: tuple[str, ...]

    def remove(self) -> None:
        """Deletes the files, when something smaller was made of them."""
        for name in (INDEX, *self.files):
            (self.folder / name).unlink(missing_ok=True)


def read(folder: Path) -> Tensors:
    """The tensors in `folder`; HarnessError if they are not whole."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
        if index["form"] != 1:
            raise ValueError(f"form {index['form']!r}; wanted 1")
        items = tuple(int(i) for i in index["items"])
        found = {str(o["name"]): _tensor(folder, o, len(items)) for o in index["outputs"]}
        files = tuple(str(o["file"]) for o in index["outputs"])
    except OSError as error:
        name = Path(str(error.filename)).name
        raise HarnessError(f"{folder}: {name} cannot be read ({error.strerror}); measure again") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        said = f"{type(error).__name__}: {str(error)[:100]}"
        raise HarnessError(f"{folder}: the agent's tensors make no sense ({said}); measure again") from error
    return Tensors(folder, items, found, files)


def _tensor(folder: Path, told: Mapping[str, Any], items: int) -> npt.NDArray[Any]:
    """One output, (items, *shape); its file lies in the folder itself and holds just that."""
    name = str(told["file"])
    if Path(name).name != name or name in (".", ".."):
        raise ValueError(f"a file called {name!r}")
    kind, shape = np.dtype(_TYPES[told["type"]]), tuple(int(n) for n in told["shape"])
    if min(shape, default=1) < 0:
        raise ValueError(f"{name}: shape {shape}")
    wanted = items * int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    size = (folder / name).stat().st_size
    if size != wanted:
        raise ValueError(f"{name} has {size} bytes; wanted {wanted}")
    if wanted == 0:
        return np.empty((items, *shape), kind)
    return np.memmap(folder / name, kind, "r", shape=(items, *shape))
