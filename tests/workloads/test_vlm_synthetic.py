"""Synthetic weights: which numbers they are, on every machine, and that networks made of them behave."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgewatt.workloads.vlm import network, synthetic  # noqa: E402
from edgewatt.workloads.vlm.architecture import Architecture, Text, Vision  # noqa: E402

pytestmark = [pytest.mark.needs_torch, pytest.mark.usefixtures("one_thread")]


MATRIX = "model.layers.0.mlp.up_proj.weight"


def test_a_weight_is_a_quantile_chosen_by_sixteen_bits_of_philox():
    key = hashlib.sha256(f"7 {MATRIX}".encode()).digest()[:16]
    draw = np.random.Philox(key=int.from_bytes(key, "little"))
    first = int(draw.random_raw())
    wanted = [NormalDist(0, 64**-0.5).inv_cdf(((first >> 16 * i & 0xFFFF) + 0.5) / 65536) for i in range(4)]
    found = synthetic.tensor(MATRIX, (32, 64), 7, torch.float32)
    assert found.flatten()[:4].tolist() == pytest.approx(wanted, rel=1e-6)


def test_a_tensor_depends_on_seed_and_key_alone():
    keys = {MATRIX: (48, 64), "model.norm.weight": (64,), "lm_head.weight": (100, 64)}
    first = dict(synthetic.tensors(keys, 1))
    turned = dict(synthetic.tensors(dict(reversed(keys.items())), 1))
    other = dict(synthetic.tensors(keys, 2))
    assert all(torch.equal(first[k], turned[k]) and not torch.equal(first[k], other[k]) for k in keys)
    assert list(first) == ["lm_head.weight", MATRIX, "model.norm.weight"]  # the largest first


def test_dtypes_hold_the_same_weights_rounded():
    exact = synthetic.tensor(MATRIX, (48, 64), 1, torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(synthetic.tensor(MATRIX, (48, 64), 1, dtype), exact.to(dtype))


@pytest.mark.parametrize(
    ("key", "shape", "mean", "deviation"),
    [
        (MATRIX, (1100, 2048), 0, 2048**-0.5),  # more than one block
        ("model.embed_tokens.weight", (500, 256), 0, 0.02),
        ("model.vision_tower.vision_tower.vision_model.embeddings.position_embedding.weight", (577, 64), 0, 0.02),
        ("transformer.vision_tower.embeddings.patch_embedding.weight", (96, 3, 14, 14), 0, 588**-0.5),
        ("model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias", (4096,), 0, 0.02),
        ("model.mm_projector.peg.peg.0.weight", (2048, 1, 3, 3), 0, 1 / 3),
        ("model.layers.3.input_layernorm.weight", (4096,), 1, 0.1),
    ],
)  # fmt: skip
def test_statistics_are_those_of_trained_weights(key, shape, mean, deviation):
    drawn = synthetic.tensor(key, shape, 0, torch.float32).double()
    n = drawn.numel()
    assert drawn.mean().item() == pytest.approx(mean, abs=4 * deviation / n**0.5)
    assert drawn.std().item() == pytest.approx(deviation, rel=4 / (2 * n) ** 0.5)
    within = ((drawn - mean).abs() < deviation).double().mean().item()
    assert within == pytest.approx(0.6827, abs=2 / n**0.5)
    assert (drawn - mean).abs().max().item() < 4.4 * deviation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fan_in", [64, 10240])
def test_no_weight_is_zero(dtype, fan_in):
    assert bool((synthetic.tensor(MATRIX, ((1 << 19) // fan_in, fan_in), 0, dtype) != 0).all())


DEEP = Architecture(
    system="mobilevlm",
    vision=Vision("clip", 64, 128, 24, 23, heads=2, patch=14, image_px=56, eps=1e-5),
    text=Text("llama", 64, 160, 32, heads=2, kv_heads=2, vocab=300, positions=512, eps=1e-6, rope_theta=1e4),
    projector="ldpnet",
    image_mode="pad",
    template="v1",
    max_length=None,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "phi"])
def test_activations_keep_their_size_through_thirty_two_layers(kind, dtype):
    architecture = DEEP if kind == "llama" else replace(
        DEEP, system="imp", vision=replace(DEEP.vision, kind="siglip", layers=23),
        text=replace(DEEP.text, kind="phi", rotary_share=0.5), projector="mlp2x_gelu",
    )  # fmt: skip
    vlm = network.empty(architecture)
    for key, tensor in synthetic.tensors(vlm.official_keys(), 3, dtype):
        vlm.place(key, tensor)
    features = vlm.features(torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    embeds = vlm.spliced([1, -200, 5, 6], vlm.projector(features))
    logits, cache = vlm.prefill(embeds)
    logits = vlm.decode(int(logits.argmax()), cache).float()
    assert 0.1 < features.float().std() < 50
    assert logits.isfinite().all() and 0.3 < logits.std() < 3


@pytest.mark.needs_shared
def test_every_published_tensor_has_statistics_of_its_kind(shared):
    """Norms about 1, biases and tables 0.02, the rest by fan-in: for all keys of all variants."""
    for path in sorted((shared / "data" / "golden").glob("*/manifest_*.json")):
        if path.stem.endswith("msft-layout"):
            continue
        manifest = json.loads(path.read_text())
        for key, shape in manifest.get("state_dict", manifest).items():
            mean, deviation = synthetic._statistics(key, tuple(shape))
            is_norm = key.endswith("norm.weight") or "layer_norm" in key or "layrnorm" in key or "layernorm" in key
            is_norm |= key.endswith((".0.1.weight", ".2.1.weight"))  # LDP's
            assert (mean == 1) == (is_norm and key.endswith("weight")), key
            if key.endswith(".bias") or "class_emb" in key or "position_emb" in key or "embed_tokens" in key:
                assert deviation == 0.02, key
