"""The command line as a user meets it: a run from pictures to a report, and one line for whatever is wrong."""

import csv
import itertools
import json
import subprocess
import sys

import pytest

from support.command import QUICK, Command

HEAVY = ("torch", "onnxruntime", "pandas", "matplotlib", "bokeh", "numpy", "sqlalchemy", "pyarrow", "rich", "cv2")


@pytest.fixture
def edgewatt(tmp_path):
    command = Command(tmp_path)
    yield command
    assert command.left_running() == []


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One quick run on drawn scenes, in a store of its own."""
    command = Command(tmp_path_factory.mktemp("measured"))
    return command, command.json("run", "femtodet", "--set", *QUICK, "limit=4", "size=320")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from edgewatt.harness import cli; cli.run_command(['--help']); "
        f"sys.exit(', '.join(m for m in {HEAVY} if m in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_run_prints_one_json_object_with_what_the_design_names(measured):
    _, run = measured
    assert {"run", "device", "workload", "spec", "measurements", "phases", "flags", "warnings", "store"} <= set(run)
    for m in run["measurements"]:
        assert {"metric", "value", "uncertainty", "unit", "phase", "n", "method", "meter", "boundary"} <= set(m)
    for p in run["phases"]:
        assert {"phase", "start_s", "end_s", "items", "clock"} <= set(p)
    for f in run["flags"]:
        assert {"flag", "voids", "detail"} <= set(f)


def test_run_has_latency_rate_and_every_phase(measured):
    _, run = measured
    metrics = {(m["metric"], m["phase"]) for m in run["measurements"]}
    assert {("latency_s", p) for p in ("window", "preprocess", "detect", "postprocess")} <= metrics
    assert ("throughput_fps", "window") in metrics
    names = [p["phase"] for p in run["phases"]]
    assert names[0] == "load" and names.index("idle") < names.index("warmup") < names.index("window")
    assert names[-1] == "idle"


def test_phases_follow_one_another(measured):
    _, run = measured
    phases = run["phases"]
    assert all(a["end_s"] <= b["start_s"] for a, b in itertools.pairwise(phases))


def test_host_without_power_sensor_reports_no_joules_and_says_so(measured):
    _, run = measured
    if any(c["is_energy"] for m in run["meters"] for c in m["channels"] if "is_energy" in c):
        pytest.skip("this machine has a power sensor")
    if any(m["boundary"] for m in run["measurements"]):
        pytest.skip("this machine has a power sensor")
    assert not [m for m in run["measurements"] if m["unit"] in ("J", "W")]
    assert any("no power sensor" in w for w in run["warnings"])


def test_synthetic_weights_and_drawn_scenes_are_flagged(measured):
    _, run = measured
    assert "synthetic_weights" in {f["flag"] for f in run["flags"]}
    assert any("drawn" in text for text in [*run["warnings"], *(f["detail"] for f in run["flags"])])


def test_engine_facts_say_what_was_really_used(measured):
    _, run = measured
    assert run["engine"]["engine"] == "onnxruntime"
    assert run["engine"]["provider_used"]


def test_recompute_gives_the_same_numbers(measured):
    command, run = measured
    again = command.json("recompute", run["run"])
    assert again["measurements"] == run["measurements"]
    assert again["flags"] == run["flags"]


def test_list_and_show_find_the_run(measured):
    command, run = measured
    assert [r["id"] for r in command.json("list")["runs"]] == [run["run"]]
    assert command.json("show", "latest")["measurements"] == run["measurements"]
    assert run["run"] in command("list").stdout
    assert "latency" in command("show", run["run"][:12]).stdout


def test_export_csv_has_a_row_for_each_measurement(measured):
    command, run = measured
    rows = list(csv.DictReader(command("export", "--format", "csv").stdout.splitlines()))
    assert len(rows) == len(run["measurements"])
    assert {r["metric"] for r in rows} == {m["metric"] for m in run["measurements"]}


def test_export_json_is_what_run_printed(measured):
    command, run = measured
    (exported,) = json.loads(command("export", "--format", "json").stdout)["runs"]
    assert {k: exported[k] for k in run if k != "store"} == {k: run[k] for k in run if k != "store"}
    assert {"cell", "attempt"} <= set(exported)


def test_export_parquet_holds_raw_samples(measured):
    command, _ = measured
    command("export", "--format", "parquet", "-o", "out")
    assert list((command.folder / "out").rglob("*.parquet"))


@pytest.mark.parametrize("suffix", [".html", ".pdf", ".svg"])
@pytest.mark.parametrize("kind", ["tradeoff", "trace"])
def test_reports_are_written(measured, kind, suffix):
    command, _ = measured
    command("report", kind, "-o", f"{kind}{suffix}")
    assert (command.folder / f"{kind}{suffix}").stat().st_size > 5_000


def test_plain_run_ends_with_a_report_file(edgewatt):
    done = edgewatt("run", "femtodet", "--set", *QUICK, "limit=2", "size=320", "--report", "report.html")
    assert "latency" in done.stdout
    assert (edgewatt.folder / "report.html").stat().st_size > 100_000


def test_debug_shows_where_it_went_wrong(edgewatt):
    process = edgewatt.start("run", "femtodet", "--set", "size=1000000", "--debug")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "femtodett"], "did you mean femtodet"),
        (["run", "femtodet", "--set", "siez=320"], "did you mean size"),
        (["run", "femtodet", "--set", "size=big"], "size='big'"),
        (["run", "femtodet", "--set", "size=100"], "multiple of 32"),
        (["run", "femtodet", "--set", "engine=onnx"], "onnxruntime"),
        (["run", "femtodet", "--set", "provider=cuda"], "cuda"),
        (["run", "femtodet", "--set", "weights=none.safetensors"], "none.safetensors"),
        (["run", "femtodet", "--set", "data=nowhere"], "nowhere"),
        (["run", "femtodet", "--device", "hots"], "did you mean host"),
        (["run", "femtodet", "--devices", "none.toml"], "none.toml"),
        (["run", "femtodet", "--set", "controls.fan=1"], "fan"),
        (["run", "femtodet", "--report", "report.doc"], ".html, .pdf or .svg"),
        (["run", "femtodet", "--report", "nowhere/report.html"], "nowhere"),
        (["show", "20260101"], "store"),
        (["list"], "store"),
    ],
)
def test_bad_asking_is_one_clear_line_and_leaves_nothing(edgewatt, arguments, words):
    assert words in edgewatt.refused(*arguments)
    assert not list(edgewatt.folder.rglob("*.parquet"))


def test_data_folder_with_nothing_in_it_is_refused(edgewatt):
    (edgewatt.folder / "empty").mkdir()
    assert "empty" in edgewatt.refused("run", "femtodet", "--set", "data=empty")


def test_pictures_that_are_none_are_counted_and_named_or_refused(edgewatt):
    import cv2
    import numpy as np

    folder = edgewatt.folder / "pictures"
    folder.mkdir()
    cv2.imwrite(str(folder / "good.png"), np.full((60, 80, 3), 90, np.uint8))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    run = edgewatt.json("run", "femtodet", "--set", *QUICK, "size=320", "data=pictures")
    assert any("broken.jpg" in w and "1 " in w for w in run["warnings"])
    assert "broken.jpg" in edgewatt.refused("run", "femtodet", "--set", *QUICK, "data=pictures", "strict=true")
    assert "broken.jpg" in edgewatt.refused("run", "femtodet", "--strict", "--set", *QUICK, "data=pictures")


def test_control_characters_in_a_name_stay_on_the_one_line(edgewatt):
    assert r"a\nb" in edgewatt.refused("run", "femtodet", "--set", "data=a\nb")


@pytest.mark.parametrize("seconds", ["nan", "0", "-1"])
def test_devices_are_watched_for_a_time(edgewatt, seconds):
    assert "--seconds" in edgewatt.refused("devices", "--seconds", seconds)


def test_report_where_nothing_can_be_written_is_refused_before_measuring(edgewatt):
    edgewatt.refused("run", "femtodet", "--set", *QUICK, "--report", "/proc/report.html")
    assert not list(edgewatt.folder.rglob("*.parquet"))


def test_control_characters_of_a_device_do_not_reach_the_terminal(edgewatt):
    (edgewatt.folder / "devices.toml").write_text('[devices."bench\\u001b[2J"]\nkind = "host"\n')
    shown = edgewatt("devices", "--seconds", "0.2").stdout
    assert "bench\\x1b[2J" in shown and "\x1b" not in shown


def test_checkpoint_is_converted_to_a_graph_that_runs(edgewatt):
    import numpy as np
    import onnxruntime
    from safetensors.numpy import save_file

    from edgewatt.workloads.femtodet.synthetic import synthetic
    from edgewatt.workloads.femtodet.variants import VARIANTS

    save_file(synthetic(VARIANTS["voc"], 3), edgewatt.folder / "mine.safetensors")
    path = edgewatt("convert", "femtodet", "--checkpoint", "mine.safetensors", "-o", "made").stdout.strip()
    session = onnxruntime.InferenceSession(edgewatt.folder / path)
    cls, reg, obj = session.run(None, {"input": np.zeros((1, 3, 416, 416), np.float32)})
    assert (cls.shape, reg.shape, obj.shape) == ((1, 20, 26, 26), (1, 4, 26, 26), (1, 1, 26, 26))
    run = edgewatt.json("run", "femtodet", "--set", *QUICK, "weights=mine.safetensors", "limit=2", "size=320")
    assert "synthetic_weights" not in {f["flag"] for f in run["flags"]}


@pytest.mark.needs_torch
def test_convert_refuses_in_one_line(edgewatt):
    pytest.importorskip("torch")
    (edgewatt.folder / "file").write_text("mine")
    assert "--checkpoint" in edgewatt.refused("convert", "femtodet", "-o", "made")
    assert "gone.pth" in edgewatt.refused("convert", "femtodet", "--checkpoint", "gone.pth", "-o", "made")
    for asked in (("--graphs",), ("--checkpoint", "file")):
        assert "file" in edgewatt.refused("convert", "femtodet", *asked, "-o", "file/below")
    assert (edgewatt.folder / "file").read_text() == "mine"


def test_answers_of_a_workload_that_gives_none_are_refused_in_one_line(measured):
    command, run = measured
    assert "left no questions and answers" in command.refused("answers", run["run"])
