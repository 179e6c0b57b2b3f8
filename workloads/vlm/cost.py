"""What a vision-language network costs on paper: parameters, multiply-accumulates (MACs) and bytes moved, by phase.

MACs are those of matrix products and convolutions alone, attention counted dense; FLOPs are twice as many. Bytes are
lower bounds: every weight read once, the cache of keys and values read and written once, activations not counted. The
formulas agree exactly with an operator counter on the official code (MobileVLM @ 688fdec, Imp @ 363a9bb).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgewatt.workloads.vlm import layouts
from edgewatt.workloads.vlm.architecture import LDPV2_GRID, Architecture

Precision = Literal["fp32", "bf16", "fp16", "int8", "int4"]
MODULES = ("vision_tower", "mm_projector", "embed_tokens", "decoder_layers", "final_norm", "lm_head")
TEXT_MODULES = ("embed_tokens", "decoder_layers", "final_norm", "lm_head")
PER_TOKEN = ("decoder_layers", "final_norm", "lm_head")  # read whole for every token that is decoded

_GROUP = 32  # weights of a row that share a scale in q4f16_1, each group padded to whole words
_HALF = 2  # bytes


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates by kind."""

    linear: int = 0
    attention: int = 0
    conv: int = 0
    lm_head: int = 0

    @property
    def total(self) -> int:
        return self.linear + self.attention + self.conv + self.lm_head


@dataclass(frozen=True)
class DecodeBytes:
    """Bytes moved to decode one token."""

    weights: int
    embed_row: int
    kv_read: int
    kv_write: int

    @property
    def total(self) -> int:
        return self.weights + self.embed_row + self.kv_read + self.kv_write


# ---------------------------------------------------------------------------------------------------------------------
# Parameters and the bytes that hold them


def parameters(architecture: Architecture) -> dict[str, int]:
    """Parameters of each of MODULES, of the language model (`llm_total`) and of all (`total`), as in a checkpoint."""
    return _by_module(architecture, math.prod)


def stored_bytes(architecture: Architecture, precision: Precision) -> dict[str, int]:
    """The same in bytes of weights at a precision (scales of quantised ones included).

    int4 is q4f16_1 as MLC quantises Imp: every matrix, of linear layers as of embeddings, in 4 bits with a 16-bit scale
    for each 32 of a row; the rest (convolutions, biases, norms) in 16 bits. int8: the same matrices in 8 bits with a
    16-bit scale for each row.
    """
    return _by_module(architecture, lambda shape: _bytes(shape, precision))


def _by_module(architecture: Architecture, size: Callable[[layouts.Shape], int]) -> dict[str, int]:
    found = dict.fromkeys(MODULES, 0)
    for key, shape in layouts.official_keys(architecture).items():
        found[_module(key)] += size(shape)
    llm = sum(found[m] for m in TEXT_MODULES)
    return found | {"llm_total": llm, "total": sum(found.values())}


def _module(key: str) -> str:
    if key.startswith(layouts.TOWER):
        return "vision_tower"
    if key.startswith(layouts.PROJECTOR):
        return "mm_projector"
    if key.startswith("model.layers."):
        return "decoder_layers"
    if key.startswith("model.embed_tokens."):
        return "embed_tokens"
    return "lm_head" if key.startswith("lm_head.") else "final_norm"


def _bytes(shape: layouts.Shape, precision: Precision) -> int:
    """Bytes of one tensor."""
    if precision == "fp32":
        return 4 * math.prod(shape)
    if len(shape) != 2 or precision in ("bf16", "fp16"):
        return _HALF * math.prod(shape)
    rows, columns = shape
    if precision == "int8":
        return rows * (columns + _HALF)
    return rows * math.ceil(columns / _GROUP) * (_GROUP // 2 + _HALF)


# ---------------------------------------------------------------------------------------------------------------------
# Multiply-accumulates


def vision_macs(architecture: Architecture, layers: int | None = None) -> Macs:
    """The tower on one picture, `layers` of its blocks (None: those whose output is used).

    The official code of MobileVLM runs all 24 of CLIP's, of which the last changes nothing.
    """
    vision = architecture.vision
    layers = vision.layers_run if layers is None else layers
    n = vision.positions
    per_block = 4 * vision.hidden**2 + 2 * vision.hidden * vision.mlp
    return Macs(
        linear=layers * n * per_block,
        attention=layers * 2 * n**2 * vision.hidden,
        conv=vision.tokens * vision.hidden * 3 * vision.patch**2,
    )


def projector_macs(architecture: Architecture) -> int:
    """The projector on one picture's features."""
    n, inputs, width = architecture.vision.tokens, architecture.vision.hidden, architecture.text.hidden
    kind = architecture.projector
    if kind == "linear":
        return n * inputs * width
    if kind == "ldpnetv2":
        return n * (inputs * width + width**2) + LDPV2_GRID**2 * 9 * width
    if kind == "ldpnet":
        halved, narrow = architecture.image_tokens, layouts.squeezed(width)
        return n * (inputs * width + width**2) + sum(
            m * (9 * width + width**2) + 2 * width * narrow for m in (n, halved)
        )
    return n * (inputs * width + (layouts.mlp_layers(kind) - 1) * width**2)


def prefill_macs(architecture: Architecture, tokens: int, all_logits: bool = False) -> Macs:
    """A prompt of so many positions, pictures' included, in one pass.

    Logits of the last position alone, or of all of them, as the official code computes.
    """
    return _text_macs(architecture, tokens, tokens, tokens if all_logits else 1)


def decode_macs(architecture: Architecture, context: int) -> Macs:
    """One token after which the context, the token included, is so long."""
    return _text_macs(architecture, 1, context, 1)


def _text_macs(architecture: Architecture, new: int, keys: int, logits: int) -> Macs:
    text = architecture.text
    return Macs(
        linear=new * text.layers * _matrix_weights(architecture),
        attention=2 * text.layers * new * keys * text.hidden,
        lm_head=logits * text.vocab * text.hidden,
    )


def _matrix_weights(architecture: Architecture) -> int:
    """Weights of the matrices of one decoder layer."""
    keys = layouts.official_keys(architecture).items()
    return sum(math.prod(s) for k, s in keys if re.match(r"model\.layers\.0\..*\.weight$", k) and len(s) == 2)


# ---------------------------------------------------------------------------------------------------------------------
# Bytes moved


def kv_bytes_per_token(architecture: Architecture, kv_bytes: int = _HALF) -> int:
    """What one position takes in the cache, each number in `kv_bytes` bytes."""
    text = architecture.text
    return 2 * text.layers * text.kv_heads * text.head_dim * kv_bytes


def vision_bytes(architecture: Architecture, precision: Precision, whole_tower: bool = False) -> int:
    """Weights of the tower and of the projector; those that change nothing are left out unless `whole_tower`."""
    return sum(
        _bytes(shape, precision)
        for key, shape in layouts.official_keys(architecture).items()
        if key.startswith((layouts.TOWER, layouts.PROJECTOR)) and (whole_tower or layouts.is_run(architecture, key))
    )


def prefill_bytes(architecture: Architecture, precision: Precision, tokens: int, kv_bytes: int = _HALF) -> int:
    """The decoder's and the head's weights once, and the cache of all positions written."""
    return _text_bytes(architecture, precision) + tokens * kv_bytes_per_token(architecture, kv_bytes)


def decode_bytes(architecture: Architecture, precision: Precision, context: int, kv_bytes: int = _HALF) -> DecodeBytes:
    """One token after which the context, the token included, is so long: its own key and value are written, not read.

    A sliding window is not considered: with Phi-3 this holds up to its 2047 positions.
    """
    position = kv_bytes_per_token(architecture, kv_bytes)
    row = _bytes((1, architecture.text.hidden), precision)
    return DecodeBytes(_text_bytes(architecture, precision), row, (context - 1) * position, position)


def _text_bytes(architecture: Architecture, precision: Precision) -> int:
    stored = stored_bytes(architecture, precision)
    return sum(stored[m] for m in PER_TOKEN)


# ---------------------------------------------------------------------------------------------------------------------
# For a run


def costs(
    architecture: Architecture, precision: Precision, kv_bytes: int = _HALF, pictures: int = 1
) -> dict[str, dict[str, list[int]]]:
    """Phase -> {"macs": [c0, c1, c2], "bytes": [b0, b1, b2]}, in the form of `Runner.load`'s fact of that name.

    A step on t tokens, after which the context is k, takes c0 + c1 t + c2 t k MACs and moves b0 + b1 t + b2 k bytes.
    `vision` is that of all the item's `pictures` (weights read once) and has no tokens; `prefill` gives the logits of
    the last position alone; `decode` takes one token a step.
    """
    text = architecture.text
    weights, position = _text_bytes(architecture, precision), kv_bytes_per_token(architecture, kv_bytes)
    per_picture = vision_macs(architecture).total + projector_macs(architecture)
    macs = [text.vocab * text.hidden, text.layers * _matrix_weights(architecture), 2 * text.layers * text.hidden]
    row = decode_bytes(architecture, precision, 1, kv_bytes).embed_row
    return {
        "vision": {
            "macs": [pictures * per_picture, 0, 0],
            "bytes": [vision_bytes(architecture, precision) if pictures else 0, 0, 0],
        },
        "prefill": {"macs": list(macs), "bytes": [weights, position, 0]},
        # k - 1 positions are read and one is written: k in all.
        "decode": {"macs": list(macs), "bytes": [weights, row, position]},
    }
