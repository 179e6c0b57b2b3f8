"""The agent's one file, as a board gets it: alone, on an old Python, with nothing installed."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

from edgewatt.devices.transport import AGENT
from support.agents import Plain, samples


def test_file_is_python_3_8() -> None:
    ast.parse(AGENT.read_text(), feature_version=(3, 8))


def test_file_imports_the_standard_library_alone() -> None:
    tree = ast.parse(AGENT.read_text())
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


def test_file_samples_alone_in_an_empty_python(tmp_path: Path) -> None:
    copy = Path(shutil.copy(AGENT, tmp_path / "agent.py"))
    (tmp_path / "node").write_text("42")
    agent = Plain("alone", [sys.executable, "-I", "-S", str(copy)], tmp_path)
    job = {"rate_hz": 100, "duration_s": 0.1, "nodes": [{"path": str(tmp_path / "node")}]}
    assert (samples(agent.events("sample", job)).values == 42).all()
    refused = agent.events("run", {"runner": "x:Y"})[-1]
    assert refused["kind"] == "refused" and "edgewatt" in refused["message"] and agent.status == 2


def test_wrong_command_line_is_refused_with_its_usage() -> None:
    end = subprocess.run([sys.executable, AGENT, "dance", "job.json"], capture_output=True, text=True, check=False)
    assert end.returncode == 2 and end.stderr.startswith("usage: ") and not end.stdout
