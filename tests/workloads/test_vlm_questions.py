"""What is asked about which pictures, and what is refused."""

import pytest

from edgewatt.harness.api import UsageError
from edgewatt.workloads.imp.workload import Imp
from edgewatt.workloads.mobilevlm.workload import MobileVlm
from edgewatt.workloads.vlm import questions
from edgewatt.workloads.vqa.question import Question
from support.here import Here
from support.picture_sets import coco, write_coco, write_picture


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEWATT_CACHE", str(tmp_path / "cache"))


def asked(data, each=1, limit=None, strict=False):
    return questions.of_pictures(data, "What is shown?", each, limit, strict, 0)


def ids(found):
    return [item.id for item in found.items]


def refusal(*args, **options):
    with pytest.raises(UsageError) as refused:
        asked(*args, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def folder(tmp_path):
    for k, name in enumerate(("b.png", "a.jpg", "c.png")):
        write_picture(tmp_path / "photos" / name, seed=k)
    return tmp_path / "photos"


def test_pictures_of_a_folder_are_asked_about_by_name(folder):
    assert ids(asked(folder)) == ["a.jpg", "b.png", "c.png"]
    assert ids(asked(folder, limit=2)) == ["a.jpg", "b.png"]
    assert {item.question for item in asked(folder).items} == {"What is shown?"}


def test_pictures_that_do_not_fill_a_question_are_left_out_and_told_of(folder):
    found = asked(folder, each=2)
    assert ids(found) == ["a.jpg b.png"]
    assert found.warnings == ("the last 1 pictures do not fill a question; left out",)
    assert "there are 3 pictures" in refusal(folder, each=4)


def test_file_that_is_no_picture_is_left_out_or_refused(folder):
    (folder / "a.jpg").write_text("no picture")
    found = asked(folder)
    assert ids(found) == ["b.png", "c.png"] and "'a.jpg' (not a picture, or damaged)" in found.warnings[0]
    assert "'a.jpg' (not a picture, or damaged)" in refusal(folder, strict=True)


def test_one_picture_is_asked_about(folder):
    found = asked(folder / "c.png")
    assert ids(found) == ["c.png"] and found.warnings == ()


def test_no_picture_at_all_is_asked_about(folder):
    assert asked(None, each=0).items[0].pictures == ()
    assert "leave one of the two out" in refusal(folder, each=0)


def test_without_data_scenes_are_drawn_and_it_is_said():
    found = asked(None, limit=2)
    assert ids(found) == ["scene_00.jpg", "scene_01.jpg"]
    assert "2 drawn scenes (seed 0) stand in" in found.warnings[0] and "AP" not in found.warnings[0]


def test_what_is_neither_picture_nor_folder_is_refused(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path / ("a" * 300)):
        assert "no such file or folder; wanted a picture or a folder of them" in refusal(path)
    path = write_coco(tmp_path / "set", coco())
    assert "for a benchmark set dataset too" in refusal(path)
    assert f"did you mean {tmp_path / 'set' / 'images'}?" in refusal(path.parent)


def test_picture_inside_a_benchmarks_file_becomes_a_file_once(tmp_path):
    content = write_picture(tmp_path / "a.png").read_bytes()
    questions_ = [Question(str(k), k, "Q", None, picture=content) for k in range(2)]
    first, second = questions.of_benchmark(questions_).items
    assert first.pictures == second.pictures and first.pictures[0].read_bytes() == content


def test_one_file_that_is_no_picture_is_refused(folder):
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:200])
    said = refusal(folder / "a.jpg")
    assert said.startswith(f"data={folder / 'a.jpg'}: 1 of 1 files cannot be used: 'a.jpg' (not a picture, or damaged)")


@pytest.mark.parametrize("is_benchmark", [False, True])
def test_picture_that_becomes_too_large_is_refused_before_it_is_asked_about(tmp_path, is_benchmark):
    """14000 x 2 pixels are few; padded to a square they are 196 million, more than the 178956970 that are made."""
    path = write_picture(tmp_path / "long.png", 14000, 2)
    found = questions.of_benchmark([Question("1", 1, "Q", "long.png", picture=path)]) if is_benchmark else asked(path)
    with pytest.raises(UsageError, match=r"long\.png: a picture of 14000x2 px is padded to a square 14000x14000 = "):
        found.check_sizes(336, "pad")
    found.check_sizes(336, "square")
    with pytest.raises(UsageError, match="with its short side of 336 px 2352000x336 = "):
        found.check_sizes(336, "crop")


def test_picture_that_becomes_too_large_is_refused_by_the_mode_of_the_run(tmp_path):
    """MobileVLM's checkpoints pad, those of Imp but one squash."""
    path = write_picture(tmp_path / "long.png", 14000, 2)
    Imp(data=path).prepare(Here())
    for workload in (MobileVlm(data=path), Imp(data=path, image_mode="pad"), Imp(data=path, variant="v1.5-4b-phi3")):
        with pytest.raises(UsageError, match="padded to a square"):
            workload.prepare(Here())


def test_picture_of_a_benchmark_that_is_none_is_refused_before_it_is_asked_about(folder, tmp_path):
    good = Question("1", 1, "Q", "b.png", picture=folder / "b.png")
    (tmp_path / "n").write_text("no picture")
    bad = [Question(str(k), k, "Q", "n", picture=tmp_path / "n") for k in (2, 3)]
    inside = Question("4", 4, "Q", None, picture=b"no picture either")
    for some, named in (([good, *bad], "'n'"), ([good, inside], "'that of question 4'")):
        with pytest.raises(UsageError) as refused:
            questions.of_benchmark(some)
        said = f"the benchmark's pictures: 1 of 2 files cannot be used: {named} (not a picture, or damaged); "
        assert str(refused.value).startswith(said) and "\n" not in str(refused.value)
    assert len(questions.of_benchmark([good]).items) == 1
