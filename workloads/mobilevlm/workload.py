"""MobileVLM and MobileVLM V2 (Chu et al., arXiv 2312.16886 and 2402.03766)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgewatt.workloads.vlm.architecture import System
from edgewatt.workloads.vlm.workload import VisionLanguage


@dataclass(frozen=True)
class MobileVlm(VisionLanguage):
    """Answer questions about pictures with one of the MobileVLM models."""

    name: ClassVar[str] = "mobilevlm"
    system: ClassVar[System] = "mobilevlm"
    _IMAGE_MODES: ClassVar[Mapping[str, str]] = {"scienceqa": "crop"}  # it calls CLIP's image processor directly
