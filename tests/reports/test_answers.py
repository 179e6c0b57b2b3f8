"""The table of questions and answers, against counts by hand and closed forms."""

import csv
import dataclasses
import json

import pytest

from edgewatt.harness.api import Flag, HarnessError, Measurement, RunError, UsageError
from edgewatt.reports import answers
from support import made_run as made
from support.asked import FIRST_S, JOULES, SECONDS, TURNS, asked, counted

WHOLE = Measurement("energy_j", 140.0, 7.0, "J", "window", 2, "by hand", "rapl", "package")  # 4 x 10 J + 4 x 25 J
HOSTILE = ('=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "\t=1", 'a,"b"\n\x1b[31mc', "\ud800")


def question(index, text="yes", points=1.0, **more):
    row = {"index": index, "id": f"q{index}", "question": f"Question {index}?", "answer": text}
    row |= {"prompt_tokens": 150 + index, "answer_tokens": 3, "stopped_by": "eos", "points": points, "parsed": text}
    return row | more


def run_of(folder, questions, windows=TURNS, meters=(counted,), measured=(WHOLE,), form=1, **changes):
    path = folder / "questions.json"
    path.write_text(json.dumps({"form": form, "benchmark": "pope", "questions": questions}))
    phases, items = asked(windows)
    run = made.run(phases, [m(items) for m in meters], items, measurements=measured, outputs={path.name: path})
    return dataclasses.replace(run, workload="mobilevlm", **changes)


TWO = [question(0), question(1, "no", 0.5)]


def test_each_question_stands_beside_its_answer_time_energy_and_points(tmp_path):
    found = answers.answers(run_of(tmp_path, TWO))
    for k, row in enumerate(found.rows):
        assert {key: row[key] for key in TWO[k]} == TWO[k]
        assert row["items"] == 4
        assert row["latency_s"] == pytest.approx(SECONDS[k]) and row["ttft_s"] == pytest.approx(FIRST_S[k])
        (energy,) = row["energy"]
        assert (energy["meter"], energy["boundary"]) == ("rapl", "package")
        assert energy["energy_j"] == pytest.approx(JOULES[k], abs=energy["uncertainty_j"])
        assert 0 < energy["uncertainty_j"] < 0.05 * JOULES[k]
        assert row["void"] == row["flags"] == []
    assert found.notes == ()


def test_energy_per_correct_answer_is_the_windows_by_the_points_of_their_items(tmp_path):
    """Four items of one point and four of half a point: 140 J by 6."""
    (each,) = answers.answers(run_of(tmp_path, TWO)).per_correct
    assert each == {
        "meter": "rapl", "boundary": "package", "value": pytest.approx(140 / 6), "uncertainty": pytest.approx(7 / 6),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("questions", "changes", "said"),
    [
        ([question(0, points=0.0), question(1, points=0.0)], {}, "none is correct"),
        ([question(0), question(1, points=None)], {}, "1 of 2 questions were not judged"),
        (TWO, {"flags": (Flag("synthetic_weights", ("gqa_accuracy",), "random"),)}, "the weights are random"),
    ],
)
def test_no_energy_per_correct_answer_where_it_would_mean_nothing(tmp_path, questions, changes, said):
    found = answers.answers(run_of(tmp_path, questions, **changes))
    assert found.per_correct == () and any(said in n for n in found.notes)


def test_without_a_benchmark_there_are_no_points_and_nothing_is_said_of_them(tmp_path):
    found = answers.answers(run_of(tmp_path, [question(k, points=None, parsed=None) for k in (0, 1)]))
    assert found.per_correct == () and found.notes == ()
    assert [r["points"] for r in found.rows] == [None, None]


def test_questions_asked_in_no_window_are_left_out_and_counted(tmp_path):
    found = answers.answers(run_of(tmp_path, [*TWO, question(2)]))
    assert [r["index"] for r in found.rows] == [0, 1]
    assert any("1 of 3 questions" in n for n in found.notes)


def test_input_whose_answer_was_not_kept_has_its_times_alone(tmp_path):
    found = answers.answers(run_of(tmp_path, TWO[:1]))
    assert found.rows[1]["answer"] is None and found.rows[1]["latency_s"] == pytest.approx(1.0)
    assert len(answers.table(found).splitlines()) >= 4


def test_voided_energies_are_marked_and_the_reason_is_told(tmp_path):
    flag = Flag("charging", ("energy_j", "energy_per_inference_j"), "on a charger", "rapl")
    found = answers.answers(run_of(tmp_path, TWO, flags=(flag,)))
    assert [(r["void"], r["flags"]) for r in found.rows] == [(["energy_j.rapl"], ["charging"])] * 2
    assert found.per_correct == () and "charging: on a charger" in found.notes
    assert answers.table(found).splitlines()[2].count("(") == 1, "in brackets"


def test_simulated_device_and_random_weights_are_told_wherever_the_rows_go(tmp_path):
    each = (Flag("simulated", (), "no kernel fills it"), Flag("synthetic_weights", ("ap",), "random"))
    found = answers.answers(run_of(tmp_path, TWO, flags=(*each, Flag("busy", (), "something"))))
    assert {"simulated: no kernel fills it", "synthetic weights: random"} <= set(found.notes)
    answers.write(found, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        assert [(r["void"], r["flags"]) for r in csv.DictReader(file)] == [("", "simulated;synthetic_weights")] * 2


def test_device_without_a_sensor_is_told_once(tmp_path):
    found = answers.answers(run_of(tmp_path, TWO, meters=(), measured=()))
    assert [r["energy"] for r in found.rows] == [[], []] and found.meters == ()
    assert [n for n in found.notes if "no power sensor" in n] == list(found.notes)


def test_sensor_that_is_too_slow_gives_no_number_and_the_reason_once(tmp_path):
    found = answers.answers(run_of(tmp_path, TWO, meters=(lambda items: counted(items, rate_hz=10.0),)))
    assert [r["energy"][0]["energy_j"] is None for r in found.rows] == [False, True]
    assert sum("1 of 2 inputs last 1 s" in n for n in found.notes) == 1
    (meter,) = found.as_json()["meters"]
    assert (meter["meter"], meter["boundary"]) == ("rapl", "package") and "1 of 2 inputs" in meter["why_not"]
    assert "gain error is not published" in meter["method"]


def test_table_has_a_line_for_each_question(tmp_path):
    title, heads, *lines = answers.table(answers.answers(run_of(tmp_path, TWO))).splitlines()
    assert title == "mobilevlm on host, run 20260314T101500-ab"
    assert heads.split() == [
        *("id", "question", "answer", "tokens", "ended", "by", "times", "latency", "first", "token"),
        *("energy", "(rapl)", "points"),
    ]
    first = lines[0].split()
    assert first[:9] == ["q0", "Question", "0?", "yes", "150", "+", "3", "eos", "4"]
    assert first[9:13] == ["2", "s", "500.0", "ms"] and first[-1] == "1"
    assert lines[2] == "2 questions, 8 items of the windows"
    assert lines[3].startswith("energy per correct answer: 23.3 ± 1.2 J (rapl, package)")


def test_lines_of_json_hold_every_text_as_it_was_and_every_digit(tmp_path):
    found = answers.answers(run_of(tmp_path, [question(k, HOSTILE[k]) for k in range(2)]))
    answers.write(found, tmp_path / "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert rows == [json.loads(json.dumps(r)) for r in found.rows]
    assert [r["answer"] for r in rows] == list(HOSTILE[:2])


def test_csv_has_a_column_for_each_number(tmp_path):
    found = answers.answers(run_of(tmp_path, TWO))
    answers.write(found, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["id"] for r in rows] == ["q0", "q1"]
    for row, wanted in zip(rows, found.rows, strict=True):
        assert float(row["latency_s"]) == wanted["latency_s"]
        assert float(row["energy_j.rapl"]) == wanted["energy"][0]["energy_j"]
        assert float(row["energy_uncertainty_j.rapl"]) == wanted["energy"][0]["uncertainty_j"]
        assert (row["items"], row["void"]) == ("4", "")
    assert [r["points"] for r in rows] == ["1.0", "0.5"]


@pytest.mark.parametrize("text", HOSTILE)
def test_csv_holds_no_text_that_a_spreadsheet_would_run(tmp_path, text):
    found = answers.answers(run_of(tmp_path, [question(0, text, question=text, id=text), question(1)]))
    answers.write(found, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        row, _ = csv.DictReader(file)
    for key in ("id", "question", "answer", "parsed"):
        assert not row[key].startswith(("=", "+", "-", "@", "\t", "\r"))
        assert row[key].removeprefix("'") == text.replace("\ud800", "?")
    shown = answers.table(found)
    assert "\x1b" not in shown and len(shown.splitlines()) == 6, "a line each, whatever is in the texts"
    json.dumps(found.as_json(), allow_nan=False)


def test_long_texts_are_cut_in_the_terminal_alone(tmp_path):
    found = answers.answers(run_of(tmp_path, [question(0, "word " * 1000), question(1)]))
    assert max(map(len, answers.table(found).splitlines())) < 220
    answers.write(found, tmp_path / "a.jsonl")
    assert "word " * 1000 in (tmp_path / "a.jsonl").read_text()


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.json"])
def test_file_of_another_kind_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match=r"wanted \.jsonl or \.csv"):
        answers.write(answers.answers(run_of(tmp_path, TWO)), tmp_path / name)


def test_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="cannot write"):
        answers.write(answers.answers(run_of(tmp_path, TWO)), tmp_path / "no" / "a.csv")


def test_run_of_another_workload_is_refused_with_what_to_do():
    of = made.phases()
    with pytest.raises(UsageError, match="femtodet left no questions") as refused:
        answers.answers(made.run(of))
    assert "\n" not in str(refused.value) and "edgewatt show" in str(refused.value)


def test_run_that_ended_before_its_answers_were_kept_is_refused():
    run = dataclasses.replace(made.run(made.phases()), error=RunError("hung", "no word for 600 s"))
    with pytest.raises(UsageError, match="no word for 600 s"):
        answers.answers(run)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"form": 1}', '{"form": 1, "questions": [{"index": 0}]}'])
def test_damaged_file_is_one_line(tmp_path, content):
    run = run_of(tmp_path, TWO)
    (tmp_path / "questions.json").write_text(content)
    with pytest.raises(HarnessError, match=r"questions\.json") as refused:
        answers.answers(run)
    assert "\n" not in str(refused.value)


def test_file_of_a_later_form_is_refused(tmp_path):
    with pytest.raises(HarnessError, match="form 2"):
        answers.answers(run_of(tmp_path, TWO, form=2))
