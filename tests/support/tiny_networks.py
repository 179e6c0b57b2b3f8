"""Tiny networks of every kind with drawn weights, and the same ones in numpy."""

from dataclasses import replace

import numpy as np
import torch

from edgewatt.workloads.vlm import layouts, network
from edgewatt.workloads.vlm.architecture import Architecture, Text, Vision
from support import plain_vlm

CLIP = Vision("clip", hidden=24, mlp=40, layers=3, layers_run=2, heads=3, patch=4, image_px=24, eps=1e-5)
SIGLIP = Vision("siglip", hidden=20, mlp=36, layers=2, layers_run=2, heads=2, patch=5, image_px=17, eps=1e-6)
LLAMA = Text("llama", 32, 48, layers=2, heads=4, kv_heads=4, vocab=50, positions=300, eps=1e-6, rope_theta=1e4)
PHI = replace(LLAMA, kind="phi", hidden=80, eps=1e-5, rotary_share=0.4)
QWEN = replace(LLAMA, kind="qwen2", kv_heads=2, rope_theta=1e6)
PHI3 = replace(LLAMA, kind="phi3", sliding_window=7)
OF_IMP = {"image_mode": "square", "max_length": 60}
TINY = {
    "ldpnet": Architecture("mobilevlm", CLIP, LLAMA, "ldpnet", "pad", "v1", 200),
    "ldpnet, odd grid": Architecture("mobilevlm", replace(CLIP, image_px=21), LLAMA, "ldpnet", "pad", "v1", 200),
    "ldpnetv2": Architecture("mobilevlm", CLIP, LLAMA, "ldpnetv2", "pad", "v1", 200),
    "phi2": Architecture("imp", SIGLIP, PHI, "mlp2x_gelu", template="phi2", **OF_IMP),
    "qwen2, grouped heads": Architecture("imp", SIGLIP, QWEN, "linear", template="qwen2", **OF_IMP),
    "phi3, window": Architecture("imp", SIGLIP, PHI3, "mlp3x_gelu", template="phi3", **OF_IMP),
    "phi3": Architecture("imp", SIGLIP, replace(PHI3, sliding_window=None), "mlp1x_gelu", template="phi3", **OF_IMP),
}
MADE = {}


def filled(architecture, arrays, dtype=torch.float32):
    net = network.empty(architecture)
    for key, array in arrays.items():
        net.place(key, torch.from_numpy(array).to(dtype))
    assert net.missing() == []
    return net


def made(name):
    """A tiny network with drawn weights, and the same one in numpy."""
    if name not in MADE:
        arrays = plain_vlm.weights(layouts.official_keys(TINY[name]), seed=len(name))
        MADE[name] = filled(TINY[name], arrays), plain_vlm.Plain(TINY[name], arrays)
    return MADE[name]


def pictures(architecture, n, seed=0):
    side = architecture.vision.image_px
    return np.random.default_rng(seed).normal(0, 1, (n, 3, side, side)).astype(np.float32)


def close(found, wanted, atol):
    found = found.detach().float().numpy() if isinstance(found, torch.Tensor) else found
    np.testing.assert_allclose(found, np.asarray(wanted).reshape(found.shape), rtol=0, atol=atol)
