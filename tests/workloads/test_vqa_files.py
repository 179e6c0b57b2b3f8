"""Benchmarks as they lie on disk: pictures, subsets, and one line for everything that is wrong."""

import csv
import json
import shutil

import pytest

from conftest import ROOT
from edgewatt.harness.api import UsageError
from edgewatt.workloads.vqa import dataset, mmbench
from edgewatt.workloads.vqa.question import LETTER

GOLDEN = ROOT / "tests" / "data" / "vqa"
FOLDERS = {"gqa": "gqa", "pope": "pope", "textvqa": "textvqa", "scienceqa": "sqa", "mme": "mme/ground_truth"}


@pytest.fixture
def copy(tmp_path):
    """A benchmark's files where they may be changed."""

    def copied(name):
        return shutil.copytree(GOLDEN / FOLDERS.get(name, name), tmp_path / name)

    return copied


def opened(name, path, **options):
    return dataset.open(name, path, **{"with_pictures": False} | options)


def refusal(call, *args, **options):
    with pytest.raises(UsageError) as refused:
        call(*args, **options)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def changed(path, change):
    """The JSON file with its content changed in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def changed_line(path, number, change):
    """The JSON lines with one of them changed in place."""
    lines = path.read_text().splitlines()
    line = json.loads(lines[number - 1])
    change(line)
    lines[number - 1] = json.dumps(line)
    path.write_text("\n".join(lines))


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
    assert "leave split out" in refusal(opened, name, GOLDEN / FOLDERS[name], split="val")


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
    path = GOLDEN / FOLDERS.get(name, name)
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
    data = opened("mme", GOLDEN / FOLDERS["mme"], limit=30)
    assert len(data.questions) == 30
    assert len({q.task for q in data.questions}) == 14
    assert data.score({q.id: q.label for q in data.questions}).metric("mme_perception").value == 2000
    short = opened("mme", GOLDEN / FOLDERS["mme"], limit=6)
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
    mme = opened("mme", GOLDEN / FOLDERS["mme"])
    assert [q.id for q in mme.only(["OCR/OCR000#1", "OCR/OCR000#2", "OCR/OCR001#2"]).questions] == [
        "OCR/OCR000#1",
        "OCR/OCR000#2",
    ]


@pytest.mark.parametrize("name", dataset.NAMES)
def test_nothing_asked_has_reasons(name):
    data = opened(name, GOLDEN / FOLDERS.get(name, name))
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


# ---------------------------------------------------------------------------------------------------------------------
# Files that are wrong


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update({"1001": 3}), "question '1001': is 3; wanted an object"),
        (lambda c: c["1001"].update(isBalanced="yes"), "its isBalanced is 'yes'"),
        (lambda c: c["1001"].update(question=None), "its question is None; wanted a text"),
        (lambda c: c["1001"].update(question="x" * 100_001), "its question has 100001 characters"),
        (lambda c: c["1001"].update(answer="\ud800"), "half a character"),
        (lambda c: c["1001"].pop("types"), "types: is None"),
        (lambda c: c["1001"].update(semantic=[3]), "semantic: is 3"),
        (lambda c: c["1001"].update(semantic=3), "its semantic is 3"),
        (lambda c: c["1001"]["groups"].update({"global": 3}), "its global is 3"),
        (lambda c: c.clear(), "has no balanced question"),
    ],
)
def test_bad_gqa_questions_are_refused(change, said, copy):
    path = copy("gqa")
    changed(path / "testdev_balanced_questions.json", change)
    assert said in refusal(opened, "gqa", path)


@pytest.mark.parametrize("content", ["", "[", "[" * 100_000, "[1, 2]", '{"a": 1' + "0" * 5000 + "}", "\ufffd\0"])
def test_files_that_are_no_json_object_are_refused(content, copy):
    path = copy("gqa") / "testdev_balanced_questions.json"
    path.write_text(content)
    assert str(path) in refusal(opened, "gqa", path)


def test_bytes_that_are_no_text_are_refused(copy):
    path = copy("gqa") / "testdev_balanced_questions.json"
    path.write_bytes(b'{"\xff": 1}')
    assert "is not JSON" in refusal(opened, "gqa", path)
    table = copy("mmbench") / "mmbench_dev_en.tsv"
    table.write_bytes(table.read_bytes() + b"\xff")
    assert "UTF-8" in refusal(opened, "mmbench", table)
    text = copy("mme") / "OCR/OCR000.txt"
    text.write_bytes(b"\xff\tYes\nb\tNo\n")
    assert "UTF-8" in refusal(opened, "mme", text.parent.parent)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: line.update(category="common"), "line 2: its category is 'common'"),
        (lambda line: line.update(question_id=1), "line 2: question 1 was there before"),
        (lambda line: line.update(question_id=1.5), "its question_id is 1.5"),
        (lambda line: line.update(image="other.jpg"), "take questions and annotations of one release"),
    ],
)
def test_bad_pope_questions_are_refused(change, said, copy):
    path = copy("pope")
    changed_line(path / "llava_pope_test.jsonl", 2, change)
    assert said in refusal(opened, "pope", path)


def test_bad_pope_labels_are_refused(copy):
    path = copy("pope")
    changed_line(path / "coco/coco_pope_random.json", 3, lambda line: line.update(label="maybe"))
    assert "line 3: its label is 'maybe'" in refusal(opened, "pope", path)
    (path / "coco/coco_pope_random.json").unlink()
    assert "has no coco_pope_random.json" in refusal(opened, "pope", path)


def test_pope_question_without_a_label_is_not_judged(copy):
    path = copy("pope")
    labels = path / "coco/coco_pope_random.json"
    labels.write_text("\n".join(labels.read_text().splitlines()[:5]))
    data = opened("pope", path)
    scored = data.score({q.id: "yes" for q in data.questions})
    assert (scored.details["random"]["samples"], scored.details["random"]["TP"]) == (6, 3)
    assert "18" not in scored.points


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["data"][0]["answers"].pop(), "data[0]: has 9 answers; wanted 10"),
        (lambda c: c["data"][0].pop("answers"), "has no answers, as in a test split"),
        (lambda c: c["data"][0]["answers"].__setitem__(3, 5), "an answer is 5"),
        (lambda c: c["data"][0].update(question="a\nb"), "has a line break"),
        (lambda c: c.update(data=[]), "its data is []"),
    ],
)
def test_bad_textvqa_annotations_are_refused(change, said, copy):
    path = copy("textvqa")
    changed(path / "TextVQA_0.5.1_val.json", change)
    assert said in refusal(opened, "textvqa", path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["1"].update(choices=[]), "problem '1': its choices are []"),
        (lambda c: c["1"].update(choices=list("abcdef")), "wanted 1 to 5 texts"),
        (lambda c: c["1"].update(answer=3), "its answer is choice 3 of 3"),
        (lambda c: c["1"].update(answer=True), "its answer is True"),
        (lambda c: c.pop("1"), "problem '1': is None"),
    ],
)
def test_bad_scienceqa_problems_are_refused(change, said, copy):
    path = copy("scienceqa")
    changed(path / "problems.json", change)
    assert said in refusal(opened, "scienceqa", path)


def test_scienceqa_split_that_is_not_listed_is_refused():
    assert "it has 'test', 'train', 'val'" in refusal(opened, "scienceqa", GOLDEN / "sqa", split="minival")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\tYes\n", "has 1 lines; wanted 2"),
        ("a\tYes\nb\tNo\nc\tNo\n", "has 3 lines"),
        ("a\tYes\nb\tMaybe\n", "line 2 is 'b\\tMaybe'"),
        ("a Yes\nb\tNo\n", "line 1 is 'a Yes'"),
        ("", "has 1 lines"),
    ],
)
def test_bad_mme_texts_are_refused(text, said, copy):
    path = copy("mme")
    (path / "OCR/OCR000.txt").write_text(text)
    assert said in refusal(opened, "mme", path)


def test_mme_without_a_task_has_no_sum_of_it(copy):
    path = copy("mme")
    shutil.rmtree(path / "OCR")
    data = opened("mme", path)
    assert "has no folder of OCR" in data.warnings[0]
    scored = data.score({q.id: q.label for q in data.questions})
    assert [m.name for m in scored.metrics] == ["mme_cognition"]
    assert scored.reasons == {"mme_perception": "OCR has no answers"}
    shutil.rmtree(path / "count")
    (path / "count").mkdir()
    assert "has no text files" in refusal(opened, "mme", path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("index\t", "number\t", "has no column index"),
        ("1000001\t", "x\t", "line 3: its index is 'x'"),
        ("1000001\t", "1\t", "line 3: index 1 was there before"),
        ("cross\tA\tobject", "cross\tE\tobject", "its answer is 'E'; wanted one of A, B, C, D"),
        ("\tdev\n1000001", "\tdev\tmore\n1000001", "line 2: has 15 cells"),
        ("\tdev\n1000001", "\ttest\n1000001", "set split to one of them"),
    ],
)
def test_bad_mmbench_tables_are_refused(old, new, said, copy):
    path = copy("mmbench") / "mmbench_dev_en.tsv"
    path.write_text(path.read_text().replace(old, new, 1))
    assert said in refusal(opened, "mmbench", path)


def test_quoted_cells_of_mmbench_may_hold_anything(copy):
    path = copy("mmbench") / "mmbench_dev_en.tsv"
    said = '"What ""shape""\nand\twhat colour?"'
    path.write_text(path.read_text().replace("1\tWhat shape is shown?", f"1\t{said}", 1).replace("\n", "\r\n"))
    questions = opened("mmbench", path).questions
    assert len(questions) == 17
    assert questions[0].question == 'What "shape"\r\nand\twhat colour?'
    assert (questions[-1].split, questions[-1].answer) == ("dev", "C")
    path.write_bytes(path.read_bytes() + b"\r\n\n")
    assert opened("mmbench", path).questions == questions


def test_mmbench_cell_without_end_is_refused(copy, monkeypatch):
    monkeypatch.setattr(mmbench, "LARGEST_PICTURE", 1000)
    path = copy("mmbench") / "mmbench_dev_en.tsv"
    path.write_text(path.read_text().replace("1\tWhat shape is shown?", '1\t"What shape is shown?', 1))
    assert "after line 1: cannot be read (field larger than field limit (1000))" in refusal(opened, "mmbench", path)


def test_mmbench_with_two_tables_wants_one_named(copy):
    path = copy("mmbench")
    shutil.copy(path / "mmbench_dev_en.tsv", path / "mmbench_dev_cn.tsv")
    assert "name one of them" in refusal(opened, "mmbench", path)


def test_mmbench_split_without_answers_has_reasons(copy):
    path = copy("mmbench") / "mmbench_dev_en.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    for row in rows[1:]:
        row[rows[0].index("answer")] = ""
    path.write_text("\n".join("\t".join(row) for row in rows))
    data = opened("mmbench", path)
    scored = data.score({q.id: "A" for q in data.questions})
    assert scored.metrics == ()
    assert set(scored.reasons) == {"mmbench_accuracy", "mmbench_vanilla_accuracy"}
    assert mmbench.submission_table(data, []).splitlines()[1] == "1,What shape is shown?,circle,square,star,cross,,,dev"


def test_mmbench_options_end_at_the_first_that_is_none(copy):
    path = copy("mmbench") / "mmbench_dev_en.tsv"
    path.write_text(
        path.read_text().replace("1\tWhat shape is shown?\t\tcircle\tsquare", "1\tWhat?\tnan\tcircle\tnone", 1)
    )
    q = opened("mmbench", path).questions[0]
    # pandas takes "None" for an empty cell and "none" for a text, which the runner then takes for none.
    assert q.logged == "What?\nA. circle"
    assert q.options == {"A": "circle", "B": "none", "C": "star", "D": "cross"}


# ---------------------------------------------------------------------------------------------------------------------
# Answers


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x", "line 1 is not JSON"),
        ("[]", "line 1: is []; wanted an object"),
        ('{"question_id": 1}', "line 1: its text is None"),
        ('{"question_id": null, "text": "x"}', "line 1: its question_id is None"),
        ('{"question_id": 1, "text": "x", "prompt": 3}', "line 1: its prompt is 3"),
        ('{"question_id": 99, "text": "x"}', "line 1: answers 99, '', which is no question"),
    ],
)
def test_bad_answers_are_refused(line, said, tmp_path):
    (tmp_path / "answers.jsonl").write_text(f"{line}\n")
    assert said in refusal(opened("pope", GOLDEN / "pope").score_file, tmp_path / "answers.jsonl")


def test_answers_to_nothing_are_passed_over_where_the_evaluator_does(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"question_id": "99", "text": "x", "prompt": ""}\n\n')
    for name in ("gqa", "scienceqa", "mmbench"):
        assert opened(name, GOLDEN / FOLDERS.get(name, name)).answers_in(tmp_path / "answers.jsonl") == []


def test_answers_by_unknown_ids_are_refused():
    data = opened("gqa", GOLDEN / "gqa")
    assert "'99', which is none of its questions" in refusal(data.score, {"99": "x"})
    assert "wanted a text" in refusal(data.score, {"1001": None})


def test_missing_answer_file_is_said(tmp_path):
    assert "cannot be read" in refusal(opened("gqa", GOLDEN / "gqa").score_file, tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "facts", [{}, {"name": "none"}, {"name": "gqa"}, {"name": "gqa", "questions": [{"id": "1"}]}, 3]
)
def test_stored_questions_that_are_none_are_refused(facts):
    assert "run it again" in refusal(dataset.of_json, facts)
