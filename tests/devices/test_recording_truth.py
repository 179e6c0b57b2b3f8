"""End to end: an instrument with a clock of its own records a run, and its file is attached as a meter."""

import json
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from edgewatt.harness.alignment import Alignment
from edgewatt.harness.analysis_recording import aligned
from edgewatt.results.store import Store
from support.command import Command, executable
from support.serial_lab import Lab

serial = pytest.importorskip("serial")
pytestmark = [pytest.mark.needs_serial_lab, pytest.mark.slow]

AHEAD_S, FAST = 4321.5, 1 + 220e-6  # of the instrument's clock
IDLE_W, BUSY_W = 1.0, 3.0  # the second for each busy processor; at 12 V within the meter's 0.8 A
HELD_S = 3.0


class Instrument:
    """Writes what the emulated meter says into a file, stamped with a clock of its own.

    The lab learns of a load only every 10 ms, and lines that it makes at once miss what it has not learnt yet; so it is
    held up (its fault `stall`) and makes them afterwards, stamped as ever.
    """

    def __init__(self, lab: Lab, path: Path) -> None:
        self._lab, self._path, self._over = lab, path, threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._record, self._hold_up)]

    def __enter__(self) -> "Instrument":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(HELD_S + 1)  # the last lines are made
        self._over.set()
        for thread in self._threads:
            thread.join(10)

    def _record(self) -> None:
        with serial.Serial(self._lab.port, timeout=0.2) as port, self._path.open("w") as file:
            file.write("Elapsed [s];Supply [mW]\n")
            while not self._over.is_set():
                fields = port.readline().decode("ascii", "replace").strip().split(",")
                if len(fields) == 4 and not fields[0].startswith("#"):
                    stamp_s = float(fields[0]) / 1000 * FAST + AHEAD_S
                    file.write(f"{stamp_s:.5f};{float(fields[3]) / 1000:.3f}\n".replace(".", ","))

    def _hold_up(self) -> None:
        control = Path(self._lab.port).parent / "ctl"
        if not control.exists():
            (control,) = Path(self._lab._folder).rglob("ctl")
        while not self._over.wait(0.015):
            with socket.socket(socket.AF_UNIX) as asked:
                asked.connect(str(control))
                asked.sendall(json.dumps({"op": "fault", "kind": "stall", "args": [str(HELD_S)]}).encode() + b"\n")
                asked.recv(4096)
            if self._over.wait(HELD_S):
                break


def called(command: Command, *words: str) -> dict[str, object]:
    done = subprocess.run(
        [executable(), *words], env=command.environment, cwd=command.folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_recording_of_a_run_has_the_true_joules(tmp_path: Path) -> None:
    command, recorded, store = Command(tmp_path), tmp_path / "supply.csv", tmp_path / "runs"
    words = [
        executable(), "run", "femtodet", "--set", "pattern=true", "repeats=2", "window_s=3", "idle_s=1.5",
        "isolated_s=0", "warmup_max_s=3", "--store", str(store), "--json",
    ]  # fmt: skip
    # The lab follows a process that must be there first; it waits for a word.
    waiting = ["sh", "-c", 'read go; exec "$@"', "sh", *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(waiting, env=command.environment, cwd=tmp_path, text=True, **pipes)
    try:
        with Lab("csv", "load", IDLE_W, BUSY_W, follow=process.pid, volts=12) as lab:
            with Instrument(lab, recorded):
                time.sleep(0.5)
                out, complaints = process.communicate("go\n", timeout=180)
                assert process.returncode == 0, complaints
            run = Store(store).get(str(json.loads(out)["run"]))
            windows = [p for p in run.phases if p.phase == "window"]
            true_j = sum(lab.truth(p.start_s, p.end_s)["total_joules"] for p in windows)
    finally:
        process.kill()
        process.communicate()
    meter = f"file:{recorded},boundary=dc-input,gain_error=0.001,name=supply"
    told = called(command, "attach", run.id, meter, "--store", str(store), "--json")
    new = Store(store).get(str(told["run"]))
    assert new.spec["attached_to"] == run.id and not any(t.meter == "supply" for t in run.traces)
    flags = {f.flag for f in new.flags if f.meter == "supply" and "energy_j" in f.voids}
    assert flags <= {"not_steady"}, new.flags  # a machine with other work to do
    (found,) = [m for m in new.measurements if (m.metric, m.phase, m.meter) == ("energy_j", "window", "supply")]
    assert found.boundary == "dc-input" and found.uncertainty is not None
    assert abs(found.value - true_j) <= found.uncertainty, (found, true_j)
    assert found.uncertainty <= 0.05 * true_j
    tied: Alignment = aligned(new.trace("supply"), new)[1]
    assert tied.drift == pytest.approx(FAST - 1, abs=2 * tied.bound_s / (windows[-1].end_s - windows[0].start_s))
