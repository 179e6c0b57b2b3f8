"""Made sysfs trees, still or alive: sensors that follow a known power in real time, so that true joules are known.

By hand, a machine with RAPL that draws 5 W and 25 W by turns, and the true energy between two boot-time stamps:

    python tests/support/sysfs_tree.py live /dev/shm/fake --shape server --wave square:5:25:1 --seconds 60
    python tests/support/sysfs_tree.py joules /dev/shm/fake package-0 1234.5 1239.5

A living file is written in place, never replaced: the agent keeps its descriptors open, as a reader of the real /sys
does. Number and newline fill 16 aligned bytes that are stored by one instruction, so that no reader sees half of it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

WIDTH = 16  # bytes of a living file
LATE, LATE_S = "late", 0.003  # where the writer notes that this machine kept it from renewing a file, and from when on
RIM_S = 0.02  # the readings beside the edge of a window tell what is at the edge


def now_s() -> float:
    """Seconds on the boot-time clock, the one that the agent stamps with."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Wave:
    """A power over time with a closed form of its energy; `t` is a boot-time stamp in seconds.

    shape       a            b              c           power
    constant    W                                       a
    ramp        W at origin  W per second   seconds     a + b (t - origin), level before the origin and after c
    sine        mean W       amplitude W    period s    a + b sin(2 pi (t - origin) / c)
    square      low W        high W         period s    b in the first half of each period, a in the second
    """

    shape: str
    a: float
    b: float = 0.0
    c: float = 1.0
    origin_s: float = 0.0
    factor: float = 1.0

    @staticmethod
    def parse(written: str, origin_s: float = 0.0) -> Wave:
        """From "square:5:25:1"."""
        shape, *numbers = written.split(":")
        return Wave(shape, *map(float, numbers), origin_s=origin_s)  # type: ignore[misc]

    def times(self, factor: float) -> Wave:
        """The same wave, `factor` times as high."""
        return Wave(self.shape, self.a, self.b, self.c, self.origin_s, self.factor * factor)

    def watts(self, t: float) -> float:
        x = t - self.origin_s
        if self.shape == "constant":
            p = self.a
        elif self.shape == "ramp":
            p = self.a + self.b * min(max(x, 0.0), self.c)
        elif self.shape == "sine":
            p = self.a + self.b * math.sin(2 * math.pi * x / self.c)
        elif self.shape == "square":
            p = self.b if x % self.c < self.c / 2 else self.a
        else:
            raise ValueError(f"no wave is called {self.shape}")
        return self.factor * p

    def joules(self, t0: float, t1: float) -> float:
        """Energy between two boot-time stamps."""
        return self.factor * (self._integral(t1 - self.origin_s) - self._integral(t0 - self.origin_s))

    def _integral(self, x: float) -> float:
        """The antiderivative that is 0 at the origin."""
        if self.shape == "constant":
            return self.a * x
        if self.shape == "ramp":
            inside = min(max(x, 0.0), self.c)
            return self.a * x + self.b * inside**2 / 2 + self.b * self.c * max(x - self.c, 0.0)
        if self.shape == "sine":
            return self.a * x + self.b * self.c / (2 * math.pi) * (1 - math.cos(2 * math.pi * x / self.c))
        if self.shape == "square":
            periods, rest = divmod(x, self.c)
            high_s = periods * self.c / 2 + min(rest, self.c / 2)
            return self.a * (x - high_s) + self.b * high_s
        raise ValueError(f"no wave is called {self.shape}")


@dataclass(frozen=True)
class Feed:
    """A living file: what it shows of which wave, and how often it is refreshed.

    `kind` is counter_uj (energy since the writer began, on top of `start`), power_uw, milliamps (at `volts`) or
    milli (the wave itself in thousandths: a temperature).
    """

    name: str
    path: str
    wave: Wave
    kind: str = "counter_uj"
    update_s: float = 0.001
    start: int = 0
    wraps_at: int | None = None
    quantum_uj: float = 1.0
    volts: float = 5.0

    def value(self, begin_s: float, t: float) -> int:
        if self.kind == "counter_uj":
            uj = math.floor(self.wave.joules(begin_s, t) * 1e6 / self.quantum_uj) * self.quantum_uj + self.start
            return int(uj % self.wraps_at if self.wraps_at else uj)
        scale = {"power_uw": 1e6, "milliamps": 1e3 / self.volts, "milli": 1e3}[self.kind]
        return round(self.wave.watts(t) * scale)


class Tree:
    """A folder laid out as /sys is. Each method adds some hardware; the feeds it hands back make it live."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.feeds: list[Feed] = []
        for folder in ("class/powercap", "class/hwmon", "class/power_supply", "class/thermal", "devices/system/cpu"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def write(self, path: str, value: Any) -> Path:
        """One file below the root, with a newline as the kernel writes it."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
        return file

    def zone(
        self,
        key: str,
        name: str,
        wave: Wave | None = None,
        *,
        range_uj: int = 262_143_328_850,
        start_uj: int = 12_345_678,
        update_s: float = 0.001,
        quantum_uj: float = 61.03515625,
        flat: bool = True,
    ) -> Feed:
        """A powercap zone such as ("intel-rapl:0:1", "dram"); a part is shown in its package and, if `flat`, beside it.

        262143328850 is the range of an Intel processor with steps of 61 uJ: 2^32 steps.
        """
        parent, _, _ = key.rpartition(":")
        inner = f"class/powercap/{parent}/{key}" if parent.count(":") == 1 else f"class/powercap/{key}"
        self.write(f"{inner}/name", name)
        self.write(f"{inner}/max_energy_range_uj", range_uj)
        self.write(f"{inner}/energy_uj", start_uj)
        if flat and parent.count(":") == 1:
            (self.root / "class/powercap" / key).symlink_to(Path(parent) / key)
        feed = Feed(
            f"{key} {name}",
            str(self.root / inner / "energy_uj"),
            wave or Wave("constant", 10.0),
            update_s=update_s,
            start=start_uj,
            wraps_at=range_uj,
            quantum_uj=quantum_uj,
        )
        self.feeds.append(feed)
        return feed

    def rapl(
        self,
        packages: Sequence[Wave],
        *,
        parts: Mapping[str, float] | None = None,
        platform: Wave | None = None,
        dram: Wave | None = None,
        **options: Any,
    ) -> dict[str, Feed]:
        """A processor's zones by our channel names; `parts` are shares of their package ({"core": 0.6})."""
        (self.root / "class/powercap/intel-rapl").mkdir(exist_ok=True)
        found = {}
        for k, wave in enumerate(packages):
            found[f"package-{k}"] = self.zone(f"intel-rapl:{k}", f"package-{k}", wave, **options)
            shares = [(name, wave.times(share)) for name, share in (parts or {}).items()]
            for i, (name, part) in enumerate([*shares, *([("dram", dram)] if dram else [])]):
                found[f"package-{k}/{name}"] = self.zone(f"intel-rapl:{k}:{i}", name, part, **options)
        if platform:
            found["psys"] = self.zone(f"intel-rapl:{len(packages)}", "psys", platform, **options)
        return found

    def hwmon(self, number: int, driver: str, files: Mapping[str, Any]) -> Path:
        """A chip's folder with these files; a value may be any text."""
        for name, value in {"name": driver, **files}.items():
            self.write(f"class/hwmon/hwmon{number}/{name}", value)
        return self.root / f"class/hwmon/hwmon{number}"

    def feed(self, path: Path, wave: Wave, kind: str, update_s: float = 0.005, **options: Any) -> Feed:
        """Makes one file live."""
        feed = Feed(str(path.relative_to(self.root)), str(path), wave, kind, update_s, **options)
        self.feeds.append(feed)
        return feed

    def supply(self, name: str, **files: Any) -> Path:
        """A power supply's folder: type="Battery", status="Discharging", power_now=12000000."""
        for file, value in files.items():
            self.write(f"class/power_supply/{name}/{file}", value)
        return self.root / "class/power_supply" / name

    def processors(
        self, count: int, *, khz: int = 2_400_000, governor: str = "performance", driver: str = "acpi-cpufreq"
    ) -> None:
        """Processors two to a core, with clocks, a governor each, and no slowdown so far."""
        for k in range(count):
            cpu = f"devices/system/cpu/cpu{k}"
            self.write(f"{cpu}/topology/physical_package_id", 0)
            self.write(f"{cpu}/topology/core_id", k // 2)
            self.write(f"{cpu}/thermal_throttle/core_throttle_count", 0)
            self.write(f"{cpu}/thermal_throttle/package_throttle_count", 0)
            policy = f"devices/system/cpu/cpufreq/policy{k}"
            for name, value in {
                "scaling_cur_freq": khz,
                "scaling_governor": governor,
                "scaling_available_governors": "performance powersave schedutil",
                "scaling_driver": driver,
                "cpuinfo_min_freq": 800_000,
                "cpuinfo_max_freq": 3_600_000,
                "scaling_max_freq": 3_600_000,
            }.items():
                self.write(f"{policy}/{name}", value)
            (self.root / cpu / "cpufreq").symlink_to(Path("..") / "cpufreq" / f"policy{k}")

    @contextmanager
    def live(self, *, begin_s: float | None = None) -> Iterator[Live]:
        """The feeds are followed inside, by a process of their own; the files keep their last values."""
        live = Live(self.root, self.feeds, begin_s)
        try:
            yield live
        finally:
            live.stop()


@dataclass
class Live:
    """A process that keeps a tree's feeds moving until it is stopped."""

    root: Path
    feeds: Sequence[Feed]
    begin_s: float | None = None
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        self.begin_s = now_s() if self.begin_s is None else self.begin_s
        truth = {"begin_s": self.begin_s, "feeds": [asdict(f) for f in self.feeds]}
        (self.root / "truth.json").write_text(json.dumps(truth, indent=1))
        self.process = subprocess.Popen(
            [sys.executable, __file__, "write", str(self.root)],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            self.stop()
            raise RuntimeError(f"no living tree at {self.root}")

    def late_s(self, start_s: float, end_s: float) -> float:
        """For how long a file showed what was, and not what is, in that time and just before and after."""
        late = [map(float, line.split()) for line in (self.root / LATE).read_text().splitlines()]
        return sum(until - due for due, until in late if until > start_s - RIM_S and due < end_s + RIM_S)

    def stop(self) -> None:
        """Ends the process; twice is harmless."""
        self.process.terminate()
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Cell:
    """A file whose 16 bytes are replaced at once, seen at once by whoever holds it open."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR)
        os.truncate(fd, WIDTH)
        self._map = mmap.mmap(fd, WIDTH)  # a mapping begins at a page, so the 16 bytes are aligned
        os.close(fd)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def store(self, value: int) -> None:
        ctypes.memmove(self._address, b"%*d\n" % (WIDTH - 1, value), WIDTH)


def write(root: Path) -> None:
    """Follows the feeds of `root`/truth.json for ever; says "ready" once all hold living values."""
    begin_s, feeds = truth(root)
    with suppress(OSError):  # a real sensor is not starved by what it measures
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5))
    cells = [Cell(f.path) for f in feeds]
    due_s = [now_s()] * len(feeds)
    late = (root / LATE).open("w", buffering=1)
    is_ready, parent = False, os.getppid()
    while os.getppid() == parent:
        t, first_due_s = now_s(), min(due_s, default=math.inf)
        for k, feed in enumerate(feeds):
            if t >= due_s[k]:
                cells[k].store(feed.value(begin_s, now_s()))
                due_s[k] += feed.update_s * (1 + (t - due_s[k]) // feed.update_s)
        if now_s() - first_due_s > LATE_S:
            late.write(f"{first_due_s} {now_s()}\n")
        if not is_ready:
            is_ready = True
            print("ready", flush=True)
        time.sleep(max(min(due_s, default=t + 0.2) - now_s(), 0.0))


def truth(root: Path) -> tuple[float, list[Feed]]:
    """(when the counters began, the feeds) of a tree that is or was alive."""
    held = json.loads((root / "truth.json").read_text())
    return held["begin_s"], [Feed(**{**f, "wave": Wave(**f["wave"])}) for f in held["feeds"]]


def shaped(root: Path, shape: str, wave: Wave) -> Tree:
    """A tree of a well-known shape in which the whole (package-0, or the hwmon total) follows `wave`."""
    tree = Tree(root)
    if shape == "server":  # two sockets with memory counters
        tree.rapl([wave, wave.times(0.5)], dram=Wave("constant", 4.0), parts={"core": 0.6})
    elif shape == "laptop":  # one socket, graphics, the platform around it, a battery
        tree.rapl([wave], parts={"core": 0.6, "uncore": 0.1}, platform=wave.times(1.5))
        tree.supply(
            "BAT0", type="Battery", present=1, status="Discharging", power_now=12_000_000, voltage_now=11_400_000
        )
        tree.supply("AC", type="Mains", online=0)
    elif shape == "amd":  # as drivers/powercap shows a Ryzen
        tree.rapl([wave], parts={"core": 0.1}, range_uj=65_532_610_987, quantum_uj=15.2587890625)
    elif shape == "wrap":  # goes round every 5 J
        tree.rapl([wave], range_uj=5_000_000, start_uj=4_000_000)
    elif shape == "board":  # an INA226 on the supply
        chip = tree.hwmon(
            0, "ina226", {"power1_input": 0, "power1_label": "VDD_IN", "shunt_resistor": 2000, "update_interval": 5}
        )
        tree.feed(chip / "power1_input", wave, "power_uw")
    else:
        raise SystemExit(f"no shape is called {shape}; known: server, laptop, amd, wrap, board")
    tree.processors(2)
    chip = tree.hwmon(9, "coretemp", {"temp1_input": 50_000, "temp1_label": "Package id 0", "temp1_crit": 100_000})
    tree.feed(chip / "temp1_input", Wave("sine", 50, 2, 30), "milli", update_s=0.1)
    return tree


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("live", help="make a tree and keep it alive")
    verb.add_argument("root", type=Path)
    verb.add_argument("--shape", default="server", help="server, laptop, amd, wrap or board")
    verb.add_argument("--wave", default="constant:15", help="constant:W ramp:W:W/s:s sine:W:W:s square:W:W:s")
    verb.add_argument("--seconds", type=float, default=math.inf)
    verb = verbs.add_parser("joules", help="true energy of a feed, by a part of its name, between two boot-time stamps")
    verb.add_argument("root", type=Path)
    verb.add_argument("feed")
    verb.add_argument("start_s", type=float)
    verb.add_argument("end_s", type=float)
    verbs.add_parser("write", help="(used by live)").add_argument("root", type=Path)
    given = parser.parse_args(words)
    if given.verb == "write":
        write(given.root)
    elif given.verb == "joules":
        for feed in truth(given.root)[1]:
            if given.feed in feed.name:
                print(f"{feed.name}: {feed.wave.joules(given.start_s, given.end_s):.6f} J")
    else:
        tree = shaped(given.root, given.shape, Wave.parse(given.wave, now_s()))
        with tree.live(), suppress(KeyboardInterrupt):
            print(f"{given.root} is alive since {now_s():.3f}", flush=True)
            end_s = now_s() + given.seconds
            while now_s() < end_s:
                time.sleep(min(1.0, max(end_s - now_s(), 0.0)))


if __name__ == "__main__":
    main()
