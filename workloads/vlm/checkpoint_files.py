"""The files of a checkpoint that hold tensors, as untrusted input: safetensors and torch's .bin, one tensor at a time.

Every size is checked against the file before memory is taken. A tensor is read into memory of its own: no mapping of
the file stays, so that what has been read does not count as the process's memory twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import mmap
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgewatt.harness.api import UsageError
from edgewatt.workloads.foreign import one_line, printable

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1}
_SIZES |= {"U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
_MOST_HEADER = 100 * 2**20  # as safetensors itself allows
_MOST_JSON = 64 * 2**20
_MOST_PICKLE = 64 * 2**20  # the names and shapes inside a .bin; a 7B model's take 0.1 MB


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its shape, dtype ("BF16", ...) and where it begins (safetensors alone)."""

    shape: tuple[int, ...]
    dtype: str
    start: int = 0


def entries(path: Path) -> dict[str, Entry]:
    """Name -> what a file says of each of its tensors; nothing else is read.

    Raises:
        UsageError: not such a file, a damaged one, or one whose pickle wants more than tensors.
    """
    if path.suffix == ".safetensors":
        return _safetensors_header(path)
    return {name: Entry(tuple(t.shape), _dtype_name(t)) for name, t in _pickled(path).items()}


def tensors(path: Path, wanted: Mapping[str, Entry]) -> Iterator[tuple[str, Tensor]]:
    """The wanted tensors of a file, in the file's order."""
    if path.suffix == ".safetensors":
        with _readable(path), path.open("rb", buffering=0) as file:
            for name, entry in sorted(wanted.items(), key=lambda item: item[1].start):
                yield name, _read(path, file, name, entry)
        return
    for name, tensor in _pickled(path).items():
        if name in wanted:
            copy = tensor.clone(memory_format=torch.contiguous_format)
            _forget_pages(tensor)
            yield name, copy
            del copy  # before the next one is made


# ---------------------------------------------------------------------------------------------------------------------
# safetensors


def _safetensors_header(path: Path) -> dict[str, Entry]:
    """Format: 8 bytes little-endian length, a JSON header of that length, the data."""
    with _readable(path), path.open("rb") as file:
        size = path.stat().st_size
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(_MOST_HEADER, size - 8):
            raise UsageError(f"{path}: not a whole safetensors file ({size} bytes); copy it again")
        text = file.read(length)
    header = _json(path, text)
    found = {}
    for name, about in header.items():
        if name != "__metadata__":
            found[name] = _entry(path, name, about, 8 + length, size)
    return found


def _entry(path: Path, name: str, about: object, data: int, size: int) -> Entry:
    said: dict[str, Any] = about if isinstance(about, dict) else {}
    shape, dtype, offsets = _counts(said.get("shape")), said.get("dtype"), _counts(said.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2 or not isinstance(dtype, str):
        raise UsageError(f"{path}: what its header says of {printable(name)} is no tensor; copy the file again")
    start, end = offsets
    if end - start != math.prod(shape) * _SIZES.get(dtype, 0) and dtype in _SIZES:
        raise UsageError(
            f"{path}: its header gives {printable(name)} {end - start} bytes for shape {shape} in {dtype}; "
            "the file is damaged: copy it again"
        )
    if end > size - data:
        raise UsageError(
            f"{path}: has {size} bytes, {printable(name)} ends at {data + end}; it was cut off: copy it again"
        )
    return Entry(tuple(shape), printable(dtype), data + start)


def _counts(values: object) -> list[int] | None:
    whole = isinstance(values, list) and all(type(v) is int and 0 <= v < 2**62 for v in values)
    return values if whole else None  # type: ignore[return-value]


def _read(path: Path, file: Any, name: str, entry: Entry) -> Tensor:
    tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    if not tensor.numel():
        return tensor
    rest = tensor.view(-1).view(torch.uint8).numpy().data
    file.seek(entry.start)
    while rest:
        n = file.readinto(rest)
        if not n:
            raise UsageError(f"{path}: ends inside {printable(name)}; copy it again")
        rest = rest[n:]
    return tensor


# ---------------------------------------------------------------------------------------------------------------------
# torch's .bin


def _pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a .bin, mapped from the file: none of their bytes is read yet."""
    _check_zip(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the type {found[1]}" if found else "more than tensors"
        raise UsageError(
            f"{path}: refused, for it holds {what}, and unpickling that could run code; "
            "save its state_dict alone, best as safetensors"
        ) from error
    except Exception as error:  # torch raises RuntimeError, EOFError, ValueError, KeyError... for a damaged file
        raise UsageError(f"{path}: not a whole torch checkpoint ({one_line(error)}); copy it again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: holds a {type(content).__name__}, not a state dict; give a hub checkpoint")
    plain = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    for name, tensor in plain.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise UsageError(f"{path}: {printable(name)} is no plain tensor; save it dense and not quantised")
    return plain


def _check_zip(path: Path) -> None:
    """Stored, not compressed: torch writes no other, and what is stored cannot unpack to more than the file has."""
    with _readable(path), path.open("rb") as file:
        head = file.read(2)
    if head == b"\x80\x02":
        raise UsageError(f"{path}: a torch file from before torch 1.6; save it again with a newer torch")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UsageError(f"{path}: not a whole torch checkpoint ({one_line(error)}); copy it again") from error
    if any(i.compress_type != zipfile.ZIP_STORED or i.compress_size != i.file_size for i in infos):
        raise UsageError(f"{path}: holds compressed parts, which torch never writes; save it again with torch")
    if any(i.file_size > _MOST_PICKLE for i in infos if i.filename.endswith(".pkl")):
        raise UsageError(f"{path}: its list of tensors is larger than {_MOST_PICKLE} bytes; is it a checkpoint?")


def _dtype_name(tensor: Tensor) -> str:
    return _NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))


def _forget_pages(tensor: Tensor) -> None:
    """Gives back the memory through which a mapped tensor was read; the file still has it.

    That of whole pages inside its storage, which is a piece of the mapping: the tensor may be a view of some of it.
    """
    storage = tensor.untyped_storage()
    begin = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (storage.data_ptr() + storage.nbytes() - begin) // mmap.PAGESIZE * mmap.PAGESIZE
    if length > 0:
        with contextlib.suppress(AttributeError, OSError):  # no such call here: the pages go when memory is short
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


# ---------------------------------------------------------------------------------------------------------------------
# JSON beside them


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UsageError: cannot be read, too large, or no object.
    """
    with _readable(path):
        if path.stat().st_size > _MOST_JSON:
            raise UsageError(f"{path}: {path.stat().st_size} bytes of JSON; no checkpoint has more than {_MOST_JSON}")
        return _json(path, path.read_bytes())


def _json(path: Path, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not whole JSON ({one_line(error)}); copy it again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: JSON of a {type(content).__name__}, wanted an object; copy it again")
    return content


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: not a file; give a checkpoint's folder as it is on the hub")
        yield
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
