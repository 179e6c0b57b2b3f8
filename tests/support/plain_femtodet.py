"""FemtoDet written a second time, slowly and in one piece, straight from its published description.

numpy and float64; training form, three branches and all; shares no code with the package. One picture (3, h, w) in,
the raw maps cls, reg, obj out.
"""

import numpy as np

# stage: expansion, blocks, first stride, groups of the projection
STAGES = [(1, 1, 1, 1), (4, 2, 2, 1), (4, 2, 2, 1), (4, 3, 2, 1), (4, 2, 1, 1), (4, 2, 2, 2), (4, 1, 1, 2)]


def forward(state, picture):
    def batchnorm(x, name):
        s = {
            k: np.float64(state[f"{name}.{k}"])[:, None, None]
            for k in ("weight", "bias", "running_mean", "running_var")
        }
        return (x - s["running_mean"]) / np.sqrt(s["running_var"] + 1e-5) * s["weight"] + s["bias"]

    def conv(x, weight, stride=1, groups=1):
        per_group, kernel = weight.shape[1:3]
        pad = kernel // 2
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
        result = [
            np.einsum("chwij,ocij->ohw", windows[g * per_group : (g + 1) * per_group], w)
            for g, w in enumerate(np.split(np.float64(weight), groups))
        ]
        return np.concatenate(result)

    def unit(x, name, stride=1, groups=1, relu=True):
        y = batchnorm(conv(x, state[f"{name}.conv.weight"], stride, groups), f"{name}.bn")
        return np.maximum(y, 0) if relu else y

    def enhanced(x, name, stride):
        weight = np.float64(state[f"{name}.conv.weight"])
        y = conv(x, weight, stride, len(weight))
        d = conv(x, weight.sum((2, 3), keepdims=True), stride, len(weight))
        gate = 1 / (1 + np.exp(-np.float64(state[f"{name}.theta"])))
        return np.maximum(batchnorm(y, f"{name}.bn") + batchnorm(y - gate * d, f"{name}.bn2"), 0)

    x, maps = unit(np.float64(picture), "backbone.conv1", 2), []
    for number, (expansion, blocks, first_stride, groups) in enumerate(STAGES, start=1):
        for b in range(blocks):
            name, stride, y, at = f"backbone.layer{number}.{b}.conv", first_stride if b == 0 else 1, x, 0
            if expansion != 1:
                y, at = unit(y, f"{name}.0"), 1
            y = enhanced(y, f"{name}.{at}", stride)
            y = unit(y, f"{name}.{at + 1}", groups=groups, relu=False)
            x = x + y if stride == 1 and x.shape == y.shape else y
        maps.append(x)
    near, middle, far = (unit(maps[k], f"neck.lateral_convs.{i}") for i, k in enumerate((2, 4, 6)))
    x = near[:, ::2, ::2] + middle + np.kron(far, np.ones((1, 2, 2)))
    x = unit(x, "neck.stacked_convs.depthwise_conv", groups=len(x))
    x = unit(x, "neck.stacked_convs.pointwise_conv")
    heads = [f"bbox_head.multi_level_conv_{part}.0" for part in ("cls", "reg", "obj")]
    return [conv(x, state[f"{h}.weight"]) + np.float64(state[f"{h}.bias"])[:, None, None] for h in heads]
