"""Checkpoint folders laid out as on the hub, made of the small golden networks."""

import json
import shutil
from pathlib import Path


def mobilevlm(shared: Path, into: Path, name: str = "tiny_ldpnetv2") -> tuple[Path, dict]:
    """A MobileVLM checkpoint in the folder `into`, tokenizer and all, and its golden case."""
    golden = shared / "data" / "golden" / "mobilevlm"
    into.mkdir(parents=True)
    for file in ("config.json", "vision_config.json", "preprocessor_config.json", "model.safetensors"):
        shutil.copyfile(golden / name / file, into / file)
    shutil.copyfile(golden / "tokenizer.model", into / "tokenizer.model")
    return into, json.loads((golden / name / "case.json").read_text())
