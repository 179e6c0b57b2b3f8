"""Which pictures a run works on, and what is said of files that are none."""

import os
from pathlib import Path

import pytest

from edgewatt.harness.api import UsageError
from edgewatt.workloads import scenes
from edgewatt.workloads.femtodet.ground_truth import fitting_variant
from edgewatt.workloads.femtodet.pictures import pictures
from support.picture_sets import coco, voc_object, write_coco, write_picture, write_voc


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEWATT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """Three pictures, and a hidden file and a folder that are of no concern."""
    home = tmp_path / "photos"
    for k, name in enumerate(("b.png", "a.jpg", "c.png")):
        write_picture(home / name, seed=k)
    (home / ".hidden").write_text("x")
    return home


def names(found):
    return [p.path.name for p in found.pictures]


def refusal(*args, **options):
    """The one line with which `pictures` refuses."""
    with pytest.raises(UsageError) as refused:
        pictures(*args, **options)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def test_folder_is_taken_by_name(folder):
    found = pictures(folder)
    assert names(found) == ["a.jpg", "b.png", "c.png"]
    assert [p.id for p in found.pictures] == [1, 2, 3]
    assert {(p.width_px, p.height_px) for p in found.pictures} == {(64, 48)}
    assert all(p.path.is_absolute() for p in found.pictures)
    assert found.truth is None
    assert found.warnings == ()


def test_content_hash_knows_content_and_order(folder):
    before = pictures(folder).sha256
    assert pictures(folder).sha256 == before
    assert pictures(folder, limit=2).sha256 != before
    write_picture(folder / "c.png", seed=9)
    assert pictures(folder).sha256 != before


def test_limit_takes_the_first_that_are_pictures(folder):
    (folder / "a.jpg").write_text("no picture")
    found = pictures(folder, limit=2)
    assert names(found) == ["b.png", "c.png"]
    assert pictures(folder, limit=99).sha256 == found.sha256


def test_files_that_are_no_pictures_are_counted_and_named(folder):
    (folder / "README.md").write_text("about")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes((folder / "c.png").read_bytes()[:2000])
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:600])
    (warning,) = pictures(folder).warnings
    assert "4 of 7 files cannot be used" in warning
    assert "'README.md' (not a picture, or damaged), 'cut.jpg' (not a picture, or damaged)" in warning
    assert "'empty.png' (empty)" in warning and "more" not in warning
    assert names(pictures(folder)) == ["a.jpg", "b.png", "c.png"]


def test_strict_refuses_what_would_be_left_out(folder):
    (folder / "notes.txt").write_text("x")
    assert "1 of 4 files cannot be used: 'notes.txt'" in refusal(folder, strict=True)
    assert "strict=false" in refusal(folder, strict=True)


def test_decoders_complaints_do_not_reach_the_terminal(folder, capfd):
    broken = bytearray((folder / "c.png").read_bytes())
    broken[len(broken) // 2] ^= 255
    (folder / "c.png").write_bytes(broken)
    assert "c.png" in pictures(folder).warnings[0]
    assert capfd.readouterr() == ("", "")


def test_pipe_and_broken_link_do_not_hang(folder):
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to(folder / "nowhere.png")
    (warning,) = pictures(folder).warnings
    assert "'link.png' (missing), 'pipe.png' (not a file)" in warning


def test_terminal_codes_in_names_are_escaped(folder):
    (folder / "\x1b[31mred").write_text("x")
    assert "\x1b" not in pictures(folder).warnings[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_named(folder):
    (folder / "c.png").chmod(0)
    assert "Permission denied" in pictures(folder).warnings[0]


def test_empty_folder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no files; wanted pictures, a COCO JSON or a VOC tree" in refusal(tmp_path / "empty")


def test_folder_without_a_picture_is_refused_with_what_was_meant(tmp_path):
    path = write_coco(tmp_path / "set", coco())
    message = refusal(path.parent)
    assert "1 of 1 files cannot be used" in message
    assert f"did you mean {path}" in message


def test_nothing_at_that_place_is_refused(tmp_path):
    assert "no such file or folder" in refusal(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------------------------------
# COCO and VOC


@pytest.mark.parametrize("beside", ["images", ".", "JPEGImages"])
def test_coco_pictures_are_found_beside_the_file(tmp_path, beside):
    found = pictures(write_coco(tmp_path, coco(), beside))
    assert names(found) == ["1.png", "2.png", "3.png"]
    assert [p.id for p in found.pictures] == [10, 20, 30]
    assert len(found.truth.boxes) == 6


def test_coco_s_own_layout_is_understood(tmp_path):
    content = coco()
    write_coco(tmp_path, content, "val2017")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "instances.json").rename(tmp_path / "annotations" / "instances_val2017.json")
    assert len(pictures(tmp_path / "annotations" / "instances_val2017.json").pictures) == 3


def test_images_dir_says_where_they_are(tmp_path):
    path = write_coco(tmp_path, coco(), "elsewhere")
    assert "set images_dir" in refusal(path)
    assert len(pictures(path, images_dir=tmp_path / "elsewhere").pictures) == 3
    assert "no such folder" in refusal(path, images_dir=tmp_path / "nowhere")


def test_order_is_that_of_the_ids(tmp_path):
    content = coco()
    content["images"].reverse()
    assert [p.id for p in pictures(write_coco(tmp_path, content)).pictures] == [10, 20, 30]


def test_missing_picture_is_named_and_its_boxes_do_not_count(tmp_path):
    path = write_coco(tmp_path, coco())
    (tmp_path / "images/2.png").unlink()
    found = pictures(path)
    assert "1 of 3 files cannot be used: '2.png' (missing); left out" in found.warnings[0]
    assert {b.image_id for b in found.truth.boxes} == {10, 30}
    assert [i.id for i in found.truth.images] == [10, 30]
    assert "'2.png' (missing)" in refusal(path, strict=True)


def test_limit_restricts_the_ground_truth_too(tmp_path):
    found = pictures(write_coco(tmp_path, coco()), limit=1)
    assert [i.id for i in found.truth.images] == [10]
    assert {b.image_id for b in found.truth.boxes} == {10}


def test_picture_of_another_size_is_refused(tmp_path):
    path = write_coco(tmp_path, coco())
    write_picture(tmp_path / "images/2.png", 63, 48)
    message = refusal(path)
    assert "2.png: is 63x48 px, but" in message
    assert "says 64x48 for image 20" in message


def test_size_that_is_not_stated_is_taken_from_the_picture(tmp_path):
    content = coco()
    for image in content["images"]:
        del image["width"], image["height"]
    path = write_coco(tmp_path, content)
    assert {(i.width_px, i.height_px) for i in pictures(path).truth.images} == {(64, 48)}
    content["annotations"][3]["bbox"] = [40, 5, 30, 20]
    assert "annotation 202" in refusal(write_coco(tmp_path, content))


def test_voc_tree_is_taken_by_name(tmp_path):
    tree = write_voc(tmp_path, {"b": voc_object("dog"), "a": voc_object("cat") + voc_object("dog", difficult=1)})
    for data in (tree, tree / "Annotations"):
        found = pictures(data)
        assert names(found) == ["a.jpg", "b.jpg"]
        assert [b.is_difficult for b in found.truth.boxes] == [False, True, False]
    # VOC's pixels count from 1.
    assert found.truth.boxes[0].bbox == (1, 2, 38, 27)
    assert [found.truth.categories[b.category_id] for b in found.truth.boxes] == ["cat", "dog", "dog"]


def test_split_picks_a_list_of_image_sets(tmp_path):
    tree = write_voc(tmp_path, {"a": voc_object(), "b": voc_object(), "c": voc_object()})
    (tree / "ImageSets/Main").mkdir(parents=True)
    (tree / "ImageSets/Main/test.txt").write_text("c\na -1\n")
    assert names(pictures(tree, split="test")) == ["c.jpg", "a.jpg"]
    assert "set split to one of: 'test'" in refusal(tree, split="val")
    assert "leads out" in refusal(tree, split="../../etc/passwd")
    (tree / "ImageSets/Main/test.txt").write_text("d\n")
    assert "lists d, which has no" in refusal(tree, split="test")


@pytest.mark.needs_shared
@pytest.mark.parametrize(
    ("data", "count", "boxes", "variant"),
    [
        ("coco_cc_by/instances.json", 90, 831, "coco_large"),
        ("voc_mini/instances.json", 75, 211, "voc"),
        ("voc_mini", 75, 211, "voc"),
    ],
)
def test_real_sets_are_read_whole(shared, data, count, boxes, variant):
    found = pictures(shared / "data/images" / data)
    assert len(found.pictures) == count
    assert len(found.truth.boxes) == boxes
    assert found.warnings == ()
    assert fitting_variant("auto", found.truth).name == variant


@pytest.mark.needs_shared
def test_voc_tree_gives_the_boxes_of_its_coco_conversion(shared):
    tree, file = (pictures(shared / "data/images" / d).truth for d in ("voc_mini", "voc_mini/instances.json"))
    key = [(i.id, i.file_name, i.width_px, i.height_px) for i in tree.images]
    assert key == [(i.id, i.file_name, i.width_px, i.height_px) for i in file.images]
    boxes = [
        sorted((b.image_id, b.category_id, b.bbox, b.area, b.is_difficult) for b in truth.boxes)
        for truth in (tree, file)
    ]
    assert boxes[0] == boxes[1]


# ---------------------------------------------------------------------------------------------------------------------
# Drawn scenes, and odd ones


def test_without_data_scenes_are_drawn_and_it_is_said(cached):
    found = pictures(None, seed=3)
    assert len(found.pictures) == scenes.COUNT
    assert {(p.width_px, p.height_px) for p in found.pictures} == set(scenes.SIZES_PX)
    assert found.truth is None
    assert "24 drawn scenes (seed 3) stand in" in found.warnings[0]
    assert len({p.sha256 for p in found.pictures}) == scenes.COUNT
    assert len(pictures(None, seed=3, limit=5).pictures) == 5


def test_folder_called_like_a_picture_is_counted_and_other_folders_are_named(folder):
    (folder / "x.jpg").mkdir()
    (folder / "more").mkdir()
    said = " ".join(pictures(folder).warnings)
    assert "'x.jpg' (not a file)" in said and "not looked into: 'more'" in said
    assert "x.jpg" in refusal(folder, strict=True)


@pytest.mark.parametrize("options", [{"split": "test"}, {"images_dir": Path("elsewhere")}])
def test_parameter_without_meaning_for_the_data_is_refused(folder, options):
    assert "has no meaning" in refusal(folder, **options)
    assert "has no meaning" in refusal(None, **options)


def test_name_too_long_for_a_file_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / ("a" * 300))


def test_very_many_files_left_out_are_counted_and_the_first_named(folder):
    for k in range(12):
        (folder / f"x{k:02d}.jpg").touch()
    (warning,) = pictures(folder).warnings
    assert "12 of 15" in warning and "'x09.jpg' (empty) and 2 more" in warning
