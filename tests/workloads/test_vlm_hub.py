"""Checkpoints by their id on the hub: from its cache, downloaded, or refused in one line."""

import json

import pytest

pytest.importorskip("torch")
hub = pytest.importorskip("huggingface_hub")

from edgewatt.harness.api import UsageError  # noqa: E402
from edgewatt.workloads.vlm import checkpoint  # noqa: E402
from support.vlm_checkpoints import MOBILEVLM, folder_of, mobilevlm_weights, read, same  # noqa: E402

pytestmark = pytest.mark.needs_torch


def test_a_hub_id_comes_out_of_the_cache(tmp_path, monkeypatch):
    path = folder_of(tmp_path / "c", MOBILEVLM, mobilevlm_weights())
    asked = []

    def snapshot(repository, **options):
        asked.append((repository, options["revision"], options.get("local_files_only")))
        return str(path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert checkpoint.open("mtgv/MobileVLM-1.7B@main", "mobilevlm").folder == path
    assert asked == [("mtgv/MobileVLM-1.7B", "main", True)]


@pytest.mark.parametrize("there", [(), ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin")])
def test_a_cache_without_all_weights_is_downloaded_whole(tmp_path, monkeypatch, there):
    weights = mobilevlm_weights()
    whole = folder_of(tmp_path / "c", MOBILEVLM, weights, "pytorch_model.bin")
    (tmp_path / "part").mkdir()
    shards = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    for name in there:
        (tmp_path / "part" / name).write_text(json.dumps(shards))
    patterns = []

    def snapshot(repository, local_files_only=False, allow_patterns=(), **_):
        if local_files_only:
            return str(tmp_path / "part")
        patterns.extend(allow_patterns)
        return str(whole)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    names = ["config.json", "pytorch_model.bin", "onnx/model.safetensors"]  # what lies in a folder is something else
    monkeypatch.setattr(hub.HfApi, "list_repo_files", lambda *_, **__: names)
    same(read(checkpoint.open("mtgv/MobileVLM-1.7B", "mobilevlm")), weights)
    assert "*.bin" in patterns and "*.safetensors" not in patterns


def test_no_network_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    monkeypatch.setattr(hub.HfApi, "list_repo_files", fail)
    with pytest.raises(UsageError, match=r"nor in the hub's cache .* download it elsewhere and give its folder"):
        checkpoint.open("mtgv/MobileVLM-1.7B", "mobilevlm")


@pytest.mark.parametrize("name", ["../mtgv/x", "a/b/c", "mtgv", "a b/c", "./x"])
def test_what_is_neither_folder_nor_id_does_not_reach_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgewatt.workloads.vlm.hub._snapshot", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(UsageError, match=r"no such folder; give a checkpoint's folder, or its id on the hub"):
        checkpoint.open(name, "mobilevlm")
