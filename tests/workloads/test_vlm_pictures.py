"""Pictures become the vision tower's input exactly as in the official code of both systems."""

import hashlib
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from edgewatt.harness.api import UsageError
from edgewatt.workloads.vlm import pictures
from edgewatt.workloads.vlm.pictures import normalised, opened, square, tensor

MEAN_CLIP, STD_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def noise(width_px, height_px, mode="RGB", seed=3):
    channels = len(Image.new(mode, (1, 1)).getbands())
    levels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, channels), np.uint8)
    return Image.fromarray(levels[..., 0] if channels == 1 else levels, mode=None)


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def refusal(source, *, mode="pad", size_px=336):
    with pytest.raises(UsageError) as caught:
        tensor(source, size_px, mode, "clip")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Golden data


@pytest.mark.needs_shared
def test_mobilevlm_golden(shared):
    folder = shared / "data/golden/mobilevlm/preprocess"
    cases = json.loads((folder / "index.json").read_text())
    assert len(cases) == 14
    for case in cases:
        mode = "pad" if case["image_aspect_ratio"] == "pad" else "crop"
        pixels = square(opened(folder / case["image"]), case["target"], mode, "clip")
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == case["uint8_sha256_of_unnormalised"], case["file"]
        made = normalised(pixels, "clip")
        assert made.dtype == np.float32
        forms = {
            "pixel_values": made,
            "pixel_values_stride8": made[:, ::8, ::8],
            "row_means": made.mean(axis=2),
            "col_means": made.mean(axis=1),
        }
        with np.load(folder / case["file"]) as expected:
            for name in expected.files:
                np.testing.assert_allclose(forms[name], expected[name], rtol=0, atol=1e-5, err_msg=case["file"])


@pytest.mark.needs_shared
def test_imp_golden(shared):
    folder = shared / "data/golden/imp/preprocess"
    cases = json.loads((folder / "index.json").read_text())["cases"]
    assert len(cases) == 14
    for case in cases:
        made = tensor(folder / case["image"], case["size"], case["image_aspect_ratio"], "siglip")
        with np.load(folder / case["file"]) as expected:
            np.testing.assert_array_equal(made, expected["pixel_values"], err_msg=case["file"])


@pytest.mark.needs_shared
@pytest.mark.parametrize("case", ["tiny_ldpnet", "tiny_ldpnetv2"])
def test_mobilevlm_golden_network_input(shared, case):
    folder = shared / "data/golden/mobilevlm" / case
    with np.load(folder / "outputs.npz") as expected:
        np.testing.assert_allclose(
            tensor(folder / "image.png", 168, "pad", "clip"), expected["pixel_values"][0], rtol=0, atol=1e-6
        )


@pytest.mark.needs_shared
@pytest.mark.parametrize("case", ["tiny_phi2", "tiny_qwen2", "tiny_phi3", "tiny_phi3_window"])
def test_imp_golden_network_input(shared, case):
    folder = shared / "data/golden/imp" / case
    config = json.loads((folder / "config.json").read_text())
    made = tensor(folder / "image.png", config["vision"]["image_size"], config["image_aspect_ratio"], "siglip")
    with np.load(folder / "outputs.npz") as expected:
        np.testing.assert_array_equal(made, expected["pixel_values"][0])


# ---------------------------------------------------------------------------------------------------------------------
# What follows without any data: sizes at which nothing is resampled, and pictures of one colour


@pytest.mark.parametrize(("kind", "grey"), [("clip", (122, 116, 104)), ("siglip", (127, 127, 127))])
@pytest.mark.parametrize("turned", [False, True])
def test_pad_centres_on_the_mean_colour_and_rounds_the_offset_down(kind, grey, turned):
    wide = np.asarray(noise(40, 25))
    expected = np.empty((40, 40, 3), np.uint8)
    expected[:] = grey
    expected[7:32] = wide  # (40 - 25) // 2 = 7
    if turned:
        wide, expected = wide.swapaxes(0, 1), expected.swapaxes(0, 1)
    np.testing.assert_array_equal(square(Image.fromarray(wide), 40, "pad", kind), expected)


@pytest.mark.parametrize("turned", [False, True])
def test_crop_takes_the_middle(turned):
    long = np.asarray(noise(32, 75))
    expected = long[21:53]  # (75 - 32) // 2 = 21
    if turned:
        long, expected = long.swapaxes(0, 1), expected.swapaxes(0, 1)
    np.testing.assert_array_equal(square(Image.fromarray(long), 32, "crop", "clip"), expected)


def test_square_squashes_and_does_not_cut():
    halves = np.zeros((40, 10, 3), np.uint8)
    halves[20:] = 255
    made = square(Image.fromarray(halves), 40, "square", "siglip")
    np.testing.assert_array_equal(made[:18], 0)
    np.testing.assert_array_equal(made[22:], 255)
    assert made.shape == (40, 40, 3)


@pytest.mark.parametrize("mode", ["pad", "crop", "square"])
def test_square_picture_of_the_right_size_is_untouched(mode):
    picture = noise(56, 56)
    np.testing.assert_array_equal(square(picture, 56, mode, "clip"), np.asarray(picture))


def test_normalisation_of_every_level():
    pixels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    siglip = (np.arange(256) / 255).astype(np.float32).reshape(16, 16)
    expected = (siglip - np.float32(0.5)) / np.float32(0.5)
    np.testing.assert_array_equal(normalised(pixels, "siglip"), [expected] * 3)
    assert normalised(pixels, "siglip")[0, [0, -1], [0, -1]].tolist() == [-1.0, 1.0]
    for channel, (mean, std) in enumerate(zip(MEAN_CLIP, STD_CLIP, strict=True)):
        exact = (np.arange(256) / 255 - mean) / std
        np.testing.assert_allclose(normalised(pixels, "clip")[channel].ravel(), exact, rtol=0, atol=1e-6)


def test_channels_are_red_green_blue():
    made = tensor(Image.new("RGB", (9, 9), (255, 0, 51)), 9, "pad", "siglip")
    np.testing.assert_allclose(made[:, 4, 4], [1, -1, 51 / 255 * 2 - 1], atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Where a picture comes from


def test_path_bytes_and_open_picture_give_the_same(tmp_path):
    picture = noise(31, 20)
    path = tmp_path / "ä picture.png"
    picture.save(path)
    expected = tensor(picture, 28, "pad", "clip")
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(tensor(source, 28, "pad", "clip"), expected)


def test_alpha_is_dropped_and_not_blended():
    rgba = noise(12, 12, "RGBA")
    rgba.putalpha(0)
    np.testing.assert_array_equal(np.asarray(opened(png(rgba))), np.asarray(rgba)[..., :3])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK"])
def test_other_modes_become_rgb(mode, tmp_path):
    picture = noise(8, 8).convert(mode)
    path = tmp_path / "picture.tiff"
    picture.save(path)
    np.testing.assert_array_equal(np.asarray(opened(path)), np.asarray(picture.convert("RGB")))


def test_transparent_palette_is_taken_without_a_warning():
    picture = noise(8, 8).convert("P")
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=bytes(range(256)))
    np.testing.assert_array_equal(np.asarray(opened(file.getvalue())), np.asarray(picture.convert("RGB")))


def test_exif_orientation_is_not_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = tmp_path / "turned.jpg"
    noise(20, 10).save(path, exif=exif)
    assert opened(path).size == (20, 10)


def test_first_frame_of_several(tmp_path):
    path = tmp_path / "moving.gif"
    frames = [Image.new("RGB", (5, 5), c) for c in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert opened(path).getpixel((2, 2)) == (255, 0, 0)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, in one line


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_that_claims(width_px, height_px):
    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"hello", "not a picture, or damaged"),
        (png(noise(50, 50))[:1000], "not a picture, or damaged"),
        (png_that_claims(20_000, 20_000), "178956970 pixels"),
        (png_that_claims(13_400, 13_400), "178956970 pixels"),
        (png_that_claims(2**31 - 1, 2**31 - 1), "178956970 pixels"),
        (png_that_claims(0, 5), "not a picture, or damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture, or damaged"),
    ],
    ids=["empty", "text", "cut off", "bomb", "near bomb", "absurd", "no width", "program"],
)
def test_hostile_content(data, said, tmp_path):
    assert said in refusal(data)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    assert refusal(path).startswith(str(path))


def test_damage_in_every_place_is_one_line_or_a_picture():
    whole = png(noise(20, 20))
    for at in range(len(whole)):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]):
            try:
                assert tensor(data, 14, "pad", "clip").shape == (3, 14, 14)
            except UsageError as error:
                assert "\n" not in str(error)


def test_needle_would_take_too_much_memory():
    needle = png(Image.new("RGB", (30_000, 1)))
    assert "30000x1 px is padded to a square 30000x30000" in refusal(needle)
    assert "336 px 10080000x336" in refusal(needle, mode="crop")
    assert tensor(needle, 336, "square", "siglip").shape == (3, 336, 336)


def test_what_is_no_file_is_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "none.png")
    assert "not a file" in refusal(tmp_path)
    assert "cannot be read" in refusal("a\0b")


def test_file_of_absurd_length_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_MAX_FILE_BYTES", 10)
    path = tmp_path / "long.png"
    path.write_bytes(b"0" * 11)
    assert "11 bytes" in refusal(path)


def test_unknown_mode():
    assert "pad, crop or square" in refusal(noise(5, 5), mode="stretch")
