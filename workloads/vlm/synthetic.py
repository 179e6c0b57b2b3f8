"""Seeded weights with the statistics of trained ones, one tensor at a time: for time and energy, never for answers.

No weight is zero: multiplying by zeros switches fewer transistors and takes less energy than any trained network does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1 << 20  # weights drawn at a time, in multiples of four
_STEPS = 1 << 16  # the values a weight may have, equally likely


def tensors(
    keys: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.bfloat16
) -> Iterator[tuple[str, Tensor]]:
    """Every key with its tensor. A tensor depends on the seed, its key and its shape alone, on every machine alike.

    Nothing is kept: beside the tensor given there are a few MiB. The largest come first, while there is room for what
    is made of them.
    """
    for key, shape in sorted(keys.items(), key=lambda item: -math.prod(item[1])):
        yield key, tensor(key, shape, seed, dtype)


def tensor(key: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """One tensor, normally distributed: mean and deviation by what the key says it is.

    Matrices and kernels 1 / sqrt(fan-in), so that activations keep their size through any number of layers (0.022 for
    2048 inputs; trained ones have 0.02); embeddings 0.02; factors of norms 1 with 0.1; biases 0.02.
    """
    mean, deviation = _statistics(key, shape)
    values = (mean + deviation * _quantiles()).to(dtype)
    out = torch.empty(shape, dtype=dtype)
    bits = values.view(_BITS[dtype.itemsize]).numpy()
    flat = out.view(_BITS[dtype.itemsize]).numpy().reshape(-1)
    draw = np.random.Philox(key=int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:16], "little"))
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        drawn = draw.random_raw(-(-part.size // 4)).astype("<u8", copy=False).view("<u2")
        bits.take(drawn[: part.size], out=part, mode="wrap")  # wrap: nothing is out of range, and it need not look
    return out


_BITS = {2: torch.int16, 4: torch.int32}


def _statistics(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and deviation."""
    table = key.endswith(("class_embedding", "position_embedding.weight", "embed_tokens.weight"))
    if table or key.endswith(".bias"):
        return 0.0, 0.02
    if len(shape) == 1:
        return 1.0, 0.1
    return 0.0, math.prod(shape[1:]) ** -0.5


@cache
def _quantiles() -> Tensor:
    """The normal distribution cut into equally likely parts, the middle of each: 4.3 deviations at most, never 0."""
    normal = NormalDist()
    half = [normal.inv_cdf(0.5 + (i + 0.5) / _STEPS) for i in range(_STEPS // 2)]
    return torch.tensor([-q for q in reversed(half)] + half, dtype=torch.float64)
