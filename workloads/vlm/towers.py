"""The vision towers: CLIP's and SigLIP's own classes of `transformers`, cut where their output is taken.

Features are those after the last but one layer of the published tower, without the norm that follows the last one
(mm_vision_select_layer -2). What could not change them is not there: the last layer, that norm, a pooling head.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from edgewatt.workloads.vlm import attention
from edgewatt.workloads.vlm.architecture import Vision
from edgewatt.workloads.vlm.convolution import Conv2d


class Tower(nn.Module):
    """Pictures (n, 3, side, side) to patch features (n, patches, width), row by row."""

    def __init__(self, vision: Vision) -> None:
        super().__init__()
        self.vision = vision
        model = _clip(vision) if vision.kind == "clip" else _siglip(vision)
        parts = getattr(model, "vision_model", model)  # an inner module in older releases
        self.embeddings = parts.embeddings
        self.embeddings.patch_embedding = Conv2d(
            3, vision.hidden, vision.patch, stride=vision.patch, bias=vision.kind == "siglip"
        )
        if vision.kind == "clip":
            self.pre_layrnorm = parts.pre_layrnorm  # spelled so
        self.encoder = parts.encoder

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embeddings(pixels)
        if self.vision.kind == "clip":
            x = self.pre_layrnorm(x)
        x = cast(Tensor, self.encoder(inputs_embeds=x).last_hidden_state)
        return x[:, 1:] if self.vision.kind == "clip" else x  # without the class token

    def materialise_buffers(self, device: str | torch.device) -> None:
        """Makes the numbers of the positions real, which no checkpoint holds."""
        self.embeddings.position_ids = torch.arange(self.vision.positions, device=device)[None]


def _clip(vision: Vision) -> Any:
    return CLIPVisionModel(CLIPVisionConfig(**_sizes(vision), hidden_act="quick_gelu"))


def _siglip(vision: Vision) -> Any:
    config = SiglipVisionConfig(**_sizes(vision), hidden_act="gelu_pytorch_tanh", vision_use_head=False)
    return SiglipVisionModel(config)


def _sizes(vision: Vision) -> dict[str, Any]:
    return {
        "hidden_size": vision.hidden,
        "intermediate_size": vision.mlp,
        "num_hidden_layers": vision.layers_run,
        "num_attention_heads": vision.heads,
        "patch_size": vision.patch,
        "image_size": vision.image_px,
        "layer_norm_eps": vision.eps,
        "attn_implementation": attention.NAME,
    }
