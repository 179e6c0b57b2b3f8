"""FemtoDet as an ONNX file that onnxruntime runs without torch.

The package ships the structure of each variant (`voc.onnx`, `coco_large.onnx`): all nodes, no weights, any picture
size that is a multiple of 32. The weights stand beside it in `weights.safetensors`, to which the structure points as
ONNX external data: a safetensors file whose header, and so every offset, is the same for all weights of a variant.

`voc.wide.onnx` is the same network with its 8-channel maps filled up with zeros to 16 and its grouped projections
written as dense ones: onnxruntime keeps maps in blocks of 16 channels on CPUs with AVX-512, and reorders them around
every layer that does not fit. The zeros are added to the weights when the session is made. Measured on a Zen 4 core,
onnxruntime 1.32, one thread, 416: 2.6 ms a picture instead of 3.0.

`edgewatt convert femtodet --graphs -o FOLDER` makes the shipped files again, from the torch module (export.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgewatt.harness.api import HarnessError, UsageError
from edgewatt.workloads.femtodet.layout import state_layout
from edgewatt.workloads.femtodet.variants import Variant

WEIGHTS = "weights.safetensors"


def structures(variant: Variant) -> tuple[str, ...]:
    """Names of the shipped structure files of a variant, the plain one first."""
    return (f"{variant.name}.onnx", *((wide_name(f"{variant.name}.onnx"),) if variant.name == "voc" else ()))


def wide_name(name: str) -> str:
    """The name of the structure for blocks of 16 channels that goes with a plain one."""
    return f"{name.removesuffix('.onnx')}.wide.onnx"


def write(folder: Path, folded: Mapping[str, npt.NDArray[np.float32]], variant: Variant) -> Path:
    """The .onnx file in a subfolder of `folder` named by content, with its weights beside it; written if not there yet.

    Each file appears whole or not at all, and the structure last, so that two processes may write at once.
    """
    files = {WEIGHTS: weights_file(folded, variant)}
    home = resources.files(__package__)
    files |= {name: (home / name).read_bytes() for name in reversed(structures(variant))}
    digest = hashlib.sha256(b"".join(files.values())).hexdigest()[:16]
    target = folder / f"femtodet-{variant.name}-{digest}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _place(target / name, content)
    except OSError as error:
        raise UsageError(
            f"{target}: the model cannot be written there ({error.strerror}); choose a folder with room "
            "that may be written to"
        ) from error
    return target / structures(variant)[0]


def read_weights(model: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The weights that stand beside a written .onnx file; HarnessError when they are gone or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = model.with_name(WEIGHTS)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise HarnessError(
            f"{path}: the weights cannot be read ({' '.join(str(error).split())}); prepare it again"
        ) from error


def weights_file(folded: Mapping[str, npt.NDArray[np.float32]], variant: Variant) -> bytes:
    """The safetensors file the structures point into; ValueError when an array is missing or has another shape."""
    wanted = state_layout(variant, "inference")
    wrong = [k for k, (shape, _) in wanted.items() if k not in folded or folded[k].shape != shape]
    if wrong or len(folded) != len(wanted):
        raise ValueError(f"not the folded weights of {variant.name}: {wrong[:3]} missing or of another shape")
    return _header(variant) + b"".join(np.ascontiguousarray(folded[k], "<f4").tobytes() for k in wanted)


def extents(variant: Variant) -> dict[str, tuple[int, int]]:
    """Where each array of the folded network lies in the weights file: (offset, length) in bytes."""
    at, places = len(_header(variant)), {}
    for key, (shape, _) in state_layout(variant, "inference").items():
        places[key] = at, 4 * math.prod(shape)
        at += places[key][1]
    return places


@cache
def _header(variant: Variant) -> bytes:
    """Length (8 bytes, little-endian) and JSON of a safetensors file, filled with spaces to a multiple of 64 bytes."""
    at, entries = 0, {}
    for key, (shape, _) in state_layout(variant, "inference").items():
        end = at + 4 * math.prod(shape)
        entries[key] = {"dtype": "F32", "shape": shape, "data_offsets": (at, end)}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def _place(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() == content:
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
