"""What a vision-language network is made of, as numbers: read from a checkpoint's config.json, no weights, no torch.

Sources: MobileVLM @ 688fdec (Meituan-AutoML), Imp @ 363a9bb (MILVLG), and the config.json files on their hub pages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from edgewatt.harness.api import UsageError
from edgewatt.workloads.foreign import shown

System = Literal["mobilevlm", "imp"]
TextKind = Literal["llama", "phi", "qwen2", "phi3"]
Template = Literal["v1", "phi2", "qwen2", "phi3"]

IMAGE_TOKEN = -200  # stands for a picture among the token ids; never looked up in the embedding table


@dataclass(frozen=True)
class Vision:
    """The tower. `layers` are those of the checkpoint, `layers_run` those whose output is used."""

    kind: Literal["clip", "siglip"]
    hidden: int
    mlp: int
    layers: int
    layers_run: int
    heads: int
    patch: int  # side of a patch in pixels
    image_px: int  # side of the square picture
    eps: float

    @property
    def grid(self) -> int:
        """Patches along one side; pixels left over at the right and the bottom are not seen."""
        return self.image_px // self.patch

    @property
    def tokens(self) -> int:
        """Patch features of one picture (CLIP's class token is dropped)."""
        return self.grid**2

    @property
    def positions(self) -> int:
        """Rows of the position table."""
        return self.tokens + (self.kind == "clip")


@dataclass(frozen=True)
class Text:
    """The language model."""

    kind: TextKind
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int  # rows of the embedding table and of lm_head, padding rows included
    positions: int  # the most tokens, pictures' included, that it is made for
    eps: float
    rope_theta: float
    rotary_share: float = 1.0  # of each head's dimensions that are rotated
    sliding_window: int | None = None  # keys a query sees, itself included; None: all before it

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Architecture:
    """One network with what belongs to its checkpoint: how pictures and prompts are prepared, when answers end."""

    system: System
    vision: Vision
    text: Text
    projector: str  # ldpnet, ldpnetv2, linear or mlpKx_gelu
    image_mode: Literal["pad", "crop", "square"]  # pad to a square; short side to size, centre crop; squash
    template: Template
    max_length: int | None  # longest prompt in tokens, pictures' included; None: text.positions
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None
    pad_id: int | None = None

    @property
    def image_tokens(self) -> int:
        """Embeddings one picture takes in the prompt."""
        if self.projector == "ldpnet":
            return math.ceil(self.vision.grid / 2) ** 2
        if self.projector == "ldpnetv2":
            return LDPV2_GRID**2
        return self.vision.tokens

    @property
    def prompt_limit(self) -> int:
        """The longest prompt, in tokens, pictures' included."""
        return min(self.text.positions, self.max_length or self.text.positions)

    def at(self, image_px: int) -> Architecture:
        """The same network for pictures of another side: only the position table (SigLIP, CLIP) has another shape."""
        return replace(self, vision=replace(self.vision, image_px=_size(image_px, self.vision.patch)))


@dataclass(frozen=True)
class Variant:
    """One published checkpoint."""

    name: str
    hub_id: str
    architecture: Architecture
    dtype: Literal["bfloat16", "float16"]  # of the weights on the hub


LDPV2_GRID = 12  # LDPv2 pools any grid to 12 x 12

CLIP_336 = Vision("clip", 1024, 4096, 24, 23, heads=16, patch=14, image_px=336, eps=1e-5)
SIGLIP_384 = Vision("siglip", 1152, 4304, 26, 26, heads=16, patch=14, image_px=384, eps=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# From config.json

_FAMILIES: Mapping[str, TextKind] = {"mobilevlm": "llama", "imp": "phi", "imp_qwen2": "qwen2", "imp_phi3": "phi3"}
_TEMPLATES: Mapping[TextKind, Template] = {"llama": "v1", "phi": "phi2", "qwen2": "qwen2", "phi3": "phi3"}
_ACTIVATIONS = {"llama": "silu", "phi": "gelu_new", "qwen2": "silu", "phi3": "silu"}
_VISION_ACTIVATIONS = {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"}

# What a published config.json may leave out. Phi-2's own numbers are in none of Imp's: they come from the repository's
# config class (transformers' PhiConfig has others); shapes are checked against the weights later, the rotary share
# cannot be.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "mobilevlm": {
        **{"vocab_size": 32000, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048},
        **{"max_sequence_length": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    },
    "imp": {
        **{"vocab_size": 51200, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "layer_norm_eps": 1e-5, "rope_theta": 10000.0, "partial_rotary_factor": 0.4},
        **{"max_position_embeddings": 3072, "bos_token_id": None, "eos_token_id": 50295, "pad_token_id": 50256},
    },
    "imp_qwen2": {
        **{"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 32768},
        **{"bos_token_id": None, "eos_token_id": (151645, 151643), "pad_token_id": 151645},
    },
    "imp_phi3": {
        **{"vocab_size": 32064, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096},
        **{"sliding_window": 2047, "bos_token_id": 1, "eos_token_id": (32000, 32001, 32007), "pad_token_id": 32000},
    },
}
_MOST = {"layers": 256, "width": 2**17, "rows": 2**21}  # beyond any of their kind: a damaged or hostile file


def of_config(
    system: System,
    config: Mapping[str, Any],
    vision_config: Mapping[str, Any] | None = None,
    size_px: int | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> Architecture:
    """The architecture a checkpoint's config.json describes.

    Args:
        system: whose checkpoint it is to be.
        config: config.json, as on the hub; or with the parts `llm` and `vision` apart.
        vision_config: the tower's own config.json; None: the part inside `config`, or the one `mm_vision_tower` names.
        size_px: side of the picture, where the tower's config says another.
        generation_config: generation_config.json, whose end-of-answer ids come first.

    Raises:
        UsageError: another kind of network, or numbers that cannot be.
    """
    where = "config.json"
    if "peft_type" in config:
        raise UsageError(
            f"{where}: a LoRA adapter ({config['peft_type']}), not a whole model; merge it into its base model first"
        )
    kind = config.get("model_type")
    wanted = [k for k in _FAMILIES if k.partition("_")[0] == system]
    if not isinstance(kind, str) or kind not in wanted:
        raise UsageError(f"{where}: model_type is {shown(kind)}, not {' or '.join(wanted)}; give a {system} checkpoint")
    flat = {**_DEFAULTS[kind], **{k: v for k, v in config.items() if v is not None or k.endswith("_token_id")}}
    flat |= {k: v for k, v in _part(config, "llm").items() if v is not None or k.endswith("_token_id")}
    text = _text(_FAMILIES[kind], flat)
    vision = _vision(system, flat, vision_config if vision_config is not None else _inner_tower(config))
    if size_px is not None:
        vision = replace(vision, image_px=_size(size_px, vision.patch))
    _fixed(flat, "mm_vision_select_layer", -2)
    _fixed(flat, "mm_vision_select_feature", "patch")
    _fixed(flat, "mm_use_im_start_end", False)
    _fixed(flat, "mm_use_im_patch_token", False)
    if flat.get("mm_hidden_size", vision.hidden) != vision.hidden:
        raise UsageError(
            f"{where}: mm_hidden_size is {shown(flat['mm_hidden_size'])}, the tower is {vision.hidden} wide; "
            "give the tower's own config"
        )
    ends = generation_config if generation_config and "eos_token_id" in generation_config else flat
    limit = "max_sequence_length" if system == "mobilevlm" else "tokenizer_model_max_length"
    padded = flat.get("image_aspect_ratio") == "pad"
    return Architecture(
        system=system,
        vision=vision,
        text=text,
        projector=_projector(system, flat.get("mm_projector_type")),
        image_mode="pad" if padded else "crop" if system == "mobilevlm" else "square",
        template=_TEMPLATES[text.kind],
        max_length=_whole(flat, limit, "rows") if flat.get(limit) is not None else None,
        eos_ids=_ids(ends, "eos_token_id"),
        bos_id=next(iter(_ids(flat, "bos_token_id")), None),
        pad_id=next(iter(_ids(flat, "pad_token_id")), None),
    )


def _text(kind: TextKind, flat: Mapping[str, Any]) -> Text:
    rope = _part(flat, "rope_parameters")
    theta = rope.get("rope_theta", flat.get("rope_theta"))
    share = rope.get("partial_rotary_factor", flat.get("partial_rotary_factor", 1.0))
    heads = _whole(flat, "num_attention_heads", "width")
    window = flat.get("sliding_window")
    if kind == "qwen2" and flat.get("use_sliding_window"):
        raise UsageError("config.json: use_sliding_window is on; no Imp checkpoint has it, and it is not built here")
    _fixed(flat, "hidden_act", _ACTIVATIONS[kind])
    _fixed(flat, "tie_word_embeddings", False)
    _fixed(flat, "qk_layernorm", False)
    if flat.get("rope_scaling") is not None or rope.get("rope_type", "default") != "default":
        raise UsageError("config.json: rope_scaling is set; none of the published checkpoints has it, nor is it built")
    text = Text(
        kind=kind,
        hidden=_whole(flat, "hidden_size", "width"),
        mlp=_whole(flat, "intermediate_size", "width"),
        layers=_whole(flat, "num_hidden_layers", "layers"),
        heads=heads,
        kv_heads=_whole(flat, "num_key_value_heads", "width") if "num_key_value_heads" in flat else heads,
        vocab=_whole(flat, "vocab_size", "rows"),
        positions=_whole(flat, "max_position_embeddings", "rows"),
        eps=_positive(flat, "layer_norm_eps" if kind == "phi" else "rms_norm_eps"),
        rope_theta=_positive({"rope_theta": theta}, "rope_theta"),
        rotary_share=_positive({"partial_rotary_factor": share}, "partial_rotary_factor"),
        sliding_window=_whole(flat, "sliding_window", "rows") if kind == "phi3" and window is not None else None,
    )
    _divides(text.hidden, text.heads, "hidden_size", "num_attention_heads")
    _divides(text.heads, text.kv_heads, "num_attention_heads", "num_key_value_heads")
    if kind != "phi" and text.rotary_share != 1:
        raise UsageError(f"config.json: partial_rotary_factor is {text.rotary_share}; only Phi-2 rotates a part")
    if text.rotary_share > 1 or int(text.head_dim * text.rotary_share) % 2:
        raise UsageError(
            f"config.json: partial_rotary_factor {text.rotary_share} of a head of {text.head_dim} is no even part of it"
        )
    return text


def _vision(system: System, flat: Mapping[str, Any], tower: Mapping[str, Any] | None) -> Vision:
    known = CLIP_336 if system == "mobilevlm" else SIGLIP_384
    if tower is None:
        return _named_tower(flat.get("mm_vision_tower"), known)
    tower = tower.get("vision_config") or tower  # that of the whole two-tower model has it inside
    if not isinstance(tower, Mapping):
        raise UsageError("the tower's config.json: vision_config is not an object; copy the file again")
    _fixed(tower, "hidden_act", _VISION_ACTIVATIONS[known.kind])
    _fixed(tower, "num_channels", 3)
    defaults = {
        "hidden_size": known.hidden,
        "intermediate_size": known.mlp,
        "num_hidden_layers": known.layers_run + 1,
        "num_attention_heads": known.heads,
        "patch_size": known.patch,
        "image_size": known.image_px,
        "layer_norm_eps": known.eps,
    }
    filled = {**defaults, **{k: v for k, v in tower.items() if v is not None}}
    layers = _whole(filled, "num_hidden_layers", "layers")
    if layers < 2:
        raise UsageError(f"config.json: a tower of {layers} layer has no last but one to take features from")
    vision = Vision(
        kind=known.kind,
        hidden=_whole(filled, "hidden_size", "width"),
        mlp=_whole(filled, "intermediate_size", "width"),
        layers=layers - (known.kind == "siglip"),  # Imp's checkpoints are without the layer that is not run
        layers_run=layers - 1,
        heads=_whole(filled, "num_attention_heads", "width"),
        patch=_whole(filled, "patch_size", "width"),
        image_px=_whole(filled, "image_size", "width"),
        eps=_positive(filled, "layer_norm_eps"),
    )
    _divides(vision.hidden, vision.heads, "hidden_size (tower)", "num_attention_heads")
    _size(vision.image_px, vision.patch)
    return vision


def _inner_tower(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for name in ("vision_tower_config", "vision"):
        if config.get(name) is not None:
            return _part(config, name)
    return None


def _named_tower(name: object, known: Vision) -> Vision:
    """The tower a name stands for: `openai/clip-vit-large-patch14-336`, `.../siglip-so400m-patch14-384` or `-196`."""
    stem = {"clip": r"clip-vit-large-patch14-(\d+)", "siglip": r"siglip-so400m-patch14-(\d+)"}[known.kind]
    found = re.search(stem + "/?$", name) if isinstance(name, str) else None
    if not found:
        raise UsageError(f"config.json: the tower {shown(name)} is not known here; give its own config.json too")
    return replace(known, image_px=_size(int(found[1]), known.patch))


def _projector(system: System, name: object) -> str:
    if isinstance(name, str):
        if system == "mobilevlm" and name.startswith("ldpnet"):
            return "ldpnetv2" if name.startswith("ldpnetv2") else "ldpnet"
        if name == "linear" or re.fullmatch(r"mlp[1-9]x_gelu", name):
            return name
    kinds = ("ldpnet, ldpnetv2, " if system == "mobilevlm" else "") + "linear, mlpKx_gelu"
    raise UsageError(f"config.json: mm_projector_type is {shown(name)}, none of {kinds}; is it another model's?")


# ---------------------------------------------------------------------------------------------------------------------
# Values out of an untrusted file


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    if part is None:
        return {}
    if not isinstance(part, Mapping):
        raise UsageError(f"config.json: {name} is {shown(part)}, not an object; copy the file again")
    return part


def _whole(config: Mapping[str, Any], name: str, what: str) -> int:
    value = config.get(name)
    if value is None:
        raise UsageError(f"config.json: {name} is missing; give the whole config.json of the checkpoint")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST[what]:
        raise UsageError(f"config.json: {name} is {shown(value)}, not a whole number from 1 to {_MOST[what]}")
    return value


def _positive(config: Mapping[str, Any], name: str) -> float:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UsageError(f"config.json: {name} is {shown(value)}, not a number above 0")
    return float(value)


def _ids(config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = config.get(name)
    values = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
    if any(isinstance(v, bool) or not isinstance(v, int) or not 0 <= v < _MOST["rows"] for v in values):
        raise UsageError(f"config.json: {name} is {shown(value)}, not a token id or a list of them")
    return values


def _fixed(config: Mapping[str, Any], name: str, wanted: object) -> None:
    value = config.get(name, wanted)
    if value is not None and value != wanted:
        raise UsageError(f"config.json: {name} is {shown(value)}, only {shown(wanted)} is built here")


def _divides(whole: int, part: int, whole_name: str, part_name: str) -> None:
    if whole % part:
        raise UsageError(f"config.json: {whole_name} {whole} cannot be shared among {part_name} {part}")


def _size(image_px: int, patch: int) -> int:
    if not patch <= image_px <= 64 * patch:
        raise UsageError(f"pictures of {image_px} pixels a side; patches of {patch} want {patch} to {64 * patch}")
    return image_px
