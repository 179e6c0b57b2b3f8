"""Files of the benchmarks that are wrong, and answers that do not belong to them: one line each."""

import shutil

import pytest

from edgewatt.workloads.vqa import dataset, mmbench
from support.vqa_files import GOLDEN, changed, changed_line, golden, opened, refusal


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
        assert opened(name, golden(name)).answers_in(tmp_path / "answers.jsonl") == []


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
