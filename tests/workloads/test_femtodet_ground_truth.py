"""Ground truth that is wrong is refused in one line that names the file and the place."""

import json

import pytest

from edgewatt.harness.api import UsageError
from edgewatt.workloads.femtodet.ground_truth import fitting_variant, from_coco, from_voc
from edgewatt.workloads.femtodet.variants import COCO_CLASSES, VOC_CLASSES
from support.picture_sets import coco, voc_object, write_annotation, write_voc


def refusal(read, path, *args):
    """The one line with which a file is refused; it names the file."""
    with pytest.raises(UsageError) as refused:
        read(path, *args)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 600
    assert str(path) in message
    return message


def written(folder, content):
    path = folder / "truth.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def changed(part, index, **fields):
    """A sound COCO set in which one entry has other fields; None takes a field away."""
    content = coco()
    entry = content[part][index]
    for key, value in fields.items():
        entry.pop(key) if value is None else entry.update({key: value})
    return content


# ---------------------------------------------------------------------------------------------------------------------
# COCO


def test_sound_file_is_read_whole(tmp_path):
    truth = from_coco(written(tmp_path, coco(2)))
    assert [(i.id, i.file_name, i.width_px, i.height_px) for i in truth.images] == [
        (10, "1.png", 64, 48),
        (20, "2.png", 64, 48),
    ]
    assert [(b.id, b.image_id, b.category_id) for b in truth.boxes] == [
        (101, 10, 7),
        (102, 10, 14),
        (201, 20, 7),
        (202, 20, 14),
    ]
    assert truth.boxes[0].bbox == (4, 5, 30, 20)
    assert truth.categories == {7: "person", 14: "car"}
    assert truth.warnings == ()


def test_ground_truth_survives_its_own_form(tmp_path):
    first = from_coco(written(tmp_path, changed("annotations", 1, iscrowd=1, difficult=1, area=3.5)))
    again = from_coco(written(tmp_path, first.in_coco_form()))
    assert again.boxes == first.boxes
    assert again.images == first.images
    assert again.categories == first.categories


def test_fields_that_may_be_missing_have_their_usual_values(tmp_path):
    content = changed("annotations", 0, iscrowd=None, area=None)
    box = from_coco(written(tmp_path, content)).boxes[0]
    assert (box.area, box.is_crowd, box.is_difficult) == (600, False, False)


@pytest.mark.parametrize(
    "text", ["", "no json", '{"images": [', "\x00\x01", "[" * 100000, '{"images": ' + "9" * 5000 + "}"]
)
def test_what_is_not_json_is_refused(tmp_path, text):
    assert "is not JSON" in refusal(from_coco, written(tmp_path, text))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)))
    assert "is not JSON" in refusal(from_coco, path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "is no object"),
        ({}, "is an object with nothing"),
        ({"images": []}, "is an object with 'images'"),
        ({"images": {}, "annotations": [], "categories": []}, "lists of images, annotations and categories"),
        ("3", "is no object"),
    ],
)
def test_json_of_another_kind_is_refused(tmp_path, content, said):
    assert said in refusal(from_coco, written(tmp_path, content))


@pytest.mark.parametrize(
    ("part", "fields", "said"),
    [
        ("annotations", {"bbox": [40, 5, 30, 20]}, "annotation 102: the box [40.0, 5.0, 30.0, 20.0] reaches 6 px out"),
        ("annotations", {"bbox": [-2, 5, 30, 20]}, "annotation 102: the box [-2.0, 5.0, 30.0, 20.0] reaches 2 px"),
        ("annotations", {"bbox": [4, 5, 0, 20]}, "annotation 102: its box [4, 5, 0, 20] has no area"),
        ("annotations", {"bbox": [4, 5, 9, -20]}, "annotation 102: its box [4, 5, 9, -20] has no area"),
        ("annotations", {"bbox": [4, 5, 9]}, "annotation 102: its bbox is [4, 5, 9]; wanted four numbers"),
        ("annotations", {"bbox": [4, 5, 9, "9"]}, "annotation 102: its bbox is [4, 5, 9, '9']"),
        ("annotations", {"bbox": [4, 5, 9, float("nan")]}, "annotation 102: its bbox is [4, 5, 9, nan]"),
        ("annotations", {"bbox": [4, 5, 9, float("inf")]}, "annotation 102: its bbox is [4, 5, 9, inf]"),
        ("annotations", {"bbox": None}, "annotation 102: its bbox is None"),
        ("annotations", {"id": 101}, "annotations[1]: the id 101 was used before"),
        ("annotations", {"id": None}, "annotations[1]: its id is None; wanted a whole number"),
        ("annotations", {"id": "x" * 500}, "annotations[1]: its id is 'xxx"),
        ("annotations", {"image_id": 11}, "annotation 102: its image_id 11 is no image of the file"),
        ("annotations", {"image_id": [10]}, "annotation 102: its image_id [10] is no image"),
        ("annotations", {"category_id": 8}, "annotation 102: its category_id 8 is no category of the file"),
        ("annotations", {"area": "big"}, "annotation 102: its area is 'big'"),
        ("annotations", {"iscrowd": 2}, "annotation 102: its iscrowd is 2; wanted 0 or 1"),
        ("images", {"id": 10}, "images[1]: the id 10 was used before"),
        ("images", {"width": 0}, "image 20: its width is 0; wanted a whole number of pixels"),
        ("images", {"height": "48"}, "image 20: its height is '48'"),
        ("images", {"file_name": None}, "image 20: its file name is None"),
        ("images", {"file_name": "../2.png"}, "image 20: the file name '../2.png' leads out of the folder"),
        ("images", {"file_name": "/etc/passwd"}, "image 20: the file name '/etc/passwd' leads out"),
        ("images", {"file_name": "a/../../b.png"}, "leads out"),
        ("images", {"file_name": "..\\b.png"}, "leads out"),
        ("images", {"file_name": "C:\\b.png"}, "leads out"),
        ("images", {"file_name": "a\x00.png"}, "leads out"),
        ("images", {"file_name": "a\x1b[2J.png"}, "leads out"),
        ("categories", {"id": 7}, "categories[1]: the id 7 was used before"),
        ("categories", {"name": None}, "category 14: has no name"),
        ("categories", {"name": "person"}, "category 14: repeats the name 'person'"),
    ],
)  # fmt: skip
def test_wrong_entry_is_named(tmp_path, part, fields, said):
    message = refusal(from_coco, written(tmp_path, changed(part, 1, **fields)))
    assert said in message
    assert "\x1b" not in message


def test_entry_that_is_no_object_is_named(tmp_path):
    content = coco()
    content["annotations"][2] = 7
    assert "annotations[2]: is 7; wanted an object with an id" in refusal(from_coco, written(tmp_path, content))


def test_box_a_rounding_beyond_the_edge_is_kept_as_it_is(tmp_path):
    """Unclipped: pycocotools, given the same file, takes it unclipped too."""
    content = changed("annotations", 0, bbox=[-0.5, 5, 65.4, 20])
    assert from_coco(written(tmp_path, content)).boxes[0].bbox == (-0.5, 5, 65.4, 20)


def test_subfolders_in_file_names_are_allowed(tmp_path):
    content = changed("images", 0, file_name="val 2017/1..a.png")
    assert from_coco(written(tmp_path, content)).images[0].file_name == "val 2017/1..a.png"


def test_annotation_zero_is_renumbered_and_it_is_said(tmp_path):
    """pycocotools marks a match with the object's number, where 0 stands for none."""
    truth = from_coco(written(tmp_path, changed("annotations", 0, id=0)))
    assert [b.id for b in truth.boxes] == [1, 2, 3, 4, 5, 6]
    assert "annotation id 0" in truth.warnings[0]


# ---------------------------------------------------------------------------------------------------------------------
# Categories and variants


def with_categories(folder, *names):
    return from_coco(written(folder, coco(1, names)))


def test_variant_is_the_one_that_knows_all_categories(tmp_path):
    assert fitting_variant("auto", None).name == "voc"
    assert fitting_variant("auto", with_categories(tmp_path, "person", "car")).name == "voc"
    assert fitting_variant("auto", with_categories(tmp_path, "person", "truck")).name == "coco_large"
    assert fitting_variant("auto", with_categories(tmp_path, *VOC_CLASSES)).name == "voc"
    assert fitting_variant("auto", with_categories(tmp_path, *COCO_CLASSES)).name == "coco_large"
    assert fitting_variant("coco_large", with_categories(tmp_path, "person", "car")).name == "coco_large"


@pytest.mark.parametrize(
    ("asked", "names", "said"),
    [
        ("auto", ("person", "persn"), "1 unknown categories, the first 'persn' (id 14)"),
        ("auto", ("persn",), "did you mean person?"),
        ("auto", ("x" * 9999,), "rename or remove them"),
        ("auto", ("sofa", "truck"), "the categories mix the names of two class lists ('truck', 'sofa')"),
        ("voc", ("person", "truck", "bear"), "variant=voc does not know 'bear', 'truck'; set variant=coco_large"),
        ("coco_large", ("person", "sofa"), "variant=coco_large does not know 'sofa'; set variant=voc"),
    ],
)
def test_categories_that_do_not_fit_are_named(tmp_path, asked, names, said):
    truth = with_categories(tmp_path, *names)
    with pytest.raises(UsageError) as refused:
        fitting_variant(asked, truth)
    assert said in str(refused.value)
    assert str(truth.source) in str(refused.value)
    assert len(str(refused.value)) < 600


# ---------------------------------------------------------------------------------------------------------------------
# VOC


def voc_file(folder, inside=None, text=None):
    tree = write_voc(folder, {"a": voc_object(), "b": voc_object() + (inside or "")})
    if text is not None:
        (tree / "Annotations/b.xml").write_bytes(text)
    return tree


def voc_refusal(tree):
    with pytest.raises(UsageError) as refused:
        from_voc(tree)
    message = str(refused.value)
    assert "\n" not in message
    assert "b.xml" in message
    return message


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        (voc_object("dgo"), "object 2: unknown category 'dgo'; wanted one of the 20 VOC classes: did you mean dog?"),
        (voc_object(box=(9, 9, 9, 30)), "object 2 (dog): the box [9.0, 9.0, 9.0, 30.0] has no area"),
        (voc_object(box=(9, 9, 80, 30)), "object 2: the box [8.0, 8.0, 71.0, 21.0] reaches 15 px out of 'b.jpg'"),
        (voc_object(box=(9, "x", 20, 30)), "object 2: its ymin is 'x'; wanted a number"),
        (voc_object(box=(9, "nan", 20, 30)), "object 2: its ymin is 'nan'"),
        ("<object><name>dog</name></object>", "object 2: has no xmin; wanted a bndbox"),
        ("<object><bndbox/></object>", "object 2: unknown category ''"),
        (voc_object(difficult="yes"), "object 2: its difficult is 'yes'"),
    ],
)  # fmt: skip
def test_wrong_object_is_named(tmp_path, inside, said):
    assert said in voc_refusal(voc_file(tmp_path, inside))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is not XML"),
        (b"<annotation><object>", "is not XML"),
        (b"\xff\xfe\x00", "is not XML"),
        (b'<?xml version="1.0" encoding="nonsense"?><annotation/>', "is not XML"),
        (b"<html/>", "its root is 'html'; wanted a VOC annotation"),
        (b'<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation>&b;</annotation>', "declares a document type"),
        (b"<annotation><filename>../../b.jpg</filename></annotation>", "the file name '../../b.jpg' leads out"),
        (b"<annotation><size><width>wide</width></size></annotation>", "its width is 'wide'"),
    ],
)
def test_wrong_annotation_file_is_named(tmp_path, text, said):
    assert said in voc_refusal(voc_file(tmp_path, text=text))


def test_annotation_without_a_file_name_or_size_goes_by_its_own_name(tmp_path):
    tree = voc_file(tmp_path, text=b"<annotation/>")
    assert from_voc(tree).images[1].file_name == "b.jpg"
    assert from_voc(tree).images[1].width_px is None


def test_fractions_of_pixels_and_parts_of_objects_are_understood(tmp_path):
    """VOC 2011 has fractions; heads and hands of persons are `part`s with boxes of their own."""
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    thing = voc_object("person", (1.5, 2, 31.5, 40)).replace("</object>", f"{part}</object>")
    (box,) = from_voc(write_voc(tmp_path, {"a": thing})).boxes
    assert box.bbox == (0.5, 1, 30, 38)


def test_tree_without_annotations_is_refused(tmp_path):
    (tmp_path / "Annotations").mkdir()
    assert "holds no .xml file" in refusal(from_voc, tmp_path)


def test_boxes_of_a_tree_are_numbered_from_one(tmp_path):
    tree = write_voc(tmp_path, {"a": voc_object() * 2, "b": voc_object()})
    write_annotation(tree / "Annotations/c.xml", voc_object(), "c.jpg")
    truth = from_voc(tree)
    assert [b.id for b in truth.boxes] == [1, 2, 3, 4]
    assert [b.image_id for b in truth.boxes] == [1, 1, 2, 3]
    assert list(truth.categories.items())[:2] == [(1, "aeroplane"), (2, "bicycle")]
