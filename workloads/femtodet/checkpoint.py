"""Weights from a file, checked as untrusted input; `synthetic` ones are drawn from a seed instead.

Two kinds of file: safetensors, and the .pth of mmcv (a zip with a pickle), which only torch's restricted unpickler
opens. Nothing is read before its shape is known to be right.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewatt.harness.api import UsageError
from edgewatt.workloads.femtodet.layout import Form, state_layout
from edgewatt.workloads.femtodet.synthetic import synthetic as synthetic
from edgewatt.workloads.femtodet.variants import VARIANTS, Variant
from edgewatt.workloads.foreign import listed, one_line

State = dict[str, npt.NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]

_MOST_BYTES = 256 * 2**20  # a whole training checkpoint of the larger variant, optimiser and all, is under 12 MB


def load(path: Path, variant: Variant) -> State:
    """The state dict in a checkpoint, training or deploy form, with the official keys and float32 values.

    `ema_*` keys are passed over: mmcv swaps the averaged weights in before it saves, so the plain keys hold them.

    Raises:
        UsageError: no such file, another kind of file, wrong or missing keys or shapes (named), values that are not
            numbers, or a .pth without the extra `torch`.
    """
    try:
        if stat.S_ISFIFO(path.stat().st_mode):  # opening it would wait for a writer
            raise UsageError(f"{path}: the checkpoint is a pipe; give a file")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UsageError(f"{path}: the checkpoint cannot be read ({error.strerror}); give a file") from error
    if size > _MOST_BYTES:
        raise UsageError(
            f"{path}: {size} bytes, a FemtoDet checkpoint has at most {_MOST_BYTES}; is it another model's?"
        )
    if head.startswith(b"PK"):
        state = _from_torch(path, variant)
    elif len(head) > 8 and head[8:9] == b"{":
        state = _from_safetensors(path, variant)
    elif head[:1] == b"\x80":
        raise UsageError(f"{path}: a pickle or a torch file from before torch 1.6; save it again with a newer torch")
    else:
        raise UsageError(f"{path}: neither a safetensors file nor a torch checkpoint; give one of these")
    for key, array in state.items():
        if key.endswith("running_var") and (array < 0).any():
            raise UsageError(f"{path}: {key} holds a negative variance; the file is damaged")
    return state


def _from_safetensors(path: Path, variant: Variant) -> State:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = _official_names(file.keys())
            slices = {key: file.get_slice(name) for key, name in names.items()}
            form = _form(path, {key: tuple(s.get_shape()) for key, s in slices.items()}, variant)
            for key, s in slices.items():
                _check_dtype(path, key, str(s.get_dtype()))
            return _arranged(path, {key: file.get_tensor(name) for key, name in names.items()}, variant, form)
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a whole safetensors file ({one_line(error)}); copy it again") from error


def _from_torch(path: Path, variant: Variant) -> State:
    try:
        import torch
    except ImportError as error:
        raise UsageError(f"{path}: a .pth checkpoint needs torch; pip install 'edgewatt[torch]'") from error
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UsageError(f"{path}: not a whole torch checkpoint ({one_line(error)}); copy it again") from error
    if unpacked > _MOST_BYTES:
        raise UsageError(f"{path}: unpacks to {unpacked} bytes, a FemtoDet checkpoint has at most {_MOST_BYTES}")
    try:
        with _numpy_scalars_allowed():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the type {found[1]}" if found else one_line(error)
        raise UsageError(
            f"{path}: refused, for it holds {what}, and unpickling that could run code; "
            "save its state_dict alone, best as safetensors"
        ) from error
    except Exception as error:  # torch raises RuntimeError, EOFError, ValueError, KeyError... for a damaged file
        raise UsageError(f"{path}: not a whole torch checkpoint ({one_line(error)}); copy it again") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise UsageError(f"{path}: holds no state_dict, only a {type(content).__name__}; give a mmcv checkpoint")
    tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    names = _official_names(tensors)
    form = _form(path, {key: tuple(tensors[name].shape) for key, name in names.items()}, variant)
    for key, name in names.items():
        _check_dtype(path, key, str(tensors[name].dtype).removeprefix("torch."))
    try:
        arrays = {key: tensors[name].detach().numpy() for key, name in names.items()}
    except (TypeError, RuntimeError) as error:  # sparse, or without values at all
        raise UsageError(f"{path}: not all tensors are plain ones ({one_line(error)}); save them dense") from error
    return _arranged(path, arrays, variant, form)


@contextlib.contextmanager
def _numpy_scalars_allowed() -> Iterator[None]:
    """mmcv notes its best score so far in `meta`, often as a numpy number; that is all we allow beside torch's list."""
    import torch

    if not hasattr(torch.serialization, "safe_globals"):  # before torch 2.5
        yield
        return
    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [(scalar, f"{m}.multiarray.scalar") for m in ("numpy.core", "numpy._core")]
    allowed += [np.dtype, *(type(np.dtype(t)) for t in ("f4", "f8", "i4", "i8", "?"))]
    with torch.serialization.safe_globals(allowed):
        yield


def _official_names(names: Any) -> dict[str, str]:
    """Official key -> name in the file: `ema_*` left out, the `module.` of a parallel wrapper taken off."""
    return {n.removeprefix("module."): n for n in names if not n.startswith("ema_")}


def _form(path: Path, found: Shapes, variant: Variant) -> Form:
    """Which form the shapes are of; UsageError names what differs from the nearer one."""
    form: Form = "deploy" if any(".rbr_reparam." in key for key in found) else "training"
    faults = _faults(found, variant, form)
    if not faults:
        return form
    for other in VARIANTS.values():
        if other != variant and not _faults(found, other, form):
            raise UsageError(
                f"{path}: these are weights of {other.name}, not of {variant.name}; set variant={other.name}"
            )
    backbone = {k.removeprefix("backbone.") for k in state_layout(variant, form) if k.startswith("backbone.")}
    if backbone <= {k.removeprefix("backbone.") for k in found} and not any(k.startswith("bbox_head.") for k in found):
        raise UsageError(
            f"{path}: only a classification backbone, without FemtoDet's neck and head; "
            "give a checkpoint of a detector, this one is where training starts"
        )
    raise UsageError(f"{path}: not a {variant.name} checkpoint: {'; '.join(faults)}; give one trained with its config")


def _faults(found: Shapes, variant: Variant, form: Form) -> list[str]:
    wanted = {key: shape for key, (shape, _) in state_layout(variant, form).items()}
    missing = [k for k in wanted if k not in found]
    unexpected = [k for k in found if k not in wanted]
    reshaped = [f"{k} has {found[k]}, not {s}" for k, s in wanted.items() if k in found and found[k] != s]
    kinds = ((missing, "missing"), (unexpected, "unexpected"), (reshaped, "of another shape"))
    return [f"{len(keys)} {kind} ({listed(keys)})" for keys, kind in kinds if keys]


_DTYPES = ("F16", "F32", "F64", "I64", "I32", "float16", "float32", "float64", "int64", "int32")


def _check_dtype(path: Path, key: str, dtype: str) -> None:
    if dtype not in _DTYPES:
        raise UsageError(f"{path}: {key} is {dtype}; save it as float32")


def _arranged(path: Path, arrays: Mapping[str, npt.NDArray[Any]], variant: Variant, form: Form) -> State:
    """The arrays in the official order and dtypes; UsageError where one holds what is no number."""
    state = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for key, (_, dtype) in state_layout(variant, form).items():
            state[key] = np.array(arrays[key], dtype)
            if not (np.isfinite(arrays[key]).all() and np.isfinite(state[key]).all()):
                raise UsageError(
                    f"{path}: {key} holds values that are not finite; the training diverged or the file is damaged"
                )
    return state
