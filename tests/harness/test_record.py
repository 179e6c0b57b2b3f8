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


def stepped(first, picture, steps, tokens, marks):
    event = items(first, picture, marks, phases=("prefill", "decode"))
    return event | {"steps": packed(*steps), "tokens": packed(*tokens)}


def test_steps_of_a_phase_are_rows_of_their_own():
    """Two items: a prompt of 7 tokens and three more one by one; a prompt of 5 and none."""
    record = Record()
    record.take(stepped(3, [8, 9], [1, 3, 1, 1], [7, 1, 1, 1, 5, 0], [10, 20, 30, 40, 50, 60, 80, 81]))
    found = record.items
    assert found.item.tolist() == [3, 3, 3, 3, 4, 4]
    assert found.picture.tolist() == [8, 8, 8, 8, 9, 9]
    assert [found.names[k] for k in found.phase] == ["prefill", "decode", "decode", "decode", "prefill", "decode"]
    assert found.tokens.tolist() == [7, 1, 1, 1, 5, 0]
    np.testing.assert_allclose(found.start_s, np.array([10, 20, 30, 40, 60, 80]) * 1e-9)
    np.testing.assert_allclose(found.end_s, np.array([20, 30, 40, 50, 80, 81]) * 1e-9)


def test_items_without_steps_have_no_tokens():
    record = Record()
    record.take(items(0, [4, 5], [10, 20, 50, 60, 80, 90]))
    assert record.items.tokens.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "event",
    [
        stepped(0, [8], [1, 3], [7, 1, 1], [10, 20, 30, 40, 50]),  # a row without its tokens
        stepped(0, [8], [1, 3], [7, 1, 1, 1], [10, 20, 30, 40]),  # a mark is missing
        stepped(0, [8], [1, 0], [7], [10, 20]),  # a phase that has no row
        stepped(0, [8], [1, 1], [7, -1], [10, 20, 30]),
        items(0, [4, 5], [10, 20, 50, 60, 80]),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(event):
    with pytest.raises(HarnessError, match="event 'items' is not as the protocol says"):
        Record().take(event)


def test_heart_beat_tells_of_the_tokens_of_the_item_at_hand():
    record = Record()
    beat = {"event": "alive", "t_ns": 1, "phase": "window", "repeat": 0, "items": 2, "share": 0.5, "step_s": 0.04}
    record.take(beat | {"tokens": 31})
    assert (record.items_done, record.tokens_done, record.step_s) == (2, 31, 0.04)
    record.take(beat)
    assert record.tokens_done == 0
