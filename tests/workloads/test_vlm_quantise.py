"""Quantised weights: q4f16_1 against the data of the official code, and the layers that multiply by them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from edgewatt.workloads.vlm import quantise, quantised  # noqa: E402
from edgewatt.workloads.vlm.convolution import Conv2d  # noqa: E402

pytestmark = [pytest.mark.needs_torch, pytest.mark.usefixtures("one_thread")]

GOLDEN = Path(__file__).parent.parent / "data" / "vlm" / "quant"  # shared/data/golden/imp/quant, its float16 half
CASES = sorted(p.name for p in GOLDEN.glob("*.npz"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ties", ["away", "even"])
def test_q4f16_1_is_the_official_one_to_the_bit(case, ties):
    _check_golden(GOLDEN / case, ties)


@pytest.mark.needs_shared
@pytest.mark.parametrize("ties", ["away", "even"])
def test_all_golden_cases_agree_to_the_bit(shared, ties):
    folder = shared / "data" / "golden" / "imp" / "quant"
    files = [c["file"] for c in json.loads((folder / "index.json").read_text())["cases"]]
    assert len(files) == 10
    for file in files:
        _check_golden(folder / file, ties)


def _check_golden(path, ties):
    golden = np.load(path)
    suffix = "" if ties == "away" else "_half_even"
    weight = torch.from_numpy(golden["weight"])
    made = quantise.quantised4(weight, weight.dtype, ties)
    assert np.array_equal(made.scale.numpy(), golden["scale"])
    assert np.array_equal(quantise.codes4(made).numpy(), golden["q" + suffix])
    assert np.array_equal(made.words.numpy().view(np.uint32), golden["packed" + suffix])
    values = quantise.dequantised4(made).numpy()
    assert values.dtype == golden["dequant"].dtype and np.array_equal(values, golden["dequant" + suffix])


def test_float16_arithmetic_is_what_numpy_does_in_float16():
    weight = np.random.default_rng(5).standard_normal((64, 4096)).astype(np.float16)
    groups = weight.reshape(64, -1, 32)
    scale = np.abs(groups).max(axis=2) / np.float16(7)
    x = groups / scale[..., None] + np.float16(7)
    codes = np.clip(np.floor(x.astype(np.float64) + 0.5), 0, 14)  # a tie goes up
    made = quantise.quantised4(torch.from_numpy(weight))
    assert scale.dtype == x.dtype == np.float16
    assert np.array_equal(made.scale.numpy(), scale)
    assert np.array_equal(quantise.codes4(made).numpy(), codes.reshape(64, -1))


def test_a_width_of_one_and_a_half_groups_is_filled_up_with_codes_zero():
    made = quantise.quantised4(torch.ones(2, 48))
    assert made.words.shape == (2, 8) and made.scale.shape == (2, 2)
    # code 14 = e sixteen times in the short group, then nothing
    assert [f"{w & 0xFFFFFFFF:08x}" for w in made.words[0].tolist()] == ["eeeeeeee"] * 6 + ["00000000"] * 2


def test_the_first_code_of_a_word_lies_lowest():
    weight = torch.zeros(1, 32)
    weight[0, :8] = torch.tensor([-7.0, -6, -5, -4, 4, 5, 6, 7])
    assert f"{quantise.quantised4(weight).words[0, 0].item() & 0xFFFFFFFF:08x}" == "edcb3210"


def test_zeros_stay_zeros():
    made = quantise.quantised4(torch.zeros(3, 64))
    assert torch.equal(quantise.dequantised4(made).abs(), torch.zeros(3, 64, dtype=torch.float16))
    made8 = quantise.quantised8(torch.zeros(3, 64))
    assert torch.equal(quantise.dequantised8(made8), torch.zeros(3, 64))


def test_eight_bits_round_to_the_nearest_of_the_row_and_keep_its_largest():
    weight = torch.tensor([[127.0, 1.4, -2.6, -127.0], [1.27, 0.0, 0.635, -0.01]])
    made = quantise.quantised8(weight, torch.float32)
    assert made.codes.tolist() == [[127, 1, -3, -127], [127, 0, 64, -1]]  # 0.635 / 0.01 is just above 63.5
    assert made.scale.tolist() == pytest.approx([1.0, 0.01])


def test_eight_bit_codes_belong_to_the_rounded_scale():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
    made = quantise.quantised8(weight, torch.bfloat16)
    error = (quantise.dequantised8(made) - weight).abs()
    # half a step; the largest of a row, which the rounded scale may not reach, up to 127 * 2**-9 steps
    assert (error <= made.scale.float()[:, None] * 0.5001).float().mean() > 0.99
    assert (error <= made.scale.float()[:, None] * 0.76).all()


# Bytes of Imp's parts in q4f16_1 as derived from the manifests by hand (spec of Imp, 16.7 and analytic.json).
@pytest.mark.needs_shared
@pytest.mark.parametrize("variant", ["Imp-v1-3B", "Imp-v1.5-3B-196", "Imp-v1.5-2B-Qwen1.5", "Imp-v1.5-4B-Phi3"])
def test_bytes_of_imp_in_q4f16_1(shared, variant):
    folder = shared / "data" / "golden" / "imp"
    wanted = json.loads((folder / "analytic.json").read_text())["variants"][variant]["bytes_q4f16_1"]
    parts = {"vision_tower": "model.vision_tower.", "mm_projector": "model.mm_projector.", "lm_head": "lm_head."}
    parts |= {"embed_tokens": "model.embed_tokens.", "decoder_layers": "model.layers."}
    shapes = json.loads((folder / f"manifest_{variant}.json").read_text())
    found = dict.fromkeys([*parts, "final_norm"], 0)
    for key, shape in shapes.items():
        part = next((p for p, prefix in parts.items() if key.startswith(prefix)), "final_norm")
        found[part] += quantise.bytes4(*shape) if len(shape) == 2 else 2 * int(np.prod(shape))
    assert {**found, "total": sum(found.values())} == wanted
    if variant == "Imp-v1.5-3B-196":
        assert sum(found.values()) == 1_795_483_744


def test_quantised_tensors_have_the_bytes_they_are_said_to_have():
    for rows, columns in ((48, 128), (32, 4304), (5, 80)):
        weight = torch.ones(rows, columns)
        made4, made8 = quantise.quantised4(weight), quantise.quantised8(weight)
        assert made4.words.nbytes + made4.scale.nbytes == quantise.bytes4(rows, columns)
        assert made8.codes.nbytes + made8.scale.nbytes == quantise.bytes8(rows, columns)


# ---------------------------------------------------------------------------------------------------------------------
# Layers

SHAPES = [(2048, 96), (4304, 64), (80, 48), (96, 7)]  # inputs, outputs; SigLIP's 4304 ends in half a group


@pytest.fixture(params=SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def drawn(request):
    """A matrix, a bias and activations: one token's, some, and as many as a prompt has."""
    inputs, outputs = request.param
    draw = torch.Generator().manual_seed(inputs)
    weight = torch.randn(outputs, inputs, generator=draw) * 0.02
    bias = torch.nn.Parameter(torch.randn(outputs, generator=draw).bfloat16(), requires_grad=False)
    return weight, bias, [torch.randn(1, n, inputs, generator=draw).bfloat16() for n in (1, 5, 40)]


def _rms_error(layer, x, values, bias):
    """Root mean square of the layer's error over that of the exact product's values, in float64."""
    exact = x.double() @ values.double().T + bias.double()
    with torch.inference_mode():
        y = layer(x)
    assert y.dtype == x.dtype and y.shape == exact.shape
    return ((y.double() - exact).square().mean() / exact.square().mean()).sqrt().item()


ROUNDED = 0.0035  # bfloat16 has 8 bits of mantissa: an error up to 2**-9, uniform, is 0.0011 to 0.0023 of the value
ACTIVATIONS_8 = 0.008  # 127 steps to the largest of 32 drawn numbers, some 2.1 deviations: 2.1 / 127 / 12**0.5 = 0.0048


def test_four_bits_by_their_exact_values(drawn):
    weight, bias, inputs = drawn
    values = quantise.dequantised4(quantise.quantised4(weight))
    layer = quantised.Linear4(weight, bias, "away")
    assert all(_rms_error(layer, x, values, bias) < ROUNDED for x in inputs)


def test_four_bits_by_onnxruntime_within_what_eight_bit_activations_cost(drawn):
    weight, bias, inputs = drawn
    values = quantise.dequantised4(quantise.quantised4(weight))
    layer = quantised.FastLinear4(weight, bias, "away")
    assert all(_rms_error(layer, x, values, bias) < ACTIVATIONS_8 for x in inputs)


@pytest.mark.parametrize("exact", [False, True])
def test_eight_bits(drawn, exact):
    weight, bias, inputs = drawn
    values = quantise.dequantised8(quantise.quantised8(weight))
    layer = quantised.Linear8(weight, bias, exact)
    assert all(_rms_error(layer, x, values, bias) < ROUNDED for x in inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_in_float32_blocks(drawn, dtype):
    weight, bias, inputs = drawn
    layer = quantised.HalfLinear(weight.to(dtype), torch.nn.Parameter(bias.to(dtype), requires_grad=False))
    assert all(_rms_error(layer, x.to(dtype), weight.to(dtype), bias) < ROUNDED for x in inputs)


def test_a_convolution_in_sixteen_bits_is_the_exact_one_rounded():
    draw = torch.Generator().manual_seed(0)
    for groups in (1, 8):
        conv = torch.nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups).requires_grad_(False).bfloat16()
        x = torch.randn(2, 8, 9, 9, generator=draw).bfloat16()
        exact = torch.nn.functional.conv2d(
            x.double(), conv.weight.double(), conv.bias.double(), stride=2, padding=1, groups=groups
        )
        ours = Conv2d(8, 16, 3, stride=2, padding=1, groups=groups).requires_grad_(False).bfloat16()
        ours.load_state_dict(conv.state_dict())
        y = ours(x)
        assert y.dtype == torch.bfloat16 and ((y - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


def test_many_blocks_are_put_together_in_order():
    weight = torch.randn(700, 4096, generator=torch.Generator().manual_seed(0))  # blocks of 256 rows
    x = torch.eye(4096)[:4]
    layer = quantised.Linear8(weight, None, exact=True)
    assert torch.equal(layer(x), quantise.dequantised8(quantise.quantised8(weight))[:, :4].T)


def test_a_layer_without_bias_and_a_float32_caller():
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(1))
    for layer in (quantised.Linear4(weight, None, "even"), quantised.Linear8(weight, None, exact=False)):
        y = layer(x)
        assert y.dtype == torch.float32 and y.shape == (3, 48)


def test_embeddings_give_the_rows_asked_for():
    weight = torch.randn(50, 96, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([[3, 49], [0, 3]])
    four, eight = quantised.Embedding4(weight, torch.float16, "away"), quantised.Embedding8(weight, torch.float32)
    assert torch.equal(four(ids), quantise.dequantised4(quantise.quantised4(weight))[ids])
    assert torch.equal(eight(ids), quantise.dequantised8(quantise.quantised8(weight))[ids])
    assert four(ids[:0]).shape == (0, 2, 96)


def test_no_weight_is_held_twice():
    weight, bias = torch.randn(64, 128), None
    held = {
        quantised.Linear4(weight, bias, "away"): quantise.bytes4(64, 128),
        quantised.Linear8(weight, bias, exact=False): quantise.bytes8(64, 128),
        quantised.HalfLinear(weight.bfloat16(), bias): 2 * 64 * 128,
        quantised.FastLinear4(weight, bias, "away"): 0,  # onnxruntime holds it
    }
    for layer, wanted in held.items():
        assert sum(t.nbytes for t in layer.state_dict().values()) == wanted
