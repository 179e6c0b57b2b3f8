"""Seeded weights that behave like trained ones and detect nothing: for time and energy, never for accuracy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewatt.workloads.femtodet.layout import BATCHNORM_EPS, Conv, layout, state_layout
from edgewatt.workloads.femtodet.variants import Variant

Map = npt.NDArray[np.float64]  # (channels, rows, columns)
State = dict[str, npt.NDArray[Any]]

# The logits over the cells of the drawn picture, (mean, spread): some dozens of the 676 cells of a 416 picture score
# 0.01 or more, few score high, and boxes are some dozens of pixels wide. Chosen by hand.
_LOGITS = {"cls": (-3.5, 1.5), "reg": (0.8, 0.5), "obj": (-5.5, 1.5)}
_SIDE_PX = 320


def synthetic(variant: Variant, seed: int) -> State:
    """A training-form state dict drawn from `seed`: no zeros, and on any picture activations of ordinary size.

    Convolutions and BatchNorm scales are random; the BatchNorm statistics are those of a drawn picture, as training
    would leave them, and the head is scaled so that a believable number of cells detects something. Measured values
    are rounded to three figures, so that every machine makes the same bytes.
    """
    net = layout(variant)
    draw = _Drawing(seed)
    x = draw.unit(net.stem, _picture(draw.random))
    maps = []
    for number, stage in enumerate(net.stages):
        for block in stage:
            y = x
            for conv in block.convs:
                y = draw.unit(conv, y)
            x = x + y if block.residual else y
        if number in net.out_stages:
            maps.append(x)
    near, middle, far = (draw.unit(conv, m) for conv, m in zip(net.lateral, maps, strict=True))
    x = near[:, ::2, ::2] + middle + far.repeat(2, axis=1).repeat(2, axis=2)
    for conv in net.stacked:
        x = draw.unit(conv, x)
    for part, conv in zip(("cls", "reg", "obj"), net.head, strict=True):
        draw.head(conv, x, *_LOGITS[part])
    return {key: draw.state[key].astype(dtype) for key, (_, dtype) in state_layout(variant, "training").items()}


class _Drawing:
    """A state dict being drawn from the picture's end to the detections'."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.state: State = {}

    def unit(self, conv: Conv, x: Map) -> Map:
        """Draws a convolution with its normalisation; what it makes of `x`."""
        fan_in = math.prod(conv.weight_shape[1:])
        weight = self._keep(f"{conv.name}.conv.weight", self.random.normal(0, fan_in**-0.5, conv.weight_shape))
        y = _convolved(x, weight, conv)
        if conv.norm == "ibe":
            theta = self._keep(f"{conv.name}.theta", self.random.uniform(-1, 1, 1))
            smooth = x[:, :: conv.stride, :: conv.stride] * weight.sum(axis=(2, 3))[:, :, None]
            boundary = y - smooth / (1 + np.exp(-theta))
            y = self._normalised(f"{conv.name}.bn", y, 0.7) + self._normalised(f"{conv.name}.bn2", boundary, 0.7)
        else:
            y = self._normalised(f"{conv.name}.bn", y, 1.0)
        return np.maximum(y, 0) if conv.relu else y

    def head(self, conv: Conv, x: Map, mean: float, spread: float) -> None:
        """Draws a convolution whose logits over `x` have that mean and spread, each channel by itself."""
        weight = self.random.normal(0, 1, conv.weight_shape)
        weight *= _rounded(spread / _convolved(x, weight, conv).std(axis=(1, 2)))[:, None, None, None]
        bias = mean - _convolved(x, weight, conv).mean(axis=(1, 2))
        self._keep(f"{conv.name}.weight", weight)
        self._keep(f"{conv.name}.bias", _rounded(bias))

    def _normalised(self, name: str, y: Map, gain: float) -> Map:
        channels = len(y)
        weight = self._keep(f"{name}.weight", gain * self.random.uniform(0.8, 1.2, channels))
        bias = self._keep(f"{name}.bias", self.random.normal(0, 0.1, channels))
        mean = self._keep(f"{name}.running_mean", _rounded(y.mean(axis=(1, 2))))
        variance = self._keep(f"{name}.running_var", _rounded(y.var(axis=(1, 2)) + 1e-3))
        self.state[f"{name}.num_batches_tracked"] = np.array(1000)
        factor = weight / np.sqrt(variance + BATCHNORM_EPS)
        return (y - mean[:, None, None]) * factor[:, None, None] + bias[:, None, None]

    def _keep(self, key: str, values: Map) -> Map:
        self.state[key] = values
        return values


def _rounded(values: Map) -> Map:
    """Three significant figures: beyond the last bits in which two machines' sums may differ."""
    step = 10.0 ** (np.floor(np.log10(np.abs(values) + 1e-12)) - 2)
    return np.round(values / step) * step + 1e-9  # never zero


def _convolved(x: Map, weight: Map, conv: Conv) -> Map:
    """The convolution of `x`, kernel position by kernel position."""
    p, s = conv.padding, conv.stride
    padded = np.pad(x, ((0, 0), (p, p), (p, p)))
    rows, columns = ((side + 2 * p - conv.kernel) // s + 1 for side in x.shape[1:])
    y = np.zeros((conv.outputs, rows, columns))
    for i in range(conv.kernel):
        for j in range(conv.kernel):
            seen = padded[:, i : i + s * (rows - 1) + 1 : s, j : j + s * (columns - 1) + 1 : s]
            if conv.groups == conv.inputs:
                y += seen * weight[:, :, i, j][:, :, None]
            else:
                grouped = seen.reshape(conv.groups, -1, rows * columns)
                taps = weight[:, :, i, j].reshape(conv.groups, -1, conv.inputs // conv.groups)
                y += (taps @ grouped).reshape(y.shape)
    return y


def _picture(random: np.random.Generator) -> Map:
    """Noise of equal strength at every scale, as photographs have it, normalised as the network's input is."""
    picture = np.zeros((3, _SIDE_PX, _SIDE_PX))
    for cell in (1, 2, 4, 8, 16, 32, 64):
        coarse = random.normal(0, 1, (3, _SIDE_PX // cell, _SIDE_PX // cell)) * random.uniform(0.2, 0.6)
        picture += coarse.repeat(cell, axis=1).repeat(cell, axis=2)
    return picture
