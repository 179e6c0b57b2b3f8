"""The wheel holds `edgewatt/` and nothing else, and all of it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT

FOLDERS = ("harness", "devices", "workloads", "results", "reports")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built of a copy of what git tracks (or would), so that the tree stays clean."""
    pytest.importorskip(
        "setuptools", minversion="77", reason="building a wheel needs setuptools >= 77, as pyproject.toml says"
    )
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git checkout: nothing says what belongs to the project")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", target, source]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = target.glob("*.whl")
    return found


def test_wheel_holds_nothing_outside_edgewatt(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"edgewatt"}


def test_wheel_holds_every_module(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"edgewatt/{p.relative_to(ROOT)}" for f in FOLDERS for p in (ROOT / f).rglob("*.py")}
    assert wanted <= held


def test_wheel_holds_the_data_files(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    kinds = (".onnx", ".html", ".css", ".mako", ".typed", ".csv")
    wanted = {
        f"edgewatt/{p.relative_to(ROOT)}"
        for f in FOLDERS
        for p in (ROOT / f).rglob("*")
        if p.suffix in kinds or p.name == "py.typed"
    }
    assert wanted and wanted <= held


def test_installed_wheel_leaves_only_edgewatt_behind(wheel, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", tmp_path, wheel]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir() if not p.name.endswith(".dist-info")} <= {"edgewatt", "bin"}
    assert [p.name for p in (tmp_path / "bin").iterdir()] == ["edgewatt"]


def test_tests_run_against_the_installed_package_or_this_checkout():
    import edgewatt.harness.api as api

    where = Path(api.__file__).resolve()
    assert "site-packages" in where.parts or where.is_relative_to(ROOT)
