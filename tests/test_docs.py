"""Pages say what is true: their snippets run, their commands exist."""

import re
import subprocess
import sys

from click.testing import CliRunner

from conftest import ROOT
from edgewatt.harness.cli import cli
from edgewatt.harness.measure import Protocol


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


def test_workload_of_the_page_keeps_the_rules(tmp_path):
    code, test = blocks("docs/adding-a-workload.md", "python")
    (entry,) = blocks("docs/adding-a-workload.md", "toml")
    package = tmp_path / "my_models"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "brightness.py").write_text(code)
    (tmp_path / "test_brightness.py").write_text(test)
    info = tmp_path / "my_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-models\nVersion: 1.0\n")
    section = entry.replace('[project.entry-points."', "[").replace('"]', "]").replace('"', "")
    (info / "entry_points.txt").write_text(section)
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "EDGEWATT_CACHE": str(tmp_path / "cache")}
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_brightness.py"]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ask = [sys.executable, "-m", "edgewatt.harness", "run", "brightness", "--set", "size=64"]
    quick = ["repeats=1", "idle_s=0.1", "window_s=0.3", "warmup_min_s=0.1", "warmup_max_s=0.5"]
    done = subprocess.run([*ask, *quick], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "brightness" in done.stdout


def test_ci_calls_exactly_the_test_line_of_the_readme():
    lines = [b.strip() for b in blocks("README.md", "bash")]
    (test_line,) = [line for line in lines if line.endswith("tox")]
    assert test_line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_every_command_of_the_readme_exists():
    for block in blocks("README.md", "bash"):
        for words in re.findall(r"(?:^|bin/)edgewatt ([a-z]+)(?: ([a-z]+))?", block, re.M):
            command = cli.commands[words[0]]
            assert not hasattr(command, "commands") or words[1] in command.commands, words


def test_every_setting_of_the_pages_exists():
    fields = set(Protocol.__dataclass_fields__)
    for name in re.findall(
        r"`((?:warmup|window|isolated|idle|max_window|item_timeout)_[a-z_]*s)`",
        (ROOT / "docs/measuring.md").read_text(),
    ):
        assert name in fields


def test_help_of_every_command_is_there():
    def walk(group, path):
        for name, command in group.commands.items():
            words = [*path, name]
            shown = CliRunner().invoke(cli, [*words, "--help"])
            assert shown.exit_code == 0 and len(command.help or "") > 20, words
            if hasattr(command, "commands"):
                walk(command, words)

    walk(cli, [])
