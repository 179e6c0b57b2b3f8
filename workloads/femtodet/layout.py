"""FemtoDet as plain data: every convolution with its shape, stride, normalisation and official key.

The torch module, the folding, the counts, the ONNX and the ncnn graphs are all made from this one description.
Source: the official repository yh-pengtu/FemtoDet @ 2073227 (configs/femtoDet, mmdet/models/backbones/femtonet).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from edgewatt.workloads.femtodet.variants import Variant

Form = Literal["training", "deploy", "inference"]

BATCHNORM_EPS = 1e-5
BATCHNORM_MOMENTUM = 0.1

# expansion, base channels at width 1, blocks, stride of the first block, groups of the projection
_STAGES = (
    (1, 16, 1, 1, 1),
    (4, 24, 2, 2, 1),
    (4, 32, 2, 2, 1),
    (4, 64, 3, 2, 1),
    (4, 96, 2, 1, 1),
    (4, 160, 2, 2, 2),
    (4, 320, 1, 1, 2),
)
_OUT_STAGES = (2, 4, 6)  # the maps at strides 8, 16 and 32


@dataclass(frozen=True)
class Conv:
    """One convolution and what follows it; `name` is the prefix of its official keys.

    `norm`: "bn", a BatchNorm; "ibe", the three-branch instance boundary enhancement; "bias", a bias and nothing else.
    """

    name: str
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    norm: Literal["bn", "ibe", "bias"] = "bn"
    relu: bool = True

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.outputs, self.inputs // self.groups, self.kernel, self.kernel


@dataclass(frozen=True)
class Block:
    """Convolutions one after the other; with `residual` their input is added to their output."""

    convs: tuple[Conv, ...]
    residual: bool


@dataclass(frozen=True)
class Layout:
    """The whole network, in the order of its state dict."""

    stem: Conv
    stages: tuple[tuple[Block, ...], ...]
    lateral: tuple[Conv, Conv, Conv]  # from strides 8, 16, 32; their outputs are summed at stride 16
    stacked: tuple[Conv, Conv]
    head: tuple[Conv, Conv, Conv]  # cls, reg, obj
    out_stages: tuple[int, int, int] = _OUT_STAGES  # the stages whose outputs the neck takes

    def convs(self) -> Iterator[Conv]:
        """Every convolution, in the order of the state dict."""
        yield self.stem
        for stage in self.stages:
            for block in stage:
                yield from block.convs
        yield from self.lateral
        yield from self.stacked
        yield from self.head


def _divisible_by_8(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and not more than a tenth below `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


@cache
def layout(variant: Variant) -> Layout:
    """The network of a variant."""
    stem = Conv("backbone.conv1", 3, _divisible_by_8(32 * variant.width), kernel=3, stride=2)
    inputs = stem.outputs
    stages = []
    for number, (expansion, base, count, first_stride, groups) in enumerate(_STAGES, start=1):
        outputs = _divisible_by_8(base * variant.width)
        blocks = []
        for b in range(count):
            stride, hidden = first_stride if b == 0 else 1, inputs * expansion
            prefix = f"backbone.layer{number}.{b}.conv"
            at = 0 if expansion == 1 else 1  # the index of the depthwise convolution in the block
            expand = (Conv(f"{prefix}.0", inputs, hidden),) if at else ()
            depthwise = Conv(f"{prefix}.{at}", hidden, hidden, kernel=3, stride=stride, groups=hidden, norm="ibe")
            project = Conv(f"{prefix}.{at + 1}", hidden, outputs, groups=groups, relu=False)
            blocks.append(Block((*expand, depthwise, project), residual=stride == 1 and inputs == outputs))
            inputs = outputs
        stages.append(tuple(blocks))

    neck = variant.neck_channels
    near, middle, far = (
        Conv(f"neck.lateral_convs.{k}", stages[s][-1].convs[-1].outputs, neck) for k, s in enumerate(_OUT_STAGES)
    )
    stacked = (
        Conv("neck.stacked_convs.depthwise_conv", neck, neck, kernel=3, groups=neck),
        Conv("neck.stacked_convs.pointwise_conv", neck, neck),
    )
    cls, reg, obj = (
        Conv(f"bbox_head.multi_level_conv_{part}.0", neck, outputs, norm="bias", relu=False)
        for part, outputs in (("cls", len(variant.classes)), ("reg", 4), ("obj", 1))
    )
    return Layout(stem, tuple(stages), (near, middle, far), stacked, (cls, reg, obj))


_BATCHNORM = (("weight", "float32"), ("bias", "float32"), ("running_mean", "float32"), ("running_var", "float32"))


def _norm_keys(prefix: str, channels: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield from ((f"{prefix}.{k}", (channels,), dtype) for k, dtype in _BATCHNORM)
    yield f"{prefix}.num_batches_tracked", (), "int64"


def conv_keys(conv: Conv, form: Form) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """The keys of one convolution with shape and dtype, in the official order."""
    if form == "inference" or conv.norm == "bias":
        yield f"{conv.name}.weight", conv.weight_shape, "float32"
        yield f"{conv.name}.bias", (conv.outputs,), "float32"
    elif conv.norm == "ibe" and form == "deploy":
        yield f"{conv.name}.rbr_reparam.weight", conv.weight_shape, "float32"
        yield f"{conv.name}.rbr_reparam.bias", (conv.outputs,), "float32"
    else:
        if conv.norm == "ibe":
            yield f"{conv.name}.theta", (1,), "float32"
        yield f"{conv.name}.conv.weight", conv.weight_shape, "float32"
        yield from _norm_keys(f"{conv.name}.bn", conv.outputs)
        if conv.norm == "ibe":
            yield from _norm_keys(f"{conv.name}.bn2", conv.outputs)


@cache
def state_layout(variant: Variant, form: Form) -> dict[str, tuple[tuple[int, ...], str]]:
    """Every key of a state dict with its shape and dtype, in order.

    `training` is what the official code trains and saves, `deploy` has the boundary enhancement merged
    (`rbr_reparam`), and in `inference`, which is ours, every convolution is a weight and a bias.
    """
    return {key: (shape, dtype) for conv in layout(variant).convs() for key, shape, dtype in conv_keys(conv, form)}
