"""Checkpoints are loaded exactly, or refused with one clear line before anything is taken from them."""

import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgewatt.harness.api import UsageError
from edgewatt.workloads.femtodet import checkpoint
from edgewatt.workloads.femtodet.fold import folded
from edgewatt.workloads.femtodet.layout import state_layout
from edgewatt.workloads.femtodet.variants import VARIANTS

VOC, COCO = VARIANTS["voc"], VARIANTS["coco_large"]
STEM = "backbone.conv1.conv.weight"


@pytest.fixture(scope="module")
def state():
    return checkpoint.synthetic(VOC, 3)


def saved(tmp_path, state, name="net.safetensors"):
    save_file(state, tmp_path / name)
    return tmp_path / name


def refusal(path, variant=VOC):
    with pytest.raises(UsageError) as raised:
        checkpoint.load(path, variant)
    text = str(raised.value)
    assert "\n" not in text and str(path) in text
    return text


def test_safetensors_come_back_value_for_value(tmp_path, state):
    loaded = checkpoint.load(saved(tmp_path, state), VOC)
    assert list(loaded) == list(state_layout(VOC, "training"))
    for key, array in state.items():
        np.testing.assert_array_equal(loaded[key], array)
        assert loaded[key].dtype == array.dtype


@pytest.mark.needs_shared
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", ["training", "deploy"])
def test_official_files_of_both_forms_are_loaded(shared, variant, form):
    path = shared / "data/golden/femtodet" / variant / f"weights_{form.replace('training', 'train')}.safetensors"
    loaded = checkpoint.load(path, VARIANTS[variant])
    assert list(loaded) == list(state_layout(VARIANTS[variant], form))
    official = load_file(path)
    assert all(np.array_equal(loaded[k], official[k]) for k in official)


def test_half_and_double_precision_become_float32(tmp_path, state):
    for dtype in (np.float16, np.float64):
        path = saved(tmp_path, {k: v.astype(dtype) if v.dtype == np.float32 else v for k, v in state.items()})
        loaded = checkpoint.load(path, VOC)
        assert loaded[STEM].dtype == np.float32
        np.testing.assert_allclose(loaded[STEM], state[STEM], rtol=1e-3)


def test_averaged_weights_beside_the_plain_ones_are_passed_over(tmp_path, state):
    averaged = {f"ema_{k.replace('.', '_')}": np.array(v + 1) for k, v in state.items()}
    loaded = checkpoint.load(saved(tmp_path, state | averaged), VOC)
    np.testing.assert_array_equal(loaded[STEM], state[STEM])


def test_parallel_wrappers_prefix_is_taken_off(tmp_path, state):
    loaded = checkpoint.load(saved(tmp_path, {f"module.{k}": v for k, v in state.items()}), VOC)
    np.testing.assert_array_equal(loaded[STEM], state[STEM])


def test_missing_keys_are_named_and_counted(tmp_path, state):
    gone = [k for k in state if k.startswith("neck.lateral_convs.0.bn")]
    text = refusal(saved(tmp_path, {k: v for k, v in state.items() if k not in gone}))
    assert "5 missing (neck.lateral_convs.0.bn.weight, neck.lateral_convs.0.bn.bias, " in text
    assert text.count("running_var") == 0  # three are named, the rest counted


def test_wrong_shape_is_named_with_both_shapes(tmp_path, state):
    text = refusal(saved(tmp_path, state | {STEM: np.zeros((8, 3, 5, 5), np.float32)}))
    assert f"1 of another shape ({STEM} has (8, 3, 5, 5), not (8, 3, 3, 3))" in text


def test_unexpected_keys_are_named_without_control_characters(tmp_path, state):
    text = refusal(saved(tmp_path, state | {"neck.evil\x1b[31m": np.zeros(1, np.float32)}))
    assert "1 unexpected (neck.evil?[31m)" in text


def test_the_other_variants_weights_are_recognised(tmp_path):
    path = saved(tmp_path, checkpoint.synthetic(COCO, 1))
    assert "set variant=coco_large" in refusal(path)


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_classification_backbone_is_recognised(tmp_path, state, prefix):
    backbone = {k.replace("backbone.", prefix): v for k, v in state.items() if k.startswith("backbone.")}
    text = refusal(saved(tmp_path, backbone | {"head.fc.weight": np.zeros((1000, 80), np.float32)}))
    assert "only a classification backbone" in text


def test_values_that_are_not_numbers_are_refused(tmp_path, state):
    damaged = {k: v.copy() for k, v in state.items()}
    damaged["neck.lateral_convs.1.bn.weight"][3] = np.nan
    assert "neck.lateral_convs.1.bn.weight holds values that are not finite" in refusal(saved(tmp_path, damaged))
    huge = state | {STEM: np.full((8, 3, 3, 3), 1e300)}
    assert f"{STEM} holds values that are not finite" in refusal(saved(tmp_path, huge))


def test_negative_variance_is_refused(tmp_path, state):
    key = "backbone.conv1.bn.running_var"
    assert "negative variance" in refusal(saved(tmp_path, state | {key: -state[key]}))


def test_other_number_kinds_are_refused_by_name(tmp_path, state):
    text = refusal(saved(tmp_path, state | {STEM: np.ones((8, 3, 3, 3), np.uint8)}))
    assert f"{STEM} is U8" in text


@pytest.mark.parametrize("kept", [0, 7, 8, 40, 20_000, -1])
def test_truncated_safetensors_are_refused(tmp_path, state, kept):
    path = saved(tmp_path, state)
    path.write_bytes(path.read_bytes()[:kept])
    text = refusal(path)
    assert "copy it again" in text or "neither a safetensors" in text


def test_header_that_promises_more_than_the_file_has_is_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    header = json.dumps({STEM: entry}).encode()
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "not a whole safetensors file" in refusal(path)


def test_other_files_and_folders_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no weights here at all, just text")
    assert "neither a safetensors file nor a torch checkpoint" in refusal(tmp_path / "notes.txt")
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "absent.pth")
    assert "cannot be read (Is a directory)" in refusal(tmp_path)
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"state_dict": 1}))
    assert "before torch 1.6" in refusal(tmp_path / "old.pth")


def test_file_of_another_order_of_size_is_not_opened(tmp_path):
    path = tmp_path / "llm.safetensors"
    with path.open("wb") as file:
        file.truncate(300 * 2**20)
    assert "a FemtoDet checkpoint has at most" in refusal(path)


def test_without_torch_a_pth_names_the_extra(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "net.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'edgewatt[torch]'" in refusal(tmp_path / "net.pth")


# ---------------------------------------------------------------------------------------------------------------------
# The .pth of mmcv


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def mmcv_checkpoint(torch, state):
    plain = OrderedDict((k, torch.from_numpy(np.array(v))) for k, v in state.items())
    averaged = {f"ema_{k.replace('.', '_')}": v + 1 for k, v in plain.items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(8)}}, "param_groups": [{"lr": 0.01, "params": [0]}]}
    meta = {"epoch": 300, "CLASSES": ("a", "b"), "hook_msgs": {"best_score": np.float64(0.46)}, "config": "x = 1"}
    return {"meta": meta, "state_dict": OrderedDict(plain | averaged), "optimizer": optimizer}


@pytest.mark.needs_torch
def test_mmcv_checkpoint_gives_its_plain_weights(torch, tmp_path, state):
    torch.save(mmcv_checkpoint(torch, state), tmp_path / "epoch_300.pth")
    loaded = checkpoint.load(tmp_path / "epoch_300.pth", VOC)
    assert list(loaded) == list(state_layout(VOC, "training"))
    assert all(np.array_equal(loaded[k], v) for k, v in state.items())


@pytest.mark.needs_torch
def test_bare_state_dict_of_torch_is_accepted(torch, tmp_path, state):
    torch.save({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, tmp_path / "net.pth")
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "net.pth", VOC)[STEM], state[STEM])


class Payload:
    def __reduce__(self):
        return print, ("the pickle ran",)


@pytest.mark.needs_torch
def test_pickle_that_would_run_code_is_refused_and_does_not(torch, tmp_path, state, capsys):
    torch.save(mmcv_checkpoint(torch, state) | {"extra": Payload()}, tmp_path / "evil.pth")
    text = refusal(tmp_path / "evil.pth")
    assert "refused" in text and "print" in text and "could run code" in text
    assert "the pickle ran" not in capsys.readouterr().out


@pytest.mark.needs_torch
@pytest.mark.parametrize("kept", [10, 1000, 100_000])
def test_truncated_torch_checkpoint_is_refused(torch, tmp_path, state, kept):
    torch.save(mmcv_checkpoint(torch, state), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:kept])
    assert "not a whole torch checkpoint" in refusal(tmp_path / "cut.pth")


@pytest.mark.needs_torch
def test_archive_that_unpacks_to_far_more_is_refused(torch, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (257 * 2**20))
    assert "unpacks to" in refusal(tmp_path / "bomb.pth")


@pytest.mark.needs_torch
def test_tensor_that_claims_more_than_its_record_is_refused(torch, tmp_path, state):
    torch.save({"state_dict": {STEM: torch.arange(216.0).reshape(8, 3, 3, 3)}}, tmp_path / "net.pth")
    with zipfile.ZipFile(tmp_path / "net.pth") as source, zipfile.ZipFile(tmp_path / "lies.pth", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[:16] if "/data/" in name else content)
    assert "not a whole torch checkpoint" in refusal(tmp_path / "lies.pth")


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds no state_dict, only a list"),
        ({"state_dict": {}}, "348 missing"),
        ({"state_dict": 3}, "no state_dict"),
    ],
)
def test_torch_file_without_weights_is_refused(torch, tmp_path, content, words):
    torch.save(content, tmp_path / "net.pth")
    assert words in refusal(tmp_path / "net.pth")


@pytest.mark.needs_torch
def test_bfloat16_and_sparse_tensors_are_refused_by_name(torch, tmp_path, state):
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in state.items()}
    torch.save(tensors | {STEM: tensors[STEM].bfloat16()}, tmp_path / "net.pth")
    assert f"{STEM} is bfloat16" in refusal(tmp_path / "net.pth")
    torch.save(tensors | {STEM: tensors[STEM].to_sparse()}, tmp_path / "net.pth")
    refusal(tmp_path / "net.pth")


# ---------------------------------------------------------------------------------------------------------------------
# Synthetic weights


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_synthetic_weights_are_seeded_whole_and_never_zero(variant):
    a, b, c = (checkpoint.synthetic(variant, s) for s in (1, 1, 2))
    assert {k: (v.shape, str(v.dtype)) for k, v in a.items()} == state_layout(variant, "training")
    for key, array in a.items():
        np.testing.assert_array_equal(array, b[key])
        assert np.isfinite(array).all() and (array != 0).all()
    assert not np.array_equal(a[STEM], c[STEM])


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("seed", range(3))
def test_synthetic_weights_detect_a_believable_number(tmp_path, variant, seed):
    import onnxruntime as ort

    from edgewatt.workloads.femtodet import graph

    model = graph.write(tmp_path, folded(checkpoint.synthetic(variant, seed), variant), variant)
    y, x = np.mgrid[0:416, 0:416] / 416
    noise = np.random.default_rng(7).normal(0, 0.3, (3, 416, 416))
    waves = np.stack([np.sin(40 * x + 9 * y), np.sign(np.sin(25 * y) * np.cos(13 * x)), np.cos(90 * x * y)])
    picture = (waves + noise)[None].astype(np.float32)
    cls, reg, obj = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"input": picture})
    score = 1 / (1 + np.exp(-cls.max(1))) / (1 + np.exp(-obj[:, 0]))
    assert 3 <= (score >= 0.01).sum() <= 300  # of 676 cells
    assert (score > 0.5).sum() <= 50
    assert np.abs(reg).max() < 8  # no box beyond e^8 cells


def test_weights_that_fold_beyond_float32_are_refused(state):
    huge = {k: v * np.float32(1e30) if v.dtype == np.float32 else v for k, v in state.items()}
    with pytest.raises(UsageError, match="float32"):
        folded(huge, VOC)


def test_pipe_instead_of_a_checkpoint_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refusal(tmp_path / "pipe")
