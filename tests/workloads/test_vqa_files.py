"""Benchmarks as they lie on disk: how they are opened, their pictures, and subsets of them."""

import csv
import json

import pytest

from edgewatt.workloads.vqa import dataset
from edgewatt.workloads.vqa.question import LETTER
from support.vqa_files import GOLDEN, changed_line, golden, opened, refusal


def write_pictures(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"picture")


# ---------------------------------------------------------------------------------------------------------------------
# Opening


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("gqa", 9, ("1001", "What is the animal on the mat?\nAnswer the question using a single word or phrase.")),
        ("pope", 18, ("1", "Is there a thing1 in the image?\nAnswer the question using a single word or phrase.")),
        ("textvqa", 11, ("t1#1", "What brand is the can?\nAnswer the question using a single word or phrase.")),
        ("mmbench", 17, ("1", f"What shape is shown?\nA. circle\nB. square\nC. star\nD. cross\n{LETTER}")),
    ],
)  # fmt: skip
def test_questions_are_asked_in_the_order_of_their_file(name, count, first):
    data = opened(name, GOLDEN / name)
    assert len(data.questions) == data.whole == count
    assert (data.questions[0].id, data.questions[0].prompt) == first
    assert len({q.id for q in data.questions}) == count


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gqa", "gqa/testdev_balanced_questions.json"),
        ("pope", "pope/llava_pope_test.jsonl"),
        ("textvqa", "textvqa/TextVQA_0.5.1_val.json"),
        ("scienceqa", "sqa/problems.json"),
        ("mmbench", "mmbench/mmbench_dev_en.tsv"),
    ],
)
def test_main_file_does_for_its_folder(name, file):
    assert opened(name, GOLDEN / file).questions == opened(name, (GOLDEN / file).parent).questions


@pytest.mark.parametrize("name", dataset.NAMES)
def test_what_is_not_there_is_said(name, tmp_path):
    assert str(tmp_path / "none") in refusal(opened, name, tmp_path / "none")
    assert str(tmp_path) in refusal(opened, name, tmp_path)
    assert refusal(opened, name, tmp_path / ("long" * 75))
    (tmp_path / "file").write_text("{")
    assert str(tmp_path) in refusal(opened, name, tmp_path / "file")


def test_unknown_name_is_answered_by_the_nearest(tmp_path):
    assert refusal(dataset.open, "sciencqa", tmp_path) == "dataset='sciencqa' is unknown; did you mean scienceqa?"


def test_answers_may_be_as_long_as_the_official_runners_allow():
    """MobileVLM's scripts/benchmark/*.sh."""
    short, long = ("gqa", "pope", "textvqa", "mme"), ("mmbench", "scienceqa")
    found = dataset.MAX_NEW_TOKENS
    assert found == {**dict.fromkeys(short, 128), **dict.fromkeys(long, 1024)}


@pytest.mark.parametrize("name", ["pope", "mme"])
def test_split_without_meaning_is_refused(name):
    assert "leave split out" in refusal(opened, name, golden(name), split="val")


def test_other_split_is_another_file(copy):
    folder = copy("gqa")
    assert "has no val_balanced_questions.json" in refusal(opened, "gqa", folder, split="val_balanced")
    (folder / "testdev_balanced_questions.json").rename(folder / "val_balanced_questions.json")
    assert opened("gqa", folder, split="val_balanced").split == "val_balanced"


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


@pytest.mark.parametrize(
    ("name", "folder", "pictures"),
    [
        ("gqa", "images", ["n1.jpg"]),
        ("pope", "val2014", [f"COCO_val2014_{k:012d}.jpg" for k in range(1, 19)]),
        ("textvqa", "train_images", [f"t{k}.jpg" for k in range(1, 10)]),
        ("scienceqa", "images/test", [f"{k}/image.png" for k in (1, 2, 4, 6, 7, 9, 10)]),
    ],
)
def test_pictures_are_found_beside_the_questions_or_where_said(name, folder, pictures, copy, tmp_path):
    path = copy(name)
    message = refusal(dataset.open, name, path)
    assert f"{len(pictures)} of {len(pictures)} pictures are missing" in message
    assert "set images_dir to their folder" in message
    write_pictures(path / folder, pictures)
    found = dataset.open(name, path)
    assert {q.picture for q in found.questions if q.picture} == {path / folder / p for p in pictures}
    write_pictures(tmp_path / "elsewhere", [*pictures[:-1], "other.jpg"])
    assert f"1 of {len(pictures)} pictures are missing" in refusal(
        dataset.open, name, path, images_dir=tmp_path / "elsewhere"
    )
    assert "no such folder" in refusal(dataset.open, name, path, images_dir=tmp_path / "nowhere")
    assert str(path) not in json.dumps(found.as_json()["questions"])


def test_scienceqa_asks_about_nothing_where_there_is_no_picture(copy):
    path = copy("scienceqa")
    write_pictures(path / "test", [f"{k}/image.png" for k in (1, 2, 4, 6, 7, 9, 10)])
    assert [q.id for q in dataset.open("scienceqa", path).questions if q.picture is None] == ["3", "5", "8"]


def test_mme_pictures_lie_beside_texts_or_in_a_folder_of_their_own(copy):
    path = copy("mme")
    for task in path.iterdir():
        apart = (task / "images").is_dir()
        texts = (task / "questions_answers_YN" if apart else task).glob("*.txt")
        write_pictures(task / "images" if apart else task, [f"{t.stem}.png" for t in texts])
    data = dataset.open("mme", path)
    by_id = {q.id: q for q in data.questions}
    assert by_id["scene/sce000#1"].picture == path / "scene/images/sce000.png"
    assert by_id["OCR/OCR002#2"].official_id == "OCR/OCR002.png"
    assert len(data.questions) == 70
    (path / "OCR/OCR002.png").unlink()
    assert "'OCR/OCR002.jpg'" in refusal(dataset.open, "mme", path)
    assert "leave images_dir out" in refusal(dataset.open, "mme", path, images_dir=path)


def test_mmbench_pictures_are_inside_the_table(copy):
    path = copy("mmbench")
    data = dataset.open("mmbench", path)
    assert {q.id: q.picture for q in data.questions}["2000004"] == b"picture of 2000004"
    assert "leave images_dir out" in refusal(dataset.open, "mmbench", path, images_dir=path)
    # A rotation may name the row that has its picture.
    table = path / "mmbench_dev_en.tsv"
    table.write_text(table.read_text().replace("cGljdHVyZSBvZiAxMDAwMDAx", "1"))
    assert {q.id: q.picture for q in dataset.open("mmbench", path).questions}["1000001"] == b"picture of 1"


@pytest.mark.parametrize("image", ["", "cGl", "cGljd#==", "ünï", "999"])
def test_mmbench_picture_that_is_no_base64_is_refused(image, copy):
    path = copy("mmbench")
    table = path / "mmbench_dev_en.tsv"
    table.write_text(table.read_text().replace("cGljdHVyZSBvZiAxMDAwMDAx", image))
    assert "index 1000001" in refusal(dataset.open, "mmbench", path)


def test_long_pictures_fit_into_a_cell(copy):
    path = copy("mmbench")
    table = path / "mmbench_dev_en.tsv"
    table.write_text(table.read_text().replace("cGljdHVyZSBvZiAxMDAwMDAx", "AAAA" * 100_000))
    limit = csv.field_size_limit()
    assert {len(q.picture) for q in dataset.open("mmbench", path).questions if q.id == "1000001"} == {300_000}
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("name", ["../n1", "/etc/n1", "a\\..\\n1", "C:n1", "a\0b", ""])
def test_picture_outside_its_folder_is_refused(name, copy):
    path = copy("pope")
    for file in (path / "llava_pope_test.jsonl", path / "coco/coco_pope_adversarial.json"):
        changed_line(file, 1, lambda line: line.update(image=name))
    write_pictures(path / "val2014", ["x"])
    message = refusal(dataset.open, "pope", path)
    assert "file name" in message


# ---------------------------------------------------------------------------------------------------------------------
# Subsets


@pytest.mark.parametrize("name", dataset.NAMES)
def test_subset_is_drawn_by_its_seed_and_keeps_order(name):
    path = golden(name)
    whole = opened(name, path)
    some = opened(name, path, limit=7, seed=3)
    assert some == opened(name, path, limit=7, seed=3)
    assert len({tuple(q.id for q in opened(name, path, limit=7, seed=s).questions) for s in range(10)}) > 1
    ids = [q.id for q in whole.questions]
    assert [ids.index(q.id) for q in some.questions] == sorted(ids.index(q.id) for q in some.questions)
    assert 1 <= len(some.questions) <= 7
    assert (some.whole, some.seed, whole.seed) == (len(ids), 3, None)
    assert opened(name, path, limit=1000) == whole
    assert "limit=0" in refusal(opened, name, path, limit=0)


def test_subset_is_scored_by_itself_and_says_so(copy):
    data = opened("gqa", GOLDEN / "gqa", limit=4, seed=1)
    metric = data.score({q.id: q.answer for q in data.questions}).metric("gqa_accuracy")
    assert (metric.value, metric.n) == (1, 4)
    assert metric.method.endswith("(4 of the 9 questions of testdev_balanced, drawn with seed 1)")
    # The answers to all questions will do: the others are passed over.
    assert data.score_file(GOLDEN / "gqa/merge.jsonl").metric("gqa_accuracy").n == 4


def test_pope_subset_has_each_category_with_its_own_labels():
    data = opened("pope", GOLDEN / "pope", limit=6)
    assert sorted(q.category for q in data.questions) == ["adversarial"] * 2 + ["popular"] * 2 + ["random"] * 2
    labels = {q.id: q.is_there for q in opened("pope", GOLDEN / "pope").questions}
    assert {q.id: q.is_there for q in data.questions} == {q.id: labels[q.id] for q in data.questions}
    scored = data.score_file(GOLDEN / "pope/answers.jsonl")
    assert scored.doubts == ()
    whole = opened("pope", GOLDEN / "pope").score_file(GOLDEN / "pope/answers.jsonl")
    assert scored.points == {q.id: whole.points[q.id] for q in data.questions}


def test_mme_subset_has_both_questions_of_every_picture_and_every_task():
    data = opened("mme", golden("mme"), limit=30)
    assert len(data.questions) == 30
    assert len({q.task for q in data.questions}) == 14
    assert data.score({q.id: q.label for q in data.questions}).metric("mme_perception").value == 2000
    short = opened("mme", golden("mme"), limit=6)
    assert set(short.score({q.id: q.label for q in short.questions}).reasons) == {"mme_perception", "mme_cognition"}


def test_mmbench_subset_has_every_rotation():
    data = opened("mmbench", GOLDEN / "mmbench", limit=9)
    counts = {1: 4, 2: 3, 3: 2, 4: 4, 5: 4}
    for base in {q.base for q in data.questions}:
        assert sum(q.base == base for q in data.questions) == counts[base]


def test_what_was_not_asked_is_no_wrong_answer():
    data = opened("scienceqa", GOLDEN / "sqa")
    texts = {"1": "A", "3": "C", "4": "A"}
    assert data.score(texts).metric("scienceqa_accuracy").value == 0.2
    part = data.only(texts)
    metric = part.score(texts).metric("scienceqa_accuracy")
    assert (metric.value, metric.n) == (pytest.approx(2 / 3), 3)
    assert metric.method.endswith("(3 of the 10 questions of test, those that were asked)")
    assert data.only([q.id for q in data.questions]) == data
    drawn = opened("scienceqa", GOLDEN / "sqa", limit=5)
    assert drawn.only([drawn.questions[0].id]).drawn_from.endswith("drawn with seed 0, those that were asked)")
    assert dataset.of_json(part.as_json()) == part


def test_groups_that_were_asked_in_part_are_left_out():
    data = opened("mmbench", GOLDEN / "mmbench")
    part = data.only(["3", "1000003", "1", "1000001"])
    assert [q.id for q in part.questions] == ["3", "1000003"]
    assert part.score({"3": "B", "1000003": "A"}).metric("mmbench_accuracy").value == 1
    mme = opened("mme", golden("mme"))
    assert [q.id for q in mme.only(["OCR/OCR000#1", "OCR/OCR000#2", "OCR/OCR001#2"]).questions] == [
        "OCR/OCR000#1",
        "OCR/OCR000#2",
    ]


@pytest.mark.parametrize("name", dataset.NAMES)
def test_nothing_asked_has_reasons(name):
    data = opened(name, golden(name))
    scored = data.only(()).score({})
    assert scored.metrics == ()
    assert scored.warnings == tuple(f"no {metric}: no question was asked" for metric in data.metrics)


# ---------------------------------------------------------------------------------------------------------------------
# Question files of LLaVA


def test_textvqa_is_asked_with_text_found_by_ocr_where_llavas_file_is(copy):
    path = copy("textvqa")
    assert "without the text found by OCR" in opened("textvqa", path).warnings[0]
    file = path / "llava_textvqa_val_v051_ocr.jsonl"
    line = {"question_id": "t9", "image": "t9.png", "text": "Is it open?\nReference OCR token: OPEN\nAnswer"}
    file.write_text(json.dumps(line) + "\n" + json.dumps(line | {"text": "what letter is shown?\nAnswer"}) + "\n")
    data = opened("textvqa", path)
    assert [(q.id, q.prompt, q.image) for q in data.questions] == [
        ("t9#1", "Is it open?\nReference OCR token: OPEN\nAnswer", "t9.png"),
        ("t9#2", "what letter is shown?\nAnswer", "t9.png"),
    ]
    assert data.warnings == ()
    assert data.score({"t9#1": "no", "t9#2": "q"}).metric("textvqa_accuracy").value == 1
    file.write_text(json.dumps(line | {"text": "Is it shut?\nAnswer"}))
    assert "which the annotations do not" in refusal(opened, "textvqa", path)
    file.write_text("")
    assert "is empty" in refusal(opened, "textvqa", path)


def test_scienceqa_is_asked_as_llavas_file_does(copy):
    path = copy("scienceqa")
    file = path / "llava_test_CQM-A.json"
    asked = [
        {"id": str(k), "conversations": [{"from": "human", "value": f"Q {k}\n<image>"}, {"from": "gpt", "value": "A"}]}
        for k in range(1, 11)
    ]
    file.write_text(json.dumps(asked))
    by_id = {q.id: q for q in opened("scienceqa", path).questions}
    suffix = "\nAnswer with the option's letter from the given choices directly."
    assert (by_id["4"].prompt, by_id["4"].logged) == (f"Q 4{suffix}", f"<image>\nQ 4{suffix}")
    assert by_id["3"].logged == f"Q 3{suffix}"
    file.write_text(json.dumps(asked[1:]))
    assert "does not ask problem '1'" in refusal(opened, "scienceqa", path)
    file.write_text(json.dumps([{"id": "1", "conversations": []}]))
    assert "its conversations are []" in refusal(opened, "scienceqa", path)
