"""Traps of the scoring rules, each with a result counted by hand, and what holds for any text."""

import dataclasses
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewatt.workloads.vqa import dataset, gqa, mmbench, mme, pope, scienceqa, textvqa
from edgewatt.workloads.vqa.scored import measurements
from support.vqa_files import GOLDEN, golden

OPENED = {name: dataset.open(name, golden(name), with_pictures=False) for name in dataset.NAMES}

OPTIONS = {"A": "circle", "B": "square", "C": "star", "D": "cross"}
WORDS = [
    "yes",
    "no",
    "not",
    "A",
    "B.",
    "C. ",
    "The answer is ",
    "a",
    "the",
    "ten",
    "'s",
    ".",
    ",",
    "?",
    "-",
    "1",
    " ",
    "\n",
]
texts = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS), max_size=12).map("".join))


# ---------------------------------------------------------------------------------------------------------------------
# GQA


def test_gqa_takes_trailing_full_stops_away_and_nothing_else():
    said = {
        "Yes...": "yes",
        " cloudy": " cloudy",
        "cat. ": "cat. ",
        "a cat": "a cat",
        "no!": "no!",
        "...": "",
        "U.S.": "u.s",
    }
    assert {text: gqa.prediction(text) for text in said} == said


def test_gqa_without_all_answers_has_no_accuracy_but_a_reason():
    data = OPENED["gqa"]
    scored = data.score({q.id: q.answer for q in data.questions[1:]})
    assert scored.metrics == ()
    assert scored.reasons["gqa_accuracy"].startswith("1 of 9 questions have no answer, the first '1001'")
    assert measurements(scored) == ()


def test_gqa_perfect_answers_have_distance_zero():
    data = OPENED["gqa"]
    scored = data.score({q.id: f"{q.answer.title()}." for q in data.questions})
    assert (scored.metric("gqa_accuracy").value, scored.details["distribution"]) == (1, 0)
    assert set(scored.points.values()) == {1}


def test_gqa_distribution_needs_a_group():
    data = OPENED["gqa"]
    alone = dataclasses.replace(data, questions=tuple(q for q in data.questions if q.global_group is None))
    scored = alone.score({q.id: q.answer for q in alone.questions})
    assert scored.metric("gqa_accuracy").value == 1
    assert "distribution" in scored.reasons
    assert "distribution" not in scored.details


# ---------------------------------------------------------------------------------------------------------------------
# POPE


@pytest.mark.parametrize("text", ["No", "no", "it is not", "No, there is none", "no, yes", "x no. yes"])
def test_pope_hears_a_no(text):
    assert not pope.says_yes(text)


@pytest.mark.parametrize(
    "text", ["", "NO", "Not", "none", "nothing", "cannot", "no!", "no\n", "Yes. It is not", "\tno", "."]
)
def test_pope_hears_a_yes(text):
    assert pope.says_yes(text)


def pope_answers(by_category):
    return {q.id: by_category[q.category] for q in OPENED["pope"].questions}


def test_pope_without_a_yes_has_no_f1():
    scored = OPENED["pope"].score(pope_answers({"adversarial": "no", "popular": "yes", "random": "yes"}))
    assert [m.name for m in scored.metrics] == ["pope_accuracy"]
    assert scored.reasons["pope_f1"].startswith("adversarial: no answer says yes")
    assert "precision" not in scored.details["adversarial"]
    # Yes is right for three of the six questions of each category.
    assert scored.metric("pope_accuracy").value == 0.5


def test_pope_with_every_yes_wrong_has_no_f1():
    data = OPENED["pope"]
    scored = data.score({q.id: "no" if q.is_there else "yes" for q in data.questions})
    assert scored.metric("pope_accuracy").value == 0
    assert "every yes is wrong" in scored.reasons["pope_f1"]


def test_pope_labels_are_taken_by_position(tmp_path):
    data = OPENED["pope"]
    lines = list(data.lines({q.id: "yes" if q.is_there else "no" for q in data.questions}, "m"))
    everything = tmp_path / "all.jsonl"
    everything.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert data.score_file(everything).metric("pope_f1").value == 1
    # Without its first answer a category (yes, no, yes, no, yes, no) is judged by the labels before: all wrong.
    short = tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps(line) + "\n" for line in lines if line["question_id"] != 13))
    scored = data.score_file(short)
    labels = [q.is_there for q in data.questions if q.category == "random"]
    shifted = sum(a == b for a, b in zip(labels[1:], labels, strict=False))
    assert scored.details["random"]["accuracy"] == shifted / 5
    assert "by position" in scored.warnings[0]


def test_pope_category_without_answers_has_a_reason():
    data = OPENED["pope"]
    scored = data.score({q.id: "yes" for q in data.questions if q.category != "random"})
    assert scored.metrics == ()
    assert "random: has no answers" in scored.reasons["pope_accuracy"]


# ---------------------------------------------------------------------------------------------------------------------
# TextVQA


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1.5", "1.5"),
        ("1.", "1"),
        ("." * 40, "." * 8),  # at most 32 full stops go
        ("a b. c", "b c"),
        ("it's", "it 's"),
        ("x-y - z", "xy z"),  # a hyphen next to a space: all hyphens go, and nothing takes their place
        ("x-y", "x y"),
        ("Im", "im"),  # the table has Im with a capital, which lower case never meets
        ("somebody'd", "somebodyd"),
        ("The A", ""),
        ("5,000", "5000"),
        ("one, two", "1 2"),
        ("a:b", "a:b"),
    ],
)
def test_textvqa_normalisation_has_the_quirks_of_m4c(text, wanted):
    assert textvqa.normalised(text) == wanted


@pytest.mark.parametrize(("equal", "wanted"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_textvqa_score_leaves_each_reference_out_in_turn(equal, wanted):
    references = ["yes"] * equal + [f"other {k}" for k in range(10 - equal)]
    assert textvqa.score("Yes", references) == wanted
    left_out = [min(1, (equal - (r == "yes")) / 3) for r in references]
    assert wanted == pytest.approx(sum(left_out) / 10 if equal else 0)


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("Is It?\nAnswer", "is it?"),
        ("Is It?\nReference OCR token: A\nAnswer", "is it?"),
        ("Reference OCR token: A\nIs It?\nAnswer", "is it?"),
        ("OCR tokens: A. Question: Is\nIt? Short answer:", "is\nit?"),
        ("OCR tokens: A.\nIs It?", None),
        ("Is It?", None),
        ("Is It?\nreference\nAnswer", None),
        ("Is It?\nReference OCR token: A\nB\nAnswer", None),
    ],
)
def test_textvqa_question_is_recovered_from_the_prompt(prompt, question):
    assert textvqa.question_in(prompt) == question


def test_textvqa_is_over_the_questions_that_were_answered():
    data = OPENED["textvqa"]
    scored = data.score({"t8#1": "exit", "t9#1": "b"})  # two and one of ten references
    assert scored.metric("textvqa_accuracy").value == pytest.approx(0.45)
    assert scored.warnings == ("9 of 11 questions have no answer and are left out, as by the official evaluator",)
    assert data.score({}).warnings == (
        "no textvqa_accuracy: there are no answers; the official evaluator divides by zero",
    )


def test_textvqa_interval_is_that_of_a_mean():
    # 400 questions, half right: the bootstrap's interval is that of a mean, 1.96 * 0.5 / 20 to each side.
    data = OPENED["textvqa"]
    first = data.questions[0]
    questions = tuple(dataclasses.replace(first, id=str(k), references=("x",) * 10) for k in range(400))
    scored = dataclasses.replace(data, questions=questions).score({str(k): "xy"[k % 2] for k in range(400)})
    assert scored.metric("textvqa_accuracy").half_width == pytest.approx(1.96 * 0.5 / 20, rel=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# ScienceQA


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"), ("E", "E"), ("F", None), ("a", None), (" A", None), ("B.", None), ("C. because", "C"), ("C. ", "C"),
        ("The answer is D.", "D"), ("The answer is D", None), ("The answer is D\n", None), ("The answer is D!", "D"),
        ("The answer is A. The answer is A.", None), ("so: The answer is Q,", "Q"), ("", None),
    ],
)  # fmt: skip
def test_scienceqa_letter_is_parsed_as_officially(text, letter):
    assert scienceqa.letter(text) == letter


def test_scienceqa_letter_beyond_the_choices_is_wrong():
    data = OPENED["scienceqa"]
    assert {q.choices for q in data.questions if q.id == "2"} == {2}
    scored = data.score({q.id: "C" for q in data.questions})
    assert scored.points["2"] == 0
    assert scored.points["8"] == scored.points["10"] == 1  # their answer is index 2
    assert scored.metric("scienceqa_accuracy").value == 0.3
    assert scored.metric("scienceqa_image_accuracy").n == 7


def test_scienceqa_without_pictures_has_no_image_accuracy():
    scored = OPENED["scienceqa"].score({"3": "C"})
    assert scored.metric("scienceqa_accuracy").value == 0.1
    assert "divides by zero" in scored.reasons["scienceqa_image_accuracy"]
    assert scored.doubts == ("9 of 10 questions have no answer and count as wrong",)


def test_scienceqa_is_asked_by_the_rule_of_llava():
    q = OPENED["scienceqa"].questions[0]
    wanted = (
        "Context: N/A\nQuestion: q1\nOptions: (A) x (B) y (C) z\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (q.prompt, q.logged) == (wanted, f"<image>\n{wanted}")


# ---------------------------------------------------------------------------------------------------------------------
# MME


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"), ("no", "no"), ("NOT", "no"), ("know", "no"), ("a no", "no"), ("yes no", "yes"), ("", None),
        ("There is no", None), ("Absolutely yes", None), ('"Yes"', "yes"), ("maybe", None), ("n o", None),
    ],
)  # fmt: skip
def test_mme_looks_at_four_characters(text, said):
    assert mme.parsed(text) == said


def test_mme_all_right_is_full_marks():
    data = OPENED["mme"]
    scored = data.score({q.id: q.label for q in data.questions})
    assert (scored.metric("mme_perception").value, scored.metric("mme_cognition").value) == (2000, 800)
    # Always yes: half of the questions, no picture.
    scored = data.score({q.id: "yes" for q in data.questions})
    assert (scored.metric("mme_perception").value, scored.metric("mme_cognition").value) == (500, 200)


def test_mme_with_a_lone_answer_has_a_reason():
    data = OPENED["mme"]
    texts = {q.id: q.label for q in data.questions}
    del texts["OCR/OCR001#2"]
    scored = data.score(texts)
    assert [m.name for m in scored.metrics] == ["mme_cognition"]
    assert "OCR/OCR001#1 is not followed" in scored.reasons["mme_perception"]


@pytest.mark.parametrize("text", ["yes\nindeed", "yes\tindeed", "yes\r"])
def test_mme_answer_that_breaks_its_line_has_a_reason(text):
    data = OPENED["mme"]
    scored = data.score({q.id: q.label for q in data.questions} | {"code_reasoning/cod000#1": text})
    assert [m.name for m in scored.metrics] == ["mme_perception"]
    assert "line break" in scored.reasons["mme_cognition"]


def test_mme_is_asked_without_its_own_request():
    q = next(q for q in OPENED["mme"].questions if q.id == "scene/sce000#2")
    assert q.text == "Is item scene 0 absent from the image?  Please answer yes or no."
    assert q.prompt == "Is item scene 0 absent from the image?\nAnswer the question using a single word or phrase."


# ---------------------------------------------------------------------------------------------------------------------
# MMBench


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B one two three four", None),  # a letter must be among the last four words
        ("B one two three", "B"),
        ("Z B one two three four", None),
        ("The answer is a star", "A"),  # the pattern takes any case, before texts are looked for
        ("Cannot determine the answer", "Z"),
        ("Failed to obtain answer via API", None),
        ("STAR", "C"),
        ("star" * 20, None),  # longer than twice all options
        ("E", None),
        ("B B", "B"),
        ("Answer:**B**", "B"),
    ],
)
def test_mmbench_option_is_inferred_as_officially(text, option):
    assert mmbench.inferred(text, OPTIONS) == option


def test_mmbench_question_is_right_only_in_every_rotation():
    data = OPENED["mmbench"]
    texts = {q.id: q.answer for q in data.questions}
    assert [m.value for m in data.score(texts).metrics] == [1, 1]
    scored = data.score(texts | {"2000004": "Z"})
    assert (scored.metric("mmbench_accuracy").value, scored.metric("mmbench_vanilla_accuracy").value) == (0.8, 1)
    del texts["1000003"]
    scored = data.score(texts)
    assert scored.details["circular_hit"]["3"] == 0
    assert scored.warnings == ("1 of 17 rows have no answer and count as wrong",)


def test_mmbench_question_is_asked_with_hint_and_options():
    q = next(q for q in OPENED["mmbench"].questions if q.id == "2")
    logged = "Look closely.\nHow many cups?\nA. one\nB. two\nC. three"
    assert q.logged == logged
    assert q.prompt == f"{logged}\nAnswer with the option's letter from the given choices directly."
    line = next(OPENED["mmbench"].lines({"2": "C"}, "m"))
    assert (line["options"], line["option_char"], line["round_id"]) == (["one", "two", "three"], ["A", "B", "C"], 0)


# ---------------------------------------------------------------------------------------------------------------------
# Whatever is answered


@settings(deadline=None, database=None)
@given(texts)
def test_any_text_is_parsed(text):
    assert gqa.prediction(gqa.prediction(text)) == gqa.prediction(text)
    assert pope.says_yes(text) in (True, False)
    assert scienceqa.letter(text) in (None, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert mme.parsed(text) in (None, "yes", "no")
    assert mmbench.inferred(text, OPTIONS) in (None, "Z", *OPTIONS)
    assert 0 <= textvqa.score(text, [text] * 3 + ["other"] * 7) <= 1
    assert textvqa.question_in(text) is None or textvqa.question_in(text) in text.lower()


@settings(deadline=None, database=None)
@given(st.from_regex(re.compile(r"[b-z]{1,8}( [b-z]{1,8}){0,3}", re.ASCII), fullmatch=True))
def test_normalising_plain_words_twice_changes_nothing_more(text):
    once = textvqa.normalised(text)
    assert textvqa.normalised(once) == once


@settings(deadline=None, database=None, max_examples=40)
@given(st.data())
def test_scores_stay_in_bounds_and_ignore_the_order_of_answers(data):
    name = data.draw(st.sampled_from(dataset.NAMES))
    opened = OPENED[name]
    answers = {q.id: data.draw(texts) for q in opened.questions}
    scored = opened.score(answers)
    shuffled = list(answers)
    random.Random(data.draw(st.integers(0, 1000))).shuffle(shuffled)
    assert opened.score({key: answers[key] for key in shuffled}) == scored
    assert set(scored.points) <= set(answers)
    assert all(0 <= p <= 1 for p in scored.points.values())
    for metric in scored.metrics:
        top = {"mme_perception": 2000, "mme_cognition": 800}.get(metric.name, 1)
        assert 0 <= metric.value <= top
        assert metric.interval is None or 0 <= metric.interval[0] <= metric.interval[1] <= top
    # Each number is there, or why it is not.
    assert {m.name for m in scored.metrics} | {r for r in scored.reasons if r in dataset.METRICS} == set(opened.metrics)


@settings(deadline=None, database=None, max_examples=40)
@given(st.lists(texts, min_size=9, max_size=9), st.permutations(range(9)))
def test_gqa_answer_file_may_be_in_any_order(said, order):
    data = OPENED["gqa"]
    answers = data.answers_in(GOLDEN / "gqa/merge.jsonl")
    mixed = [dataclasses.replace(answers[k], text=said[k]) for k in order]
    plain = [dataclasses.replace(a, text=t) for a, t in zip(answers, said, strict=True)]
    assert data.scored(mixed, 0) == data.scored(plain, 0)


@pytest.mark.parametrize("name", dataset.NAMES)
def test_measurements_carry_the_interval_and_say_how(name):
    data = OPENED[name]
    scored = data.score({q.id: "yes" for q in data.questions})
    for m, metric in zip(measurements(scored), scored.metrics, strict=True):
        assert (m.metric, m.value, m.uncertainty, m.phase, m.n) == (
            metric.name, metric.value, metric.half_width, "run", metric.n,
        )  # fmt: skip
        assert "95 %" in m.method
        assert "whole" in m.method
