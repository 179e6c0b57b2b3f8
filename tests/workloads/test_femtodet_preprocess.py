"""Pictures become the network's input exactly as in the official pipeline."""

import hashlib
import json

import cv2
import numpy as np
import pytest

from edgewatt.harness.api import HarnessError
from edgewatt.workloads.femtodet.preprocess import fill, fitted_size, read
from edgewatt.workloads.picture_files import decoded


def buffer(size_px):
    return np.full((1, 3, size_px, size_px), np.nan, np.float32)


def flat(width_px, height_px, bgr):
    return np.full((height_px, width_px, 3), bgr, np.uint8)


# (width, height), network size -> (width, height): from the official pipeline's own records (golden data).
@pytest.mark.parametrize(
    ("source", "size_px", "fitted"),
    [
        ((500, 375), 416, (416, 312)),
        ((333, 500), 416, (277, 416)),
        ((640, 427), 416, (416, 278)),
        ((97, 61), 416, (416, 262)),
        ((1280, 720), 416, (416, 234)),
        ((500, 375), 320, (320, 240)),
        ((501, 333), 640, (640, 425)),
    ],
)
def test_longer_side_becomes_the_network_size(source, size_px, fitted):
    assert fitted_size(*source, size_px) == fitted


def test_scale_factor_is_per_axis_and_float32():
    scale = fill(buffer(352), flat(640, 427, (0, 0, 0)))
    assert scale.dtype == np.float32
    assert scale.tolist() == [np.float32(352 / 640), np.float32(235 / 427)] * 2


def test_needle_thin_picture_keeps_one_pixel():
    assert fitted_size(5000, 1, 416) == (416, 1)
    assert np.isfinite(fill(buffer(416), flat(5000, 1, (1, 2, 3)))).all()


def test_channels_are_rgb_normalised_and_the_padding_is_114():
    target = buffer(64)
    fill(target, flat(100, 50, (10, 20, 30)))  # blue, green, red
    mean, pad = (123.675, 116.28, 103.53), 114
    for channel, level in enumerate((30, 20, 10)):
        np.testing.assert_allclose(target[0, channel, :32], (level - mean[channel]) / 58.82, atol=1e-6)
        np.testing.assert_allclose(target[0, channel, 32:], (pad - mean[channel]) / 58.82, atol=1e-6)


def test_right_side_of_a_tall_picture_is_padded():
    target = buffer(64)
    fill(target, flat(50, 100, (114, 114, 0)))
    np.testing.assert_allclose(target[0, 0, :, :32], -123.675 / 58.82, atol=1e-6)
    np.testing.assert_allclose(target[0, 0, :, 32:], (114 - 123.675) / 58.82, atol=1e-6)


def test_nothing_of_the_picture_before_stays_in_the_buffer():
    target, fresh = buffer(96), buffer(96)
    fill(target, flat(100, 100, (255, 255, 255)))
    fill(target, flat(30, 90, (0, 0, 0)))
    fill(fresh, flat(30, 90, (0, 0, 0)))
    assert np.array_equal(target, fresh)


def test_doubling_interpolates_a_quarter_and_three_quarters():
    """Bilinear with pixel centres at halves: between levels 0 and 200 a doubled row reads 0, 50, 150, 200."""
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[:, 1] = 200
    small = np.repeat(picture, 16, axis=0)[:, :, :]  # 2 wide, 32 high; the longer side becomes 64
    target = buffer(64)
    fill(target, small)
    levels = target[0, 2, 30, :4] * 58.82 + 103.53
    np.testing.assert_allclose(levels, [0, 50, 150, 200], atol=1)


def test_buffer_that_opencv_would_copy_is_refused():
    with pytest.raises(ValueError, match="contiguous"):
        fill(np.zeros((1, 3, 64, 128), np.float32)[..., ::2], flat(10, 10, (0, 0, 0)))
    with pytest.raises(ValueError, match="float64"):
        fill(np.zeros((1, 3, 64, 64)), flat(10, 10, (0, 0, 0)))


def test_exif_orientation_turns_the_picture(tmp_path):
    upright = np.zeros((20, 40, 3), np.uint8)
    upright[:, :20] = 255
    jpeg = cv2.imencode(".jpg", upright)[1].tobytes()
    # Orientation 6: to be turned a quarter clockwise. One TIFF entry (tag 0x0112, short, count 1).
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    picture = decoded(turned)
    assert picture.shape == (40, 20, 3)
    assert picture[:15].mean() > 250 > 5 > picture[25:].mean()


def test_grey_and_transparent_pictures_become_three_channels():
    for channels in (1, 4):
        png = cv2.imencode(".png", np.full((8, 9, channels), 77, np.uint8))[1].tobytes()
        assert (decoded(png) == 77).all()
        assert decoded(png).shape == (8, 9, 3)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture_is_none(data):
    assert decoded(data) is None


def test_picture_that_vanished_is_one_line(tmp_path):
    with pytest.raises(HarnessError, match=r"gone\.png: cannot be read \(No such file"):
        read(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(HarnessError, match=r"text\.png: is no picture"):
        read(tmp_path / "text.png")


@pytest.mark.needs_shared
@pytest.mark.parametrize("case", range(7))
def test_golden_pictures_come_out_bit_for_bit(shared, case):
    folder = shared / "data/golden/femtodet/preprocess"
    wanted = json.loads((folder / "preprocess.json").read_text())[case]
    size_px = wanted["net_size"]
    target = buffer(size_px)
    scale = fill(target, read(folder / wanted["src"]))
    assert scale.tolist() == wanted["scale_factor"]
    levels = cv2.imread(str(folder / wanted["letterboxed"]))
    mine = target[0].transpose(1, 2, 0)[:, :, ::-1] * 58.82 + np.array((103.53, 116.28, 123.675))
    assert np.abs(mine - levels).max() < 1.01
    np.testing.assert_allclose(target.ravel()[wanted["sample_flat_index"]], wanted["sample_value"], atol=1e-5)
    if cv2.__version__.startswith("5.0"):  # another version may resize a level apart
        assert hashlib.sha256(target.tobytes()).hexdigest() == wanted["tensor_sha256"]
