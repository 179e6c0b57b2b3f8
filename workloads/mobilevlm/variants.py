"""The published MobileVLM checkpoints.

Sources: the hub's config.json files, arXiv 2312.16886 table 2 and arXiv 2402.03766; counts checked on the official code
except V2-7B's (Vicuna-7B-v1.5 with LDPv2), which is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edgewatt.workloads.vlm.architecture import CLIP_336, Architecture, Text, Variant

# MobileLLaMA. The RMS norm's eps of the 2.7B model is in no source we could read: 1e-6 as in the 1.4B one, until a
# checkpoint's config.json says otherwise.
_LLAMA_1_4B = Text(
    kind="llama",
    hidden=2048,
    mlp=5632,
    layers=24,
    heads=16,
    kv_heads=16,
    vocab=32000,
    positions=2048,
    eps=1e-6,
    rope_theta=10000.0,
)
_LLAMA_2_7B = Text(
    kind="llama",
    hidden=2560,
    mlp=6912,
    layers=32,
    heads=32,
    kv_heads=32,
    vocab=32000,
    positions=2048,
    eps=1e-6,
    rope_theta=10000.0,
)
_VICUNA_7B = Text(
    kind="llama",
    hidden=4096,
    mlp=11008,
    layers=32,
    heads=32,
    kv_heads=32,
    vocab=32000,
    positions=4096,
    eps=1e-5,
    rope_theta=10000.0,
)


def _variant(name: str, hub_id: str, text: Text, projector: str) -> Variant:
    architecture = Architecture(
        system="mobilevlm",
        vision=CLIP_336,
        text=text,
        projector=projector,
        image_mode="pad",
        template="v1",
        max_length=2048,
        eos_ids=(2,),
        bos_id=1,
        pad_id=0,
    )
    return Variant(name, hub_id, architecture, "bfloat16")


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        v.name: v
        for v in (
            _variant("v1-1.7b", "mtgv/MobileVLM-1.7B", _LLAMA_1_4B, "ldpnet"),
            _variant("v1-3b", "mtgv/MobileVLM-3B", _LLAMA_2_7B, "ldpnet"),
            _variant("v2-1.7b", "mtgv/MobileVLM_V2-1.7B", _LLAMA_1_4B, "ldpnetv2"),
            _variant("v2-3b", "mtgv/MobileVLM_V2-3B", _LLAMA_2_7B, "ldpnetv2"),
            _variant("v2-7b", "mtgv/MobileVLM_V2-7B", _VICUNA_7B, "ldpnetv2"),
        )
    }
)
