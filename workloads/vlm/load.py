"""Weights into a network, one tensor at a time, each at once in the precision it is to have."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgewatt.harness.api import UsageError
from edgewatt.workloads.foreign import listed
from edgewatt.workloads.vlm import layouts, quantised
from edgewatt.workloads.vlm.network import Vlm
from edgewatt.workloads.vlm.quantise import Ties

Precision = Literal["fp32", "bf16", "fp16", "int8", "int4"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Of activations, norms, biases and convolutions where the matrices are quantised: bfloat16 has the range of float32,
# so no activation of a network trained in it overflows.
COMPUTE = {**DTYPES, "int8": torch.bfloat16, "int4": torch.bfloat16}
_NAMED = 5  # unexpected keys told of
_TIDY_BYTES = 32 << 20  # loaded between two times that small blocks are given back
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 4 << 20  # mallopt(3); smaller blocks, such as those of one token, are kept


def load(
    vlm: Vlm,
    tensors: Iterable[tuple[str, Tensor]],
    precision: Precision,
    *,
    device: str = "cpu",
    exact: bool = False,
    ties: Ties = "away",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Fills a network made by `network.empty`; the facts of it.

    Each matrix is quantised when it comes, and its full-precision copy is let go: beside the network there is never
    more than one tensor.

    Args:
        tensors: official key (layout A) and tensor, in any order and dtype.
        precision: fp32, bf16, fp16; int8 or int4 (q4f16_1) for matrices, the rest then in bfloat16.
        device: a torch device. The fast kernels for int8 and int4 are the CPU's; elsewhere exact ones are used.
        exact: multiply by the exact values of quantised weights even where that is slow.
        ties: of int4, see `quantise`.
        progress: called after every tensor with the number of parameters that came so far, and that come in all.

    Returns:
        Facts: `precision`, `compute_dtype`, `parameters` (of the whole checkpoint), `parameters_run` (those the result
        depends on), `model_bytes` (what is held in memory for them), `kernels` (dtype of weights -> what multiplies by
        them), `native_dtype` (whether the processor has arithmetic for the compute dtype), `not_run` (number of keys
        that are in the checkpoint and change nothing), `unexpected` (keys the network has not: the first few, and how
        many).

    Raises:
        UsageError: a key is missing or of another shape, or holds what is no number in that precision (named).
    """
    shapes = vlm.official_keys()
    loaded, total = 0, sum(_numel(s) for s in shapes.values())
    unexpected, not_run, since_tidied = [], 0, 0
    _give_back_large_blocks()
    for key, tensor in tensors:
        if key not in shapes:
            unexpected += [] if layouts.is_ignored(key) else [key]
            continue
        if tuple(tensor.shape) != shapes[key]:
            raise UsageError(f"the weight {key} is {list(tensor.shape)}, wanted {list(shapes[key])}; is it whole?")
        if vlm.module_for(key) is None:
            not_run += 1
        else:
            _put(vlm, key, tensor.to(device), precision, exact, ties)
        loaded += tensor.numel()
        since_tidied += tensor.nbytes
        del tensor
        if since_tidied > _TIDY_BYTES:
            _give_back_small_blocks()
            since_tidied = 0
        if progress is not None:
            progress(loaded, total)
    missing = vlm.missing()
    if missing:
        raise UsageError(f"{len(missing)} tensors are missing ({listed(missing)}); is the checkpoint whole?")
    _give_back_small_blocks()
    compute = COMPUTE[precision]
    return {
        "precision": precision,
        "compute_dtype": str(compute).removeprefix("torch."),
        "parameters": total,
        "parameters_run": sum(_numel(s) for k, s in shapes.items() if vlm.module_for(k) is not None),
        "model_bytes": model_bytes(vlm),
        "kernels": kernels(vlm, precision),
        "native_dtype": device != "cpu" or quantised.is_native(compute),
        "not_run": not_run,
        "unexpected": unexpected[:_NAMED],
        "unexpected_count": len(unexpected),
    }


def model_bytes(vlm: nn.Module) -> int:
    """What is held in memory for the weights, copies that a kernel keeps included."""
    tensors = {t.data_ptr(): t.nbytes for t in (*vlm.parameters(), *vlm.buffers())}
    return sum(tensors.values()) + sum(getattr(m, "held_bytes", 0) for m in vlm.modules())


def kernels(vlm: nn.Module, precision: Precision) -> dict[str, str]:
    """What multiplies by the matrices of this network, by the precision of their weights."""
    named = sorted({str(m.kernel) for m in vlm.modules() if isinstance(m, quantised.LAYERS)})
    return {precision: "; ".join(named) or f"torch's product in {COMPUTE[precision]}".replace("torch.", "")}


def _put(vlm: Vlm, key: str, tensor: Tensor, precision: Precision, exact: bool, ties: Ties) -> None:
    """Puts a tensor, or the layer made of it, where it belongs."""
    found = vlm.module_for(key)
    assert found is not None
    owner, name = found
    _check_numbers(key, tensor, precision)
    compute = COMPUTE[precision]
    layer: nn.Module | None = None
    if name == "weight" and isinstance(owner, nn.Linear):
        layer = _linear(tensor, owner.bias, precision, exact, ties)
    elif name == "weight" and isinstance(owner, nn.Embedding) and precision == "int4":
        layer = quantised.Embedding4(tensor, compute, ties)
    elif name == "weight" and isinstance(owner, nn.Embedding) and precision == "int8":
        layer = quantised.Embedding8(tensor, compute)
    if layer is None:
        vlm.place(key, tensor.to(compute))
    else:
        vlm.replace(key, layer)


def _linear(
    weight: Tensor, bias: nn.Parameter | None, precision: Precision, exact: bool, ties: Ties
) -> nn.Module | None:
    """The layer in torch's place, or None where torch's own does."""
    is_cpu = weight.device.type == "cpu"
    if precision == "int4":
        return (quantised.FastLinear4 if is_cpu and not exact else quantised.Linear4)(weight, bias, ties)
    if precision == "int8":
        return quantised.Linear8(weight, bias, exact or not is_cpu)
    if is_cpu and not quantised.is_native(DTYPES[precision]):
        return quantised.HalfLinear(weight.to(DTYPES[precision]), bias)
    return None


def _check_numbers(key: str, tensor: Tensor, precision: Precision) -> None:
    """q4f16_1 keeps its scales in float16."""
    low, high = (x.item() for x in tensor.aminmax())
    if not -float("inf") < low <= high < float("inf"):  # not so for nan either
        raise UsageError(f"the weight {key} holds values that are not finite; the file is damaged")
    most = torch.finfo(torch.float16).max
    if precision in ("fp16", "int4") and max(-low, high) > most:
        raise UsageError(
            f"the weight {key} has values up to {max(-low, high):.3g}, float16 ends at {most:.0f}; "
            "set precision to bf16 or int8"
        )


def _give_back_large_blocks() -> None:
    """Has the C library give back every large block as soon as it is freed, for as long as this process lives.

    glibc keeps freed blocks of up to 32 MiB for later. Between tensors of all sizes few fit again: one network of
    1.5 GB grew by 0.4 GB with each question.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def _give_back_small_blocks() -> None:
    """What the C library keeps of the smaller ones: between tensors of all sizes that adds up too."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
