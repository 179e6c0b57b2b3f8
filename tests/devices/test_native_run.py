"""The native agent drives ONNX Runtime by its C API: what it saves, what it says of the engine, and what it refuses."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgewatt.devices.agent.steady import Steady
from edgewatt.devices.android import build
from support.agents import Plain, agent_of, numbers, ort_include

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.needs_compiler
CPU = "CPUExecutionProvider"


@pytest.fixture
def agent(tmp_path: Path) -> Plain:
    if not ort_include():
        pytest.skip("no onnxruntime_c_api.h here (EDGEWATT_ORT_INCLUDE names its folder)")
    return agent_of("native", tmp_path)


def library() -> str:
    return str(next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")))


def graph(path: Path) -> str:
    """double = 2 x, and whole = the same as integers, for x of (1, 3)."""
    h = onnx.helper
    nodes = [
        h.make_node("Add", ["x", "x"], ["double"]),
        h.make_node("Cast", ["double"], ["whole"], to=onnx.TensorProto.INT64),
    ]
    ends = [("double", onnx.TensorProto.FLOAT), ("whole", onnx.TensorProto.INT64)]
    of = h.make_graph(
        nodes,
        "doubling",
        [h.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])],
        [h.make_tensor_value_info(name, kind, [1, 3]) for name, kind in ends],
    )
    onnx.save(h.make_model(of, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


ITEMS = np.array([[1, 2, 3], [-4, 5, 6], [7, 8, 1000], [0, 0.5, 10]], np.float32)


def job(folder: Path, **more: Any) -> dict[str, Any]:
    ITEMS.tofile(folder / "input.bin")
    params = {
        "library": library(),
        "model": graph(folder / "doubling.onnx"),
        "threads": 1,
        "inputs": [{"name": "x", "path": str(folder / "input.bin"), "shape": [1, 3], "type": "float32"}],
    }
    return {
        "runner": "native:onnxruntime",
        "params": params | more.pop("params", {}),
        "item_count": len(ITEMS),
        "item_phases": ["detect"],
        "isolate": ["detect"],
        "folder": str(folder / "outputs"),
        "repeats": 2,
        "idle_s": 0.05,
        "window_s": 0.05,
        "isolated_s": 0.02,
        "steady": {"min_s": 0.02, "max_s": 0.1, "block_s": 0.01},
        **more,
    }


def test_outputs_are_those_of_each_item(agent: Plain, tmp_path: Path) -> None:
    said = agent.events("run", job(tmp_path))
    assert said[-1]["event"] == "end", said[-1]
    told = json.loads((tmp_path / "outputs/outputs.json").read_text())
    assert told["form"] == 1 and told["items"] == [0, 1, 2, 3]
    by_name = {o["name"]: o for o in told["outputs"]}
    assert {n: (o["type"], o["shape"]) for n, o in by_name.items()} == {
        "double": ("float32", [1, 3]),
        "whole": ("int64", [1, 3]),
    }
    for name, kind in (("double", "<f4"), ("whole", "<i8")):
        found = np.fromfile(tmp_path / "outputs" / by_name[name]["file"], kind).reshape(4, 3)
        assert np.array_equal(found, (ITEMS * 2).astype(kind))
    assert {p.name for p in (tmp_path / "outputs").iterdir()} == {"outputs.json", *(o["file"] for o in told["outputs"])}
    assert not list(tmp_path.glob("*.part")) and next(e for e in said if e["event"] == "saved")["items"] == 4


def test_engine_is_told_as_it_is(agent: Plain, tmp_path: Path) -> None:
    engine = next(e for e in agent.events("run", job(tmp_path)) if e["event"] == "loaded")["engine"]
    assert engine["engine"] == "onnxruntime" and engine["version"] == onnxruntime.__version__
    assert engine["threads"] == 1 and engine["provider_asked"] == "cpu" and engine["provider_used"] == CPU
    assert engine["nodes"] == {CPU: 2} and engine["fallback_share"] == 0 and engine["fallback_ops"] == []
    assert engine["providers_available"] == onnxruntime.get_available_providers()
    assert engine["graph"] == "doubling.onnx" and engine["model_bytes"] == (tmp_path / "doubling.onnx").stat().st_size


def test_every_item_is_timed_and_takes_its_time(agent: Plain, tmp_path: Path) -> None:
    said = agent.events("run", job(tmp_path, repeats=1))
    for part in ("warmup", "window", "detect"):
        events = [e for e in said if e["event"] == "items" and e["part"] == part]
        marks = np.concatenate([numbers(e["marks_ns"]).reshape(e["n"], 2) for e in events])
        assert (np.diff(marks.ravel()) >= 0).all() and (marks[:, 1] > marks[:, 0]).all()
    warm = np.concatenate([numbers(e["picture"]) for e in said if e["event"] == "items" and e["part"] == "warmup"])
    assert list(warm[:6]) == [0, 1, 2, 3, 0, 1]


def test_outputs_may_be_chosen(agent: Plain, tmp_path: Path) -> None:
    agent.events("run", job(tmp_path, params={"outputs": ["whole"]}))
    told = json.loads((tmp_path / "outputs/outputs.json").read_text())
    assert [o["name"] for o in told["outputs"]] == ["whole"]


def wrong(name: str, folder: Path) -> dict[str, Any]:
    (folder / "text.so").write_text("no library")
    one = {"name": "x", "path": str(folder / "input.bin"), "shape": [1, 3], "type": "float32"}
    return {
        "no library": {"library": "/no/such/lib.so"},
        "text": {"library": str(folder / "text.so")},
        "other library": {"library": "libm.so.6"},
        "provider": {"provider": "qnn"},
        "no inputs": {"inputs": []},
        "short input": {"inputs": [{**one, "shape": [1, 4]}]},
        "no input file": {"inputs": [{**one, "path": "/no/such/input"}]},
        "type": {"inputs": [{**one, "type": "complex"}]},
        "shape": {"inputs": [{**one, "shape": [0, 3]}]},
        "other input": {"inputs": [{**one, "name": "y"}]},
        "other output": {"outputs": ["z"]},
        "threads": {"threads": "all"},
    }[name]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no library", "cannot open shared object"),
        ("text", "text.so"),
        ("other library", "no OrtGetApiBase"),
        ("provider", "provider qnn: not in this onnxruntime"),
        ("no inputs", "inputs is []"),
        ("short input", "has 48 bytes; wanted 64 for 4 items"),
        ("no input file", "No such file"),
        ("type", "type complex"),
        ("shape", "[0, 3]"),
        ("other input", "inputs are y; the graph takes x"),
        ("other output", "the graph gives double, whole"),
        ("threads", "threads is 'all'"),
    ],
)
def test_what_cannot_be_run_is_refused(agent: Plain, tmp_path: Path, name: str, told: str) -> None:
    made = job(tmp_path)
    made["params"] |= wrong(name, tmp_path)
    last = agent.events("run", made)[-1]
    assert (last["event"], last["kind"], agent.status) == ("error", "refused", 2) and told in last["message"]
    assert not list(tmp_path.glob("outputs*"))


def test_graph_is_one_phase(agent: Plain, tmp_path: Path) -> None:
    last = agent.events("run", job(tmp_path, item_phases=["a", "b"], isolate=[]))[-1]
    assert last["kind"] == "refused" and "one phase" in last["message"]


def test_model_that_is_none_fails_with_what_the_library_says(agent: Plain, tmp_path: Path) -> None:
    made = job(tmp_path)
    Path(made["params"]["model"]).write_bytes(b"no graph")
    last = agent.events("run", made)[-1]
    assert last["kind"] == "failed" and "cannot be loaded" in last["message"] and agent.status == 1


def test_result_of_another_run_is_not_written_over(agent: Plain, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/kept").write_text("mine")
    assert agent.events("run", job(tmp_path))[-1]["kind"] == "refused"
    assert [p.name for p in (tmp_path / "outputs").iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("fault", "status"), [("segfault", -11), ("abort", -6), ("raise", 1), ("bad_alloc", 1), ("no memory", 1)]
)
def test_crash_of_a_library_leaves_its_signal_and_trace(tmp_path: Path, fault: str, status: int) -> None:
    agent = agent_of("native", tmp_path)
    made = job(tmp_path, params={"fault": fault, "fault_at": 1}, item_phases=["first", "second"], isolate=[])
    said = agent.events("run", {**made, "runner": agent.runner})
    assert agent.status == status
    if status < 0:
        assert f"Fatal signal {-status}" in agent.stderr and "edgewatt-agent+0x" in agent.stderr
        assert said[-1]["event"] not in ("end", "error")
    else:
        kind = "failed" if fault == "raise" else "out_of_memory"
        assert said[-1]["kind"] == kind and "\n" not in said[-1]["message"]
        assert not list(tmp_path.glob("outputs*"))


@pytest.mark.parametrize("at", ["load", 1, "save"])
def test_what_hangs_is_ended_and_told(tmp_path: Path, at: Any) -> None:
    agent = agent_of("native", tmp_path)
    made = job(tmp_path, params={"fault": "hang", "fault_at": at}, item_phases=["first", "second"], isolate=[])
    limits = {"load_limit_s": 0.3, "item_limit_s": 0.3, "runner": agent.runner, "repeats": 1}
    last = agent.events("run", made | limits)[-1]
    assert last["kind"] == "hung" and "the limit is 0.3 s" in last["message"] and agent.status == 1
    assert last["message"].startswith("warmup: item 1" if at == 1 else str(at))
    assert not list(tmp_path.glob("outputs*"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"n": NaN}', "Expecting value"),
        ('{"n": 1e999}', "size"),
        ('{"n": 01}', "leading zero"),
        ('{"n": 1,}', "property name"),
        ('{"n": 1} x', "end of document"),
        ('{"n": "\x01"}', "control character"),
        ('{"n": "\\ud800"}', "both halves"),
        ('{"n": "\\x"}', "escape"),
        ('{"n": ' + "[" * 100 + "]" * 100 + "}", "levels"),
        ('{"n": "' + "x" * (5 << 20) + '"}', "4 MiB"),
        ("", "Expecting value"),
    ],
)
def test_job_is_json_in_the_strict_sense(tmp_path: Path, text: str, told: str) -> None:
    last = agent_of("native", tmp_path).events("clock", text)[-1]
    assert last["kind"] == "refused" and told in last["message"]


def test_texts_pass_through_whatever_is_in_them(tmp_path: Path) -> None:
    name = 'é "quoted" \\ \n\t\x7f 😀 €'
    (tmp_path / "a").write_text("1")
    told = {"nodes": [{"path": str(tmp_path / "a"), "name": name}], "duration_s": 0.02}
    said = agent_of("native", tmp_path).events("sample", told)
    assert next(e for e in said if e["event"] == "sampling")["columns"] == [name]


@pytest.mark.parametrize("verb", ["call", "hold"])
def test_python_functions_are_refused_in_one_line(tmp_path: Path, verb: str) -> None:
    agent = agent_of("native", tmp_path)
    last = agent.events(verb, {"function": "a:b"})[-1]
    assert last["kind"] == "refused" and "Python" in last["message"] and agent.status == 2


SEQUENCES = {
    "quiet": [0.1] * 12,
    "settling": [0.2, 0.15, 0.12, 0.11, 0.105, 0.102, 0.101, 0.1005, 0.1002, 0.1001, 0.1, 0.1],
    "noise": [0.1 + 0.01 * math.sin(2.4 * k) for k in range(14)],
    "drift": [0.1 * 1.01**k for k in range(14)],
    "few": [0.1, 0.1],
    "alternating": [0.1, 0.12] * 7,
}


@pytest.mark.parametrize("blocks", [2, 5])
def test_both_agents_are_steady_at_the_same_block(tmp_path: Path, blocks: int) -> None:
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler (c++) here")
    driver = Path(__file__).parents[1] / "support/native_steady.cpp"
    binary = tmp_path / "steady"
    words = ["c++", "-std=c++17", f"-I{build.SOURCE}", str(driver), str(build.SOURCE / "steady.cpp"), "-o", str(binary)]
    subprocess.run(words, check=True)
    for name, latencies_s in SEQUENCES.items():
        heat = [40 + 3 * math.exp(-k / 3) for k in range(len(latencies_s))]
        rule, wanted = Steady(0.02, blocks, {"heat": 1.0, "none": 1.0}), []
        for latency_s, c in zip(latencies_s, heat, strict=True):
            rule.add(latency_s, {"heat": c, "none": None})
            wanted.append(f"{int(rule.reached)} {rule.detail}")
        said = subprocess.run(
            [binary, str(blocks)],
            input="".join(f"{a!r} {b!r}\n" for a, b in zip(latencies_s, heat, strict=True)),
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout.splitlines() == wanted, name
