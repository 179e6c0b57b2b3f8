"""Where a checkpoint lies: a folder as it is, or the local copy of one on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from edgewatt.harness.api import UsageError

_BESIDE = ("*.json", "tokenizer.model", "*.txt", "*.tiktoken")
_WEIGHTS = ("*.safetensors", "*.bin")


def folder(path: Path | str) -> Path:
    """The folder of a checkpoint; one on the hub is downloaded if it is not in the local cache yet.

    Args:
        path: a folder; or `owner/name` or `owner/name@revision` on the hub, where there is no such folder.

    Raises:
        UsageError: neither, or the hub cannot be reached and the cache has nothing.
    """
    found = Path(path).expanduser()
    if found.is_dir():
        return found
    asked = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", str(path), re.ASCII)
    if found.exists() or not asked or str(path).startswith("."):
        raise UsageError(f"{path}: no such folder; give a checkpoint's folder, or its id on the hub (owner/name)")
    return _snapshot(asked[1], asked[2])


def _snapshot(repository: str, revision: str | None) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub.utils import logging
    except ImportError as error:
        raise UsageError(f"{repository}: no such folder; for the hub, pip install 'edgewatt[vlm]'") from error
    logging.set_verbosity_error()  # of an unreachable hub it tells at every try; we do at the end
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": [*_BESIDE, *_WEIGHTS]}
    try:
        cached = Path(huggingface_hub.snapshot_download(repository, local_files_only=True, **wanted))
        if _is_whole(cached):
            return cached
        raise FileNotFoundError(f"not all weights in {cached}")
    except Exception as error:  # not in the cache, or not whole; the library has many classes for it
        absent = error
    try:
        names = huggingface_hub.HfApi().list_repo_files(repository, revision=revision)
        # Beside config.json: what lies in a folder, such as a part that was exported apart, is not the checkpoint.
        has_safetensors = any(n.endswith(".safetensors") and "/" not in n for n in names)
        kind = _WEIGHTS[0] if has_safetensors else _WEIGHTS[1]
        wanted["allow_patterns"] = [*_BESIDE, kind]
        return Path(huggingface_hub.snapshot_download(repository, **wanted))
    except Exception as error:
        raise UsageError(
            f"{repository}: neither a folder, nor in the hub's cache ({type(absent).__name__}), nor to be had from "
            f"the hub ({type(error).__name__}); download it elsewhere and give its folder"
        ) from error


def _is_whole(folder: Path) -> bool:
    """Whether there are weights, and where an index names shards, all of one index."""
    indices = [json.loads(path.read_text("utf-8")) for path in folder.glob("*.index.json")]
    if not indices:
        return any(True for pattern in _WEIGHTS for _ in folder.glob(pattern))
    return any(all((folder / name).is_file() for name in set(index["weight_map"].values())) for index in indices)
