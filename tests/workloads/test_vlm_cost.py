"""What the networks cost on paper, against published tables, counts of the official code and counts by hand.

Tables: shared/specs/mobilevlm.md sections 4.3 and 9, imp.md sections 14 to 16; tests/data/vlm_cost/imp_analytic.json is
shared/data/golden/imp/analytic.json, made with the official code.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewatt.workloads.imp.variants import VARIANTS as IMP
from edgewatt.workloads.mobilevlm.variants import VARIANTS as MOBILEVLM
from edgewatt.workloads.vlm import cost
from edgewatt.workloads.vlm.architecture import Architecture, Text, Vision

ANALYTIC = json.loads((Path(__file__).parent.parent / "data/vlm_cost/imp_analytic.json").read_text())["variants"]
OURS = {
    "Imp-v1-3B": "v1-3b",
    "Imp-v1.5-3B-Phi2": "v1.5-3b-phi2",
    "Imp-v1.5-3B-196": "v1.5-3b-196",
    "Imp-v1.5-2B-Qwen1.5": "v1.5-2b-qwen",
    "Imp-v1.5-4B-Phi3": "v1.5-4b-phi3",
}
EVERY = [v.architecture for v in (*MOBILEVLM.values(), *IMP.values())]


def mobilevlm(name):
    return MOBILEVLM[name].architecture


# ---------------------------------------------------------------------------------------------------------------------
# Imp, against the counts of the official code


@pytest.fixture(params=OURS)
def imp(request):
    return IMP[OURS[request.param]].architecture, ANALYTIC[request.param]


@pytest.mark.needs_shared
def test_copy_of_the_golden_counts_is_the_golden_file(shared):
    golden = json.loads((shared / "data/golden/imp/analytic.json").read_text())
    assert golden["variants"] == ANALYTIC


def test_parameters_of_imp(imp):
    architecture, wanted = imp
    assert cost.parameters(architecture) == wanted["params"]


def test_bytes_of_imp_in_16_bits_and_in_q4f16_1(imp):
    architecture, wanted = imp
    assert cost.stored_bytes(architecture, "fp16")["total"] == wanted["bytes_fp16_total"]
    four = cost.stored_bytes(architecture, "int4")
    assert {m: four[m] for m in wanted["bytes_q4f16_1"]} == wanted["bytes_q4f16_1"]


def test_macs_of_imps_tower_and_projector(imp):
    architecture, wanted = imp
    vision = cost.vision_macs(architecture)
    assert architecture.vision.tokens == wanted["macs"]["vision"]["tokens"]
    for kind in ("conv", "linear", "attention", "total"):
        assert getattr(vision, kind) == wanted["macs"]["vision"][kind], kind
    assert cost.projector_macs(architecture) == wanted["macs"]["projector"]


@pytest.mark.parametrize(("all_logits", "name"), [(False, "prefill_last_logit_only"), (True, "prefill_all_logits")])
def test_macs_of_imps_prefill(imp, all_logits, name):
    architecture, wanted = imp
    found = cost.prefill_macs(architecture, wanted["macs"]["prefill_T"], all_logits)
    for kind in ("linear", "attention", "lm_head", "total"):
        assert getattr(found, kind) == wanted["macs"][name][kind], kind


def test_macs_of_imps_decoding(imp):
    architecture, wanted = imp
    found = cost.decode_macs(architecture, wanted["macs"]["decode_at_kv"])
    for kind in ("linear", "attention", "lm_head", "total"):
        assert getattr(found, kind) == wanted["macs"]["decode"][kind], kind


@pytest.mark.parametrize(("precision", "name"), [("fp16", "decode_bytes_fp16"), ("int4", "decode_bytes_q4f16_1")])
def test_bytes_of_imps_decoding(imp, precision, name):
    architecture, wanted = imp
    found = cost.decode_bytes(architecture, precision, wanted["macs"]["decode_at_kv"])
    for part in ("weights", "embed_row", "kv_read", "kv_write", "total"):
        assert getattr(found, part) == wanted[name][part], part
    assert cost.kv_bytes_per_token(architecture) == wanted["kv_cache_bytes_per_token_fp16"]


# ---------------------------------------------------------------------------------------------------------------------
# MobileVLM, against the tables of its specification

# embed_tokens, decoder_layers, final_norm, lm_head, llm_total
LLM_1_4B = (65_536_000, 1_233_223_680, 2_048, 65_536_000, 1_364_297_728)
LLM_2_7B = (81_920_000, 2_537_717_760, 2_560, 81_920_000, 2_701_560_320)
TOWER = 303_507_456


@pytest.mark.parametrize(
    ("name", "llm", "projector", "total"),
    [
        ("v1-1.7b", LLM_1_4B, 18_936_832, 1_686_742_016),
        ("v1-3b", LLM_2_7B, 28_913_920, 3_033_981_696),
        ("v2-1.7b", LLM_1_4B, 6_316_032, 1_674_121_216),
        ("v2-3b", LLM_2_7B, 9_205_760, 3_014_273_536),
    ],
)
def test_parameters_of_mobilevlm(name, llm, projector, total):
    found = cost.parameters(mobilevlm(name))
    assert tuple(found[m] for m in (*cost.TEXT_MODULES, "llm_total")) == llm
    assert (found["vision_tower"], found["mm_projector"], found["total"]) == (TOWER, projector, total)


@pytest.mark.needs_shared
@pytest.mark.parametrize(
    ("name", "variant"),
    [("v1-1.7b", "MobileVLM-1.7B"), ("v1-3b", "MobileVLM-3B"), ("v2-1.7b", "MobileVLM_V2-1.7B"),
     ("v2-3b", "MobileVLM_V2-3B")],
)  # fmt: skip
def test_parameters_are_those_of_the_official_module(shared, name, variant):
    counts = json.loads((shared / f"data/golden/mobilevlm/manifest_{variant}.json").read_text())["counts"]
    found = cost.parameters(mobilevlm(name))
    assert found["total"] == counts["total"]
    assert found["vision_tower"] == counts["vision_tower"]


def test_macs_of_clip_needed_and_as_the_official_code_runs_it():
    found = cost.vision_macs(mobilevlm("v1-1.7b"))
    assert found.total == 183_016_929_280
    assert found.conv == 346_816_512
    whole = cost.vision_macs(mobilevlm("v1-1.7b"), layers=24)
    assert whole.total == 190_959_108_096
    assert whole.total - found.total == 7_942_178_816


@pytest.mark.parametrize(
    ("name", "macs"),
    [("v1-1.7b", 6_661_242_880), ("v1-3b", 10_026_557_440), ("v2-1.7b", 3_626_532_864), ("v2-3b", 5_288_140_800)],
)
def test_macs_of_both_projectors(name, macs):
    assert cost.projector_macs(mobilevlm(name)) == macs


@pytest.mark.parametrize(
    ("tokens", "small", "large"),
    [(1, 1_298_759_680, 2_619_637_760), (191, 251_630_551_040, 506_296_565_760),
     (246, 325_419_663_360, 654_305_525_760)],
)  # fmt: skip
def test_macs_of_mobilevlms_prefill_with_all_logits(tokens, small, large):
    assert cost.prefill_macs(mobilevlm("v1-1.7b"), tokens, all_logits=True).total == small
    assert cost.prefill_macs(mobilevlm("v2-3b"), tokens, all_logits=True).total == large
    saved = (tokens - 1) * 32000 * 2048
    assert cost.prefill_macs(mobilevlm("v1-1.7b"), tokens).total == small - saved


def test_macs_of_mobilevlms_decoding_at_a_context():
    # L (4 D^2 + 3 D F) + V D + 2 L c D
    wanted = 24 * (4 * 2048**2 + 3 * 2048 * 5632) + 32000 * 2048 + 2 * 24 * 300 * 2048
    assert cost.decode_macs(mobilevlm("v2-1.7b"), 300).total == wanted


@pytest.mark.parametrize(("name", "elements", "norms"), [
    ("v1-1.7b", 1_298_661_376, 24 * 2 * 2048 + 2048), ("v1-3b", 2_619_473_920, 32 * 2 * 2560 + 2560),
])  # fmt: skip
def test_weights_read_for_every_token(name, elements, norms):
    for precision, per_weight, per_norm in (("fp16", 2, 2), ("bf16", 2, 2), ("fp32", 4, 4), ("int4", 18 / 32, 2)):
        found = cost.decode_bytes(mobilevlm(name), precision, 1)
        assert found.weights == elements * per_weight + norms * per_norm, precision
        assert found.kv_read == 0


@pytest.mark.parametrize(("name", "position", "picture", "all_of_it"), [
    ("v1-1.7b", 196_608, 28_311_552, 402_653_184), ("v2-3b", 327_680, 47_185_920, 671_088_640),
])  # fmt: skip
def test_cache_of_a_position_a_picture_and_the_whole_context(name, position, picture, all_of_it):
    each = cost.kv_bytes_per_token(mobilevlm(name))
    assert (each, 144 * each, 2048 * each) == (position, picture, all_of_it)
    assert cost.kv_bytes_per_token(mobilevlm(name), 4) == 2 * position


def test_bytes_of_the_tower_without_what_is_never_used():
    v2 = mobilevlm("v2-1.7b")
    assert cost.vision_bytes(v2, "fp16", whole_tower=True) == 2 * (303_507_456 + 6_316_032)
    assert cost.vision_bytes(v2, "fp16") == 2 * (303_507_456 - 12_596_224 - 2_048 + 6_316_032)


def test_bytes_of_a_16_bit_checkpoint_are_those_of_the_published_file():
    # nwomn/openhalo: 3,348,242,432 tensor bytes in V2-1.7B's pytorch_model.bin
    assert cost.stored_bytes(mobilevlm("v2-1.7b"), "bf16")["total"] == 3_348_242_432


# ---------------------------------------------------------------------------------------------------------------------
# A network small enough to count by hand

# Tower: 8 x 8 pixels, patches of 4 -> 2 x 2 = 4; 6 wide, 10 in the MLP, 2 blocks kept, 2 run.
# Language model: 8 wide, 12 in the MLP, 3 layers, 4 heads of 2 of which 2 for keys; 20 rows.
TINY = Architecture(
    system="imp",
    vision=Vision("siglip", 6, 10, 2, 2, heads=2, patch=4, image_px=8, eps=1e-6),
    text=Text("qwen2", 8, 12, 3, heads=4, kv_heads=2, vocab=20, positions=64, eps=1e-6, rope_theta=1e4),
    projector="mlp2x_gelu",
    image_mode="square",
    template="qwen2",
    max_length=None,
)


def test_tiny_network_counted_by_hand():
    vision = cost.vision_macs(TINY)
    assert vision.conv == 4 * 6 * 3 * 16
    assert vision.linear == 2 * 4 * (4 * 36 + 2 * 60)
    assert vision.attention == 2 * (4 * 4 * 6 + 4 * 4 * 6), "scores and weighted sum, each patch with each"
    assert cost.projector_macs(TINY) == 4 * (6 * 8 + 8 * 8)
    # q and o are 8 x 8, k and v 4 x 8 (two heads of two serve four), gate, up and down 12 x 8
    layer = 2 * 64 + 2 * 32 + 3 * 96
    prefill = cost.prefill_macs(TINY, 5)
    assert (prefill.linear, prefill.lm_head) == (5 * 3 * layer, 160)
    assert prefill.attention == 3 * 2 * 5 * 5 * 8, "every query head works on every key"
    assert cost.kv_bytes_per_token(TINY) == 3 * 2 * (2 * 2) * 2, "layers, K and V, two heads of two, two bytes"


def test_tiny_network_in_bytes_by_hand():
    # Per layer: matrices above, biases of q (8), k and v (4 each), two norms of 8.
    weights, vectors = 3 * 480, 3 * (16 + 16) + 8
    head = 20 * 8
    found = cost.decode_bytes(TINY, "fp16", context=7)
    assert found.weights == 2 * (weights + vectors + head)
    assert (found.embed_row, found.kv_read, found.kv_write) == (16, 6 * 48, 48)
    assert cost.prefill_bytes(TINY, "fp16", 5) == 2 * (weights + vectors + head) + 5 * 48
    # In 4 bits each row of 8 or 12 is one group of 32: 16 bytes and its scale. Rows of a layer: q 8, k 4, v 4, o 8,
    # gate 12, up 12, down 8; the head's 20.
    assert cost.decode_bytes(TINY, "int4", 1).weights == (3 * 56 + 20) * 18 + 2 * vectors
    # In 8 bits a row is its weights and a 16-bit scale.
    assert cost.decode_bytes(TINY, "int8", 1).weights == weights + head + 2 * (3 * 56 + 20) + 2 * vectors
    assert cost.decode_bytes(TINY, "fp32", 1).weights == 4 * (weights + vectors + head)


# ---------------------------------------------------------------------------------------------------------------------
# In the form the run loop multiplies with


def priced(entry, tokens, context):
    macs, moved = entry["macs"], entry["bytes"]
    return (
        macs[0] + macs[1] * tokens + macs[2] * tokens * context,
        moved[0] + moved[1] * tokens + moved[2] * context,
    )


@given(st.sampled_from(EVERY), st.sampled_from(["fp32", "bf16", "int8", "int4"]), st.integers(1, 3000),
       st.sampled_from([2, 4]))  # fmt: skip
@settings(deadline=None, max_examples=50)
def test_costs_are_the_same_figures(architecture, precision, k, kv_bytes):
    found = cost.costs(architecture, precision, kv_bytes)
    assert priced(found["prefill"], k, k) == (
        cost.prefill_macs(architecture, k).total,
        cost.prefill_bytes(architecture, precision, k, kv_bytes),
    )
    assert priced(found["decode"], 1, k) == (
        cost.decode_macs(architecture, k).total,
        cost.decode_bytes(architecture, precision, k, kv_bytes).total,
    )


def test_costs_of_a_phase_by_hand():
    found = cost.costs(IMP["v1.5-3b-196"].architecture, "int4")
    wanted = ANALYTIC["Imp-v1.5-3B-196"]
    assert priced(found["vision"], 0, 0) == (
        wanted["macs"]["vision"]["total"] + wanted["macs"]["projector"],
        wanted["bytes_q4f16_1"]["vision_tower"] + wanted["bytes_q4f16_1"]["mm_projector"],
    )
    assert priced(found["prefill"], 260, 260)[0] == wanted["macs"]["prefill_last_logit_only"]["total"]
    assert priced(found["decode"], 1, 261) == (
        wanted["macs"]["decode"]["total"],
        wanted["decode_bytes_q4f16_1"]["total"],
    )


def test_vision_of_several_pictures_reads_its_weights_once():
    one, two, none = (cost.costs(TINY, "bf16", pictures=n)["vision"] for n in (1, 2, 0))
    assert two["macs"][0] == 2 * one["macs"][0]
    assert two["bytes"] == one["bytes"]
    assert none == {"macs": [0, 0, 0], "bytes": [0, 0, 0]}


def test_costs_are_whole_numbers():
    for architecture in (TINY, *EVERY):
        for phase in cost.costs(architecture, "int4").values():
            assert all(isinstance(n, int) for figures in phase.values() for n in figures)


def test_smaller_pictures_cost_the_tower_less_and_the_decoder_nothing():
    large, small = IMP["v1.5-3b-phi2"].architecture, IMP["v1.5-3b-phi2"].architecture.at(196)
    assert cost.costs(large, "bf16")["decode"] == cost.costs(small, "bf16")["decode"]
    assert cost.vision_macs(small).total == 80_019_781_632
    assert replace(small.vision, image_px=384) == large.vision
