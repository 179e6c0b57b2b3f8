"""What a run of a vision-language model refuses before its weights are read, each in one line."""

import dataclasses
import json
import logging
from types import SimpleNamespace

import pytest

from edgewatt.harness.api import UsageError
from edgewatt.workloads.imp.workload import Imp
from edgewatt.workloads.mobilevlm.workload import MobileVlm
from support import tiny_vlm
from support.command import Command
from support.here import Here
from support.picture_sets import write_picture

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.needs_torch


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEWATT_CACHE", str(tmp_path / "cache"))


def refusal(call):
    with pytest.raises(UsageError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.needs_shared
@pytest.mark.parametrize(("pictures", "question"), [(1, "word " * 3000), (14, "What?")])
def test_prompt_longer_than_the_context_is_refused_before_weights_are_read(
    shared, tmp_path, monkeypatch, pictures, question
):
    """2048 tokens fit: 3000 words do not, nor do 14 pictures of 144 tokens each and what is asked about them."""
    from edgewatt.workloads.vlm import runner

    def read(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(runner, "loaded", read)
    folder, _ = tiny_vlm.mobilevlm(shared, tmp_path / "checkpoint")
    for k in range(pictures):
        write_picture(tmp_path / "photos" / f"{k:02}.png", seed=k)

    def load(count, asked):
        workload = MobileVlm(
            weights=str(folder), data=tmp_path / "photos", limit=1, images_per_question=count, question=asked,
            max_new_tokens=2,
        )  # fmt: skip
        runner.VisionLanguageRunner(json.loads(json.dumps(workload.prepare(Here()).params))).load()

    said = refusal(lambda: load(pictures, question))
    assert said.startswith("question '00.png") and "tokens with its pictures, and the network takes 2048" in said
    with pytest.raises(AssertionError, match="weights were read"):
        load(1, "What?")


def test_variant_is_known_by_its_shape_and_refused_by_another(monkeypatch, tmp_path):
    """The eps of the 2.7B language model's norms is in no source (mobilevlm.md 2), so a checkpoint may have another."""
    from edgewatt.workloads.vlm import checkpoint, subject

    published = subject.variants("mobilevlm")["v2-3b"].architecture
    own = dataclasses.replace(published, text=dataclasses.replace(published.text, eps=1e-5, positions=4096))
    opened = SimpleNamespace(architecture=lambda: own, dtype="BF16", folder=tmp_path)
    monkeypatch.setattr(checkpoint, "open", lambda *_: opened)
    for variant in ("auto", "v2-3b"):
        found = subject.chosen("mobilevlm", variant, "folder")
        assert (found.variant, found.architecture) == ("v2-3b", own)
    said = refusal(lambda: subject.chosen("mobilevlm", "v1-3b", "folder"))
    assert "has the shape of v2-3b" in said


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", ["tokenizer.model", "added_tokens.json"])
def test_damaged_tokenizer_is_named_with_its_folder(shared, tmp_path, name):
    from edgewatt.workloads.vlm import tokenizer

    folder, _ = tiny_vlm.mobilevlm(shared, tmp_path / "checkpoint")
    (folder / name).write_text('{"<x>": "not a number"}')
    said = refusal(lambda: tokenizer.open(folder, "mobilevlm"))
    assert said.count(str(folder)) == 1


@pytest.mark.parametrize(("is_integrated", "left_gb"), [(0, "3.00"), (1, "1.00")])
def test_network_that_a_gpu_has_no_room_for_is_refused_before_it_is_made(monkeypatch, is_integrated, left_gb):
    """A GPU of its own memory has 3 GB left in it; one without, as a Jetson's, what the machine has left: 1 GB."""
    import torch

    from edgewatt.workloads.vlm import memory, runner, subject

    def made(*_):
        raise AssertionError("the network was made")

    monkeypatch.setattr(runner.network, "empty", made)
    monkeypatch.setattr(memory, "available", lambda: 1_000_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3_000_000_000, 8_000_000_000))
    properties = SimpleNamespace(is_integrated=is_integrated)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    params = {"precision": "bf16", "exact": False, "items": [{"pictures": ["a.png"]}], "vision_tower": None, "seed": 0}
    chosen = subject.chosen("mobilevlm", "v1-1.7b", "synthetic")
    said = refusal(lambda: runner.loaded(chosen, params, torch.device("cuda"), 300, lambda *_: None))
    assert said.startswith("precision=bf16 takes") and f"and {left_gb} GB are left" in said
    monkeypatch.setattr(memory, "available", lambda: 80_000_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80_000_000_000, 80_000_000_000))
    with pytest.raises(AssertionError, match="was made"):
        runner.loaded(chosen, params, torch.device("cuda"), 300, lambda *_: None)


@pytest.mark.parametrize(("dtype", "stored_bytes"), [("F64", 8), ("F32", 4), ("BF16", 2)])
def test_memory_is_asked_for_before_its_bandwidth_is_measured(monkeypatch, tmp_path, dtype, stored_bytes):
    """1 GB is left; a tensor of the checkpoint counts as large as it is stored."""
    import torch

    from edgewatt.workloads.vlm import checkpoint, memory, runner, subject

    asked = []
    check = memory.check

    def checked(what, left):
        asked.append(what)
        return check(what, left)

    monkeypatch.setattr(memory, "check", checked)
    monkeypatch.setattr(memory, "available", lambda: 1_000_000_000)
    monkeypatch.setattr(runner.bandwidth, "read_bandwidth", lambda *_: pytest.fail("memory was taken"))
    monkeypatch.setattr(checkpoint, "open", lambda *_: SimpleNamespace(dtype=dtype))
    params = {"precision": "bf16", "exact": False, "items": [{"pictures": ["a.png"]}], "vision_tower": None, "seed": 0}
    chosen = dataclasses.replace(subject.chosen("mobilevlm", "v1-1.7b", "synthetic"), folder=tmp_path)
    said = refusal(lambda: runner.loaded(chosen, params, torch.device("cpu"), 300, lambda *_: None))
    assert said.startswith("precision=bf16 takes") and [a.stored_bytes for a in asked] == [stored_bytes]


def test_hub_that_cannot_be_reached_is_one_line_and_no_more(monkeypatch):
    """The hub's library warns of every try of several; what it says last is in ours."""
    hub = pytest.importorskip("huggingface_hub")
    log = logging.getLogger("huggingface_hub")

    def unreachable(*_, **__):
        log.getChild("utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("refused")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    monkeypatch.setattr(hub.HfApi, "list_repo_files", unreachable)
    heard = []
    handler = logging.Handler()
    handler.emit = heard.append
    log.addHandler(handler)
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        said = refusal(lambda: Imp(weights="MILVLG/imp-v1-3b", data=None).prepare(Here()))
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
    assert said.startswith("MILVLG/imp-v1-3b: neither a folder, nor in the hub's cache")
    assert [r.getMessage() for r in heard] == []


def test_hub_without_a_network_is_one_line_of_the_command(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    said = Command(tmp_path).refused("run", "imp", "--set", "weights=MILVLG/imp-v1-3b")
    assert "MILVLG/imp-v1-3b: neither a folder, nor in the hub's cache (LocalEntryNotFoundError)" in said
