"""Checkpoints on disk: every layout of the hub, whole ones to the bit, damaged and hostile ones in one line."""

from __future__ import annotations

import json
import mmap
import pickle
import re
import shutil
import struct
import zipfile
from hashlib import sha256
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from edgewatt.harness.api import UsageError  # noqa: E402
from edgewatt.workloads.vlm import checkpoint, checkpoint_files, layouts, subject  # noqa: E402
from edgewatt.workloads.vlm.architecture import of_config  # noqa: E402
from support.vlm_checkpoints import (  # noqa: E402
    IMP,
    MOBILEVLM,
    TOWER,
    drawn,
    folder_of,
    mobilevlm_weights,
    read,
    same,
)

pytestmark = pytest.mark.needs_torch


def in_shards(path, kind):
    """Turns the single file of a folder into two and an index, in an order that has nothing to do with names."""
    whole = path / f"{'model' if kind == 'safetensors' else 'pytorch_model'}.{kind}"
    weights = load_file(whole) if kind == "safetensors" else torch.load(whole, weights_only=True)
    whole.unlink()
    places = {k: f"part-{i % 2 + 1}-of-2.{kind}" for i, k in enumerate(weights)}
    for shard in set(places.values()):
        part = {k: weights[k] for k in reversed(weights) if places[k] == shard}
        save_file(part, path / shard) if kind == "safetensors" else torch.save(part, path / shard)
    index = path / f"{whole.name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


@pytest.fixture
def weights():
    return mobilevlm_weights()


@pytest.fixture
def imp_weights():
    return drawn(layouts.official_keys(of_config("imp", IMP)), torch.float16)


# Newer name -> older one, the first that fits (shared/specs/imp.md, section 11).
OLDER = {
    r"model\.layers\.(\d+)\.self_attn\.[qkv]_proj\.": r"transformer.h.\1.mixer.Wqkv.",
    r"model\.layers\.(\d+)\.self_attn\.dense\.": r"transformer.h.\1.mixer.out_proj.",
    r"model\.layers\.(\d+)\.input_layernorm\.": r"transformer.h.\1.ln.",
    r"model\.layers\.(\d+)\.mlp\.": r"transformer.h.\1.mlp.",
    r"model\.embed_tokens\.": "transformer.embd.wte.",
    r"model\.final_layernorm\.": "lm_head.ln.",
    r"lm_head\.": "lm_head.linear.",
    r"model\.": "transformer.",  # the tower and the projector
}


def in_the_older_layout(weights):
    stacked = {}
    for key, tensor in weights.items():
        old = next(re.sub(new, older, key, count=1) for new, older in OLDER.items() if re.match(new, key))
        stacked[old] = [*stacked.get(old, []), tensor]
    return {old: torch.cat(tensors) for old, tensors in stacked.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Whole ones


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("shards", [False, True])
def test_every_tensor_of_every_kind_of_file(tmp_path, weights, name, shards):
    path = folder_of(tmp_path / "c", MOBILEVLM, weights, name)
    if shards:
        in_shards(path, name.rpartition(".")[2])
    opened = checkpoint.open(path, "mobilevlm")
    same(read(opened), weights)
    assert opened.keys() == {k: (tuple(t.shape), "BF16") for k, t in weights.items()}
    assert opened.dtype == "BF16" and opened.layout == "A" and opened.facts()["vision_tower"] == "the checkpoint's own"
    assert opened.architecture() == of_config("mobilevlm", MOBILEVLM, TOWER)


def test_safetensors_come_before_a_bin(tmp_path, weights):
    path = folder_of(tmp_path / "c", MOBILEVLM, weights)
    (path / "pytorch_model.bin").write_bytes(b"not looked at")
    same(read(checkpoint.open(path, "mobilevlm")), weights)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_older_layout_of_imp_is_the_newer_one_with_q_k_and_v_stacked(tmp_path, imp_weights, name):
    stacked = in_the_older_layout(imp_weights)
    assert len(stacked) == len(imp_weights) - 2 * 2 * 2
    opened = checkpoint.open(folder_of(tmp_path / "c", IMP, stacked, name), "imp")
    assert opened.layout == "B"
    same(read(opened), imp_weights)


@pytest.mark.needs_shared
def test_golden_checkpoints_open_as_they_are(shared):
    for case in ("tiny_ldpnet", "tiny_ldpnetv2"):
        folder = shared / "data" / "golden" / "mobilevlm" / case
        opened = checkpoint.open(folder, "mobilevlm")
        same(read(opened), load_file(folder / "model.safetensors"))


@pytest.mark.needs_shared
@pytest.mark.parametrize("case", ["tiny_phi2", "tiny_qwen2", "tiny_phi3"])
def test_golden_checkpoints_of_imp(shared, tmp_path, case):
    folder = shared / "data" / "golden" / "imp" / case
    shutil.copyfile(folder / "config.json", tmp_path / "config.json")
    shutil.copyfile(folder / "weights.safetensors", tmp_path / "model.safetensors")
    same(read(checkpoint.open(tmp_path, "imp")), load_file(folder / "weights.safetensors"))


def test_tables_of_older_exports_are_passed_over(tmp_path, weights):
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    old["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)
    path = folder_of(tmp_path / "c", MOBILEVLM, {**weights, **old})
    opened = checkpoint.open(path, "mobilevlm")
    same(read(opened), weights)
    assert opened.unexpected(weights) == []


def test_other_keys_are_told_of_and_not_read(tmp_path, weights):
    path = folder_of(tmp_path / "c", MOBILEVLM, {**weights, "model.extra": torch.ones(3, dtype=torch.int32)})
    opened = checkpoint.open(path, "mobilevlm")
    same(read(opened), weights)
    assert opened.unexpected(weights) == ["model.extra"]
    assert opened.facts()["unexpected"] == ["model.extra"] and opened.facts()["unexpected_count"] == 1


def test_the_position_table_says_how_large_pictures_are(tmp_path):
    small = of_config("imp", IMP).at(21)  # 3 x 3 patches, config.json says 4 x 4
    path = folder_of(tmp_path / "c", IMP, drawn(layouts.official_keys(small)))
    assert checkpoint.open(path, "imp").architecture().vision.image_px == 21


def test_a_picture_that_is_no_whole_number_of_patches_keeps_its_size(tmp_path):
    config = {**IMP, "vision_tower_config": {**TOWER, "image_size": 30}}
    path = folder_of(tmp_path / "c", config, drawn(layouts.official_keys(of_config("imp", config))))
    assert checkpoint.open(path, "imp").architecture().vision.image_px == 30


# ---------------------------------------------------------------------------------------------------------------------
# MobileVLM's tower


def clip_folder(path, weights):
    """A whole CLIP model as on the hub, its vision part turned."""
    tail = {k.removeprefix(layouts.TOWER): -t.float() for k, t in weights.items() if k.startswith(layouts.TOWER)}
    clip = {f"vision_model.{k}": t for k, t in tail.items()}
    clip |= {"text_model.embeddings.token_embedding.weight": torch.ones(3, 3), "logit_scale": torch.tensor(1.0)}
    clip["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    return folder_of(path, {"vision_config": TOWER}, clip, "pytorch_model.bin")


@pytest.mark.parametrize("has_own", [True, False])
def test_a_tower_that_is_given_takes_the_place_of_the_checkpoints_own(tmp_path, weights, has_own):
    tower = clip_folder(tmp_path / "clip", weights)
    kept = {k: t for k, t in weights.items() if has_own or not k.startswith(layouts.TOWER)}
    opened = checkpoint.open(folder_of(tmp_path / "c", MOBILEVLM, kept), "mobilevlm", tower)
    same(read(opened), {k: -t.float() if k.startswith(layouts.TOWER) else t for k, t in weights.items()})
    assert opened.facts()["vision_tower"] == str(tower)


def test_artefacts_are_all_files_that_a_result_hangs_on(tmp_path, weights):
    """Those of the checkpoint, the tower's config.json in a folder of its own, and those of a tower that is given."""
    tower = clip_folder(tmp_path / "clip", weights)
    path = folder_of(tmp_path / "c", {**MOBILEVLM, "mm_vision_tower": "own"}, weights)
    (path / "own").mkdir()
    (path / "own" / "config.json").write_text(json.dumps(TOWER))
    names = {"weights/config.json", "weights/model.safetensors", "weights/own/config.json"}
    assert set(subject.chosen("mobilevlm", "auto", str(path)).artefacts()) == names
    found = subject.chosen("mobilevlm", "auto", str(path), vision_tower=str(tower)).artefacts()
    assert set(found) == names | {"vision_tower/config.json", "vision_tower/pytorch_model.bin"}
    assert found["vision_tower/pytorch_model.bin"] == sha256((tower / "pytorch_model.bin").read_bytes()).hexdigest()
    assert found["weights/own/config.json"] == sha256(json.dumps(TOWER).encode()).hexdigest()


def test_version_two_and_imp_keep_their_own_tower(tmp_path, weights, imp_weights):
    tower = clip_folder(tmp_path / "clip", weights)
    config = {**MOBILEVLM, "mm_projector_type": "ldpnetv2"}
    second = drawn(layouts.official_keys(of_config("mobilevlm", config, TOWER)))
    for system, path in (
        ("mobilevlm", folder_of(tmp_path / "v2", config, second)),
        ("imp", folder_of(tmp_path / "imp", IMP, imp_weights)),
    ):
        with pytest.raises(UsageError, match="leave vision_tower out"):
            checkpoint.open(path, system, tower)


def test_a_tower_that_is_none_is_refused(tmp_path, weights):
    path = folder_of(tmp_path / "c", MOBILEVLM, weights)
    wrong = folder_of(tmp_path / "wrong", {}, {"text_model.x": torch.ones(1)})
    with pytest.raises(UsageError, match=r"wrong: no key begins with vision_model\.; give the folder of a CLIP"):
        checkpoint.open(path, "mobilevlm", wrong)
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        checkpoint.open(path, "mobilevlm", tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------------------------------
# Wrong ones


def refused(path, match, system="mobilevlm"):
    with pytest.raises(UsageError, match=match) as error:
        read(checkpoint.open(path, system))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


def test_missing_tensors_are_named(tmp_path, weights):
    del weights["model.layers.1.mlp.up_proj.weight"], weights["lm_head.weight"]
    path = folder_of(tmp_path / "c", MOBILEVLM, weights)
    refused(path, r"2 tensors are missing \(model\.layers\.1\.mlp\.up_proj\.weight, lm_head\.weight\); is it whole")


def test_a_checkpoint_without_its_tower_says_how_to_give_one(tmp_path, weights):
    kept = {k: t for k, t in weights.items() if not k.startswith(layouts.TOWER)}
    refused(folder_of(tmp_path / "c", MOBILEVLM, kept), "are missing .*; set vision_tower to a folder with the tower")


def test_a_tensor_of_another_shape_is_named_with_both(tmp_path, weights):
    weights["model.norm.weight"] = torch.ones(31)
    path = folder_of(tmp_path / "c", MOBILEVLM, weights)
    refused(path, r"model\.norm\.weight is \[31\], its config\.json makes it \[32\]")


@pytest.mark.parametrize("shape", [(), (17,), (17, 4, 4), (0, 16)])
def test_a_position_table_of_another_number_of_dimensions_is_one_line(tmp_path, weights, shape):
    weights[layouts.TOWER + "embeddings.position_embedding.weight"] = torch.ones(shape)
    said = re.escape(f"position_embedding.weight is {list(shape)}, its config.json makes it [17, 16]")
    refused(folder_of(tmp_path / "c", MOBILEVLM, weights), said)


def test_a_quantised_checkpoint_is_refused(tmp_path, weights):
    weights["lm_head.weight"] = torch.ones(40, 32, dtype=torch.uint8)
    refused(folder_of(tmp_path / "c", MOBILEVLM, weights), r"lm_head\.weight is stored as U8, .*give the unquantised")


def test_another_systems_checkpoint_is_refused(tmp_path, imp_weights):
    refused(folder_of(tmp_path / "c", IMP, imp_weights), "model_type is 'imp', not mobilevlm")


@pytest.mark.parametrize("names", [["adapter_config.json", "adapter_model.bin"], ["non_lora_trainables.bin"]])
def test_a_lora_adapter_is_refused_with_the_reason(tmp_path, names):
    (tmp_path / "config.json").write_text(json.dumps(MOBILEVLM))
    for name in names:
        (tmp_path / name).write_bytes(b"{}")
    refused(tmp_path, "what LoRA training adds to a base model, and no whole model; merge it")


def test_an_empty_folder_and_none(tmp_path):
    refused(tmp_path, "no config.json in it; give a checkpoint's folder")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, r"no weights in it, that is none of model\.safetensors, .*; was it downloaded whole")
    refused(tmp_path / "no" / "such" / "one", "no such folder")
    refused(tmp_path / "config.json", "no such folder")


@pytest.mark.parametrize("text", ["", "[1]", '{"a": ', "[" * 100000, "\xff"])
def test_a_config_that_is_no_object_is_refused(tmp_path, weights, text):
    path = folder_of(tmp_path / "c", MOBILEVLM, weights)
    (path / "config.json").write_bytes(text.encode("latin-1"))
    refused(path, r"config\.json: (not whole JSON|JSON of a list)")


# -- safetensors


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1, -1000])
def test_truncated_safetensors(tmp_path, weights, keep):
    path = folder_of(tmp_path / "c", MOBILEVLM, weights)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(path, r"model\.safetensors: .*copy it again")


def with_header(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


BYTES4 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("about", "match"),
    [
        ({"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}, "gives x 4 bytes for shape"),
        ({"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}, "x ends at .* cut off"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "x ends at .* cut off"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "what its header says of x is no tensor"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}, "gives x -4 bytes"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}, "what its header says of x is no tensor"),
        ({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, "what its header says of x is no tensor"),
        ({"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}, "what its header says of x is no tensor"),
        ({"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}, "what its header says of x is no tensor"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0]}, "what its header says of x is no tensor"),
        ({"dtype": "F32", "shape": [1]}, "what its header says of x is no tensor"),
        ("F32", "what its header says of x is no tensor"),
    ],
)  # fmt: skip
def test_a_safetensors_header_that_lies(tmp_path, about, match):
    (tmp_path / "config.json").write_text(json.dumps(MOBILEVLM))
    with_header(tmp_path / "model.safetensors", {"x": about}, b"\0" * 4)
    refused(tmp_path, match)


@pytest.mark.parametrize(
    ("header", "length"), [(b"[]", None), (b"{}", 2**62), (b"{}", 0), (b"\xff\xfe", None), (b'{"x"', None)]
)
def test_a_safetensors_header_that_is_none(tmp_path, header, length):
    (tmp_path / "config.json").write_text(json.dumps(MOBILEVLM))
    with_header(tmp_path / "model.safetensors", header, length=length)
    refused(tmp_path, r"model\.safetensors: (not a whole safetensors file|not whole JSON|JSON of a list)")


def test_a_name_out_of_a_file_does_not_reach_the_terminal(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MOBILEVLM))
    with_header(tmp_path / "model.safetensors", {"\x1b[2J\n": {"dtype": 1}})
    assert "\x1b" not in refused(tmp_path, r"\?\[2J\?")


def test_tensors_without_dimensions_or_elements_are_read(tmp_path):
    saved = {"a": torch.tensor(2.5), "b": torch.ones(0, 3), "c": torch.tensor([1.5, 2.5], dtype=torch.float64)}
    save_file(saved, tmp_path / "x.safetensors")
    found = checkpoint_files.entries(tmp_path / "x.safetensors")
    same(dict(checkpoint_files.tensors(tmp_path / "x.safetensors", found)), saved)


# -- .bin


class Hostile:
    def __reduce__(self):
        return (print, ("run",))


def test_a_pickle_that_runs_code_is_refused(tmp_path, weights, capsys):
    path = folder_of(tmp_path / "c", MOBILEVLM, {**weights, "x": Hostile()}, "pytorch_model.bin")
    refused(path, r"refused, for it holds .*print.* could run code")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("keep", [0, 2, 100, -1, -5000])
def test_a_truncated_bin(tmp_path, weights, keep):
    path = folder_of(tmp_path / "c", MOBILEVLM, weights, "pytorch_model.bin")
    file = path / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:keep])
    refused(path, r"pytorch_model\.bin: not a whole torch checkpoint")


def test_a_bin_from_before_torch_1_6_is_refused(tmp_path, weights):
    path = folder_of(tmp_path / "c", MOBILEVLM, weights)
    (path / "model.safetensors").unlink()
    torch.save(weights, path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    refused(path, "from before torch 1.6; save it again")


def test_a_bin_that_would_unpack_to_more_is_refused(tmp_path, weights):
    path = folder_of(tmp_path / "c", MOBILEVLM, weights, "pytorch_model.bin")
    with zipfile.ZipFile(path / "pytorch_model.bin") as old:
        parts = {i.filename: old.read(i) for i in old.infolist()}
    with zipfile.ZipFile(path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in parts.items():
            new.writestr(name, data)
    refused(path, "holds compressed parts")


def test_a_bin_of_something_else_is_refused(tmp_path):
    path = folder_of(tmp_path / "c", MOBILEVLM, [torch.ones(1)], "pytorch_model.bin")
    refused(path, "holds a list, not a state dict")
    (path / "pytorch_model.bin").write_bytes(pickle.dumps({"x": 1}))
    refused(path, "not a whole torch checkpoint")


def test_a_bin_whose_shapes_claim_more_than_it_stores_takes_no_memory(tmp_path, weights):
    weights["model.extra.weight"] = torch.ones(1).expand(2**45)  # of one stored number
    path = folder_of(tmp_path / "c", MOBILEVLM, weights, "pytorch_model.bin")
    opened = checkpoint.open(path, "mobilevlm")
    assert opened.keys()["model.extra.weight"][0] == (2**45,)
    assert "model.extra.weight" not in read(opened)


def test_views_of_one_storage_are_read_whole(tmp_path, weights):
    wide = torch.randn(40, 64).bfloat16()
    weights["model.embed_tokens.weight"], weights["lm_head.weight"] = wide[:, :32], wide[:, 32:]
    path = folder_of(tmp_path / "c", MOBILEVLM, weights, "pytorch_model.bin")
    same(read(checkpoint.open(path, "mobilevlm")), weights)


def test_pages_given_back_are_those_of_the_tensors_own_storage(tmp_path, weights, monkeypatch):
    """A view begins inside its storage: memory behind that one's end is somebody else's."""
    page, given = mmap.PAGESIZE, []
    weights["model.extra"] = torch.arange(6 * page, dtype=torch.float32)[5 * page :]
    path = folder_of(tmp_path / "c", MOBILEVLM, weights, "pytorch_model.bin") / "pytorch_model.bin"
    mapped = torch.load(path, weights_only=True, mmap=True)["model.extra"]
    storage = mapped.untyped_storage()
    assert mapped.data_ptr() == storage.data_ptr() + 4 * 5 * page
    library = SimpleNamespace(madvise=lambda begin, length, _: given.append((begin.value, length.value)))
    monkeypatch.setattr(checkpoint_files.ctypes, "CDLL", lambda _: library)
    checkpoint_files._forget_pages(mapped)
    ((begin, length),) = given
    assert begin % page == length % page == 0
    assert 0 <= begin - storage.data_ptr() < page
    assert 0 <= storage.data_ptr() + 4 * 6 * page - (begin + length) < page


# -- an index


@pytest.mark.parametrize(
    ("place", "match"),
    [
        ("part-3-of-2.safetensors", "names the shard part-3-of-2.safetensors, which is not there"),
        ("../c/part-1-of-2.safetensors", "names the shard '../c/part-1-of-2.safetensors', wanted a file beside it"),
        ("/etc/passwd", "names the shard '/etc/passwd', wanted a file beside it"),
        ("config.json", "names the shard 'config.json', wanted a file beside it"),
        ("part-1-of-2.safetensors\n", "wanted a file beside it"),
        ("", "names the shard '', wanted a file beside it"),
        (7, "its weight_map is no table of keys and files"),
    ],
)
def test_an_index_that_names_what_is_not_there(tmp_path, weights, place, match):
    path = folder_of(tmp_path / "c", MOBILEVLM, weights)
    index = in_shards(path, "safetensors")
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = place
    index.write_text(json.dumps(content))
    refused(path, match)


def test_an_index_that_puts_a_tensor_into_the_wrong_shard(tmp_path, weights):
    path = folder_of(tmp_path / "c", MOBILEVLM, weights)
    index = in_shards(path, "safetensors")
    content = json.loads(index.read_text())
    at = content["weight_map"]["model.norm.weight"]
    content["weight_map"]["model.norm.weight"] = f"part-{3 - int(at[5])}-of-2.safetensors"
    index.write_text(json.dumps(content))
    refused(path, r"says model\.norm\.weight would be in part-\d-of-2\.safetensors, which holds no such tensor")


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "no JSON"])
def test_an_index_that_is_none(tmp_path, weights, text):
    path = folder_of(tmp_path / "c", MOBILEVLM, weights)
    in_shards(path, "safetensors").write_text(text)
    refused(path, r"index\.json: (its weight_map is no table|not whole JSON)")


def test_layout_b_with_rows_that_are_no_thirds(tmp_path):
    path = folder_of(tmp_path / "c", IMP, {"transformer.h.0.mixer.Wqkv.weight": torch.ones(7, 2)})
    refused(path, "no q, k and v of equal height", "imp")
