"""The networks give what the official code gives (golden data), and what a plain version in numpy gives."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from edgewatt.harness.api import UsageError
from edgewatt.workloads.imp.variants import VARIANTS as IMP
from edgewatt.workloads.mobilevlm.variants import VARIANTS as MOBILEVLM
from edgewatt.workloads.vlm import layouts
from edgewatt.workloads.vlm.architecture import IMAGE_TOKEN, of_config
from support import plain_vlm

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
network = pytest.importorskip("edgewatt.workloads.vlm.network")

from support.tiny_networks import CLIP, LLAMA, TINY, close, filled, made, pictures  # noqa: E402

pytestmark = [pytest.mark.needs_torch, pytest.mark.usefixtures("one_thread")]

DATA = Path(__file__).parent.parent / "data" / "vlm"


def tensor_of(output):
    """What a layer gives; in early releases of transformers 5 it is the first of several."""
    return output[0] if isinstance(output, tuple) else output


def greedy(net, embeds, count):
    logits, cache = net.prefill(embeds)
    ids = [int(logits.argmax())]
    while len(ids) < count:
        ids.append(int(net.decode(ids[-1], cache).argmax()))
    return ids


# ---------------------------------------------------------------------------------------------------------------------
# Against the official code

GOLDEN = [
    *("mobilevlm/tiny_ldpnet", "mobilevlm/tiny_ldpnetv2"),
    *("imp/tiny_phi2", "imp/tiny_qwen2", "imp/tiny_phi3", "imp/tiny_phi3_window"),
]


@pytest.fixture(scope="module", params=GOLDEN)
def golden(request, shared):
    folder = shared / "data/golden" / request.param
    config = json.loads((folder / "config.json").read_text())
    outputs = dict(np.load(folder / "outputs.npz"))
    if request.param.startswith("mobilevlm"):
        case = json.loads((folder / "case.json").read_text())
        architecture = of_config("mobilevlm", config, json.loads((folder / "vision_config.json").read_text()))
        ids, answer = case["input_ids"], case["generated_ids"]
        outputs["hidden_states"] = np.stack([outputs["inputs_embeds"][0], outputs["last_hidden_state"][0]])
        arrays = load_file(folder / "model.safetensors")
    else:
        case = json.loads((folder / "tokens.json").read_text())
        architecture = of_config("imp", config)
        ids, answer = case["prompt_ids"], case["greedy_ids"]
        arrays = load_file(folder / "weights.safetensors")
    is_imp = request.param.startswith("imp")
    return SimpleNamespace(
        name=request.param,
        atol_vision=2e-5 if is_imp else 1e-4,  # those of the READMEs beside the golden data
        atol_text=1e-4 if is_imp else 1e-3,
        architecture=architecture,
        arrays=arrays,
        net=filled(architecture, arrays),
        ids=ids,
        answer=answer,
        text_only=case.get("text_only_ids"),
        **outputs,
    )


@pytest.mark.needs_shared
def test_pictures_become_the_official_embeddings(golden):
    pixels = torch.from_numpy(golden.pixel_values)
    close(golden.net.features(pixels), golden.vision_features, golden.atol_vision)
    images = golden.net.encode(pixels)
    close(images, golden.projector_output, golden.atol_vision)
    close(golden.net.spliced(golden.ids, images), golden.inputs_embeds, golden.atol_vision)


@pytest.mark.needs_shared
def test_logits_and_hidden_states_are_the_official_ones(golden):
    seen = []
    for layer in golden.net.text.model.layers[:-1]:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(tensor_of(output)))
    logits, hidden = golden.net.all_logits(torch.from_numpy(golden.inputs_embeds))
    close(logits, golden.logits, golden.atol_text)
    close(hidden, golden.hidden_states[-1], golden.atol_text)
    if golden.name.startswith("imp"):
        for found, wanted in zip(seen, golden.hidden_states[1:-1], strict=True):
            close(found, wanted, golden.atol_text)
        text_only = golden.net.spliced(golden.text_only)
        close(golden.net.all_logits(text_only)[0], golden.text_only_logits, golden.atol_text)


@pytest.mark.needs_shared
def test_answer_with_the_cache_is_the_official_one_token_by_token(golden):
    embeds = golden.net.spliced(golden.ids, golden.net.encode(torch.from_numpy(golden.pixel_values)))
    logits, _ = golden.net.prefill(embeds)
    close(logits, golden.logits[0, -1], golden.atol_text)
    assert greedy(golden.net, embeds, len(golden.answer)) == golden.answer


@pytest.mark.needs_shared
def test_plain_version_gives_the_official_outputs(golden):
    plain = plain_vlm.Plain(golden.architecture, golden.arrays)
    features = plain.features(golden.pixel_values[0])
    close(features, golden.vision_features, golden.atol_vision)
    close(plain.projected(features), golden.projector_output, golden.atol_vision)
    close(plain.logits(golden.inputs_embeds[0].astype(np.float64)), golden.logits, golden.atol_text)


@pytest.mark.parametrize("kind", ["ldpnet", "ldpnetv2"])
def test_official_projectors_outputs_are_met(kind):
    data = dict(np.load(DATA / f"tiny_{kind}_projector.npz"))
    features, wanted = data.pop("vision_features"), data.pop("projector_output")
    vision = replace(CLIP, hidden=48, patch=7, image_px=168)
    net = network.empty(replace(TINY[kind], vision=vision, text=replace(LLAMA, hidden=64)))
    for key, array in data.items():
        net.place(key, torch.from_numpy(array))
    assert {k for k in net.official_keys() if k.startswith(layouts.PROJECTOR)} == set(data)
    close(net.projector(torch.from_numpy(features)[None]), wanted, 2e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Against the description


@pytest.mark.parametrize("name", TINY)
def test_every_part_equals_the_plain_version(name):
    net, plain = made(name)
    pixels = pictures(net.architecture, 2)
    features = np.stack([plain.features(p) for p in pixels])
    close(net.features(torch.from_numpy(pixels)), features, 1e-5)
    images = np.stack([plain.projected(f) for f in features])
    assert images.shape[1] == net.architecture.image_tokens
    close(net.encode(torch.from_numpy(pixels)), images, 2e-5)
    embeds = np.concatenate([plain.embedded([1, 2]), images[0], plain.embedded([3]), images[1], plain.embedded([4])])
    if len(embeds) > net.architecture.prompt_limit:
        embeds = embeds[:150]
    logits, hidden = net.all_logits(torch.from_numpy(embeds).float()[None])
    close(logits, plain.logits(embeds), 1e-4)
    close(hidden, plain.hidden(embeds), 1e-4)


@pytest.mark.parametrize("name", TINY)
@settings(deadline=None, max_examples=6)
@given(prompt=st.lists(st.integers(0, 49), min_size=1, max_size=20), count=st.integers(1, 20), room=st.integers(0, 30))
def test_every_decoded_token_gives_the_logits_of_a_whole_new_pass(name, prompt, count, room):
    net, _ = made(name)
    logits, cache = net.prefill(net.spliced(prompt), room)
    ids = list(prompt)
    for _ in range(count):
        close(logits, net.all_logits(net.spliced(ids))[0][-1], 1e-4)
        ids.append(int(logits.argmax()))
        logits = net.decode(ids[-1], cache)
    assert cache.length == len(ids)


@pytest.mark.parametrize("name", TINY)
def test_each_pass_runs_every_layer_once_over_its_own_tokens_only(name):
    net, _ = made(name)
    passed, headed = [], []
    hooks = [
        *(m.register_forward_hook(lambda m, i, o: passed.append(tensor_of(o).shape[1])) for m in net.text.model.layers),
        net.text.lm_head.register_forward_hook(lambda m, i, o: headed.append(tuple(o.shape))),
    ]
    _, cache = net.prefill(net.spliced([1, 2, 3, 4, 5]))
    net.decode(6, cache)
    for hook in hooks:
        hook.remove()
    assert passed == [5, 5, 1, 1]
    assert headed == [(1, 50), (1, 50)]


def test_several_pictures_and_none_are_put_where_the_ids_say():
    net, plain = made("phi2")
    images = net.encode(torch.from_numpy(pictures(net.architecture, 2)))
    found = net.spliced([IMAGE_TOKEN, 7, IMAGE_TOKEN, 8, 9], images)[0].numpy()
    n = net.architecture.image_tokens
    assert found.shape == (2 * n + 3, 80)
    np.testing.assert_array_equal(found[:n], images[0])
    np.testing.assert_array_equal(found[n + 1 : 2 * n + 1], images[1])
    np.testing.assert_array_equal(found[[n, -2, -1]], plain.embedded([7, 8, 9]).astype(np.float32))
    np.testing.assert_array_equal(net.spliced([7, 8])[0], plain.embedded([7, 8]).astype(np.float32))


@pytest.mark.parametrize(
    ("ids", "images", "message"),
    [
        ([1, IMAGE_TOKEN], 0, "1 places for pictures, and 0 were given"),
        ([1, IMAGE_TOKEN], 2, "1 places for pictures, and 2 were given"),
        ([1, 2], 1, "0 places for pictures, and 1 were given"),
        ([1, 50], 0, "token id 50 is outside the table of 50"),
        ([-1], 0, "token id -1 is outside"),
        ([], 0, "prompt has 0 tokens"),
        ([1] * 61, 0, "prompt has 61 tokens with its pictures, from 1 to 60 fit"),
        ([1] * 52 + [IMAGE_TOKEN], 1, "prompt has 61 tokens"),
    ],
)
def test_prompt_that_cannot_be_is_one_clear_line(ids, images, message):
    net, _ = made("phi2")
    with pytest.raises(UsageError, match=message):
        net.spliced(ids, torch.zeros(images, 9, 80) if images else None)


def test_full_context_unknown_token_and_picture_of_another_size_are_one_clear_line():
    net, _ = made("phi2")
    _, cache = net.prefill(torch.zeros(1, 299, 80))
    net.decode(1, cache)
    with pytest.raises(UsageError, match="context of 300 tokens is full"):
        net.decode(1, cache)
    with pytest.raises(UsageError, match="token id 77 is outside"):
        net.decode(77, net.prefill(net.spliced([1]))[1])
    with pytest.raises(UsageError, match=r"shape \[1, 3, 18, 18\]; this network takes \[n, 3, 17, 17\]"):
        net.encode(torch.zeros(1, 3, 18, 18))


# ---------------------------------------------------------------------------------------------------------------------
# Projectors by hand


def features_by_row(side, width):
    """(1, side * side, width): 100 plus the number of the grid's row, where GELU changes nothing in float32."""
    return (100 + torch.arange(side * side) // side).float()[None, :, None].expand(1, -1, width).contiguous()


@pytest.mark.parametrize(
    ("side", "rows"),
    [
        (24, [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5, 16.5, 18.5, 20.5, 22.5]),
        (12, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (18, [0.5, 1.5, 3.5, 4.5, 6.5, 7.5, 9.5, 10.5, 12.5, 13.5, 15.5, 16.5]),
        (6, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (16, [0.5, 1.5, 2.5, 4.5, 5.5, 6.5, 8.5, 9.5, 10.5, 12.5, 13.5, 14.5]),
    ],
)
def test_ldpv2_pools_any_grid_to_twelve_by_twelve_and_adds_its_neighbourhood(side, rows):
    ldp = network.projector(replace(TINY["ldpnetv2"], vision=replace(CLIP, hidden=8), text=replace(LLAMA, hidden=8)))
    state = {k: torch.zeros_like(v) for k, v in ldp.state_dict().items()}
    state["mlp.mlp.0.weight"] = state["mlp.mlp.2.weight"] = torch.eye(8)
    ldp.load_state_dict(state)
    wanted = np.repeat(100 + np.array(rows), 12)[None, :, None] * np.ones(8)
    close(ldp(features_by_row(side, 8)), wanted, 1e-4)
    state["peg.peg.0.weight"] = torch.zeros(8, 1, 3, 3)
    state["peg.peg.0.weight"][:, 0, 0, 1] = 2  # twice the row above, which is nothing for the first row
    state["peg.peg.0.bias"] = torch.arange(8.0)
    ldp.load_state_dict(state)
    above = np.concatenate([np.zeros(12), wanted[0, :-12, 0]])
    close(ldp(features_by_row(side, 8)), wanted + 2 * above[None, :, None] + np.arange(8), 2e-3)


@pytest.mark.parametrize(("width", "narrow"), [(2048, 512), (2560, 640), (4096, 1024), (64, 16), (20, 8), (44, 16)])
def test_squeezed_channels_are_a_quarter_to_a_multiple_of_eight(width, narrow):
    assert layouts.squeezed(width) == narrow


def test_squeeze_excite_scales_each_channel_by_its_hard_sigmoid():
    from edgewatt.workloads.vlm.projectors import SqueezeExcite

    layer = SqueezeExcite(32)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        layer.fc1.bias.fill_(1)
        layer.fc2.weight[:, 0, 0, 0] = torch.linspace(-6, 9.5, 32)
        wanted = np.clip((np.linspace(-6, 9.5, 32) + 3) / 6, 0, 1)
        close(layer(torch.ones(1, 32, 2, 2))[0, :, 1, 0], wanted, 1e-6)


def test_mlp_and_linear_projectors_have_gelu_between_their_layers_only():
    def built(kind):
        return [type(m).__name__ for m in network.projector(replace(TINY["phi2"], projector=kind)).modules()]

    assert built("linear") == ["Linear"]
    assert built("mlp1x_gelu") == ["Sequential", "Linear"]
    assert built("mlp3x_gelu") == ["Sequential", "Linear", "GELU", "Linear", "GELU", "Linear"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("groups", "bias"), [(1, True), (6, False)])
def test_emulated_half_precision_convolution_rounds_its_result_only(monkeypatch, dtype, groups, bias):
    convolution = pytest.importorskip("edgewatt.workloads.vlm.convolution")
    monkeypatch.setattr(convolution, "is_native", lambda dtype: dtype == torch.float32)
    torch.manual_seed(0)
    layer = convolution.Conv2d(6, 6, 3, stride=2, padding=1, groups=groups, bias=bias).to(dtype)
    x = torch.randn(2, 6, 9, 9).to(dtype)
    as_float = (x.float(), layer.weight.float(), None if layer.bias is None else layer.bias.float())
    wanted = torch.nn.functional.conv2d(*as_float, stride=2, padding=1, groups=groups)
    assert torch.equal(layer(x), wanted.to(dtype))


# ---------------------------------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("variant", [*MOBILEVLM.values(), *IMP.values()], ids=lambda v: v.hub_id)
def test_whole_networks_have_every_official_tensor_that_is_run_and_take_no_memory(variant):
    net = network.empty(variant.architecture)
    found = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert found == {net.path_of(k): s for k, s in net.official_keys().items() if net.path_of(k) is not None}
    assert all(p.is_meta for p in net.parameters())
    assert not any(b.is_meta for b in net.buffers())
    assert net.text.model.rotary_emb.inv_freq.dtype == torch.float32
    dead = 12_596_224 + 2_048 if variant.architecture.system == "mobilevlm" else 0
    assert sum(math.prod(s) for s in found.values()) == layouts.parameters(variant.architecture) - dead


def test_rotary_frequencies_are_those_of_the_description():
    net = network.empty(IMP["v1-3b"].architecture)
    close(net.text.model.rotary_emb.inv_freq, 10000.0 ** (-2 * np.arange(16) / 32), 1e-7)
    net = network.empty(IMP["v1.5-2b-qwen"].architecture)
    close(net.text.model.rotary_emb.inv_freq, 1e6 ** (-2 * np.arange(64) / 128), 1e-7)


def test_clips_last_block_is_neither_kept_nor_run():
    net, plain = made("ldpnet")
    arrays = {k: v.astype(np.float32) for k, v in plain.w.items()}
    dead = {k for k in arrays if "encoder.layers.2." in k or "post_layernorm" in k}
    assert len(dead) == 16 + 2
    other = filled(TINY["ldpnet"], {k: np.full_like(v, np.nan) if k in dead else v for k, v in arrays.items()})
    pixels = torch.from_numpy(pictures(TINY["ldpnet"], 1))
    assert torch.equal(other.encode(pixels), net.encode(pixels))
    assert all(other.module_for(k) is None for k in dead)
    assert len(list(other.parameters())) == len(arrays) - len(dead)
    assert filled(TINY["ldpnet"], {k: v for k, v in arrays.items() if k not in dead}).missing() == []


def test_missing_unexpected_and_misshapen_tensors_are_named():
    net = network.empty(TINY["phi2"])
    assert net.missing() == list(net.official_keys())
    net.place("lm_head.bias", torch.zeros(50))
    assert "lm_head.bias" not in net.missing()
    with pytest.raises(UsageError, match=r"holds model\.norm\.weight, which this network has not"):
        net.place("model.norm.weight", torch.zeros(80))
    with pytest.raises(UsageError, match=r"lm_head\.weight is \[80, 50\], wanted \[50, 80\]"):
        net.place("lm_head.weight", torch.zeros(80, 50))
    with pytest.raises(KeyError):
        net.module_for("no.such.key")


class Doubled(torch.nn.Module):
    """Stands for a quantised layer: it has a bias, but no weight."""

    def __init__(self, layer):
        super().__init__()
        self.inner = [layer]
        self.register_buffer("bias", None)

    def forward(self, x):
        return self.inner[0](x) * 2 + (0 if self.bias is None else self.bias)


def test_quantised_layers_take_the_place_of_plain_ones():
    net, plain = made("phi2")
    arrays = {k: v.astype(np.float32) for k, v in plain.w.items()}
    other = filled(
        TINY["phi2"],
        {k: v for k, v in arrays.items() if k != "lm_head.bias"} | {"lm_head.bias": np.zeros(50, np.float32)},
    )
    owner, name = other.module_for("lm_head.weight")
    assert (owner, name) == (other.text.lm_head, "weight")
    other.replace("lm_head.weight", Doubled(owner))
    other.place("lm_head.bias", torch.from_numpy(arrays["lm_head.bias"]))
    other.replace("model.embed_tokens.weight", Doubled(other.module_for("model.embed_tokens.weight")[0]))
    other.replace(
        layouts.TOWER + "embeddings.position_embedding.weight", Doubled(net.tower.embeddings.position_embedding)
    )
    other.replace(layouts.PROJECTOR + "2.weight", Doubled(net.projector[2]))
    assert other.missing() == []
    embeds = net.spliced([1, 2])
    torch.testing.assert_close(other.spliced([1, 2]), 2 * embeds)
    wanted = 2 * net.all_logits(embeds)[0] - torch.from_numpy(arrays["lm_head.bias"])
    torch.testing.assert_close(other.all_logits(embeds)[0], wanted)
    pixels = torch.zeros(1, 3, 17, 17)
    assert not torch.equal(other.encode(pixels), net.encode(pixels))


def test_missing_counts_replaced_layers_as_placed():
    net = network.empty(TINY["ldpnet"])
    net.replace("lm_head.weight", Doubled(torch.nn.Linear(32, 50, bias=False)))
    assert "lm_head.weight" not in net.missing()
    with pytest.raises(KeyError):
        net.replace(layouts.TOWER + "post_layernorm.weight", torch.nn.Identity())
