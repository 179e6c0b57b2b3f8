import dataclasses
import re
import xml.etree.ElementTree as ElementTree

import pytest

from edgewatt.harness.api import Flag, Measurement, RunError, UsageError
from edgewatt.reports import tradeoff
from support.example_run import example_run
from support.hand_runs import MEASURED, bare_run, hand_run
from support.pages import page, pdf_text

JOULES = re.compile(r"\d\s*[pnµmkM]?J\b")
EVIL = "pi<script>alert(1)</script>&\"'<img src=http://evil.example/x>"


def written(runs, folder, form=".html", **options):
    path = folder / f"report{form}"
    tradeoff.write(runs if isinstance(runs, list) else [runs], path, **options)
    return path


def shown(runs, folder, **options):
    return page(written(runs, folder, **options))


# ---------------------------------------------------------------------------------------------------------------------
# One run


def test_card_holds_the_numbers_of_the_run(tmp_path):
    text = shown(hand_run(), tmp_path).text
    assert "Energy per inference, gross 12.35 ± 0.50 mJ" in text
    assert "Energy per inference, net of idle 10.30 ± 0.60 mJ" in text
    assert "n = 1503 · meter rapl · boundary: package" in text
    assert "Latency, median 19.954 ± 0.080 ms" in text
    assert "Latency, p90 20.75 ± 0.12 ms" in text
    assert "Latency, p99 25.9 ± 1.0 ms" in text
    assert "Throughput 50.12 ± 0.20 FPS" in text
    assert "Power, gross 5.432 ± 0.043 W" in text
    assert "Idle power 1.000 ± 0.020 W" in text
    assert "AP 0.2345" in text


def test_voided_figure_is_struck_out_and_named(tmp_path):
    run = hand_run(flags=[Flag("charging", ("energy_per_inference_j",), "62 % of the readings", "rapl")])
    found = shown(run, tmp_path)
    assert "joules were measured, but are void: charging (62 % of the readings)" in found.text
    assert "12.35 ± 0.50 mJ void: charging" in found.text
    assert "figure void" in [a["class"] for a in found.of_class("figure")]
    assert "Not usable because of it: Energy per inference." in found.text
    assert "Void, and shown struck out: Energy per inference (charging)." in found.text


def test_valid_figures_are_not_struck_out(tmp_path):
    found = shown(hand_run(), tmp_path)
    assert not found.of_class("void")
    assert "void:" not in found.text


def test_struck_out_figures_are_drawn_so(tmp_path):
    assert ".void .value { text-decoration: line-through" in written(hand_run(), tmp_path).read_text()


def test_every_flag_is_told_with_its_meaning_and_evidence(tmp_path):
    flags = [Flag("few_samples", (), "1 repeat"), Flag("gap", ("power_w",), "3.2 s in window 1", "rapl")]
    text = shown(hand_run(flags=flags), tmp_path).text
    assert "gap rapl Readings were missing for a while" in text
    assert "Evidence: 3.2 s in window 1" in text
    assert "few samples Too few items or repeats" in text
    assert "Evidence: 1 repeat" in text
    assert text.index("3.2 s in window 1") < text.index("Evidence: 1 repeat")  # what voids comes first


def test_run_without_power_says_so_in_words_and_shows_no_joule(tmp_path):
    text = shown(hand_run(with_power=False), tmp_path).text
    assert "Energy per inference, gross no joules: host has no power sensor that could be read" in text
    assert not JOULES.search(text)


def test_synthetic_weights_are_said_above_and_at_the_figure(tmp_path):
    text = shown(hand_run(flags=[Flag("synthetic_weights", ("ap", "ap50"), "seed 0")]), tmp_path).text
    assert text.index("answers mean nothing.") < text.index("Results")
    assert "AP 0.2345 void: synthetic weights" in text


def test_simulated_device_is_said_above_and_at_every_figure(tmp_path):
    found = shown(hand_run(flags=[Flag("simulated", (), "an emulated tree")]), tmp_path)
    assert found.text.index("Simulated The device is a simulated one") < found.text.index("Results")
    tiles = found.text[found.text.index("Results") : found.text.index("Doubts")]
    assert tiles.count("simulated") == len([m for m in MEASURED if m.phase in ("window", "", "idle")])


def test_uncertainty_budget_is_in_parts_of_the_variance(tmp_path):
    # 0.4 and 0.3 mJ: squares 16 and 9 of 25.
    text = shown(hand_run(), tmp_path).text
    assert "sensor's gain ± 400 µJ 64.0 % edges of the window ± 300 µJ 36.0 %" in text


def test_time_is_split_by_phase(tmp_path):
    # 4.1 and 13.9 of 18.0 ms
    assert "preprocess 4.10 ± 0.10 ms 22.8 % detect 13.90 ± 0.10 ms 77.2 %" in shown(hand_run(), tmp_path).text


def test_slices_of_the_window_are_shown_before_phases_looped_alone(tmp_path):
    whole = next(m for m in MEASURED if m.metric == "energy_per_inference_j")
    slices = [
        dataclasses.replace(whole, phase="window/detect", value=0.009),
        dataclasses.replace(whole, phase="window/other", value=0.003),
        dataclasses.replace(whole, phase="detect", value=0.5),
    ]
    text = shown(hand_run(measured=[*MEASURED, *slices]), tmp_path).text
    bar = text[text.index("Energy, rapl, package") : text.index("Where the uncertainty")]
    assert "detect 9.00 ± 0.50 mJ 75.0 %" in bar
    assert "other 3.00 ± 0.50 mJ 25.0 %" in bar
    assert "500" not in bar


def test_provenance_is_on_the_page(tmp_path):
    run = hand_run()
    text = shown(run, tmp_path).text
    for said in (run.id, "CPUExecutionProvider", "Example CPU @ 2.40GHz", "git.commit e5fef70", "caches.L2 1048576",
                 f"model.onnx {1:064x}", "100 Hz 99.90 Hz", "attempt 2", "window_s 10"):  # fmt: skip
        assert said in text, said


def test_cost_of_sampling_is_on_the_page(tmp_path):
    run = hand_run()
    cost = Measurement("sampler_cpu_s_per_s", 0.071, None, "1", "run", 1, "by hand", "jtop")
    notes = {"service_cpu_s_per_s": 0.05, "restarts": 1, "why": ["no sample for 3.0 s"]}
    jtop = dataclasses.replace(run.traces[0], meter="jtop", facts={"cpu_s_per_s": 0.021, "notes": notes})
    run = dataclasses.replace(run, measurements=(*run.measurements, cost), traces=(jtop,))
    text = shown(run, tmp_path).text
    assert "Sampling cost (CPU seconds per second) run 0.071" in text
    assert "0.071 CPU s/s service: 0.05" in text
    assert "what gives its readings was started again 1 time(s) (no sample for 3.0 s)" in text
    unseen = dataclasses.replace(jtop, facts={"cpu_s_per_s": 0.021, "notes": {"service_cpu_s_per_s": None}})
    assert "0.021 CPU s/s service: unknown" in shown(dataclasses.replace(run, traces=(unseen,)), tmp_path).text


def test_what_was_left_out_is_said(tmp_path):
    run = hand_run()
    text = shown(run, tmp_path).text
    warm = sum(p.items for p in run.phases if p.phase == "warmup")
    assert f"Left out of all figures: {warm} items of the warm-up." in text
    assert "3 steady windows" in text
    assert "Missing readings of health" in text


def test_run_that_ended_badly_says_so_first(tmp_path):
    error = RunError("out_of_memory", "host: the model was killed; give it more memory", "Traceback <none>")
    text = shown(example_run(2, error=error), tmp_path).text
    assert "This run ended badly: out of memory host: the model was killed; give it more memory" in text
    assert "Traceback <none>" in text
    assert text.index("ended badly") < text.index("Results")
    assert "no joules: the run ended before they were measured" in text


def test_run_with_nothing_in_it_has_a_page(tmp_path):
    text = shown(bare_run(), tmp_path).text
    assert "This run left no measurements." in text
    assert "no joules: board has no power sensor that could be read" in text


def test_gain_that_nobody_states_is_not_shown_as_an_exact_sensor(tmp_path):
    parts = {"gain": 0.0, "edge": 0.0005}
    run = hand_run(measured=[dataclasses.replace(m, parts=parts) if m.parts else m for m in MEASURED])
    text = shown(run, tmp_path).text
    assert "No gain error of its own is stated for this sensor" in text
    assert "sensor's gain" not in text


def test_energy_without_parts_has_no_budget(tmp_path):
    run = hand_run(measured=[dataclasses.replace(m, parts={}) for m in MEASURED])
    assert "Where the uncertainty" not in shown(run, tmp_path).text


# ---------------------------------------------------------------------------------------------------------------------
# Many runs


def several():
    def faster(run, factor, **changes):
        scaled = [
            dataclasses.replace(m, value=m.value * factor, uncertainty=m.uncertainty and m.uncertainty * factor)
            if m.unit in ("s", "J")
            else m
            for m in run.measurements
        ]
        return dataclasses.replace(run, measurements=tuple(scaled), **changes)

    run = hand_run()
    return [
        run,
        faster(run, 2.0, id="20260314T112653-00000002", spec=dict(run.spec) | {"size": 640}),
        dataclasses.replace(
            hand_run(with_power=False),
            id="20260314T112653-00000003",
            spec=dict(run.spec) | {"size": 320},
        ),
    ]


def test_many_runs_stand_side_by_side(tmp_path):
    found = shown(several(), tmp_path)
    assert "femtodet on host, 3 runs" in found.text
    assert "1: size 416" in found.text
    assert "12.35 ± 0.50 mJ rapl, package" in found.text
    assert "24.7 ± 1.0 mJ rapl, package" in found.text
    assert "39.91 ± 0.16 ms" in found.text
    assert "no joules: host has no power sensor that could be read" in found.text


def test_pareto_front_and_what_it_leaves_out_are_in_words(tmp_path):
    found = shown(several(), tmp_path)
    words = next(a["aria-label"] for _, a in found.tags if a.get("aria-label", "").startswith("Energy by latency"))
    assert "1: size 416: Latency, median 19.954 ± 0.080 ms" in words
    assert words.count("on the Pareto front") == 1  # the slower one, at twice the energy, is beaten
    assert "Left out: 3: size 320 (no joules: host has no power sensor that could be read)." in found.text


def test_flag_of_many_meters_is_named_once_in_the_row_of_its_run(tmp_path):
    runs = several()
    gaps = tuple(Flag("gap", voids, "3 s", m) for m, voids in (("rapl", ()), ("psu", ("power_w",)), ("ina", ())))
    runs[1] = dataclasses.replace(runs[1], flags=gaps)
    row = shown(runs, tmp_path).text.partition("2: size 640")[2].partition("3: size 320")[0]
    assert row.count("gap") == 1


def test_one_simulated_run_among_many_is_marked_in_its_row(tmp_path):
    runs = several()
    runs[1] = dataclasses.replace(runs[1], flags=(Flag("simulated", (), "an emulated tree"),))
    found = shown(runs, tmp_path)
    assert "Some of these runs are simulated" in found.text
    assert "24.7 ± 1.0 mJ simulated" in found.text
    assert "12.35 ± 0.50 mJ rapl" in found.text


def test_runs_of_which_none_can_be_compared_say_why(tmp_path):
    text = shown([bare_run(), bare_run(device_name="pi")], tmp_path).text
    assert "No figure sets these runs against each other" in text
    assert "no joules: pi has no power sensor" in text


# ---------------------------------------------------------------------------------------------------------------------
# Safety of the page


def nasty_run():
    run = hand_run(device_name=EVIL, flags=[Flag("simulated", (), EVIL)], warnings=(EVIL,))
    channel = dataclasses.replace(run.traces[0].channels[0], covers=EVIL)
    trace = dataclasses.replace(run.traces[0], channels=(channel, *run.traces[0].channels[1:]), meter=EVIL)
    return dataclasses.replace(run, device={EVIL: EVIL, "list": [{EVIL: EVIL}]}, engine={"version": EVIL},
                               traces=(trace, *run.traces[1:]), error=RunError("failed", EVIL, EVIL))  # fmt: skip


@pytest.mark.parametrize("count", [1, 2])
def test_text_of_a_device_is_text_on_the_page(tmp_path, count):
    runs = [nasty_run(), dataclasses.replace(nasty_run(), device_name=EVIL + "2")][:count]
    found = shown(runs, tmp_path)
    assert EVIL in found.text
    assert not [a for t, a in found.tags if t == "img"]
    clean = shown([hand_run()] * count, tmp_path)
    assert [t for t, _ in found.tags].count("script") == [t for t, _ in clean.tags].count("script")


def test_page_links_to_nothing_outside_itself(tmp_path):
    for runs in ([hand_run()], several(), [nasty_run()]):
        found = shown(runs, tmp_path)
        assert all(v.startswith(("#", "data:")) for _, _, v in found.links), found.links


def test_page_is_small(tmp_path):
    assert written(hand_run(), tmp_path).stat().st_size < 1_600_000


def test_page_says_everything_without_colour_or_pictures(tmp_path):
    found = shown(several(), tmp_path)
    assert all("scope" in a for t, a in found.tags if t == "th")
    assert all(a.get("aria-label") for _, a in found.tags if a.get("role") == "img")
    assert next(a for t, a in found.tags if t == "html")["lang"] == "en"


# ---------------------------------------------------------------------------------------------------------------------
# On paper


def test_pdf_holds_the_numbers_as_text(tmp_path):
    text = pdf_text(written(hand_run(), tmp_path, ".pdf"))
    for said in ("12.35 ± 0.50 mJ", "19.954 ± 0.080 ms", "50.12 ± 0.20 FPS", "Latency of an item (ms)"):
        assert said in text, said


def test_svg_holds_the_numbers_as_text(tmp_path):
    path = written(hand_run(flags=[Flag("gap", ("power_w",), "3 s", "rapl")]), tmp_path, ".svg")
    text = " ".join(ElementTree.parse(path).getroot().itertext())
    for said in ("12.35 ± 0.50 mJ", "(5.432 ± 0.043 W)", "VOID: gap"):
        assert said in text, said


def test_paper_figure_without_power_says_so_and_shows_no_joule(tmp_path):
    text = pdf_text(written(hand_run(with_power=False), tmp_path, ".pdf"))
    assert "no joules: host has no power sensor that could be read" in text
    assert not JOULES.search(text)


def test_many_runs_on_paper_name_what_is_left_out(tmp_path):
    text = pdf_text(written(several(), tmp_path, ".pdf"))
    assert "Energy per inference (package) (mJ)" in text
    assert "gure: 3: size 320 (no joules: host has no power sensor that could be read)" in text  # "fi" may be one glyph


@pytest.mark.parametrize("form", [".pdf", ".svg"])
@pytest.mark.parametrize(
    "run", [bare_run(), bare_run(device_name="a $x_1$ b"), nasty_run()], ids=["bare", "dollar", "nasty"]
)
def test_any_run_can_be_put_on_paper(tmp_path, form, run):
    assert written(run, tmp_path, form).stat().st_size > 2000
    assert written([run, hand_run()], tmp_path, form).stat().st_size > 2000


def test_same_run_gives_the_same_bytes_on_paper(tmp_path):
    for form in (".pdf", ".svg"):
        first = written(hand_run(), tmp_path, form).read_bytes()
        assert written(hand_run(), tmp_path, form).read_bytes() == first


# ---------------------------------------------------------------------------------------------------------------------
# Where it goes


@pytest.mark.parametrize("name", ["report.png", "report", "report.htm"])
def test_unknown_suffix_is_refused_with_those_there_are(tmp_path, name):
    with pytest.raises(UsageError, match=r"wanted \.html, \.pdf or \.svg"):
        tradeoff.write([hand_run()], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_no_runs_are_refused(tmp_path):
    with pytest.raises(UsageError, match="at least one"):
        tradeoff.write([], tmp_path / "report.html")


def test_missing_folder_is_one_clear_line(tmp_path):
    with pytest.raises(UsageError, match="name another folder"):
        tradeoff.write([hand_run()], tmp_path / "no" / "report.html")


def test_old_report_stays_whole_when_the_new_one_fails(tmp_path, monkeypatch):
    path = written(hand_run(), tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(UsageError, match="No space left on device"):
        tradeoff.write([hand_run()], path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_title_can_be_chosen(tmp_path):
    assert "Table 2: the lab" in shown(hand_run(), tmp_path, title="Table 2: the lab").text


def heads(text):
    """The heads of the table of runs, between its first and its last column but one."""
    return text.partition("Runs side by side Run ")[2].partition(" Repeats")[0]


def test_language_models_have_columns_of_their_own(tmp_path):
    spoken = [*MEASURED[:6], Measurement("ttft_s", 0.7, 0.02, "s", "window", 20, "by hand")]
    spoken += [Measurement("decode_tokens_per_s", 25.0, 0.5, "1/s", "window", 240, "by hand")]
    models = [hand_run(measured=spoken), hand_run(measured=spoken, id="another")]
    assert heads(shown(models, tmp_path).text) == (
        "Latency, median Time to first token, median Decoding speed Energy per inference"
    )
    mixed = heads(shown([models[0], hand_run(id="a detector")], tmp_path).text)
    assert "Time to first token, median Decoding speed" in mixed
    assert "Latency, p99 Throughput" in mixed, "a detector among them is still shown by its own figures"
