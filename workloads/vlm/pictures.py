"""A picture as the vision tower wants it: cut or padded to a square, resized, normalised; bit for bit as upstream.

Sources: `process_images` and `expand2square` of Meituan-AutoML/MobileVLM @ 688fdec with transformers' CLIP image
processor, and of MILVLG/imp @ 363a9bb. Neither turns pictures by their EXIF orientation; both drop alpha unblended.
"""

from __future__ import annotations

import io
import stat
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgewatt.harness.api import UsageError

Kind = Literal["clip", "siglip"]
Mode = Literal["pad", "crop", "square"]
Source = Path | str | bytes | Image.Image  # a path, a file's content, or a picture already open
Bytes = npt.NDArray[np.uint8]
Float32s = npt.NDArray[np.float32]

# The most pixels a picture may have, and what it becomes on its way (padded to a square; its short side resized):
# the number above which Pillow warns.
MAX_PIXELS = 178_956_970

# Mean and standard deviation of each channel, of levels in 0..1.
_STATISTICS: dict[Kind, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

_MAX_FILE_BYTES = 1 << 28

# What is decoded, if Pillow was built with it. It knows more, some by starting other programs (EPS: Ghostscript).
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


def tensor(source: Source, size_px: int, mode: Mode, kind: Kind) -> Float32s:
    """The picture as float32 (3, size, size), RGB, for a `kind` of tower; UsageError if it is no picture, or too large.

    `mode`: "pad" puts it in the middle of a square of the tower's mean colour; "crop" resizes the short side and cuts
    the long one; "square" squashes it.
    """
    return normalised(square(opened(source), size_px, mode, kind), kind)


def opened(source: Source) -> Image.Image:
    """The picture decoded, as RGB, its first frame if it has several."""
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, bytes):
        return _decoded(source, f"a picture of {len(source)} bytes")
    path = Path(source)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{path}: not a file; give a picture")
        if found.st_size > _MAX_FILE_BYTES:
            raise UsageError(f"{path}: {found.st_size} bytes; a picture has at most {_MAX_FILE_BYTES}: make it smaller")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return _decoded(data, str(path))


def check_size(width_px: int, height_px: int, size_px: int, mode: str) -> None:
    """UsageError if a picture of that size, or what `mode` makes of it on the way to `size_px`, is too large."""
    size = (width_px, height_px)
    _check_pixels(size, size)
    if mode == "pad":
        _check_pixels((max(size), max(size)), size, "padded to a square ")
    elif mode == "crop":
        _check_pixels(_short_side(width_px, height_px, size_px), size, f"with its short side of {size_px} px ")


def square(picture: Image.Image, size_px: int, mode: Mode, kind: Kind) -> Bytes:
    """The RGB picture as uint8 (size, size, 3), resized by Pillow's bicubic filter."""
    width_px, height_px = picture.size
    check_size(width_px, height_px, size_px, mode)
    if mode == "pad":
        picture = _padded(picture, max(width_px, height_px), kind)
        size = (size_px, size_px)
    elif mode == "crop":
        size = _short_side(width_px, height_px, size_px)
    elif mode == "square":
        size = (size_px, size_px)
    else:
        raise UsageError(f"image mode {mode!r}: unknown; it is pad, crop or square")
    resized = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - size_px) // 2, (size[1] - size_px) // 2
    return np.asarray(resized.crop((left, top, left + size_px, top + size_px)))


def normalised(pixels: Bytes, kind: Kind) -> Float32s:
    """uint8 (size, size, 3) as float32 (3, size, size), normalised as the tower of that `kind` was trained.

    Upstream divides by 255 in double precision, rounds to single, and subtracts and divides in single; a table of the
    256 levels gives the same.
    """
    mean, deviation = (np.array(values, np.float32)[:, None] for values in _STATISTICS[kind])
    levels = ((np.arange(256) / 255).astype(np.float32) - mean) / deviation  # (3, 256)
    return np.stack([levels[channel][pixels[..., channel]] for channel in range(3)])


def _decoded(data: bytes, name: str) -> Image.Image:
    try:
        Image.init()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as odd EXIF data, or transparency that is dropped
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=[f for f in _FORMATS if f in Image.OPEN]) as picture:
                _check_pixels(picture.size, picture.size)
                return picture.convert("RGB")
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(f"{name}: more than the {MAX_PIXELS} pixels a picture may have; make it smaller") from error
    except Exception as error:  # hostile files make decoders raise nearly anything
        what = "empty" if not data else "not a picture, or damaged"
        said = " ".join(str(error).split()) or type(error).__name__
        if "BytesIO" in said:  # "cannot identify image file <_io.BytesIO object at 0x...>"
            said = "no format it could be"
        raise UsageError(f"{name}: {what} ({said}); wanted one of {', '.join(_FORMATS)}") from error


def _check_pixels(size: tuple[int, int], of: tuple[int, int], what: str = "") -> None:
    """UsageError, before memory is taken, if `size`, which a picture of size `of` is or becomes, is too much."""
    width_px, height_px = size
    if width_px * height_px > MAX_PIXELS:
        raise UsageError(
            f"a picture of {of[0]}x{of[1]} px is {what}{width_px}x{height_px} = {width_px * height_px} pixels, "
            f"more than {MAX_PIXELS}; make it smaller or less long"
        )


def _padded(picture: Image.Image, side_px: int, kind: Kind) -> Image.Image:
    """In the middle of a square of the mean colour: (122, 116, 104) for CLIP, (127, 127, 127) for SigLIP."""
    if picture.width == picture.height:
        return picture
    red, green, blue = (int(mean * 255) for mean in _STATISTICS[kind][0])
    canvas = Image.new("RGB", (side_px, side_px), (red, green, blue))
    canvas.paste(picture, ((side_px - picture.width) // 2, (side_px - picture.height) // 2))
    return canvas


def _short_side(width_px: int, height_px: int, size_px: int) -> tuple[int, int]:
    """Width and height once the short side is `size_px`; the long one rounds down."""
    if width_px <= height_px:
        return size_px, int(size_px * height_px / width_px)
    return int(size_px * width_px / height_px), size_px
