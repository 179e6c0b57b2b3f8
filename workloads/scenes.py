"""Drawn scenes: pictures for a run that was given none, the same levels on every machine for the same seed.

Simple coloured shapes on textured grounds. They have edges, areas and texture for the network to work on, but hold
nothing it was made to find, so they have no ground truth. Drawn with integers and numpy alone: a drawing library's
next version may draw otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from edgewatt.workloads import cache

Bytes = npt.NDArray[np.uint8]

COUNT = 24
FORM = 2  # raised whenever the drawing changes
# Width and height in pixels: what cameras and data sets give, wide and tall, below and above the network's input.
SIZES_PX = ((640, 480), (480, 640), (500, 375), (640, 427), (333, 500), (320, 240), (1280, 720), (800, 600))


def folder(seed: int) -> Path:
    """A folder in the cache with the scenes of that seed as files."""

    def draw(into: Path) -> None:
        for k, picture in enumerate(scenes(seed)):
            # JPEG as from a camera, so that reading it costs what reading a photograph does.
            jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            (into / f"scene_{k:02d}.jpg").write_bytes(jpeg.tobytes())

    return cache.made(f"scenes-{FORM}-{seed}", draw)


def scenes(seed: int) -> Iterator[Bytes]:
    """COUNT pictures as BGR (height, width, 3), of all sizes in turn; picture k depends on the seed and k alone."""
    for k in range(COUNT):
        width_px, height_px = SIZES_PX[k % len(SIZES_PX)]
        yield scene(width_px, height_px, np.random.default_rng((seed, k)))


def scene(width_px: int, height_px: int, random: np.random.Generator) -> Bytes:
    """One picture (height, width, 3) with 3 to 12 shapes on a textured ground."""
    picture = _ground(width_px, height_px, random)
    for _ in range(int(random.integers(3, 13))):
        _draw_shape(picture, random)
    return picture


def _draw_shape(picture: Bytes, random: np.random.Generator) -> None:
    """A box, an ellipse or a triangle; half-axes from a fortieth to a third of the picture's shorter side."""
    height_px, width_px = picture.shape[:2]
    shorter = min(width_px, height_px)
    rx, ry = (int(r) for r in random.integers(shorter // 40 + 1, shorter // 3, 2))
    cx, cy = int(random.integers(width_px)), int(random.integers(height_px))
    colour, kind = random.integers(0, 256, 3), int(random.integers(3))
    rows, columns = slice(max(0, cy - ry), cy + ry + 1), slice(max(0, cx - rx), cx + rx + 1)
    window = picture[rows, columns]
    dy = np.arange(height_px)[rows, None] - cy
    dx = np.arange(width_px)[None, columns] - cx
    if kind == 0:
        inside = np.ones(window.shape[:2], np.bool_)
    elif kind == 1:
        inside = dx * dx * (ry * ry) + dy * dy * (rx * rx) <= (rx * ry) ** 2
    else:  # its tip is up
        inside = 2 * ry * abs(dx) <= rx * (dy + ry)
    # Darker towards the bottom, and grainy, as lit things are.
    light = 256 - 96 * (dy + ry) // (2 * ry)
    grain = random.integers(-8, 9, window.shape[:2])
    shaded = (colour * light[:, :, None]) // 256 + grain[:, :, None]
    window[inside] = shaded[inside].clip(0, 255)


def _ground(width_px: int, height_px: int, random: np.random.Generator) -> Bytes:
    """A slope of colour with patches of three sizes and grain."""
    low, high = random.integers(0, 256, (2, 3))
    y = np.arange(height_px)[:, None, None]
    ground = ((low * (height_px - y) + high * y) // height_px).repeat(width_px, axis=1)
    for patch_px in (64, 16, 4):
        patches = random.integers(-16, 17, (-(-height_px // patch_px), -(-width_px // patch_px), 1))
        ground += patches.repeat(patch_px, 0).repeat(patch_px, 1)[:height_px, :width_px]
    ground += random.integers(-6, 7, (height_px, width_px, 1))
    levels: Bytes = ground.clip(0, 255).astype(np.uint8)
    return levels
