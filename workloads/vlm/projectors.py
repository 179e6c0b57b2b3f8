"""From patch features to embeddings of the language model, with the official names. Needs the extra `vlm`.

Every projector takes (n, patches, vision width) and gives (n, tokens, text width). Sources: MobileVLM @ 688fdec,
mobilevlm/model/vision_projector.py; Imp @ 363a9bb, multimodal_projector/builder.py.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewatt.workloads.vlm.architecture import LDPV2_GRID, Architecture
from edgewatt.workloads.vlm.convolution import Conv2d
from edgewatt.workloads.vlm.layouts import mlp_layers, squeezed


def projector(architecture: Architecture) -> nn.Module:
    kind, inputs, width = architecture.projector, architecture.vision.hidden, architecture.text.hidden
    if kind == "ldpnet":
        return Ldp(inputs, width)
    if kind == "ldpnetv2":
        return LdpV2(inputs, width)
    if kind == "linear":
        return nn.Linear(inputs, width)
    linears = [nn.Linear(inputs if i == 0 else width, width) for i in range(mlp_layers(kind))]
    return nn.Sequential(linears[0], *(m for linear in linears[1:] for m in (nn.GELU(), linear)))


class Ldp(nn.Module):
    """The lightweight downsample projector of MobileVLM V1: half the grid in each direction."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "mlp": nn.Sequential(nn.Identity(), nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width)),
                "mb_block": nn.Sequential(nn.Identity(), Block(width, stride=1), Block(width, stride=2)),
            }
        )

    def forward(self, features: Tensor) -> Tensor:
        return _flat(self.model["mb_block"](_grid(self.model["mlp"](features))))


class Block(nn.Module):
    """Depthwise 3x3, squeeze-excite, pointwise; added to its input where the stride is 1."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.is_residual = stride == 1
        depthwise = Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        pointwise = Conv2d(width, width, 1, bias=False)
        self.block = nn.Sequential(
            nn.Sequential(depthwise, ChannelNorm(width), nn.Hardswish()),
            SqueezeExcite(width),
            nn.Sequential(pointwise, ChannelNorm(width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.block(x))
        return x + y if self.is_residual else y


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of (n, channels, height, width), at each pixel."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """Every channel times a factor from 0 to 1 that depends on the means of all of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = Conv2d(width, squeezed(width), 1)
        self.fc2 = Conv2d(squeezed(width), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(means))))


class LdpV2(nn.Module):
    """The projector of MobileVLM V2: any grid pooled to 12 x 12, and a depthwise 3x3 added that tells positions."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        depthwise = Conv2d(width, width, 3, padding=1, groups=width)
        mlp = nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width))
        self.mlp = nn.ModuleDict({"mlp": mlp})
        self.peg = nn.ModuleDict({"peg": nn.Sequential(depthwise)})

    def forward(self, features: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(_grid(self.mlp["mlp"](features)), LDPV2_GRID)
        return _flat(self.peg["peg"](pooled) + pooled)


def _grid(features: Tensor) -> Tensor:
    """(n, side * side, channels), row by row, as (n, channels, side, side)."""
    n, tokens, channels = features.shape
    side = math.isqrt(tokens)
    return features.transpose(1, 2).reshape(n, channels, side, side)


def _flat(grid: Tensor) -> Tensor:
    return torch.flatten(grid, 2).transpose(1, 2)
