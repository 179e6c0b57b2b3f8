"""The two published forms of FemtoDet and the names of what they detect.

Source: Tu et al., "FemtoDet", ICCV 2023 (arXiv 2301.06719), and its official repository yh-pengtu/FemtoDet @ 2073227.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

# In the order of COCO's category numbers (1..90 with gaps).
COCO_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)


@dataclass(frozen=True)
class Variant:
    """One published form of the network."""

    name: str
    width: float  # factor on the backbone's base channels
    classes: tuple[str, ...]  # in the order of the cls channels
    size_px: int = 416  # side of the square input the paper tests at; any multiple of 32 works
    neck_channels: int = 64
    stride_px: int = 16  # of the one output map


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "voc": Variant("voc", 0.25, VOC_CLASSES),
        "coco_large": Variant("coco_large", 1.0, COCO_CLASSES),
    }
)
