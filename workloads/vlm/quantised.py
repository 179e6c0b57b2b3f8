"""Layers that keep their weights in 4, 8 or 16 bits and multiply by them, each in the place of torch's own.

Every layer takes activations in any dtype, gives them back in the same, and says in `kernel` by what it multiplies.
Which kernels a processor has, and which are faster than multiplying by bfloat16, was measured with torch 2.13 and
onnxruntime 1.32 on a processor with AVX2 alone, one thread, 2048 inputs, 5632 outputs, one row of activations
(tests/benchmarks/bench_vlm_quantised.py): of 4-bit products onnxruntime's is 3.2 times as fast, torch's own, which
torchao calls, 1.4 times; torch's 8-bit one 1.5 times.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewatt.harness.api import UsageError
from edgewatt.workloads.vlm import quantise
from edgewatt.workloads.vlm.quantise import Quantised4, Quantised8

_BLOCK = 1 << 20  # weights made float32 at a time (4 MiB): they are used while they are still in the cache
_FEW_HALF = 3  # up to so many rows of activations torch's own product in 16 bits is as fast as float32 in blocks
_FEW_8 = 8  # up to so many its 8-bit one is faster


def is_native(dtype: torch.dtype) -> bool:
    """Whether torch multiplies matrices of this dtype on this processor without making each element float32 first."""
    if dtype == torch.float32:
        return True
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    with contextlib.suppress(AttributeError, RuntimeError):  # a build of torch without oneDNN
        return bool(getattr(torch.ops.mkldnn, name)())
    return False


class HalfLinear(nn.Module):
    """A linear layer in 16 bits for a processor that has no arithmetic for them.

    Several rows of activations are multiplied in float32, the weights made so block by block, which is exact; only the
    result is rounded. torch's own product of such dtypes is several times slower there.
    """

    kernel = "weights of 16 bits made float32 in blocks, float32 product (torch); few rows: torch's 16-bit product"

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = _held(weight)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() <= _FEW_HALF * x.shape[-1]:
            return F.linear(x, self.weight, self.bias)
        return _in_blocks(x, self.weight.shape[0], lambda a, b: self.weight[a:b], self.bias)


class Linear8(nn.Module):
    """A linear layer with weights in 8 bits (`quantise.quantised8`)."""

    kernel = "8-bit weights, bfloat16 activations (torch _weight_int8pack_mm); many rows: float32 in blocks"

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, exact: bool) -> None:
        """`exact`: float32 in blocks always, whatever the number of rows."""
        super().__init__()
        made = quantise.quantised8(weight)
        self.codes, self.scale = _held(made.codes), _held(made.scale)
        self.bias = bias
        self._exact = exact
        if exact:
            self.kernel = "8-bit weights made float32 in blocks, float32 product (torch)"

    def forward(self, x: Tensor) -> Tensor:
        if self._exact or x.dtype != torch.bfloat16 or x.numel() > _FEW_8 * x.shape[-1]:
            y = _in_blocks(x, self.codes.shape[0], self._rows, self.bias)
        else:
            y = torch.ops.aten._weight_int8pack_mm(x.flatten(0, -2), self.codes, self.scale)
            y = y.view(*x.shape[:-1], -1)
            y = y if self.bias is None else y + self.bias
        return y

    def _rows(self, start: int, end: int) -> Tensor:
        return quantise.dequantised8(Quantised8(self.codes[start:end], self.scale[start:end]))


class Linear4(nn.Module):
    """A linear layer with weights in q4f16_1, multiplied by its exact values: on any device, and slow for few rows."""

    kernel = "q4f16_1 weights made float32 in blocks, float32 product (torch)"

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, ties: quantise.Ties) -> None:
        super().__init__()
        made = quantise.quantised4(weight, ties=ties)
        self.words, self.scale, self._columns = _held(made.words), _held(made.scale), made.columns
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return _in_blocks(x, self.words.shape[0], self._rows, self.bias)

    def _rows(self, start: int, end: int) -> Tensor:
        return quantise.dequantised4(Quantised4(self.words[start:end], self.scale[start:end], self._columns)).float()


class FastLinear4(nn.Module):
    """A linear layer with weights in q4f16_1, multiplied by onnxruntime on the CPU (its operator MatMulNBits).

    Codes and scales are those of q4f16_1. The activations are rounded to 8 bits, one scale for each 32, as llama.cpp
    does too: that is where the speed comes from. onnxruntime keeps the weights in an order of its own, and nobody else
    does.
    """

    kernel = (
        "q4f16_1 weights, activations in 8 bits by groups of 32 (onnxruntime MatMulNBits, accuracy level 4; at most 8 "
        "threads)"
    )

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, ties: quantise.Ties) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.held_bytes = rows * quantise.groups(columns) * ORT_GROUP_BYTES
        # While a product is made its weights are there several times: those of a whole vocabulary in parts.
        parts = torch.split(weight, max(1, MOST_WEIGHTS // columns))
        self._sessions = [_matmul_session(quantise.quantised4(part, ties=ties)) for part in parts]
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.detach().reshape(-1, x.shape[-1]).float().numpy()
        parts = [torch.from_numpy(session.run(None, {"x": rows})[0]) for session in self._sessions]
        y = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).view(*x.shape[:-1], -1)
        return (y if self.bias is None else y.add_(self.bias)).to(x.dtype)


LAYERS = (HalfLinear, Linear8, Linear4, FastLinear4)


class Embedding8(nn.Module):
    """A table whose rows are kept in 8 bits."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        made = quantise.quantised8(weight)
        self.codes, self.scale, self._dtype = _held(made.codes), _held(made.scale), dtype

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.flatten()
        values = quantise.dequantised8(Quantised8(self.codes[flat], self.scale[flat]), self._dtype)
        return values.view(*ids.shape, self.codes.shape[1])


class Embedding4(nn.Module):
    """A table whose rows are kept in q4f16_1."""

    def __init__(self, weight: Tensor, dtype: torch.dtype, ties: quantise.Ties) -> None:
        super().__init__()
        made = quantise.quantised4(weight, ties=ties)
        self.words, self.scale, self._columns = _held(made.words), _held(made.scale), made.columns
        self._dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.flatten()
        values = quantise.dequantised4(Quantised4(self.words[flat], self.scale[flat], self._columns))
        return values.to(self._dtype).view(*ids.shape, self._columns)


def _held(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _in_blocks(x: Tensor, outputs: int, rows: Callable[[int, int], Tensor], bias: Tensor | None) -> Tensor:
    """x (..., inputs) by a matrix of so many rows, of which `rows(start, end)` gives some: float32 within."""
    flat = x.reshape(-1, x.shape[-1]).float()
    y = torch.empty(len(flat), outputs, device=x.device)
    step = max(1, _BLOCK // x.shape[-1])
    for i in range(0, outputs, step):
        y[:, i : i + step] = F.linear(flat, rows(i, min(i + step, outputs)).float())
    if bias is not None:
        y += bias
    return y.to(x.dtype).view(*x.shape[:-1], outputs)


# ---------------------------------------------------------------------------------------------------------------------
# onnxruntime's product

# What onnxruntime 1.32 holds for 32 weights: the codes, their scale in float32 as given and as arranged, and the sum
# its 8-bit arithmetic needs; measured as resident memory on a processor with AVX2.
ORT_GROUP_BYTES = quantise.GROUP // 2 + 3 * 4

MOST_WEIGHTS = 1 << 26  # of one product
MOST_THREADS = 8
"""Of one product. Each has threads of its own, some 200 products a network; for one token memory is the limit."""


def _matmul_session(matrix: Quantised4) -> Any:
    """A session of one product by a matrix in q4f16_1, whose codes it counts from 8 instead of 7."""
    import onnxruntime as ort

    rows, groups = matrix.scale.shape
    codes = (matrix.words.view(torch.uint8) + 0x11).view(rows, groups, quantise.GROUP // 2).numpy()
    scale = matrix.scale.float().flatten().numpy()
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = False  # each would keep its own
    # Threads that wait for their next product in a loop take the cores from torch and from each other: on two cores,
    # decoding went 2.6 times (threads shared by all sessions) and 50 times (threads of their own) slower with it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = min(torch.get_num_threads(), MOST_THREADS)
    values = [ort.OrtValue.ortvalue_from_numpy(a) for a in (codes, scale)]
    options.add_external_initializers(["codes", "scale"], values)
    graph = _graph(codes.shape, scale.shape, matrix.columns)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _graph(codes: tuple[int, ...], scale: tuple[int, ...], columns: int) -> bytes:
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise UsageError("precision=int4 on a CPU needs onnx; pip install 'edgewatt[vlm]'") from error

    def outside(name: str, dtype: int, shape: tuple[int, ...]) -> Any:
        tensor = TensorProto(name=name, data_type=dtype, dims=shape, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=name)
        return tensor

    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scale"], ["y"], domain="com.microsoft",
        K=columns, N=codes[0], bits=4, block_size=quantise.GROUP, accuracy_level=4,
    )  # fmt: skip
    ends = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["m", w]) for n, w in (("x", columns), ("y", codes[0])))
    x, y = ends
    weights = [outside("codes", TensorProto.UINT8, codes), outside("scale", TensorProto.FLOAT, scale)]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "product", [x], [y], weights)
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return made
