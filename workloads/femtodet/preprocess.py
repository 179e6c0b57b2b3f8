"""A picture as the network wants it: fitted into a square, padded, normalised; bit for bit as the official pipeline.

Source: the test pipeline of yh-pengtu/FemtoDet @ 2073227 (mmdet 2.23, mmcv's `imrescale` and `imnormalize`).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from edgewatt.harness.api import HarnessError
from edgewatt.workloads.picture_files import decoded

Bytes = npt.NDArray[np.uint8]
Float32s = npt.NDArray[np.float32]

PAD_LEVEL = 114  # on all channels, before normalisation
MEAN_RGB = np.array((123.675, 116.28, 103.53), np.float32)
STD = np.float32(58.82)  # the same for all channels

# Every possible level of each channel, normalised: a look-up is exact and as fast as the arithmetic.
_LEVELS: Float32s = (np.arange(256, dtype=np.float32) - MEAN_RGB[:, None]) / STD


def fitted_size(width_px: int, height_px: int, size_px: int) -> tuple[int, int]:
    """Width and height of a picture scaled so that its longer side is `size_px`; small pictures are enlarged."""
    scale = min(size_px / max(width_px, height_px), size_px / min(width_px, height_px))
    # At least 1 px: the official code fails on a picture that is thinner than half a pixel after scaling.
    return max(1, int(width_px * scale + 0.5)), max(1, int(height_px * scale + 0.5))


def read(path: Path) -> Bytes:
    """The picture of a file, as `decoded`. HarnessError if the file is gone or is no picture.

    The official pipeline (mmcv's colour mode with OpenCV) turns pictures by EXIF too.
    """
    try:
        picture = decoded(path.read_bytes())
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read ({error.strerror}); it was readable when the run began") from error
    if picture is None:
        raise HarnessError(f"{path}: is no picture OpenCV can decode; it was one when the run began")
    return picture


def fill(into: Float32s, picture: Bytes) -> Float32s:
    """Writes the normalised RGB of a BGR picture into `into` (1, 3, size, size).

    Returns the scale factor (4,): network pixels per picture pixel for x, y, x, y.
    """
    size_px = into.shape[-1]
    if into.shape != (1, 3, size_px, size_px) or into.dtype != np.float32 or not into.flags.c_contiguous:
        # OpenCV would quietly write into a copy.
        raise ValueError(f"wanted a contiguous float32 (1, 3, S, S), got {into.dtype} {into.shape}")
    height_px, width_px = picture.shape[:2]
    w, h = fitted_size(width_px, height_px, size_px)
    fitted = cv2.resize(picture, (w, h), interpolation=cv2.INTER_LINEAR)
    for channel, plane in enumerate(reversed(cv2.split(fitted))):
        levels = _LEVELS[channel]
        target = into[0, channel]
        cv2.LUT(plane, levels[None], target[:h, :w])
        target[:h, w:] = levels[PAD_LEVEL]
        target[h:] = levels[PAD_LEVEL]
    return np.array((w / width_px, h / height_px) * 2, np.float32)
