"""A checkpoint as it lies on the hub: a folder with config.json and weights, checked as untrusted input.

Weights are in model.safetensors, in its shards, in pytorch_model.bin or in its shards, looked for in this order. Keys
are given as those of layout A whatever the layout. Nothing is run from a checkpoint.

MobileVLM's official loader takes the tower inside the checkpoint where the projector's type has `v2` in it, and loads
it anew from `mm_vision_tower` otherwise. Here the checkpoint's own is used (equal but for its rounding to bfloat16)
unless a folder with the tower is given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from edgewatt.harness.api import UsageError
from edgewatt.workloads.foreign import listed, printable
from edgewatt.workloads.vlm import architecture, checkpoint_files, hub, layouts
from edgewatt.workloads.vlm.architecture import Architecture, System
from edgewatt.workloads.vlm.checkpoint_files import DTYPES, Entry, read_json

_NAMED = 3  # keys told of in a run's facts; the rest is counted
_POSITIONS = layouts.TOWER + "embeddings.position_embedding.weight"
_PLACES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk. Nothing of its weights is read before `tensors`."""

    folder: Path
    system: System
    config: Mapping[str, Any]
    vision_config: Mapping[str, Any] | None  # the tower's own, where there is one
    generation_config: Mapping[str, Any] | None
    tower: Path | None  # where the tower is loaded from, if not from `folder`
    layout: str  # "A" or "B"
    files: Mapping[Path, Mapping[str, Entry]] = field(repr=False)  # file -> name in it -> entry
    official: Mapping[Path, Mapping[str, tuple[str, ...]]] = field(repr=False)  # file -> name in it -> official keys

    def keys(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Official key -> (shape, dtype), for all that is in the files and may be a weight."""
        found: dict[str, tuple[tuple[int, ...], str]] = {}
        for path, names in self.official.items():
            for name, keys in names.items():
                entry = self.files[path][name]
                shape = entry.shape
                if len(keys) > 1:
                    shape = (entry.shape[0] // len(keys), *entry.shape[1:])
                found |= dict.fromkeys(keys, (shape, entry.dtype))
        return found

    @property
    def dtype(self) -> str:
        """Of most of its numbers: "F16", "BF16", "F32" or "F64"."""
        counts: dict[str, int] = {}
        for shape, dtype in self.keys().values():
            counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
        return max(counts, key=lambda d: counts[d])

    def architecture(self, size_px: int | None = None) -> Architecture:
        """What config.json and the weights say the network is; `size_px`: another side of the picture.

        Where the tower's position table has another length than config.json makes it, the table is right.

        Raises:
            UsageError: config.json is another model's, or tensors are missing or of other shapes (named).
        """
        made = architecture.of_config(self.system, self.config, self.vision_config, size_px, self.generation_config)
        keys = self.keys()
        table = keys[_POSITIONS][0] if _POSITIONS in keys else ()
        if size_px is None and len(table) == 2:  # of another one `check` tells
            grid = math.isqrt(table[0])  # CLIP's class token is one more than a square
            if made.vision.grid != grid >= 1:
                made = made.at(grid * made.vision.patch)
        self.check(layouts.official_keys(made))
        return made

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """UsageError that names what is missing, of another shape, or stored in a dtype that holds no plain weights."""
        found = self.keys()
        missing = [k for k in wanted if k not in found]
        if missing:
            hint = "is it whole, and of this variant?"
            if all(k.startswith(layouts.TOWER) for k in missing):
                hint = "set vision_tower to a folder with the tower"
            raise UsageError(f"{self.folder}: {len(missing)} tensors are missing ({listed(missing)}); {hint}")
        for key, shape in wanted.items():
            have, dtype = found[key]
            if have != shape:
                raise UsageError(
                    f"{self.folder}: {key} is {list(have)}, its config.json makes it {list(shape)}; "
                    "the two do not belong together"
                )
            if dtype not in DTYPES:
                raise UsageError(
                    f"{self.folder}: {key} is stored as {dtype}, wanted {', '.join(DTYPES)}; give the unquantised one"
                )

    def unexpected(self, wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Keys of the files that the network has not, but for tables that are computed and not learned."""
        return [k for k in self.keys() if k not in wanted]

    def tensors(self, wanted: Container[str]) -> Iterator[tuple[str, Tensor]]:
        """(official key of layout A, tensor in its stored dtype), one at a time, in the order of the files.

        Only keys that are wanted are read. What `check` has not seen may be of any size.
        """
        for path, names in self.official.items():
            entries = self.files[path]
            read = {n: entries[n] for n, keys in names.items() if any(k in wanted for k in keys)}
            for name, tensor in checkpoint_files.tensors(path, read):
                keys = names[name]
                rows = tensor.shape[0] // len(keys) if len(keys) > 1 else 0
                for i, key in enumerate(keys):
                    yield key, tensor[i * rows : (i + 1) * rows] if rows else tensor
                del tensor  # before the next one is read

    def facts(self) -> dict[str, Any]:
        """What a result should tell of where its weights came from, and of keys that nothing here has a place for."""
        unexpected = self.unexpected(layouts.official_keys(self.architecture()))
        return {
            "checkpoint": str(self.folder),
            "layout": self.layout,
            "stored_dtype": self.dtype,
            "files": [str(p.relative_to(self.folder)) for p in self.files if p.is_relative_to(self.folder)],
            "vision_tower": "the checkpoint's own" if self.tower is None else str(self.tower),
            "unexpected": [printable(k) for k in unexpected[:_NAMED]],
            "unexpected_count": len(unexpected),
        }


def open(path: Path | str, system: System, vision_tower: Path | None = None) -> Checkpoint:
    """The checkpoint in a folder, or on the hub (`owner/name`, `owner/name@revision`) by way of its local cache.

    Args:
        path: a folder, or an id of the hub where there is no such folder.
        system: whose checkpoint it is to be.
        vision_tower: a folder with CLIP's own weights, in the place of those in the checkpoint (MobileVLM V1).

    Raises:
        UsageError: no such checkpoint, a damaged or hostile one, a LoRA adapter, or another model's.
    """
    folder = hub.folder(path)
    _refuse_adapter(folder)
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: no config.json in it; give a checkpoint's folder as it is on the hub")
    config = read_json(folder / "config.json")
    files = _weight_files(folder)
    layout = "B" if layouts.is_layout_b(n for names in files.values() for n in names) else "A"
    official = {p: {n: _keys(p, n, e, layout) for n, e in names.items()} for p, names in files.items()}
    official = {p: {n: k for n, k in names.items() if not layouts.is_ignored(n)} for p, names in official.items()}
    tower = None
    if vision_tower is not None:
        tower = Path(vision_tower)
        own = any(k.startswith(layouts.TOWER) for names in official.values() for keys in names.values() for k in keys)
        if own and (system != "mobilevlm" or "v2" in str(config.get("mm_projector_type"))):
            raise UsageError(
                f"{folder}: holds a tower that belongs to its projector, and the official loader uses that; "
                "leave vision_tower out"
            )
        official = {
            p: {n: k for n, k in names.items() if not k[0].startswith(layouts.TOWER)} for p, names in official.items()
        }
        for file, entries in _weight_files(tower).items():
            if file in files:
                raise UsageError(f"{tower}: is the checkpoint's own folder; give the tower's, or leave it out")
            files[file] = entries
            official[file] = _tower_keys(entries)
        if not any(official[f] for f in official if f.is_relative_to(tower)):
            raise UsageError(f"{tower}: no key begins with vision_model.; give the folder of a CLIP model")
    return Checkpoint(
        folder=folder,
        system=system,
        config=config,
        vision_config=_vision_config(folder, config, tower),
        generation_config=_json_or_none(folder / "generation_config.json"),
        tower=tower,
        layout=layout,
        files=files,
        official=official,
    )


def _refuse_adapter(folder: Path) -> None:
    adapter = [p.name for p in sorted(folder.glob("adapter_*")) if p.is_file()]
    adapter += ["non_lora_trainables.bin"] if (folder / "non_lora_trainables.bin").is_file() else []
    if adapter and not any((folder / name).is_file() for names in _PLACES for name in names):
        raise UsageError(
            f"{folder}: holds {', '.join(printable(a) for a in adapter)}, what LoRA training adds to a base model, "
            "and no whole model; merge it into its base and give that"
        )


def _weight_files(folder: Path) -> dict[Path, dict[str, Entry]]:
    """File -> name of a tensor -> entry, each tensor once."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give a checkpoint's folder as it is on the hub")
    for whole, index in _PLACES:
        if (folder / whole).is_file():
            return {folder / whole: checkpoint_files.entries(folder / whole)}
        if (folder / index).is_file():
            return _shards(folder, folder / index)
    names = ", ".join(name for names in _PLACES for name in names)
    raise UsageError(f"{folder}: no weights in it, that is none of {names}; was it downloaded whole?")


def _shards(folder: Path, index: Path) -> dict[Path, dict[str, Entry]]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(v, str) for v in places.values()):
        raise UsageError(f"{index}: its weight_map is no table of keys and files; copy it again")
    files: dict[Path, dict[str, Entry]] = {}
    for name in sorted(set(places.values())):
        if not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", name, re.ASCII):
            raise UsageError(
                f"{index}: names the shard {printable(name)!r}, wanted a file beside it; copy the checkpoint again"
            )
        if not (folder / name).is_file():
            raise UsageError(f"{index}: names the shard {name}, which is not there; download the checkpoint whole")
        entries = checkpoint_files.entries(folder / name)
        wanted = [k for k, v in places.items() if v == name]
        absent = [k for k in wanted if k not in entries]
        if absent:
            raise UsageError(f"{index}: says {listed(absent)} would be in {name}, which holds no such tensor")
        files[folder / name] = {k: entries[k] for k in wanted}
    return files


def _keys(path: Path, name: str, entry: Entry, layout: str) -> tuple[str, ...]:
    keys = layouts.of_layout_b(name) if layout == "B" else (name,)
    if len(keys) > 1 and (not entry.shape or entry.shape[0] % len(keys)):
        raise UsageError(f"{path}: {printable(name)} is {list(entry.shape)}, which is no q, k and v of equal height")
    return keys


def _tower_keys(entries: Mapping[str, Entry]) -> dict[str, tuple[str, ...]]:
    """Those of a whole CLIP model, text part and all, or of its vision part."""
    return {
        n: (layouts.TOWER + n.removeprefix("vision_model."),)
        for n in entries
        if n.startswith("vision_model.") and not layouts.is_ignored(n)
    }


def _vision_config(folder: Path, config: Mapping[str, Any], tower: Path | None) -> dict[str, Any] | None:
    """The tower's own config.json: of the folder given, or of a file or folder inside the checkpoint."""
    if tower is not None:
        return _json_or_none(tower / "config.json")
    name = config.get("mm_vision_tower")
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII):  # beside config.json, no deeper
        return None
    beside = folder / name
    return _json_or_none(beside if name.endswith(".json") else beside / "config.json")


def _json_or_none(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None
