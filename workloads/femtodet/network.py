"""FemtoDet as a torch module, with the official state-dict keys. Needs the extra `torch`.

Three forms of one network (spec of the forms: `layout.state_layout`):
`training` always computes the three branches of the boundary enhancement, in eval mode too, as the official code does;
`deploy` has them merged, every other BatchNorm still apart; `inference` has everything folded.
The losses and the assignment of targets are not here yet: they come with training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewatt.workloads.femtodet import fold
from edgewatt.workloads.femtodet.layout import BATCHNORM_EPS, BATCHNORM_MOMENTUM, Block, Conv, Form, layout
from edgewatt.workloads.femtodet.variants import Variant

_OBJECT_PRIOR = 0.01  # the probability the cls and obj biases start from


class FemtoDet(nn.Module):
    """The detector: pictures (n, 3, s, s) in; raw maps cls (n, c, s/16, s/16), reg (n, 4, ...), obj (n, 1, ...) out."""

    def __init__(self, variant: Variant, form: Form = "training", seed: int = 0) -> None:
        """Weights are drawn from `seed` as the official code does, without its ImageNet backbone."""
        super().__init__()
        self.variant, self.form = variant, form
        self.backbone = FemtoNet(variant, form)
        self.neck = SharedNeck(variant, form)
        self.bbox_head = Head(variant, form)
        _initialise(self, torch.Generator().manual_seed(seed))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return cast("tuple[Tensor, Tensor, Tensor]", self.bbox_head(self.neck(self.backbone(pictures))))

    def merged(self) -> FemtoDet:
        """The deploy form of a training form: the same function in eval mode, one convolution for three branches."""
        if self.form != "training":
            raise ValueError(f"only a training form can be merged, this is the {self.form} form")
        state = self._arrays()
        other = FemtoDet(self.variant, "deploy")
        for conv in layout(self.variant).convs():
            if conv.norm == "ibe":
                weight, bias = fold.merged_ibe(state, conv.name)
                state[f"{conv.name}.rbr_reparam.weight"] = weight.astype(np.float32)
                state[f"{conv.name}.rbr_reparam.bias"] = bias.astype(np.float32)
        return other._filled({k: state[k] for k in other.state_dict()}).train(self.training)

    def folded(self) -> FemtoDet:
        """The inference form of a training or deploy form, in eval mode: every BatchNorm folded away."""
        return FemtoDet(self.variant, "inference")._filled(fold.folded(self._arrays(), self.variant)).eval()

    def _arrays(self) -> dict[str, np.ndarray]:
        return {k: v.detach().cpu().numpy() for k, v in self.state_dict().items()}

    def _filled(self, state: Mapping[str, np.ndarray]) -> FemtoDet:
        self.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()})
        return self


class FemtoNet(nn.Module):
    """The backbone: three maps, at strides 8, 16 and 32."""

    def __init__(self, variant: Variant, form: Form) -> None:
        super().__init__()
        net = layout(variant)
        self._out_stages = net.out_stages
        self.conv1 = _unit(net.stem, form)
        for number, stage in enumerate(net.stages, start=1):
            self.add_module(f"layer{number}", nn.Sequential(*(InvertedResidual(b, form) for b in stage)))

    def forward(self, x: Tensor) -> list[Tensor]:
        _, *stages = self.children()
        x, maps = self.conv1(x), []
        for number, stage in enumerate(stages):
            x = stage(x)
            if number in self._out_stages:
                maps.append(x)
        return maps


class InvertedResidual(nn.Module):
    """A block of the backbone."""

    def __init__(self, block: Block, form: Form) -> None:
        super().__init__()
        self.conv = nn.Sequential(*(_unit(c, form) for c in block.convs))
        self.residual = block.residual

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.conv(x))
        return x + y if self.residual else y


class SharedNeck(nn.Module):
    """Three maps in, one at stride 16 out.

    Nearest resizing to half the side keeps the first of every two cells in each direction. A 1x1 convolution with
    stride 2 computes just those: so does the inference form, with the same result for a quarter of the work.
    """

    def __init__(self, variant: Variant, form: Form) -> None:
        super().__init__()
        net = layout(variant)
        near, *others = net.lateral
        self._strided = form == "inference"
        if self._strided:
            near = replace(near, stride=2)
        self.lateral_convs = nn.ModuleList(_unit(c, form) for c in (near, *others))
        self.stacked_convs = nn.Sequential()
        for conv in net.stacked:
            self.stacked_convs.add_module(conv.name.rsplit(".", 1)[1], _unit(conv, form))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        near, middle, far = (conv(m) for conv, m in zip(self.lateral_convs, maps, strict=True))
        if not self._strided:
            near = near[:, :, ::2, ::2]
        return cast(Tensor, self.stacked_convs(near + middle + F.interpolate(far, scale_factor=2.0, mode="nearest")))


class Head(nn.Module):
    """Three 1x1 convolutions side by side."""

    def __init__(self, variant: Variant, form: Form) -> None:
        super().__init__()
        for part, conv in zip(("cls", "reg", "obj"), layout(variant).head, strict=True):
            self.add_module(f"multi_level_conv_{part}", nn.ModuleList([_unit(conv, form)]))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(cast(nn.ModuleList, part)[0](x) for part in self.children())


class ConvNorm(nn.Module):
    """A convolution without bias, a BatchNorm, and a ReLU where there is one."""

    def __init__(self, shape: Conv) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = _convolution(shape, bias=False), _batchnorm(shape), shape.relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return F.relu(y) if self.relu else cast(Tensor, y)


class BoundaryEnhancement(nn.Module):
    """IBE, the depthwise convolution with a second branch from which a smoothed copy is taken away."""

    def __init__(self, shape: Conv) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1))
        self.conv, self.bn, self.bn2 = _convolution(shape, bias=False), _batchnorm(shape), _batchnorm(shape)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        kernel = self.conv.weight.sum(dim=(2, 3), keepdim=True)
        smooth = F.conv2d(x, kernel, stride=self.conv.stride, groups=self.conv.groups)
        return F.relu(self.bn(y) + self.bn2(y - torch.sigmoid(self.theta) * smooth))


class MergedEnhancement(nn.Module):
    """IBE in its deploy form: one depthwise convolution and a ReLU."""

    def __init__(self, shape: Conv) -> None:
        super().__init__()
        self.rbr_reparam = _convolution(shape, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.rbr_reparam(x))


class BiasedConv(nn.Conv2d):
    """A convolution with bias, and a ReLU where there is one: what folding leaves."""

    def __init__(self, shape: Conv) -> None:
        super().__init__(
            shape.inputs, shape.outputs, shape.kernel, shape.stride, shape.padding, groups=shape.groups, bias=True
        )
        self.relu = shape.relu

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return F.relu(y) if self.relu else y


def _unit(shape: Conv, form: Form) -> nn.Module:
    if form == "inference" or shape.norm == "bias":
        return BiasedConv(shape)
    if shape.norm == "ibe":
        return MergedEnhancement(shape) if form == "deploy" else BoundaryEnhancement(shape)
    return ConvNorm(shape)


def _convolution(shape: Conv, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(
        shape.inputs, shape.outputs, shape.kernel, shape.stride, shape.padding, groups=shape.groups, bias=bias
    )


def _batchnorm(shape: Conv) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(shape.outputs, eps=BATCHNORM_EPS, momentum=BATCHNORM_MOMENTUM)


def _initialise(net: FemtoDet, draw: torch.Generator) -> None:
    """As the official code: Kaiming normal in the backbone, Xavier in the neck, Kaiming uniform in the head."""
    for name, module in net.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if name.startswith("backbone."):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=draw)
        elif name.startswith("neck."):
            nn.init.xavier_uniform_(module.weight, generator=draw)
        else:
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=draw)
        if module.bias is not None:
            starts_rare = "_cls" in name or "_obj" in name
            nn.init.constant_(module.bias, -math.log((1 - _OBJECT_PRIOR) / _OBJECT_PRIOR) if starts_rare else 0.0)
