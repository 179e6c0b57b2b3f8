"""Weights in 4 and 8 bits: q4f16_1 of MLC-LLM bit for bit, and 8 bits with one scale for each row.

q4f16_1 (MLC-LLM's group quantisation, as mlc-imp @ f293c06 has it): each row of a matrix (outputs, inputs) is cut into
groups of 32 along its inputs, the last one possibly short. In the model dtype, float16, every operation rounded to it:

    scale = max|w| / 7,    code = clip(round(w / scale + 7), 0, 14),    value = (code - 7) * scale

Eight codes lie in a 32-bit word, the first in the lowest bits; an unfinished group is filled up with codes 0. Where
w / scale + 7 lies half way between two codes, in float16 for some 0.6 % of weights, the phone build rounded away from
zero and newer compilers round to even: `ties` chooses.

8 bits: scale = max|w| / 127 of a row, rounded to the dtype it is kept in; code = clip(round(w / scale), -127, 127), in
float32, ties to even; value = code * scale.

Matrices alone are quantised, of linear layers as of embeddings; convolutions, biases and norms keep the model dtype.
mlc-imp does so with Imp. For MobileVLM no such definition is published: the same rule is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Ties = Literal["away", "even"]

GROUP = 32  # weights of a row that share a scale
_CODES = 8  # in a word
_ZERO = 7  # the code of weight 0
_BELOW_HALF = 0.5 - 2**-25  # float32: added to a number from 0, then cut off, it rounds halves up and nothing else
_BLOCK = 1 << 18  # weights worked on at a time, so that intermediate results stay in the cache


@dataclass(frozen=True)
class Quantised4:
    """A matrix (rows, `columns`) in q4f16_1.

    `words` (rows, 4 * groups) int32, the bits of MLC's uint32; `scale` (rows, groups) in the model dtype.
    """

    words: Tensor
    scale: Tensor
    columns: int


@dataclass(frozen=True)
class Quantised8:
    """A matrix in 8 bits: `codes` (rows, columns) int8, `scale` (rows,)."""

    codes: Tensor
    scale: Tensor


def bytes4(rows: int, columns: int) -> int:
    """Bytes of a matrix in q4f16_1, scales included."""
    return rows * groups(columns) * (GROUP // 2 + 2)


def bytes8(rows: int, columns: int) -> int:
    """Bytes of a matrix in 8 bits, with scales of two bytes."""
    return rows * (columns + 2)


def groups(columns: int) -> int:
    """Groups of a row, a short one included."""
    return -(-columns // GROUP)


def quantised4(weight: Tensor, dtype: torch.dtype = torch.float16, ties: Ties = "away") -> Quantised4:
    """q4f16_1 of a matrix (rows, columns), which is rounded to `dtype` first. Needs little beside the result."""
    rows, columns = weight.shape
    words = torch.empty(rows, groups(columns) * GROUP // _CODES, dtype=torch.int32, device=weight.device)
    scale = torch.empty(rows, groups(columns), dtype=dtype, device=weight.device)
    step = max(1, _BLOCK // columns)
    for i in range(0, rows, step):
        block = weight[i : i + step].float().to(dtype).float()
        grouped = torch.nn.functional.pad(block, (0, -columns % GROUP)).view(len(block), -1, GROUP)
        scale[i : i + step] = grouped.abs().amax(2) / _ZERO
        words[i : i + step] = _packed(_codes(grouped, scale[i : i + step], ties), columns)
    return Quantised4(words, scale, columns)


def codes4(matrix: Quantised4) -> Tensor:
    """The codes, 0 to 14, of a matrix: (rows, columns) uint8."""
    return _unpacked(matrix.words)[:, : matrix.columns]


def dequantised4(matrix: Quantised4) -> Tensor:
    """The values (rows, columns) in the dtype of the scale: they are what the definition says, to the bit."""
    values = _unpacked(matrix.words).view(*matrix.scale.shape, GROUP).float().sub_(_ZERO)
    values = values.mul_(matrix.scale.float()[..., None]).to(matrix.scale.dtype)
    return values.flatten(1)[:, : matrix.columns]


def quantised8(weight: Tensor, dtype: torch.dtype = torch.bfloat16) -> Quantised8:
    """8 bits of a matrix (rows, columns); the scale is kept in `dtype`. Needs little beside the result."""
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.int8, device=weight.device)
    scale = torch.empty(rows, dtype=dtype, device=weight.device)
    step = max(1, _BLOCK // columns)
    for i in range(0, rows, step):
        block = weight[i : i + step].float()
        scale[i : i + step] = block.abs().amax(1) / 127
        factor = scale[i : i + step, None].float()
        codes[i : i + step] = (block / torch.where(factor == 0, 1, factor)).round_().clamp_(-127, 127)
    return Quantised8(codes, scale)


def dequantised8(matrix: Quantised8, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values (rows, columns), rounded once to `dtype`."""
    return (matrix.codes.float() * matrix.scale[:, None].float()).to(dtype)


def _codes(grouped: Tensor, scale: Tensor, ties: Ties) -> Tensor:
    """(rows, groups, 32) uint8. A group of zeros has scale 0 and undefined codes (0 / 0): they become 0.

    In float32, each result rounded to the scale's dtype: float32 is wide enough for that to equal the operation in it.
    """
    x = (grouped / scale.float()[..., None]).to(scale.dtype).float()
    x = x.add_(_ZERO).to(scale.dtype).float()
    x = x.add_(_BELOW_HALF).floor_() if ties == "away" else x.round_()
    return x.clamp_(0, 2 * _ZERO).nan_to_num_(0).to(torch.uint8)


def _packed(codes: Tensor, columns: int) -> Tensor:
    """Codes (rows, groups, 32) in words (rows, words), with 0 beyond the last column."""
    flat = codes.flatten(1)
    flat[:, columns:] = 0
    pairs = flat.view(torch.int16)  # the first code in the low byte, the second in the high one
    return (pairs | (pairs >> 4)).to(torch.uint8).view(torch.int32)


def _unpacked(words: Tensor) -> Tensor:
    """Words (rows, words) as codes (rows, codes) uint8."""
    pairs = words.view(torch.uint8)
    return torch.stack((pairs & 15, pairs >> 4), 2).flatten(1)
