"""Architectures of the published checkpoints: their numbers, key lists and layouts; what config files are refused."""

import json
import math

import pytest

from edgewatt.harness.api import UsageError
from edgewatt.workloads.imp import variants as imp_variants
from edgewatt.workloads.mobilevlm import variants as mobilevlm_variants
from edgewatt.workloads.vlm import layouts
from edgewatt.workloads.vlm.architecture import of_config

MOBILEVLM = mobilevlm_variants.VARIANTS
IMP = imp_variants.VARIANTS

# Published model pages, papers and the official code (shared/specs); V2-7B: LLaMA-2-7B's 6,738,415,616, CLIP's
# 303,507,456 and LDPv2 at 4096: 1024*4096 + 4096 + 4096*4096 + 4096 + 9*4096 + 4096 = 21,020,672.
PARAMETERS = [
    (MOBILEVLM["v1-1.7b"], 1_686_742_016),
    (MOBILEVLM["v1-3b"], 3_033_981_696),
    (MOBILEVLM["v2-1.7b"], 1_674_121_216),
    (MOBILEVLM["v2-3b"], 3_014_273_536),
    (MOBILEVLM["v2-7b"], 7_062_943_744),
    (IMP["v1-3b"], 3_186_937_120),
    (IMP["v1.5-2b-qwen"], 2_241_131_808),
    (IMP["v1.5-3b-phi2"], 3_186_937_120),
    (IMP["v1.5-3b-196"], 3_186_323_104),
    (IMP["v1.5-4b-phi3"], 4_231_807_264),
]
PARTS = [
    (MOBILEVLM["v1-1.7b"], 1_364_297_728, 303_507_456, 18_936_832),
    (MOBILEVLM["v2-3b"], 2_701_560_320, 303_507_456, 9_205_760),
    (IMP["v1.5-3b-196"], 2_779_683_840, 397_131_424, 9_507_840),
    (IMP["v1.5-2b-qwen"], 1_836_828_672, 397_745_440, 6_557_696),
    (IMP["v1.5-4b-phi3"], 3_821_079_552, 397_745_440, 12_982_272),
]
MANIFESTS = [
    (MOBILEVLM["v1-1.7b"], "mobilevlm/manifest_MobileVLM-1.7B.json"),
    (MOBILEVLM["v1-3b"], "mobilevlm/manifest_MobileVLM-3B.json"),
    (MOBILEVLM["v2-1.7b"], "mobilevlm/manifest_MobileVLM_V2-1.7B.json"),
    (MOBILEVLM["v2-3b"], "mobilevlm/manifest_MobileVLM_V2-3B.json"),
    (IMP["v1-3b"], "imp/manifest_Imp-v1-3B.json"),
    (IMP["v1.5-2b-qwen"], "imp/manifest_Imp-v1.5-2B-Qwen1.5.json"),
    (IMP["v1.5-3b-phi2"], "imp/manifest_Imp-v1.5-3B-Phi2.json"),
    (IMP["v1.5-3b-196"], "imp/manifest_Imp-v1.5-3B-196.json"),
    (IMP["v1.5-4b-phi3"], "imp/manifest_Imp-v1.5-4B-Phi3.json"),
]
LAYOUT_B = [
    (IMP["v1-3b"], "imp/manifest_Imp-v1-3B_msft-layout.json"),
    (IMP["v1.5-3b-196"], "imp/manifest_Imp-v1.5-3B-196_msft-layout.json"),
]

# The fields of the hub's files that matter here (shared/specs/mobilevlm.md section 8, imp.md section 12).
V2_1_7B = {
    "model_type": "mobilevlm",
    "architectures": ["MobileLlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 2048,
    "max_sequence_length": 2048,
    "rms_norm_eps": 1e-6,
    "mm_hidden_size": 1024,
    "mm_projector_type": "ldpnetv2",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None,
    "rope_scaling": None,
    "_mlp_class": "LLaMAMLP",
    "lm_head_bias": False,
}
IMP_V1 = {
    "model_type": "imp",
    "architectures": ["ImpForCausalLM"],
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "vision_tower_config": {
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "model_type": "siglip_vision_model",
    },
    "mm_projector_type": "mlp2x_gelu",
    "mm_hidden_size": 1152,
    "mm_vision_select_layer": -2,
    "image_aspect_ratio": "square",
    "tokenizer_model_max_length": 3072,
    "eos_token_id": 50295,
    "pad_token_id": 50256,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
}
IMP_QWEN = {
    **{"model_type": "imp_qwen2", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5504},
    **{"num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16, "rms_norm_eps": 1e-6},
    **{"rope_theta": 1000000.0, "max_position_embeddings": 32768, "hidden_act": "silu", "tie_word_embeddings": False},
    **{"use_sliding_window": False, "sliding_window": 32768, "eos_token_id": 151645, "pad_token_id": 151645},
    **{"mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "google/siglip-so400m-patch14-384"},
    **{"tokenizer_model_max_length": 2560, "image_aspect_ratio": "square"},
}


def manifest(shared, name):
    content = json.loads((shared / "data/golden" / name).read_text())
    return {key: tuple(shape) for key, shape in content.get("state_dict", content).items()}


def id_of(value):
    return value.hub_id if hasattr(value, "hub_id") else None


@pytest.mark.parametrize(("variant", "count"), PARAMETERS, ids=id_of)
def test_parameters_of_the_whole_checkpoint_are_the_published_number(variant, count):
    assert layouts.parameters(variant.architecture) == count


@pytest.mark.parametrize(("variant", "text", "tower", "projector"), PARTS, ids=id_of)
def test_parameters_of_each_part_are_the_published_numbers(variant, text, tower, projector):
    keys = layouts.official_keys(variant.architecture)
    found = {"tower": 0, "projector": 0, "text": 0}
    for key, shape in keys.items():
        part = "tower" if "vision_tower" in key else "projector" if "mm_projector" in key else "text"
        found[part] += math.prod(shape)
    assert found == {"tower": tower, "projector": projector, "text": text}


@pytest.mark.needs_shared
@pytest.mark.parametrize(("variant", "name"), MANIFESTS, ids=id_of)
def test_keys_and_shapes_are_those_of_the_official_model_in_its_order(shared, variant, name):
    assert list(layouts.official_keys(variant.architecture).items()) == list(manifest(shared, name).items())


@pytest.mark.needs_shared
@pytest.mark.parametrize(("variant", "name"), LAYOUT_B, ids=id_of)
def test_older_layout_has_the_keys_of_the_newer_with_q_k_and_v_stacked(shared, variant, name):
    older, newer = manifest(shared, name), layouts.official_keys(variant.architecture)
    assert layouts.is_layout_b(older)
    assert not layouts.is_layout_b(newer)
    unstacked = {}
    for key, (height, *rest) in older.items():
        names = layouts.of_layout_b(key)
        unstacked |= dict.fromkeys(names, (height // len(names), *rest))
    assert unstacked == newer


def test_stacked_projections_are_q_k_and_v_in_that_order():
    for kind in ("weight", "bias"):
        names = tuple(f"model.layers.31.self_attn.{p}_proj.{kind}" for p in "qkv")
        assert layouts.of_layout_b(f"transformer.h.31.mixer.Wqkv.{kind}") == names


@pytest.mark.parametrize("key", ["transformer.h.0.mixer.rotary.scale", "something.else"])
def test_unknown_keys_keep_their_names(key):
    assert layouts.of_layout_b(key) == (key,)


def test_only_clips_last_block_and_last_norm_are_never_run():
    architecture = MOBILEVLM["v2-1.7b"].architecture
    dead = {k: s for k, s in layouts.official_keys(architecture).items() if not layouts.is_run(architecture, k)}
    assert sum(math.prod(s) for s in dead.values()) == 12_596_224 + 2_048
    assert {k.removeprefix(layouts.TOWER).split(".layers.23.")[0] for k in dead} == {
        "encoder",
        "post_layernorm.weight",
        "post_layernorm.bias",
    }
    architecture = IMP["v1-3b"].architecture
    assert all(layouts.is_run(architecture, k) for k in layouts.official_keys(architecture))


@pytest.mark.parametrize(
    ("variant", "tokens"),
    [
        *((v, 144) for v in MOBILEVLM.values()),
        (IMP["v1-3b"], 729),
        (IMP["v1.5-3b-196"], 196),
        (IMP["v1.5-2b-qwen"], 729),
        (IMP["v1.5-4b-phi3"], 729),
    ],
    ids=id_of,
)
def test_one_picture_takes_the_published_number_of_tokens(variant, tokens):
    assert variant.architecture.image_tokens == tokens


def test_hub_config_of_mobilevlm_gives_the_published_architecture():
    assert of_config("mobilevlm", V2_1_7B) == MOBILEVLM["v2-1.7b"].architecture


def test_hub_config_of_imp_is_filled_with_phi_2s_numbers():
    assert of_config("imp", IMP_V1) == IMP["v1-3b"].architecture


def test_hub_config_of_imp_qwen_has_no_sliding_window_and_takes_its_stops_from_the_generation_config():
    found = of_config("imp", IMP_QWEN, generation_config={"eos_token_id": [151645, 151643]})
    assert found == IMP["v1.5-2b-qwen"].architecture


def test_size_comes_from_the_towers_name_or_from_the_caller():
    config = {k: v for k, v in IMP_V1.items() if k != "vision_tower_config"}
    small = of_config("imp", {**config, "mm_vision_tower": "./siglip-so400m-patch14-196"})
    assert small == IMP["v1.5-3b-196"].architecture == of_config("imp", IMP_V1, size_px=196)
    assert small == IMP["v1-3b"].architecture.at(196)


def test_towers_own_config_may_be_inside_that_of_the_two_tower_model():
    clip = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "image_size": 224}
    found = of_config("mobilevlm", V2_1_7B, {"model_type": "clip", "vision_config": clip})
    assert found == MOBILEVLM["v2-1.7b"].architecture.at(224)


@pytest.mark.parametrize(
    ("system", "aspect", "mode"),
    [
        ("mobilevlm", "pad", "pad"),
        ("mobilevlm", "square", "crop"),
        ("mobilevlm", None, "crop"),
        ("imp", "pad", "pad"),
        ("imp", "square", "square"),
        ("imp", None, "square"),
    ],
)
def test_pictures_are_prepared_as_the_checkpoint_says(system, aspect, mode):
    config = {**(V2_1_7B if system == "mobilevlm" else IMP_V1), "image_aspect_ratio": aspect}
    assert of_config(system, config).image_mode == mode


@pytest.mark.needs_shared
@pytest.mark.parametrize("case", ["mobilevlm/tiny_ldpnet", "mobilevlm/tiny_ldpnetv2"])
def test_tiny_official_models_of_mobilevlm_have_the_keys_of_their_config(shared, case):
    folder = shared / "data/golden" / case
    config, vision = (json.loads((folder / f).read_text()) for f in ("config.json", "vision_config.json"))
    architecture = of_config("mobilevlm", config, vision)
    assert shapes(folder / "model.safetensors") == layouts.official_keys(architecture)
    assert (architecture.vision.image_px, architecture.image_tokens) == (168, 144)


@pytest.mark.needs_shared
@pytest.mark.parametrize("case", ["tiny_phi2", "tiny_qwen2", "tiny_phi3", "tiny_phi3_window"])
def test_tiny_official_models_of_imp_have_the_keys_of_their_config(shared, case):
    folder = shared / "data/golden/imp" / case
    architecture = of_config("imp", json.loads((folder / "config.json").read_text()))
    assert shapes(folder / "weights.safetensors") == layouts.official_keys(architecture)
    assert architecture.eos_ids == ()


def shapes(path):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava"}, "model_type is 'llava', not mobilevlm"),
        ({"model_type": "imp"}, "model_type is 'imp', not mobilevlm"),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": ["mobilevlm"]}, "model_type is"),
        ({"peft_type": "LORA"}, "LoRA adapter"),
        ({"mm_projector_type": "resampler"}, "mm_projector_type is 'resampler'"),
        ({"mm_projector_type": "mlpx_gelu"}, "mm_projector_type is"),
        ({"mm_projector_type": 7}, "mm_projector_type is 7"),
        ({"num_attention_heads": 15}, "hidden_size 2048 cannot be shared among num_attention_heads 15"),
        ({"num_key_value_heads": 5}, "num_attention_heads 16 cannot be shared among num_key_value_heads 5"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "2048"}, "hidden_size is '2048', not a whole number"),
        ({"hidden_size": True}, "hidden_size is True, not a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, not a whole number from 1 to 256"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, not a number above 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is set"),
        ({"partial_rotary_factor": 0.5}, "only Phi-2 rotates a part"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>', not a token id"),
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer is -1, only -2"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"mm_vision_tower": "openai/clip-vit-base-patch32"}, "the tower 'openai/clip-vit-base-patch32' is not known"),
        ({"mm_vision_tower": None}, "the tower None is not known"),
        ({"mm_hidden_size": 768}, "mm_hidden_size is 768, the tower is 1024 wide"),
        ({"vision_tower_config": []}, "vision_tower_config is"),
        ({"vision_tower_config": {"num_attention_heads": 7}}, "hidden_size \\(tower\\) 1024 cannot be shared among"),
        ({"vision_tower_config": {"num_hidden_layers": 1}}, "no last but one"),
        ({"vision_tower_config": {"image_size": 7}}, "pictures of 7 pixels"),
    ],
)
def test_config_that_is_not_such_a_network_is_one_clear_line(change, message):
    with pytest.raises(UsageError, match=message) as raised:
        of_config("mobilevlm", {**V2_1_7B, **change})
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**IMP_V1, "model_type": "phi"}, "model_type is 'phi', not imp or imp_qwen2 or imp_phi3"),
        ({**IMP_V1, "mm_projector_type": "ldpnet"}, "none of linear, mlpKx_gelu"),
        ({**IMP_V1, "partial_rotary_factor": 0.39}, "no even part"),
        ({**IMP_V1, "qk_layernorm": True}, "qk_layernorm is True"),
        ({**IMP_QWEN, "use_sliding_window": True}, "use_sliding_window is on"),
    ],
)
def test_config_that_is_no_imp_is_one_clear_line(config, message):
    with pytest.raises(UsageError, match=message):
        of_config("imp", config)
