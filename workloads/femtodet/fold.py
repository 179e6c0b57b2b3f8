"""The exact folding of every normalisation into its convolution: float64 inside, float32 out, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewatt.harness.api import UsageError
from edgewatt.workloads.femtodet.layout import BATCHNORM_EPS, Conv, layout
from edgewatt.workloads.femtodet.variants import Variant

State = Mapping[str, npt.NDArray[Any]]
Wide = npt.NDArray[np.float64]


def folded(state: State, variant: Variant) -> dict[str, npt.NDArray[np.float32]]:
    """The inference network's weights and biases from a training- or deploy-form state dict.

    Keys, shapes and order are those of `layout.state_layout(variant, "inference")`.
    UsageError where a convolution folds to what float32 cannot hold.
    """
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for conv in layout(variant).convs():
        with np.errstate(over="ignore", invalid="ignore"):
            weight, bias = (a.astype(np.float32) for a in _folded_conv(state, conv))
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise UsageError(f"{conv.name}: its weights and BatchNorm fold to more than float32 holds; train it again")
        arrays[f"{conv.name}.weight"] = np.ascontiguousarray(weight)
        arrays[f"{conv.name}.bias"] = np.ascontiguousarray(bias)
    return arrays


def merged_ibe(state: State, name: str) -> tuple[Wide, Wide]:
    """Weight (h, 1, 3, 3) and bias (h,) of the one depthwise convolution that equals an instance boundary enhancement.

    The branch sees y - sigmoid(theta) d, where d is a 1x1 convolution with the sum of the 3x3 kernel: the same as
    taking sigmoid(theta) times that sum from the kernel's centre. Then both BatchNorms are folded and added.
    """
    weight = _wide(state, f"{name}.conv.weight")
    boundary = weight.copy()
    boundary[:, :, 1, 1] -= weight.sum(axis=(2, 3)) / (1 + np.exp(-_wide(state, f"{name}.theta")))
    factor, bias = _batchnorm(state, f"{name}.bn")
    factor2, bias2 = _batchnorm(state, f"{name}.bn2")
    return weight * factor[:, None, None, None] + boundary * factor2[:, None, None, None], bias + bias2


def _folded_conv(state: State, conv: Conv) -> tuple[Wide, Wide]:
    if conv.norm == "bias":
        return _wide(state, f"{conv.name}.weight"), _wide(state, f"{conv.name}.bias")
    if conv.norm == "ibe":
        if f"{conv.name}.rbr_reparam.weight" in state:
            return _wide(state, f"{conv.name}.rbr_reparam.weight"), _wide(state, f"{conv.name}.rbr_reparam.bias")
        return merged_ibe(state, conv.name)
    factor, bias = _batchnorm(state, f"{conv.name}.bn")
    return _wide(state, f"{conv.name}.conv.weight") * factor[:, None, None, None], bias


def _batchnorm(state: State, name: str) -> tuple[Wide, Wide]:
    """The factor and the bias (c,) that a BatchNorm in eval mode amounts to."""
    factor = _wide(state, f"{name}.weight") / np.sqrt(_wide(state, f"{name}.running_var") + BATCHNORM_EPS)
    return factor, _wide(state, f"{name}.bias") - _wide(state, f"{name}.running_mean") * factor


def _wide(state: State, key: str) -> Wide:
    return np.asarray(state[key], np.float64)
