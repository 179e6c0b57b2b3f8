"""The living trees themselves: closed forms against quadrature, and files that no reader sees half written."""

import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad

from support.sysfs_tree import WIDTH, Cell, Feed, Tree, Wave, now_s, truth

WAVES = [
    Wave("constant", 7.0, origin_s=2.0),
    Wave("ramp", 5.0, 2.0, 3.0, origin_s=10.0),
    Wave("sine", 20.0, 5.0, 0.7, origin_s=1.3),
    Wave("square", 5.0, 25.0, 0.9, origin_s=-4.0),
]


@pytest.mark.parametrize("wave", WAVES, ids=lambda w: w.shape)
def test_closed_form_is_the_integral_of_the_power(wave: Wave) -> None:
    for t0, t1 in ((8.0, 14.5), (9.1, 9.13), (12.0, 40.0)):
        kinks = [wave.origin_s + k * wave.c / 2 for k in range(-100, 200)] + [wave.origin_s + wave.c]
        points = sorted({k for k in kinks if t0 < k < t1})
        expected = sum(quad(wave.watts, a, b)[0] for a, b in zip([t0, *points], [*points, t1], strict=True))
        assert wave.joules(t0, t1) == pytest.approx(expected, rel=1e-7)
        assert wave.times(3).joules(t0, t1) == pytest.approx(3 * expected, rel=1e-7)


def test_counter_starts_anew_at_its_range() -> None:
    feed = Feed("x", "x", Wave("constant", 2.0), start=900_000, wraps_at=1_000_000)
    assert feed.value(10.0, 10.0) == 900_000
    assert feed.value(10.0, 10.04) == pytest.approx(980_000, abs=1)
    assert feed.value(10.0, 10.06) == pytest.approx(20_000, abs=1)


def test_cell_is_seen_through_a_descriptor_kept_open(tmp_path: Path) -> None:
    path = tmp_path / "energy_uj"
    path.write_text("0\n")
    fd = os.open(path, os.O_RDONLY)
    cell = Cell(str(path))
    for value in (1, 262_143_328_850, -5):
        cell.store(value)
        assert int(os.pread(fd, 64, 0)) == value
    os.close(fd)


def test_no_reader_sees_half_a_number(tmp_path: Path) -> None:
    """Two numbers that differ in every digit, stored by turns while another thread reads."""
    path = tmp_path / "energy_uj"
    path.write_text("0\n")
    cell, stop = Cell(str(path)), threading.Event()
    low, high = 111_111_111_111_111, 999_999_999_999_999
    cell.store(low)

    def store() -> None:
        while not stop.is_set():
            cell.store(high)
            cell.store(low)

    writer = threading.Thread(target=store)
    writer.start()
    fd = os.open(path, os.O_RDONLY)
    seen = {os.pread(fd, 64, 0) for _ in range(100_000)}
    stop.set()
    writer.join()
    os.close(fd)
    assert seen <= {b"%d\n" % low, b"%d\n" % high}
    assert all(len(s) == WIDTH for s in seen)


def test_living_counter_keeps_to_its_wave(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    feed = tree.rapl([Wave("sine", 50.0, 20.0, 0.3)])["package-0"]
    with tree.live() as live:
        assert live.begin_s is not None
        fd = os.open(feed.path, os.O_RDONLY)
        late_s = []
        end_s = now_s() + 0.5
        while now_s() < end_s:
            before = now_s()
            uj = int(os.pread(fd, 64, 0))
            expected = [feed.start + feed.wave.joules(live.begin_s, t) * 1e6 for t in (before - 0.5, now_s())]
            assert (
                expected[0] - 62 <= uj <= expected[1] + 62
            )  # never ahead, half a second behind at most, on a busy machine
            late_s.append((expected[1] - uj) * 1e-6 / feed.wave.watts(before))
        os.close(fd)
    assert float(np.median(late_s)) < 0.02
    assert truth(tmp_path) == (live.begin_s, tree.feeds)
    assert not math.isnan(sum(late_s))
