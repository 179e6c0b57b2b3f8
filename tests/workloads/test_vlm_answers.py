"""What is kept of the answers of a run, against counts by hand. No network is needed."""

import json

import pytest

from conftest import ROOT
from edgewatt.workloads.vlm import answers
from edgewatt.workloads.vqa import dataset

VQA = ROOT / "tests" / "data" / "vqa"
POPE = VQA / "pope"


def answer(index, qid, text, ids=(5, 6, 2)):
    return {
        "index": index, "id": qid, "question": f"Is there one of {qid}?", "text": text, "ids": list(ids),
        "prompt_tokens": 160 + index, "stopped_by": "eos",
    }  # fmt: skip


def kept(folder, rows, benchmark=None, listed=None):
    """questions.json of these answers, and what else came of them."""
    raw, into = folder / "raw", folder / "into"
    raw.mkdir()
    into.mkdir()
    answers.write(raw, {r["index"]: r for r in rows}, "mobilevlm v1-1.7b", listed or len(rows), benchmark, [])
    score = answers.score(answers.read(raw), into, "mobilevlm", 0)
    assert set(score.outputs) == {"answers.jsonl", "questions.json"}
    return json.loads(score.outputs["questions.json"].read_text()), score


def test_questions_without_a_benchmark_have_no_points(tmp_path):
    found, _ = kept(tmp_path, [answer(0, "a.png", "=1+1"), answer(1, "b.png", "", ids=(2,))])
    assert (found["form"], found["benchmark"]) == (1, None)
    assert found["questions"][0] == {
        "index": 0, "id": "a.png", "question": "Is there one of a.png?", "answer": "=1+1", "prompt_tokens": 160,
        "answer_tokens": 3, "stopped_by": "eos", "points": None, "parsed": None,
    }  # fmt: skip
    assert [q["answer_tokens"] for q in found["questions"]] == [3, 1]


def test_points_of_pope_are_those_of_its_labels(tmp_path):
    """Every question is answered "Yes": one point where the official label says so."""
    opened = dataset.open("pope", POPE, with_pictures=False)
    labels = {
        kind: [json.loads(x)["label"] for x in (POPE / "coco" / f"coco_pope_{kind}.json").read_text().splitlines()]
        for kind in ("random", "popular", "adversarial")
    }
    asked = [json.loads(x) for x in (POPE / "llava_pope_test.jsonl").read_text().splitlines()]
    turn = {kind: iter(each) for kind, each in labels.items()}
    wanted = [float(next(turn[q["category"]]) == "yes") for q in asked]
    rows = [answer(k, q.id, "Yes") for k, q in enumerate(opened.questions)]
    found, _ = kept(tmp_path, rows, opened.as_json())
    assert found["benchmark"] == "pope"
    assert [q["points"] for q in found["questions"]] == wanted and 0 < sum(wanted) < len(wanted)
    assert {q["parsed"] for q in found["questions"]} == {"yes"}


def test_run_that_ended_early_keeps_what_was_answered(tmp_path):
    opened = dataset.open("pope", POPE, with_pictures=False)
    first = opened.questions[0]
    found, score = kept(tmp_path, [answer(0, first.id, "Yes")], opened.as_json(), listed=len(opened.questions))
    assert len(found["questions"]) == 1
    (said,) = [w for w in score.warnings if f"1 of {len(opened.questions)} questions were asked" in w]
    assert "set limit" in said and "window" not in said, "a window has no length that cuts questions off"


def test_run_that_ended_inside_a_pair_is_scored_without_that_pair(tmp_path):
    """MME asks two questions about each picture. All are answered right but the very last, which was not asked."""
    opened = dataset.open("mme", VQA / "mme" / "ground_truth", with_pictures=False)
    rows = [answer(k, q.id, q.label) for k, q in enumerate(opened.questions)]
    found, score = kept(tmp_path, rows[:-1], opened.as_json(), listed=len(rows))
    assert {m.metric: m.value for m in score.measurements} == {"mme_perception": 2000, "mme_cognition": 800}
    assert [q["points"] for q in found["questions"]] == [1.0] * (len(rows) - 2) + [None]
    assert not any("no score" in w for w in score.warnings)


@pytest.mark.parametrize("benchmark", ["", "pope"])
def test_lines_of_the_answer_file_have_all_that_the_official_ones_have(tmp_path, benchmark):
    """vqa-scoring.md, at its beginning: what all runners write."""
    opened = dataset.open("pope", POPE, with_pictures=False) if benchmark else None
    row = answer(0, opened.questions[0].id if opened else "a.png", "Yes")
    _, score = kept(tmp_path, [row], opened and opened.as_json())
    line = json.loads(score.outputs["answers.jsonl"].read_text())
    assert set(line) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert (line["text"], line["answer_id"], line["model_id"], line["metadata"]) == (
        "Yes", row["id"], "mobilevlm v1-1.7b", {},
    )  # fmt: skip


def test_answers_of_before_the_model_was_told_are_still_read(tmp_path):
    about = {"form": 1, "benchmark": None, "listed": 1, "warnings": [], "answers": [answer(0, "a.png", "Yes")]}
    (tmp_path / "answers.json").write_text(json.dumps(about))
    score = answers.score(answers.read(tmp_path), tmp_path, "imp", 0)
    assert json.loads(score.outputs["answers.jsonl"].read_text())["model_id"] == "imp"


@pytest.mark.parametrize("text", ["\ud800", "\x00", "a\nb", "ünïcödé", "x" * 100_000])
def test_any_text_survives(tmp_path, text):
    found, _ = kept(tmp_path, [answer(0, "a.png", text)])
    assert found["questions"][0]["answer"] == text
