"""The governor is set for every processor and put back however the run ends."""

from pathlib import Path

import pytest

from edgewatt.devices.host import Host
from edgewatt.harness.api import HarnessError, UsageError
from support.sysfs_tree import Tree
from support.unprivileged import nobody

POLICY = "devices/system/cpu/cpufreq/policy{}/scaling_governor"


def machine(root: Path) -> list[Path]:
    """Two processors under different governors; their governor files."""
    tree = Tree(root)
    tree.processors(2)
    return [tree.write(POLICY.format(k), name) for k, name in enumerate(("schedutil", "powersave"))]


def held(files: list[Path]) -> list[str]:
    return [f.read_text().strip() for f in files]


def test_is_set_read_back_and_put_back(tmp_path: Path) -> None:
    files = machine(tmp_path)
    with Host(sysfs=str(tmp_path)).controls({"governor": "performance"}) as read_back:
        assert read_back == {"governor": "performance"}
        assert held(files) == ["performance", "performance"]
    assert held(files) == ["schedutil", "powersave"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_is_put_back_when_the_run_breaks(tmp_path: Path, error: type[BaseException]) -> None:
    files = machine(tmp_path)
    with pytest.raises(error), Host(sysfs=str(tmp_path)).controls({"governor": "performance"}):
        raise error
    assert held(files) == ["schedutil", "powersave"]


def test_unknown_governor_is_refused_and_the_nearest_named(tmp_path: Path) -> None:
    files = machine(tmp_path)
    with (
        pytest.raises(UsageError, match="did you mean performance"),
        Host(sysfs=str(tmp_path)).controls({"governor": "performence"}),
    ):
        pass
    assert held(files) == ["schedutil", "powersave"]


def test_without_the_right_to_write_nothing_is_written(tmp_path: Path) -> None:
    files = machine(tmp_path)
    files[1].chmod(0o444)
    host = Host(sysfs=str(tmp_path))
    with nobody(tmp_path), pytest.raises(UsageError, match="run as root"), host.controls({"governor": "performance"}):
        pass
    assert held(files) == ["schedutil", "powersave"]


def test_machine_without_cpufreq_says_so(tmp_path: Path) -> None:
    Tree(tmp_path)
    with pytest.raises(UsageError, match="no cpufreq"), Host(sysfs=str(tmp_path)).controls({"governor": "performance"}):
        pass


def test_governor_that_does_not_stay_is_an_error_and_the_others_are_put_back(tmp_path: Path) -> None:
    files = machine(tmp_path)
    files[1].unlink()
    files[1].symlink_to("/dev/zero")  # takes any write, and reads back something else
    with pytest.raises((HarnessError, UsageError)), Host(sysfs=str(tmp_path)).controls({"governor": "performance"}):
        pass
    assert files[0].read_text().strip() == "schedutil"


def test_another_run_that_holds_it_is_not_disturbed(tmp_path: Path) -> None:
    files, first, second = machine(tmp_path), Host(sysfs=str(tmp_path)), Host(sysfs=str(tmp_path))
    with first.controls({"governor": "performance"}):
        with (
            pytest.raises(UsageError, match="another edgewatt holds policy0; wait for its end"),
            second.controls({"governor": "powersave"}),
        ):
            pass
        assert held(files) == ["performance", "performance"]
    with second.controls({"governor": "powersave"}):
        assert held(files) == ["powersave", "powersave"]
    assert held(files) == ["schedutil", "powersave"]
