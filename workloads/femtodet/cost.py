"""What FemtoDet costs on paper: learnable parameters and multiply-accumulates, by formula from the layout."""

from __future__ import annotations

import math

from edgewatt.workloads.femtodet.layout import Conv, Form, layout, state_layout
from edgewatt.workloads.femtodet.variants import Variant

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def parameters(variant: Variant, form: Form = "training") -> int:
    """The number of learnable parameters; the paper's 68.77 k is the training form of `voc`."""
    keys = state_layout(variant, form).items()
    return sum(math.prod(shape) for key, (shape, _) in keys if not key.endswith(_BUFFERS))


def macs(variant: Variant, size_px: int) -> int:
    """Multiply-accumulates of all convolutions for one picture, boundary enhancement merged (71.67 M: `voc` at 416).

    Counted as published, with the stride-8 lateral convolution on its whole map, although only a quarter of its
    results is used and the graphs of this package compute no more than that.
    """
    net = layout(variant)
    side, total = size_px, 0

    def count(conv: Conv, side: int) -> tuple[int, int]:
        side = (side + 2 * conv.padding - conv.kernel) // conv.stride + 1
        return side, math.prod(conv.weight_shape) * side**2

    side, total = count(net.stem, size_px)
    out_sides = []
    for number, stage in enumerate(net.stages):
        for block in stage:
            for conv in block.convs:
                side, more = count(conv, side)
                total += more
        if number in net.out_stages:
            out_sides.append(side)
    for conv, side in zip(net.lateral, out_sides, strict=True):
        total += count(conv, side)[1]
    for conv in (*net.stacked, *net.head):
        total += count(conv, out_sides[1])[1]
    return total
