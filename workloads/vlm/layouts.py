"""The keys of checkpoints: what each network's state dict holds, and the older layout of Imp.

Layout A has the keys the official code writes today; layout B ("msft") those Imp's Phi-2 checkpoints had before, with
the three attention projections in one tensor. Pure functions on names and shapes: no torch here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from edgewatt.workloads.vlm.architecture import Architecture, Text, Vision

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."


def official_keys(architecture: Architecture) -> Shapes:
    """Key -> shape of a whole checkpoint in layout A, in the official order; parts that are never run are in it."""
    text = architecture.text
    keys: Shapes = {"model.embed_tokens.weight": (text.vocab, text.hidden)}
    for i in range(text.layers):
        keys |= _under(f"model.layers.{i}.", _text_layer(text))
    norm = "final_layernorm" if text.kind == "phi" else "norm"
    keys |= _norm(f"model.{norm}", text.hidden, bias=text.kind == "phi")
    keys |= _under(TOWER, _tower(architecture.vision))
    keys |= _under(PROJECTOR, _projector(architecture.projector, architecture.vision.hidden, text.hidden))
    return keys | _linear("lm_head", text.hidden, text.vocab, bias=text.kind == "phi")


def parameters(architecture: Architecture) -> int:
    """The number of parameters of a whole checkpoint, those that are never run included."""
    return sum(math.prod(shape) for shape in official_keys(architecture).values())


def is_run(architecture: Architecture, key: str) -> bool:
    """Whether the result depends on this tensor: not on CLIP's last block, nor on the norm after it."""
    if not key.startswith(TOWER):
        return True
    tail = key.removeprefix(TOWER)
    layer = re.match(r"encoder\.layers\.(\d+)\.", tail)
    return not tail.startswith("post_layernorm.") and (layer is None or int(layer[1]) < architecture.vision.layers_run)


def is_ignored(key: str) -> bool:
    """Whether a key of an older export holds no weight: tables that are computed, not learned."""
    return key.endswith((".rotary_emb.inv_freq", ".embeddings.position_ids"))


# ---------------------------------------------------------------------------------------------------------------------
# Layout B of Imp


def is_layout_b(keys: Iterable[str]) -> bool:
    return any(key.startswith("transformer.") for key in keys)


def of_layout_b(key: str) -> tuple[str, ...]:
    """The keys in layout A for one of layout B: three where q, k and v are stacked along the first dimension, else one.

    A key that layout B does not have comes back as it is.
    """
    layer = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)\.(weight|bias)", key)
    if layer:
        number, part, kind = layer.groups()
        names = _B_LAYER.get(part)
        return tuple(f"model.layers.{number}.{n}.{kind}" for n in names) if names else (key,)
    for b, a in _B_PREFIXES.items():
        if key.startswith(b):
            return (a + key.removeprefix(b),)
    return (key,)


_B_LAYER: Mapping[str, tuple[str, ...]] = {
    "ln": ("input_layernorm",),
    "mixer.Wqkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mixer.out_proj": ("self_attn.dense",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_B_PREFIXES: Mapping[str, str] = {
    "transformer.embd.wte.": "model.embed_tokens.",
    "transformer.vision_tower.": "model.vision_tower.",
    "transformer.mm_projector.": PROJECTOR,
    "lm_head.ln.": "model.final_layernorm.",
    "lm_head.linear.": "lm_head.",
}


# ---------------------------------------------------------------------------------------------------------------------
# The parts


def _text_layer(text: Text) -> Shapes:
    width, kv = text.hidden, text.kv_heads * text.head_dim
    if text.kind == "phi3":
        return {
            **_linear("self_attn.o_proj", width, width, bias=False),
            **_linear("self_attn.qkv_proj", width, width + 2 * kv, bias=False),
            **_linear("mlp.gate_up_proj", width, 2 * text.mlp, bias=False),
            **_linear("mlp.down_proj", text.mlp, width, bias=False),
            **_norm("input_layernorm", width, bias=False),
            **_norm("post_attention_layernorm", width, bias=False),
        }
    has_bias = text.kind != "llama"
    attention = {
        **_linear("self_attn.q_proj", width, width, has_bias),
        **_linear("self_attn.k_proj", width, kv, has_bias),
        **_linear("self_attn.v_proj", width, kv, has_bias),
    }
    if text.kind == "phi":
        return {
            **attention,
            **_linear("self_attn.dense", width, width),
            **_linear("mlp.fc1", width, text.mlp),
            **_linear("mlp.fc2", text.mlp, width),
            **_norm("input_layernorm", width),
        }
    return {
        **attention,
        **_linear("self_attn.o_proj", width, width, bias=False),
        **_linear("mlp.gate_proj", width, text.mlp, bias=False),
        **_linear("mlp.up_proj", width, text.mlp, bias=False),
        **_linear("mlp.down_proj", text.mlp, width, bias=False),
        **_norm("input_layernorm", width, bias=False),
        **_norm("post_attention_layernorm", width, bias=False),
    }


def _tower(vision: Vision) -> Shapes:
    width, is_clip = vision.hidden, vision.kind == "clip"
    patches = _conv("embeddings.patch_embedding", 3, width, vision.patch, bias=not is_clip)
    keys: Shapes = {"embeddings.class_embedding": (width,)} if is_clip else {}
    keys |= {**patches, "embeddings.position_embedding.weight": (vision.positions, width)}
    if is_clip:
        keys |= _norm("pre_layrnorm", width)  # spelled so
    for i in range(vision.layers):
        layer = {
            **_linear("self_attn.k_proj", width, width),
            **_linear("self_attn.v_proj", width, width),
            **_linear("self_attn.q_proj", width, width),
            **_linear("self_attn.out_proj", width, width),
            **_norm("layer_norm1", width),
            **_linear("mlp.fc1", width, vision.mlp),
            **_linear("mlp.fc2", vision.mlp, width),
            **_norm("layer_norm2", width),
        }
        keys |= _under(f"encoder.layers.{i}.", layer)
    return keys | (_norm("post_layernorm", width) if is_clip else {})


def _projector(kind: str, inputs: int, width: int) -> Shapes:
    if kind == "ldpnet":
        keys = {**_linear("model.mlp.1", inputs, width), **_linear("model.mlp.3", width, width)}
        narrow = squeezed(width)
        for block in (1, 2):
            inner = {
                **_conv("block.0.0", 1, width, 3, bias=False),
                **_norm("block.0.1", width),
                **_conv("block.1.fc1", width, narrow, 1),
                **_conv("block.1.fc2", narrow, width, 1),
                **_conv("block.2.0", width, width, 1, bias=False),
                **_norm("block.2.1", width),
            }
            keys |= _under(f"model.mb_block.{block}.", inner)
        return keys
    if kind == "ldpnetv2":
        return {
            **_linear("mlp.mlp.0", inputs, width),
            **_linear("mlp.mlp.2", width, width),
            **_conv("peg.peg.0", 1, width, 3),
        }
    if kind == "linear":
        return _linear("", inputs, width)
    keys = _linear("0", inputs, width)
    for i in range(1, mlp_layers(kind)):
        keys |= _linear(str(2 * i), width, width)
    return keys


def mlp_layers(projector: str) -> int:
    """K of `mlpKx_gelu`."""
    found = re.fullmatch(r"mlp(\d+)x_gelu", projector)
    if not found:
        raise ValueError(f"no mlpKx_gelu: {projector}")
    return int(found[1])


def squeezed(width: int) -> int:
    """Channels inside LDP's squeeze-excite: a quarter, to a multiple of 8, but not more than a tenth below it."""
    quarter = width // 4
    rounded = max(8, (quarter + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * quarter else rounded


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    dot = name + "." if name else ""
    return {f"{dot}weight": (outputs, inputs)} | ({f"{dot}bias": (outputs,)} if bias else {})


def _norm(name: str, width: int, bias: bool = True) -> Shapes:
    keys: Shapes = {f"{name}.weight": (width,)}
    return keys | ({f"{name}.bias": (width,)} if bias else {})


def _conv(name: str, inputs: int, outputs: int, side: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, side, side)} | ({f"{name}.bias": (outputs,)} if bias else {})


def _under(prefix: str, keys: Shapes) -> Shapes:
    return {prefix + key: shape for key, shape in keys.items()}
