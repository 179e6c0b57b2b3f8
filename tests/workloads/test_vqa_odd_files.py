"""Official files with the oddities that editors and tables give them: the same questions come out, or one line."""

import json

import pytest

from edgewatt.workloads.vqa import dataset
from support.vqa_files import golden, refusal


def questions(name, path):
    return dataset.open(name, path, with_pictures=False).questions


def texts_of(folder):
    return [p for p in folder.rglob("*") if p.suffix in (".json", ".jsonl", ".txt", ".tsv") and "answers" not in p.name]


@pytest.mark.parametrize("name", dataset.NAMES)
def test_byte_order_mark_is_no_part_of_a_file(name, copy):
    folder = copy(name)
    for path in texts_of(folder):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert questions(name, folder) == questions(name, golden(name))


@pytest.mark.parametrize("name", dataset.NAMES)
def test_lines_that_end_as_on_windows_are_the_same_lines(name, copy):
    folder = copy(name)
    for path in texts_of(folder):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert questions(name, folder) == questions(name, golden(name))


@pytest.mark.parametrize("name", ["gqa", "pope", "scienceqa", "mmbench"])
def test_answer_file_written_on_windows_scores_the_same(name, tmp_path):
    opened = dataset.open(name, golden(name), with_pictures=False)
    lines = [json.dumps(line) for line in opened.lines({q.id: "yes" for q in opened.questions}, "m")]
    (tmp_path / "plain.jsonl").write_bytes("\n".join(lines).encode())
    (tmp_path / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    assert opened.score_file(tmp_path / "windows.jsonl") == opened.score_file(tmp_path / "plain.jsonl")


@pytest.mark.parametrize("name", dataset.NAMES)
def test_packed_file_is_refused_in_one_line(name, copy):
    folder = copy(name)
    for path in texts_of(folder):
        path.write_bytes(b"\x1f\x8b\x08\x00" + path.read_bytes()[:100])
    assert str(folder) in refusal(questions, name, folder)


@pytest.mark.parametrize("name", dataset.NAMES)
def test_text_of_any_language_is_asked_and_scored(name, tmp_path):
    """Answers in other scripts are wrong answers, and survive the answer file."""
    opened = dataset.open(name, golden(name), with_pictures=False)
    said = {q.id: "はい。Ünïcode \u2028 \U0001f600" for q in opened.questions}
    dataset.write_answers(opened, said, tmp_path / "a.jsonl", "m")
    answers = opened.answers_in(tmp_path / "a.jsonl")
    assert {a.question.id: a.text for a in answers} == said


def test_mmbench_answer_that_is_an_empty_option_counts_as_wrong(copy):
    """pandas, with which the official programs read the table, takes the text None for an empty cell."""
    folder = copy("mmbench")
    table = folder / "mmbench_dev_en.tsv"
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    of_third = next(r for r in rows if r[0] == "3")
    of_third[rows[0].index("B")] = "None"
    assert of_third[rows[0].index("answer")] == "B"
    table.write_text("\n".join("\t".join(row) for row in rows))
    opened = dataset.open("mmbench", folder, with_pictures=False)
    assert "1 rows, the first of index 3, are options that the official programs take for empty" in opened.warnings[0]
    scored = opened.score({q.id: q.answer for q in opened.questions})
    assert scored.points["3"] == 0
    assert scored.metric("mmbench_accuracy").value == 0.8  # four of five questions
