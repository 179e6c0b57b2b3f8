"""Imp (Shao et al., arXiv 2405.12107)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgewatt.workloads.vlm.architecture import System
from edgewatt.workloads.vlm.workload import VisionLanguage


@dataclass(frozen=True)
class Imp(VisionLanguage):
    """Answer questions about pictures with one of the Imp models."""

    name: ClassVar[str] = "imp"
    system: ClassVar[System] = "imp"
    # It calls the image processor, which squashes, directly; of the checkpoints one alone pads.
    _IMAGE_MODES: ClassVar[Mapping[str, str]] = {"scienceqa": "square"}
