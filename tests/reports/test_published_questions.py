"""Scores beside published ones: which questions they are of, how these were asked, and of which model they are."""

import json

import pytest

from conftest import ROOT
from edgewatt.reports import published_data, published_rules
from edgewatt.workloads.vqa import dataset
from support.vlm_runs import measured, vlm_run

VQA = ROOT / "tests" / "data" / "vqa"
MODEL = "mobilevlm/v1-1.7b"


def published(quantity, model=MODEL):
    """The first row of a quantity and a model in 16 bits that is defined as ours is, or else the first of all."""
    rows = [f for f in published_data.load() if (f.quantity, f.model) == (quantity, model)]
    return next((f for f in rows if not f.definition), rows[0])


def scored(opened, answers):
    """A run with the measurements of these answers, as a workload would have stored them."""
    return vlm_run(*dataset.measurements(opened.only(answers).score(answers)))


def against(figure, run):
    (only,) = published_rules.comparisons([figure], [run])
    return [(r.rule, r.detail) for r in only.reasons]


def gqa(**options):
    return dataset.open("gqa", VQA / "gqa", with_pictures=False, **options)


def test_score_of_all_questions_is_of_all_of_them_whatever_the_limit():
    whole = gqa()
    answers = {q.id: "yes" for q in whole.questions}
    assert against(published("gqa_accuracy"), scored(whole, answers)) == []
    run = vlm_run(*dataset.measurements(whole.score(answers)), spec={"limit": 1000})
    assert against(published("gqa_accuracy"), run) == []


def test_run_that_ended_before_all_questions_were_asked_is_of_a_part_of_them():
    whole = gqa()
    run = scored(whole, {q.id: "yes" for q in whole.questions[:4]})
    assert run.spec["limit"] is None
    said = "ours: 4 of the 9 questions of testdev_balanced, those that were asked"
    assert against(published("gqa_accuracy"), run) == [("questions", said)]


def test_drawn_questions_are_told_with_their_seed():
    drawn = gqa(limit=5, seed=3)
    run = scored(drawn, {q.id: "yes" for q in drawn.questions})
    said = "ours: 5 of the 9 questions of testdev_balanced, drawn with seed 3"
    assert against(published("gqa_accuracy"), run) == [("questions", said)]


def test_textvqa_without_the_text_found_by_ocr_is_asked_otherwise(tmp_path):
    """Published scores are with it: imp.md 18, and LLaVA's question file."""
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(
        json.dumps({"data": [{"image_id": "t1", "question": "Is it?", "answers": ["yes"] * 10}]})
    )

    def run():
        opened = dataset.open("textvqa", tmp_path, with_pictures=False)
        return scored(opened, {q.id: "yes" for q in opened.questions})

    said = "ours: asked without the text found by OCR"
    assert against(published("textvqa_accuracy"), run()) == [("questions", said)]
    line = {"question_id": "t1", "image": "t1.jpg", "text": "Is it?\nReference OCR token: OPEN\nAnswer"}
    (tmp_path / "llava_textvqa_val_v051_ocr.jsonl").write_text(json.dumps(line))
    assert against(published("textvqa_accuracy"), run()) == []


@pytest.mark.parametrize(("key", "value"), [("ignore_eos", True), ("max_new_tokens", 2)])
def test_answers_of_another_length_speak_against_scores(key, value):
    run = vlm_run(measured("gqa_accuracy", 0.5), spec={key: value})
    assert against(published("gqa_accuracy"), run) == [("questions", f"ours: {key} {value}")]


def test_answers_as_long_as_the_official_runner_lets_them_be_do_not_speak_against_scores():
    """imp.md 10: model_vqa_loader of Imp allows 2000 tokens; mobilevlm.md 7: that of MobileVLM 128."""
    spec = {"max_new_tokens": 2000}
    run = vlm_run(measured("gqa_accuracy", 0.5), spec={**spec, "variant": "v1-3b"}, workload="imp")
    assert against(published("gqa_accuracy", "imp/v1-3b"), run) == []
    run = vlm_run(measured("gqa_accuracy", 0.5), spec=spec)
    assert against(published("gqa_accuracy"), run) == [("questions", "ours: max_new_tokens 2000")]


def test_mmbench_judged_by_a_server_is_defined_otherwise():
    """Its server's judge is a language model, and the authors' own script is not in their repository."""
    run = vlm_run(measured("mmbench_accuracy", 0.5))
    ((rule, detail),) = against(published("mmbench_accuracy"), run)
    assert rule == "metric"
    assert "exact matching, no judge model" in detail


def test_checkpoint_with_the_shape_of_several_variants_wants_one_named():
    figure = published("gqa_accuracy", "imp/v1-3b")
    either = {"engine": "torch", "variant": "v1-3b or v1.5-3b-phi2"}
    run = vlm_run(measured("gqa_accuracy", 0.5), workload="imp", engine=either)
    (only,) = published_rules.comparisons([figure], [run])
    assert only.result is None
    assert only.why_none == (
        f"run {run.id} has it, of v1-3b or v1.5-3b-phi2, which are of one shape; set variant to say which"
    )
    for other in (vlm_run(workload="imp", engine=either), vlm_run(measured("gqa_accuracy", 0.5), engine=either)):
        (only,) = published_rules.comparisons([figure], [other])
        assert only.why_none == "no run of ours has it"


def row(value, metric):
    (only,) = [f for f in published_data.load() if (f.printed["value"], f.printed["metric"]) == (value, metric)]
    return only


@pytest.mark.parametrize(
    ("note", "one", "other"),
    [
        ("mobilevlm-3b-two-papers", ("60.19", "accuracy_SQA-IMG"), ("61.2", "acc_sqa_img")),
        ("mobilevlm-3b-two-papers", ("60.19", "accuracy_SQA-IMG"), ("61.0", "acc_sqa_img")),
        ("imp-3b-table4-scores", ("73.13", "accuracy_SQA-IMG"), ("72.78", "accuracy_SQA-IMG")),
        ("imp-3b-table4-scores", ("73.13", "accuracy_SQA-IMG"), ("72.8", "accuracy_SQA-IMG")),
        ("imp-3b-table4-scores", ("70.88", "accuracy_MMBench-dev"), None),
    ],
)
def test_scores_of_one_model_that_two_tables_print_differently_are_tied(note, one, other):
    same = [f for f in published_data.load() if (f.printed["value"], f.printed["metric"]) == one]
    tied = [f for f in same if note in [n.name for n in f.notes]]
    if other is None:
        assert not tied, "in 4 bits it is another model"
    else:
        (tied_one,) = tied
        assert row(*other).key in tied_one.conflicts_with
        assert tied_one.key in row(*other).conflicts_with
