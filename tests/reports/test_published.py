"""Ours beside theirs: which of our measurements stands beside a published figure, and what speaks against it."""

import csv
import dataclasses
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from edgewatt.harness.api import Flag, Measurement, RunError, UsageError
from edgewatt.reports import published, published_data, published_rules
from edgewatt.reports.published_data import Note
from support.hand_runs import bare_run
from support.pages import browser, page, pdf_text, visited
from support.vlm_runs import measured, vlm_run

EVIL = "pi<script>alert(1)</script>&\"'<img src=http://evil.example/x>"
BY_KEY = {f.key: f for f in published_data.load()}


def figure(value, metric, **printed):
    (only,) = [
        f for f in BY_KEY.values()
        if f.printed["metric"] == metric and float(f.printed["value"]) == value
        and all(text in f.printed[k] for k, text in printed.items())
    ]  # fmt: skip
    return only


GQA = figure(56.1, "acc_gqa", source="README")  # MobileVLM-1.7B, PyTorch, fp16
DECODE = figure(14.12, "decode_rate")  # MobileVLM-1.7B, a phone with a Snapdragon 888, llama.cpp, q4_k_s, 246 + 6
ORIN = figure(65.27, "decode_rate")  # the same on a Jetson AGX Orin 32GB; how long its prompt is is not stated


def compared(f, *runs):
    (only,) = published_rules.comparisons([f], runs)
    return only


def rules_against(f, *runs):
    return [r.rule for r in compared(f, *runs).reasons]


def gqa(**options):
    return vlm_run(measured("gqa_accuracy", 0.55, 0.01), **options)


# A published figure of the kind DECODE is, of a phone that is named, on an engine we have: nothing speaks against it.
PHONE = dataclasses.replace(
    DECODE, engine="torch", scheme="fp16", printed={**DECODE.printed, "device": "Realme GT (8 GB)"}
)
REALME = {"soc": "QTI SM8350", "model": "RMX2202"}


def decode(**options):
    options = {"device": REALME, "tokens": (240, 6), "device_name": "realme", **options}
    return vlm_run(measured("decode_tokens_per_s", 7.06, 0.2, "tokens/s", "decode"), **options)


# ---------------------------------------------------------------------------------------------------------------------
# Each rule


def test_score_of_the_real_checkpoint_on_all_questions_is_comparable():
    c = compared(GQA, gqa())
    assert c.is_comparable
    assert c.reasons == ()


def test_speed_on_the_same_phone_engine_weights_and_prompt_is_comparable():
    assert compared(PHONE, decode()).is_comparable


def test_other_definition_speaks_against_it():
    pope = figure(84.5, "pope", source="README")
    assert rules_against(pope, vlm_run(measured("pope_f1", 0.84, 0.01))) == ["metric"]


def test_other_processor_speaks_against_speeds_and_not_against_scores():
    assert rules_against(PHONE, decode(device={"soc": "QTI SM8550"})) == ["device"]
    assert rules_against(GQA, gqa(device={"soc": "QTI SM8550"})) == []


def test_gpu_of_the_same_board_is_another_processor():
    board = dataclasses.replace(ORIN, engine="torch", scheme="fp16", prompt_tokens=240)
    facts = {"model": "NVIDIA Jetson AGX Orin Developer Kit"}
    (reason,) = compared(board, decode(device=facts, tokens=(240, 256))).reasons
    assert reason.detail == "theirs: GPU of that chip, ours: CPU"
    on_gpu = {"engine": "torch", "provider_used": "cuda"}
    assert rules_against(board, decode(device=facts, engine=on_gpu, tokens=(240, 256))) == []


def test_phone_that_is_not_named_is_another_one():
    unnamed = dataclasses.replace(PHONE, printed=DECODE.printed)
    (reason,) = compared(unnamed, decode()).reasons
    assert reason == published_rules.Reason("device", "the same chip, but their device is not named (phone)")


def test_other_phone_of_the_same_chip_is_another_one():
    (reason,) = compared(PHONE, decode(device={"soc": "QTI SM8350", "model": "SM-G991"})).reasons
    assert reason.detail == "the same chip in another device, theirs: Realme GT (8 GB)"


def test_device_that_is_not_stated_speaks_against_it():
    assert rules_against(dataclasses.replace(PHONE, chip=""), decode()) == ["device"]


def test_other_engine_speaks_against_it():
    assert rules_against(dataclasses.replace(PHONE, engine="llamacpp"), decode()) == ["engine"]
    assert rules_against(dataclasses.replace(PHONE, engine=""), decode()) == ["engine"]
    run = gqa(engine={"engine": "onnxruntime"})
    assert compared(GQA, run).reasons[0].detail == "theirs: torch, ours: onnxruntime"


@pytest.mark.parametrize(
    ("scheme", "ours", "same"),
    [("fp16", "fp16", True), ("fp16", "bf16", False), ("16-bit", "bf16", True), ("q4f16_1", "int4", True),
     ("q4_k_s", "int4", False), ("4-bit", "int4", False), ("8-bit", "int8", False), ("", "fp16", False)],
)  # fmt: skip
def test_other_precision_speaks_against_it(scheme, ours, same):
    found = rules_against(dataclasses.replace(PHONE, scheme=scheme), decode(spec={"precision": ours}))
    assert found == ([] if same else ["precision"])


def test_synthetic_weights_speak_against_scores_and_not_against_speeds():
    flag = Flag("synthetic_weights", (), "random")
    assert rules_against(GQA, gqa(flags=[flag])) == ["weights"]
    assert rules_against(PHONE, decode(flags=[flag])) == []


def test_other_size_of_pictures_speaks_against_it():
    assert rules_against(GQA, gqa(spec={"size": 224})) == ["size"]
    assert rules_against(GQA, gqa(spec={"size": 336})) == []
    assert rules_against(GQA, gqa(engine={"engine": "torch", "image_px": 224})) == ["size"], "what was really used"


def test_variant_for_196_pixels_has_its_own_size():
    sqa = figure(68.37, "accuracy_SQA-IMG")  # Imp-3B@196, llama.cpp, 16-bit
    run = vlm_run(measured("scienceqa_image_accuracy", 0.68, 0.01), workload="imp", spec={"variant": "v1.5-3b-196"})
    assert rules_against(sqa, run) == ["engine"]


@pytest.mark.parametrize(
    "spec", [{"limit": 100}, {"split": "val"}, {"template": "v1"}, {"temperature": 0.2}, {"image_mode": "crop"}]
)
def test_questions_asked_otherwise_speak_against_scores(spec):
    assert rules_against(GQA, gqa(spec=spec)) == ["questions"]
    assert rules_against(PHONE, decode(spec=spec)) == []


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ((270, 6), ""),  # 246 and a tenth is 270.6
        ((272, 6), "prompt of 246 tokens, ours: 272"),
        ((240, 8), "answer of 6 tokens, ours: 8"),
        (None, "the length of our prompt is not known; the length of our answer is not known"),
    ],
)
def test_other_length_speaks_against_it(tokens, said):
    found = compared(PHONE, decode(tokens=tokens)).reasons
    assert [(r.rule, r.detail) for r in found] == ([("length", said)] if said else [])


@pytest.mark.parametrize(("spec", "said"), [({}, []), ({"images_per_question": 2}, ["theirs: one picture, ours: 2"])])
def test_several_pictures_speak_against_the_time_of_one(spec, said):
    encoding = dataclasses.replace(PHONE, quantity="vision_s")
    found = compared(encoding, vlm_run(measured("vision_s", 3.0), spec=spec)).reasons
    assert [r.detail for r in found if r.rule == "length"] == said


def test_length_that_they_do_not_state_speaks_against_it():
    unknown = dataclasses.replace(PHONE, prompt_tokens=None)
    assert compared(unknown, decode()).reasons[0].detail == "the length of their prompt is not stated"


def test_answer_does_not_matter_for_the_speed_of_the_prefill():
    prefill = dataclasses.replace(PHONE, quantity="prefill_tokens_per_s", output_tokens=None)
    run = vlm_run(measured("prefill_tokens_per_s", 20.0, 1.0, "tokens/s", "prefill"), device=REALME, tokens=(246, 2))
    assert rules_against(prefill, run) == []


def test_simulated_device_speaks_against_it():
    assert rules_against(PHONE, decode(flags=[Flag("simulated", (), "an emulated tree")])) == ["simulated"]


def test_voided_number_speaks_against_it():
    flag = Flag("throttled", ("decode_tokens_per_s",), "92 degC")
    (reason,) = compared(PHONE, decode(flags=[flag])).reasons
    assert reason == published_rules.Reason("void", "ours is void: throttled")


def test_reasons_come_in_the_order_of_the_rules():
    run = decode(
        device={}, engine={"engine": "onnxruntime"}, tokens=(10, 6),
        spec={"precision": "int8", "size": 224}, flags=[Flag("simulated", ("decode_tokens_per_s",), "x")],
    )  # fmt: skip
    found = rules_against(dataclasses.replace(PHONE, definition="otherwise"), run)
    assert found == ["metric", "device", "engine", "precision", "size", "length", "simulated", "void"]
    assert [r for r in published_rules.RULES if r in found] == found


# ---------------------------------------------------------------------------------------------------------------------
# Which of ours


def dated(run, day):
    return dataclasses.replace(run, id=f"202601{day:02}T000000-00000000", created_utc=f"2026-01-{day:02}T00:00:00Z")


def test_run_against_which_the_least_speaks_is_taken():
    other_engine = dated(gqa(engine={"engine": "onnxruntime"}), 9)
    part = dated(gqa(spec={"limit": 10}), 8)
    assert compared(GQA, other_engine, part).run.id == part.id, "a part of the questions is the lesser reason"


def test_of_equal_runs_the_newest_is_taken():
    runs = [dated(gqa(), day) for day in (3, 7, 5)]
    assert compared(GQA, *runs).run.id == runs[1].id


def test_other_variant_is_never_taken():
    c = compared(GQA, gqa(spec={"variant": "v2-1.7b"}), gqa(workload="imp"))
    assert c.result is None
    assert c.why_none == "no run of ours has it"


def test_run_that_ended_badly_is_never_taken():
    assert compared(GQA, gqa(error=RunError("crashed", "x"))).result is None


def test_valid_measurement_of_a_run_is_taken_before_a_voided_one():
    void = Measurement("power_w", 9.0, 0.1, "W", "window", 3, "by hand", "rapl", "package")
    good = Measurement("power_w", 5.0, 0.1, "W", "window", 3, "by hand", "bench", "board")
    run = bare_run(measurements=(void, good), flags=(Flag("stale", ("power_w",), "x", "rapl"),),
                   spec={"variant": "voc"})  # fmt: skip
    power = figure(1.11, "power")
    assert compared(power, run).result.measurement is good


def test_variant_of_the_engine_comes_before_that_of_the_parameters():
    run = gqa(spec={"variant": "auto"}, engine={"variant": "v1-1.7b", "engine": "torch"})
    assert published_rules.model_of(run) == "mobilevlm/v1-1.7b"
    assert compared(GQA, run).is_comparable
    assert published_rules.model_of(gqa(spec={"variant": "auto"})) == ""


def test_femtodet_of_no_named_variant_is_known_by_its_graph():
    run = bare_run(artefacts={"model/voc.onnx": "0", "model/weights.safetensors": "0"}, spec={"variant": "auto"})
    assert published_rules.model_of(run) == "femtodet/voc"


def test_time_of_a_phase_stands_for_what_has_no_metric_of_its_own():
    total = figure(12.73, "generation_rate")
    assert compared(total, vlm_run(workload="imp")).result is None
    vision = figure(2.1, "visual_encoding_time")
    run = vlm_run(measured("latency_s", 4.2, 0.1, "s", "vision"), workload="imp", spec={"variant": "v1.5-3b-196"})
    assert compared(vision, run).ratio[0] == pytest.approx(2.0)


def test_what_is_not_ours_says_so():
    assert compared(figure(0.95, "params", variant="NanoDet-m 320")).why_none == "none of our models; for context"
    assert compared(figure(58.7, "avg6", source="README")).why_none == "edgewatt does not measure this"


# ---------------------------------------------------------------------------------------------------------------------
# The ratio


def test_ratio_has_our_interval_and_their_rounding():
    value, error = compared(GQA, gqa()).ratio
    assert value == pytest.approx(0.55 / 0.561)
    # 0.01 of ours, half of 0.1 percent of theirs
    assert error == pytest.approx(math.hypot(0.01 / 0.561, 0.55 / 0.561 * 0.0005 / 0.561))


def test_ratio_of_a_number_without_error_bar_has_none():
    c = compared(GQA, vlm_run(measured("gqa_accuracy", 0.561)))
    assert c.ratio == (pytest.approx(1.0), None)
    assert published_rules.ratio_in_words(c) == "1"


def test_ours_is_shown_in_the_unit_they_print():
    c = compared(GQA, gqa())
    assert published_rules.theirs_in_words(GQA) == "56.1 %"
    assert published_rules.ours_in_words(c) == "55.0 ± 1.0 %"
    vision = figure(21148.71, "vision_encode_time")
    run = vlm_run(measured("vision_s", 20.0, 0.4, "s", "vision"))
    assert published_rules.theirs_in_words(vision) == "21148.71 ms"
    assert published_rules.ours_in_words(compared(vision, run)) == "20000 ± 400 ms"


def test_digits_of_a_tables_arithmetic_are_not_shown():
    assert published_rules.theirs_in_words(figure(7.987229999999999, "total_time")) == "7.98723 s"


# ---------------------------------------------------------------------------------------------------------------------
# The report


def test_page_has_both_the_ratio_and_the_reason(tmp_path):
    published.write([gqa(), decode()], tmp_path / "p.html", "mobilevlm")
    found = page(tmp_path / "p.html")
    assert "56.1 % 55.0 ± 1.0 % 0.980 ± 0.018 comparable" in found.text
    assert "14.12 tokens/s 7.06 ± 0.20 tokens/s 0.500 ± 0.014 not comparable" in found.text
    assert "the same chip, but their device is not named (phone)" in found.text
    assert "also: theirs: llama.cpp" not in found.text, "engines are named as ours are"
    assert "theirs: llamacpp, ours: torch" in found.text
    assert re.search(r"426 figures from \d+ sources; \d+ have one of ours beside them", found.text)
    assert "On the same Snapdragon 888 the paper has 6.82 ms per patch" in found.text
    words = next(a["aria-label"] for _, a in found.tags if a.get("role") == "img")
    assert "GQA accuracy: MobileVLM v1-1.7b, pytorch [mobilevlm-1]: 0.980 ± 0.018" in words


@pytest.mark.parametrize("system", ["", *published_data.SYSTEMS])
def test_page_of_an_empty_store_has_theirs_alone(tmp_path, system):
    published.write([], tmp_path / "p.html", system)
    found = page(tmp_path / "p.html")
    assert published.NOTHING in found.text
    assert "not comparable" not in found.text
    assert not found.of_class("keys"), "no figure, so no script that draws"
    shown = published_data.load(system)
    assert all(source in found.text for source in {f.printed["source"] for f in shown})
    assert {a["id"] for t, a in found.tags if t == "tr" and "id" in a} == {f.key for f in shown}


def test_text_of_a_device_is_text_on_the_page(tmp_path):
    run = gqa(device_name=EVIL, engine={"engine": EVIL}, spec={"precision": EVIL, "template": EVIL})
    published.write([run], tmp_path / "p.html", "mobilevlm")
    found = page(tmp_path / "p.html")
    assert EVIL in found.text
    assert not [t for t, _ in found.tags if t == "img"]
    published.write([gqa()], tmp_path / "clean.html", "mobilevlm")
    clean = page(tmp_path / "clean.html")
    assert [t for t, _ in found.tags].count("script") == [t for t, _ in clean.tags].count("script")


def test_text_of_a_row_is_text_on_the_page():
    hostile = dataclasses.replace(
        GQA,
        printed={k: EVIL if k not in ("value", "unit", "metric") else v for k, v in GQA.printed.items()},
        definition=EVIL, notes=(Note("n", "doubt", EVIL),), conflicts_with=(EVIL,),
    )  # fmt: skip
    content = published.page(published_rules.comparisons([hostile], [])).decode()
    assert EVIL not in content
    assert "<img" not in content


def test_page_links_to_nothing_outside_itself(tmp_path):
    published.write([gqa()], tmp_path / "p.html", "imp")
    found = page(tmp_path / "p.html")
    assert all(v.startswith(("#", "data:")) for _, _, v in found.links), found.links
    ids = {a["id"] for _, a in found.tags if "id" in a}
    assert all(v[1:] in ids for _, _, v in found.links if v.startswith("#"))


@pytest.mark.needs_chromium
@pytest.mark.skipif(browser() is None, reason="no Chromium on the PATH")
def test_page_draws_without_an_error_or_a_request(tmp_path):
    hostile = f"{EVIL} $$x$$ \\(y\\)"
    published.write([gqa(device_name=hostile), decode(device_name=hostile)], tmp_path / "p.html", "mobilevlm")
    console, asked, document = visited(tmp_path / "p.html", tmp_path)
    assert asked == []
    assert [c for c in console if not c.startswith("[bokeh")] == []
    said = [c.split("] ", 1)[1] for c in console]
    assert len(said) == 2, said
    assert [s for s in said if s.startswith("document idle")], said
    assert "bk-" in document


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_holds_every_row_and_ours_beside_it(tmp_path):
    published.write([gqa(spec={"limit": 100})], tmp_path / "p.csv")
    rows = {r["key"]: r for r in read(tmp_path / "p.csv")}
    assert list(rows) == list(BY_KEY)
    for key, f in BY_KEY.items():
        assert {k: rows[key][k] for k in f.printed} == dict(f.printed)
        assert float(rows[key]["theirs_si"]) == pytest.approx(f.value, rel=1e-11)
        assert rows[key]["note"].split() == [n.name for n in f.notes]
        assert rows[key]["conflicts_with"].split() == list(f.conflicts_with)
    told = rows[GQA.key]
    assert (told["our_metric"], told["our_value"], told["comparable"]) == ("gqa_accuracy", "0.55", "no")
    assert float(told["ratio"]) == pytest.approx(0.55 / 0.561)
    assert told["reasons"] == "questions: ours: 100 questions or pictures alone"
    beside = [r for r in rows.values() if r["run"]]
    assert {r["quantity"] for r in beside} == {"gqa_accuracy"}


def test_csv_has_every_column_that_is_shipped(tmp_path):
    published.write([], tmp_path / "p.csv", "imp")
    for row in read(tmp_path / "p.csv"):
        f = BY_KEY[row["key"]]
        for column in ("quantity", "model", "chip", "part", "engine", "scheme", "definition"):
            assert row[column] == getattr(f, column)
        for column in ("size_px", "prompt_tokens", "output_tokens"):
            assert row[column] == ("" if getattr(f, column) is None else str(getattr(f, column)))


def test_paper_has_the_ratios_in_words(tmp_path):
    published.write([gqa()], tmp_path / "p.pdf", "mobilevlm")
    text = pdf_text(tmp_path / "p.pdf")
    assert "GQA accuracy: MobileVLM v1-1.7b, pytorch [mobilevlm-1]" in text
    assert "Ours / theirs" in text


def test_paper_of_an_empty_store_has_theirs_alone(tmp_path):
    for system, said in (("imp", "12.73 tokens/s"), ("femtodet", "46.5 %")):
        published.write([], tmp_path / "p.svg", system)
        text = " ".join(ElementTree.parse(tmp_path / "p.svg").getroot().itertext())
        assert said in text
        assert "theirs stand alone" in text


def test_other_suffix_and_other_system_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"wanted \.html, \.pdf, \.svg or \.csv"):
        published.write([], tmp_path / "p.png")
    with pytest.raises(UsageError, match="femtodet"):
        published.write([], tmp_path / "p.csv", "femtodets")
    assert not list(tmp_path.iterdir())


def test_runs_of_a_store_are_those_that_can_be_set_beside(tmp_path):
    from edgewatt.results.store import Store

    store = Store(tmp_path / "runs", create=True)
    kept = dated(gqa(tokens=(240, 6)), 1)
    for run in (kept, dated(bare_run(workload="other"), 2), dated(gqa(error=RunError("crashed", "x")), 3)):
        store.add(run)
    (only,) = published.runs_of(store)
    assert only.id == kept.id
    assert published_rules.comparisons([GQA], [only])[0].is_comparable
    assert list(only.items.tokens) == list(kept.items.tokens)
    assert published.runs_of(store, "imp") == []
