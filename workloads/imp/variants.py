"""The published Imp checkpoints.

Sources: the repository MILVLG/imp @ 363a9bb, the hub's config.json and generation_config.json files, arXiv 2405.12107.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edgewatt.workloads.vlm.architecture import SIGLIP_384, Architecture, Text, Variant

_PHI_2 = Text(
    kind="phi",
    hidden=2560,
    mlp=10240,
    layers=32,
    heads=32,
    kv_heads=32,
    vocab=51200,
    positions=3072,  # Imp's; the base model was trained with 2048
    eps=1e-5,
    rope_theta=10000.0,
    rotary_share=0.4,
)
_QWEN_1_5_1_8B = Text(
    kind="qwen2",
    hidden=2048,
    mlp=5504,
    layers=24,
    heads=16,
    kv_heads=16,
    vocab=151936,
    positions=32768,
    eps=1e-6,
    rope_theta=1000000.0,
)
_PHI_3_MINI = Text(
    kind="phi3",
    hidden=3072,
    mlp=8192,
    layers=32,
    heads=32,
    kv_heads=32,
    vocab=32064,
    positions=4096,
    eps=1e-5,
    rope_theta=10000.0,
    sliding_window=2047,
)


def _phi2(name: str, hub_id: str, image_px: int = 384) -> Variant:
    architecture = Architecture(
        system="imp",
        vision=SIGLIP_384,
        text=_PHI_2,
        projector="mlp2x_gelu",
        image_mode="square",
        template="phi2",
        max_length=3072,
        eos_ids=(50295,),
        pad_id=50256,
    )
    return Variant(name, hub_id, architecture.at(image_px), "float16")


_QWEN = Architecture(
    system="imp",
    vision=SIGLIP_384,
    text=_QWEN_1_5_1_8B,
    projector="mlp2x_gelu",
    image_mode="square",
    template="qwen2",
    max_length=2560,
    eos_ids=(151645, 151643),
    pad_id=151645,
)
_PHI3 = Architecture(
    system="imp",
    vision=SIGLIP_384,
    text=_PHI_3_MINI,
    projector="mlp2x_gelu",
    image_mode="pad",
    template="phi3",
    max_length=2560,
    eos_ids=(32000, 32001, 32007),
    bos_id=1,
    pad_id=32000,
)

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        v.name: v
        for v in (
            _phi2("v1-3b", "MILVLG/imp-v1-3b"),
            Variant("v1.5-2b-qwen", "MILVLG/Imp-v1.5-2B-Qwen1.5", _QWEN, "float16"),
            _phi2("v1.5-3b-phi2", "MILVLG/Imp-v1.5-3B-Phi2"),
            _phi2("v1.5-3b-196", "MILVLG/Imp-v1.5-3B-196", image_px=196),
            Variant("v1.5-4b-phi3", "MILVLG/Imp-v1.5-4B-Phi3", _PHI3, "bfloat16"),
        )
    }
)
