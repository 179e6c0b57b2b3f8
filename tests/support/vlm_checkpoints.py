"""Checkpoints of tiny networks with drawn weights, laid out as on the hub."""

import json

import torch
from safetensors.torch import save_file

from edgewatt.workloads.vlm import layouts
from edgewatt.workloads.vlm.architecture import of_config

MOBILEVLM = {
    "model_type": "mobilevlm", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "mm_projector_type": "ldpnet", "mm_vision_tower": "vision_config.json",
}  # fmt: skip
TOWER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 7,
}  # fmt: skip
IMP = {
    "model_type": "imp", "vocab_size": 40, "hidden_size": 20, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 1, "mm_projector_type": "mlp2x_gelu", "vision_tower_config": {**TOWER, "image_size": 28},
}  # fmt: skip


def drawn(shapes, dtype=None):
    draw = torch.Generator().manual_seed(0)
    return {k: torch.randn(s, generator=draw).to(dtype or torch.bfloat16) for k, s in shapes.items()}


def folder_of(path, config, weights, name="model.safetensors"):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if config.get("mm_vision_tower") == "vision_config.json":
        (path / "vision_config.json").write_text(json.dumps(TOWER))
    if name.endswith(".bin"):
        torch.save(weights, path / name)
    else:
        save_file(weights, path / name)
    return path


def mobilevlm_weights():
    return drawn(layouts.official_keys(of_config("mobilevlm", MOBILEVLM, TOWER)))


def read(opened):
    return dict(opened.tensors(layouts.official_keys(opened.architecture())))


def same(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(found[k].dtype == wanted[k].dtype and torch.equal(found[k], wanted[k]) for k in wanted)
