"""What any agent reads besides files of one integer: words, fields of a text, what a program prints."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.agents import MISSING, Plain, agent_of, alive, samples

NATIVE = pytest.param("native", marks=pytest.mark.needs_compiler)
AARCH64 = pytest.param("aarch64", marks=pytest.mark.needs_qemu)

# As a Pixel's meter tells it; the numbers in the names are no readings.
ENERGY = """t=1204512
CH0(T=1204512)[S10M_VDD_TPU], 1117
  CH1(T=1204512)[VSYS_PWR_MODEM2G], 26184190
CH3(T=1204512)[S4M_VDD_CPUCL0], -5
CH33(T=1)[L2S_VDD_AOC_RET], 77
"""


@pytest.fixture(params=["python", "python3.8", NATIVE, AARCH64])
def agent(request: pytest.FixtureRequest, tmp_path: Path) -> Plain:
    return agent_of(request.param, tmp_path)


def job(*nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"rate_hz": 50, "batch_s": 0.05, "duration_s": 0.1, "nodes": list(nodes), **more}


def file(folder: Path, content: str) -> str:
    path = folder / f"file-{time.monotonic_ns()}"
    path.write_text(content)
    return str(path)


def first_row(said: list[dict[str, Any]]) -> dict[str, int]:
    columns = next(e["columns"] for e in said if e["event"] == "sampling")
    return dict(zip(columns, map(int, samples(said).values[0]), strict=True))


def test_fields_of_a_text_are_columns_of_their_own(agent: Plain, tmp_path: Path) -> None:
    energy = {
        "path": file(tmp_path, ENERGY),
        "fields": [
            {"name": "tpu", "line": "CH0("},
            {"name": "modem", "line": "CH1("},
            {"name": "cpu", "line": "CH3("},
            {"name": "since", "line": "CH3(", "number": 0},
            {"name": "first line", "line": "", "number": 0, "decimals": 3},
        ],
    }
    said = agent.events("sample", job({"path": file(tmp_path, "7"), "name": "before"}, energy))
    assert first_row(said) == {
        "before": 7,
        "tpu": 1117,
        "modem": 26184190,
        "cpu": -5,
        "since": 1204512,
        "first line": 1204512000,
    }
    assert said[-2]["errors"] == {}


DECIMALS = [
    ("31.5", 3, 31500),
    ("-0.25", 1, -2),  # half to even
    ("0.35", 1, 4),
    ("2.5", 0, 2),
    ("2.51", 0, 3),
    ("-7", -1, -1),
    ("1e3", 0, 1000),
    ("25e-1", 1, 25),
    ("9223372036854775807", 0, 2**63 - 1),
    ("0.1234567890123456789", 18, 123456789012345679),
    ("4", -18, 0),
    ("+3.0 W", 0, MISSING),
    ("9223372036854775808", 0, MISSING),
    ("1e400", 0, MISSING),
    ("", 0, MISSING),
    ("nan", 0, MISSING),
]


def test_decimals_are_exact(agent: Plain, tmp_path: Path) -> None:
    nodes = [
        {"path": file(tmp_path, f" {text}\n"), "name": f"{text} by {decimals}", "decimals": decimals}
        for text, decimals, _ in DECIMALS
    ]
    found = first_row(agent.events("sample", job(*nodes)))
    assert found == {f"{text} by {decimals}": value for text, decimals, value in DECIMALS}


NUMBERS = [
    ("x: 1 2 3", -1, 3),
    ("x: 1 2 3", 1, 2),
    ("x: 1 2 3", -3, 1),
    ("x: 1 2 3", 3, MISSING),
    ("x: 1 2 3", -4, MISSING),
    ("x: 3.7V, 25C", 1, 25),
    ("x: 1-2", -1, 2),
    ("x: a1 b2_3 v4.5", -1, MISSING),
    ("x:-5", -1, -5),
    ("x: 2026-11-26", -1, 26),
    ("w: 1", -1, MISSING),
]


def test_numbers_are_counted_from_either_end(agent: Plain, tmp_path: Path) -> None:
    nodes = [
        {
            "path": file(tmp_path, f"z: 9\n\t{line}\n" + "x: 8\n" * line.startswith("x")),
            "fields": [{"name": f"{line} [{number}]", "line": "x:", "number": number}],
        }
        for line, number, _ in NUMBERS
    ]
    said = agent.events("sample", job(*nodes))
    assert first_row(said) == {f"{line} [{number}]": value for line, number, value in NUMBERS}
    missing = {f"{line} [{number}]" for line, number, value in NUMBERS if value == MISSING}
    assert {name: e["count"] for name, e in said[-2]["errors"].items()} == dict.fromkeys(missing, said[-2]["n"])


def test_word_is_its_place_among_the_words(agent: Plain, tmp_path: Path) -> None:
    words = ["Unknown", "Charging", "Not charging"]
    told = [{"path": file(tmp_path, f"{w}\n"), "name": w, "words": words} for w in (*words[1:], "Full")]
    said = agent.events("sample", job(*told))
    assert first_row(said) == {"Charging": 1, "Not charging": 2, "Full": MISSING}
    assert "Full" in said[-2]["errors"]["Full"]["text"]


def test_file_of_many_lines_is_read_whole_and_anew(agent: Plain, tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_text("x" * 9000 + "\nlast: 1\n")
    told = job({"path": str(path), "fields": [{"name": "a", "line": "last:"}]}, duration_s=0.6)

    def change(event: dict[str, Any]) -> bool:
        if event["event"] == "sampling":
            path.write_text("y" * 12000 + "\nlast: 2\n")
        return False

    values = samples(agent.events("sample", told, until=change)).values[:, 0]
    assert values[0] == 1 and values[-1] == 2


def test_program_is_read_at_each_sample(agent: Plain, tmp_path: Path) -> None:
    script = tmp_path / "count"
    script.write_text(f"#!/bin/sh\necho x >>{tmp_path}/ran\necho 'level: '$(wc -l <{tmp_path}/ran)' %'\necho no >&2\n")
    script.chmod(0o755)
    told = {"command": [str(script)], "fields": [{"name": "level", "line": "level:"}]}
    found = samples(agent.events("sample", job(told, rate_hz=10, duration_s=0.5))).values[:, 0]
    assert list(found) == list(range(1, len(found) + 1)) and len(found) >= 2


def test_program_that_fails_or_takes_too_long_is_missing(agent: Plain, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    slow = {
        "command": ["sh", "-c", f"echo $$ >{pid}; echo 'a: 1'; exec sleep 60"],
        "fields": [{"name": "slow", "line": "a"}],
        "limit_s": 0.2,
    }
    none = {"command": ["/no/such/program"], "fields": [{"name": "none", "line": "a"}]}
    silent = {"command": ["true"], "fields": [{"name": "silent", "line": "a"}, {"name": "too", "line": ""}]}
    said = agent.events("sample", job({"path": file(tmp_path, "5"), "name": "good"}, slow, none, silent, rate_hz=2))
    assert first_row(said) == {"good": 5, "slow": MISSING, "none": MISSING, "silent": MISSING, "too": MISSING}
    errors = {name: e["text"] for name, e in said[-2]["errors"].items()}
    assert errors["slow"] == "took longer than 0.2 s" and errors["none"] == "No such file or directory"
    assert not alive(int(pid.read_text()))
    assert 0.2 < samples(said).read_ns[0] * 1e-9 < 1.5


def test_program_prints_more_than_is_looked_at(agent: Plain) -> None:
    told = {"command": ["sh", "-c", "echo a: 1; yes 'b: 2'"], "fields": [{"name": "a", "line": "a"}], "limit_s": 5}
    said = agent.events("sample", job(told, rate_hz=5, duration_s=0.1))
    assert np.ptp(samples(said).values) == 0 and first_row(said) == {"a": 1}


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"path": "/proc/stat", "fields": []}, "fields is []"),
        ({"path": "/proc/stat", "fields": [{"name": "a"}]}, "line is None"),
        ({"path": "/proc/stat", "fields": [{"line": "a"}]}, "name is None"),
        ({"path": "/proc/stat", "fields": [{"name": "a", "line": "a", "number": 1.5}]}, "number is 1.5"),
        ({"path": "/proc/stat", "decimals": 99}, "decimals is 99"),
        ({"path": "/proc/stat", "words": [1]}, "words is [1]"),
        ({"path": "/proc/stat", "command": ["true"]}, "nodes is"),
        ({"command": []}, "nodes is"),
        ({"command": ["true"]}, "by fields"),
        ({"command": ["true"], "fields": [{"name": "a", "line": ""}], "limit_s": 0}, "limit_s is 0"),
    ],
)
def test_node_that_makes_no_sense_is_refused(agent: Plain, node: dict[str, Any], told: str) -> None:
    last = agent.events("sample", job(node))[-1]
    assert (last["event"], last["kind"], agent.status) == ("error", "refused", 2) and told in last["message"]


@pytest.mark.parametrize("agent", [NATIVE], indirect=True)
def test_program_does_not_share_the_agents_scheduling(agent: Plain) -> None:
    told = {"command": ["cat", "/proc/self/stat"], "fields": [{"name": "policy", "line": "", "number": -12}]}
    said = agent.events("sample", job(told))
    asked = next(e for e in said if e["event"] == "sampling")["scheduling"]
    if asked != "fifo 1":
        pytest.skip(f"no real-time scheduling here ({asked})")
    assert first_row(said) == {"policy": os.SCHED_OTHER}
