"""`edgewatt calibrate` where it must not end well: names that are none, another load's meter, Ctrl-C."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from support.jetson_lab import PROFILES, Bench
from support.lab_board import LabBoard
from support.serial_lab import Lab

pytestmark = [pytest.mark.needs_jetson_lab, pytest.mark.needs_serial_lab, pytest.mark.slow]

WAVE = {"kind": "square", "low": 4.0, "high": 9.0, "hz": 0.4, "duty": 0.5}
METER = """[devices.orin.meters.{name}]
kind = "ina226"
address = "{port}"
boundary = "module"
columns = ["time ms", "voltage mV", "current uA", "power uW"]
shunt_ohm = 0.1
start = "g"
stop = "s"
"""


def test_calibration_that_cannot_be_had_says_why_and_keeps_nothing(tmp_path: Path) -> None:
    with (
        Bench("cal", PROFILES[1], waves={"VDD_IN": WAVE}, jtop=False, ideal=True) as bench,
        Lab("csv", "square", 4, 9, 1.7, volts=5.0) as lab,
        LabBoard(tmp_path, bench, power="ina3221") as board,
    ):
        bare = board.devices.read_text()
        kept, ways = tmp_path / "calibrations" / "orin.json", ("calibrate", "orin", "--seconds", "10")

        def refused(*words: str) -> str:
            said = board.ended(board.start(*ways, *words), 2)
            assert said.count("\n") == 1 and not kept.exists()
            return said

        assert "no meter is attached to calibrate against; add [devices.orin.meters.NAME]" in refused()
        both = METER.format(name="supply", port=lab.port) + METER.format(name="other", port="/dev/ttyNONE")
        board.devices.write_text(bare + both)
        assert "supply, other are attached; name one with --meter NAME" in refused()
        assert "no meter called 'suply' is attached" in refused("--meter", "suply")
        assert "/dev/ttyNONE: no such serial port" in refused("--meter", "other")
        assert "has no power sensor nvml to calibrate; it has ina3221" in refused(
            "--meter", "supply", "--sensor", "nvml"
        )
        said = refused("--meter", "supply", "--sensor", "ina3221/VDD")
        assert "ina3221: has no energy channel 'VDD'" in said
        assert "--seconds 5: wanted 10 to 3600" in refused("--seconds", "5")
        assert board.ended(board.start("list"), 0).count("calibrate") == 0

        # Another load: no line explains it. What was measured is kept, the fit is not.
        run = board.json(*ways, "--meter", "supply", "--sensor", "ina3221/VDD_IN", status=1)
        assert run["error"]["kind"] == "failed" and not run["measurements"] and not kept.exists()
        assert "no calibration: ina3221/VDD_IN against supply/power: the best line explains" in run["error"]["message"]
        again = board.json("recompute", run["run"])
        assert not again["changes"].get("changed")

        process = board.start(*ways, "--meter", "supply")
        deadline = time.monotonic() + 60
        while not board.agents("pulse"):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert "stopped by hand; nothing was left half-written" in board.ended(process, 2)
        assert not board.agents() and not kept.exists()
        assert board.json("show", "latest")["run"] == run["run"]
