"""Facts of made machines: an Intel laptop, an ARM board, a container with limits, a git tree."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from edgewatt.devices import host_facts
from support.sysfs_tree import Tree

INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 142
model name\t: Intel(R) Core(TM) i7-8550U CPU @ 1.80GHz
stepping\t: 10
microcode\t: 0xf4
flags\t\t: fpu sse2 avx avx2 fma f16c

processor\t: 1
vendor_id\t: GenuineIntel
"""
# cpuinfo of a Raspberry Pi 4 (its serial number made up)
PI = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd08
CPU revision\t: 3

Serial\t\t: 10000000deadbeef
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""


def proc_with(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / "proc" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "proc"


def test_processor_of_a_laptop(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "sys")
    tree.processors(4)
    cpu = host_facts.cpu(tree.root, proc_with(tmp_path, cpuinfo=INTEL))
    assert cpu["model"] == "Intel(R) Core(TM) i7-8550U CPU @ 1.80GHz"
    assert (cpu["vendor"], cpu["family"], cpu["model_number"], cpu["stepping"]) == ("GenuineIntel", "6", "142", "10")
    assert (cpu["cores"], cpu["sockets"]) == (2, 1)
    assert cpu["isa"] == ["avx", "avx2", "fma", "f16c"]


def test_processor_of_an_arm_board_without_its_serial(tmp_path: Path) -> None:
    facts = host_facts.facts(tmp_path, proc_with(tmp_path, cpuinfo=PI), tmp_path)
    assert facts["cpu"]["model"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert facts["cpu"]["isa"] == ["asimd"]
    assert "deadbeef" not in str(facts)


@pytest.mark.parametrize(("flags", "is_virtual"), [("fpu hypervisor sse", True), ("fpu sse", False)])
def test_hypervisor_flag_tells_a_virtual_machine(tmp_path: Path, flags: str, is_virtual: bool) -> None:
    proc = proc_with(tmp_path, cpuinfo=f"flags\t\t: {flags}\n")
    assert host_facts.virtual(tmp_path, proc) is is_virtual


def test_caches_are_bytes_with_their_sharing(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for k, (level, kind, size, shared) in enumerate([(1, "Data", "48K", "0-1"), (3, "Unified", "24M", "0-3,8-11")]):
        base = f"devices/system/cpu/cpu0/cache/index{k}"
        for name, value in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
            tree.write(f"{base}/{name}", value)
    assert host_facts.caches(tmp_path) == [
        {"level": 1, "type": "Data", "bytes": 49_152, "threads": 2},
        {"level": 3, "type": "Unified", "bytes": 25_165_824, "threads": 8},
    ]


def test_clocks_are_hertz_and_boost_is_told_by_either_driver(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.processors(2, governor="schedutil")
    told = host_facts.frequency(tmp_path)
    assert told["governors"] == ["schedutil"]
    assert (told["min_hz"], told["max_hz"], told["boost"]) == (800_000_000, 3_600_000_000, None)
    tree.write("devices/system/cpu/cpufreq/boost", 0)
    assert host_facts.boost(tmp_path) is False
    tree.write("devices/system/cpu/intel_pstate/no_turbo", 0)
    assert host_facts.boost(tmp_path) is True


def test_memory_is_bytes(tmp_path: Path) -> None:
    meminfo = "MemTotal:       16284160 kB\nMemAvailable:    8000000 kB\nSwapTotal:    0 kB\nHugePages_Total:  0\n"
    told = host_facts.memory(tmp_path, proc_with(tmp_path, meminfo=meminfo))
    assert told == {"bytes": 16284160 * 1024, "available_bytes": 8_192_000_000, "swap_bytes": 0, "numa_nodes": None}


def test_strictest_limit_of_the_groups_above_binds(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "sys")
    proc = proc_with(tmp_path, self__cgroup="0::/pod/inner\n")
    tree.write("fs/cgroup/pod/cpu.max", "150000 100000")
    tree.write("fs/cgroup/pod/inner/cpu.max", "max 100000")
    tree.write("fs/cgroup/pod/memory.max", 2 << 30)
    tree.write("fs/cgroup/pod/inner/memory.max", "max")
    assert host_facts.limits(tree.root, proc) == {"cpus": 1.5, "memory_bytes": 2 << 30}


def test_limits_of_the_old_form(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "sys")
    proc = proc_with(tmp_path, self__cgroup="4:memory:/box\n3:cpu,cpuacct:/box\n")
    tree.write("fs/cgroup/memory/box/memory.limit_in_bytes", 1 << 30)
    tree.write("fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)  # how it writes "no limit"
    tree.write("fs/cgroup/cpu/box/cpu.cfs_quota_us", 50_000)
    tree.write("fs/cgroup/cpu/box/cpu.cfs_period_us", 100_000)
    assert host_facts.limits(tree.root, proc) == {"cpus": 0.5, "memory_bytes": 1 << 30}


def test_no_limit_is_none(tmp_path: Path) -> None:
    assert host_facts.limits(tmp_path, tmp_path) == {"cpus": None, "memory_bytes": None}


def test_git_state_of_the_job(tmp_path: Path) -> None:
    names = [f"GIT_{role}_{what}" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")]
    nowhere = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    environment = {**os.environ, **dict.fromkeys(names, "someone"), **nowhere}

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=tmp_path, env=environment, capture_output=True, check=True)
        return done.stdout.decode().strip()

    assert host_facts.git(tmp_path) is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "a")
    commit = git("rev-parse", "HEAD")
    assert host_facts.git(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a").write_text("2")
    assert host_facts.git(tmp_path) == {"commit": commit, "dirty": True}


def test_libraries_are_told_without_importing_them() -> None:
    code = (
        "import sys; from edgewatt.devices.host_facts import libraries as f; print(f(), 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"'numpy': '{numpy.__version__}'" in done.stdout
    assert done.stdout.endswith("False\n")


def test_machine_that_tells_nothing_is_described_without_an_error(tmp_path: Path) -> None:
    facts = host_facts.facts(tmp_path, tmp_path, tmp_path)
    assert facts["caches"] == []
    assert facts["boot"] is None
    assert facts["memory"]["bytes"] is None
    assert facts["git"] is None


SIZES = {"32K": 32768, "16M": 1 << 24, "7": 7, "": None, "1.5M": None, None: None}


@pytest.mark.parametrize(("written", "expected"), SIZES.items())
def test_sizes_as_the_kernel_writes_them(written: str | None, expected: int | None) -> None:
    assert host_facts.size_bytes(written) == expected
