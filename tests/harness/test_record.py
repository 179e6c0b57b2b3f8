"""What an agent's events amount to."""

import base64
import struct

import numpy as np
import pytest

from edgewatt.harness.api import HarnessError
from edgewatt.harness.record import Record


def packed(*numbers):
    return base64.b64encode(struct.pack(f"<{len(numbers)}q", *numbers)).decode()


def items(first, picture, marks, part="window", phases=("preprocess", "detect")):
    return {
        "event": "items", "part": part, "repeat": 0, "phases": list(phases), "first": first, "n": len(picture),
        "picture": packed(*picture), "marks_ns": packed(*marks),
    }  # fmt: skip


def test_marks_become_one_row_per_phase_of_an_item():
    record = Record()
    record.take(items(0, [4, 5], [10, 20, 50, 60, 80, 90]))
    found = record.items
    assert found.names == ("preprocess", "detect")
    assert found.item.tolist() == [0, 0, 1, 1]
    assert found.picture.tolist() == [4, 4, 5, 5]
    assert found.phase.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(found.start_s, [10e-9, 20e-9, 60e-9, 80e-9])
    np.testing.assert_allclose(found.end_s, [20e-9, 50e-9, 80e-9, 90e-9])


def test_parts_are_kept_apart():
    record = Record()
    record.take(items(0, [0], [10, 20, 30], part="warmup"))
    record.take(items(0, [0], [40, 50], part="detect", phases=("detect",)))
    found = record.items
    assert [found.parts[k] for k in found.part] == ["warmup", "warmup", "detect"]
    assert [found.names[k] for k in found.phase] == ["preprocess", "detect", "detect"]


def test_phases_come_in_order_of_time():
    record = Record(clock="monotonic")
    for name, start, end in (("window", 5_000_000_000, 7_000_000_000), ("idle", 1_000_000_000, 4_000_000_000)):
        record.take({"event": "phase", "phase": name, "start_ns": start, "end_ns": end, "items": 2, "repeat": 0})
    assert [(p.phase, p.start_s, p.end_s, p.clock) for p in record.phases] == [
        ("idle", 1.0, 4.0, "monotonic"),
        ("window", 5.0, 7.0, "monotonic"),
    ]


def test_event_that_breaks_the_protocol_is_named():
    with pytest.raises(HarnessError, match="event 'phase' is not as the protocol says"):
        Record().take({"event": "phase", "phase": "idle"})


def test_unknown_events_are_passed_over():
    Record().take({"event": "news from a later version"})


def test_no_items_is_an_empty_table():
    assert len(Record().items) == 0
