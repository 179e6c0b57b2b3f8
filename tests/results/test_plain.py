"""Facts as JSON values."""

import enum
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewatt.results.plain import DEEPEST, LONGEST_LIST, LONGEST_TEXT, dumped, plain

anything = settings(deadline=None, max_examples=100, database=None)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9) | st.complex_numbers()
)
values = st.recursive(scalars, lambda v: st.lists(v) | st.dictionaries(st.text() | st.integers(), v) | st.tuples(v, v))


@anything
@given(values)
def test_anything_becomes_json_and_twice_is_once(value) -> None:
    once = plain(value)
    assert plain(once) == once
    assert json.loads(dumped(value)) == once


def test_what_is_not_a_number_is_null() -> None:
    assert plain([float("nan"), float("inf"), np.float32("-inf"), np.array([1.5, np.nan])]) == [
        None,
        None,
        None,
        [1.5, None],
    ]


def test_numpy_paths_enums_dates_sets_and_dataclasses() -> None:
    class Colour(enum.Enum):
        RED = "red"

    @dataclass
    class Point:
        x: int
        at: Path

    moment = datetime(2026, 3, 14, tzinfo=timezone.utc)
    value = {"n": np.int64(3), "b": np.True_, "c": Colour.RED, "p": Point(1, Path("/a")), "t": moment, "s": {2, 1}}
    assert plain(value) == {
        "n": 3, "b": True, "c": "red", "p": {"x": 1, "at": "/a"}, "t": "2026-03-14T00:00:00+00:00", "s": [1, 2],
    }  # fmt: skip
    assert type(plain(np.int64(3))) is int


def test_sizes_are_bounded_and_say_so() -> None:
    assert plain("x" * (LONGEST_TEXT + 1)).endswith(f"... (cut from {LONGEST_TEXT + 1} characters)")
    assert len(plain("x" * (10 * LONGEST_TEXT))) <= LONGEST_TEXT
    assert plain("x" * LONGEST_TEXT) == "x" * LONGEST_TEXT
    cut = plain(list(range(LONGEST_LIST + 5)))
    assert (len(cut), cut[-1]) == (LONGEST_LIST, f"... cut from {LONGEST_LIST + 5} entries")
    assert len(plain(dict.fromkeys(range(LONGEST_LIST + 5)))) == LONGEST_LIST


def test_what_refers_to_itself_ends() -> None:
    loop: list[object] = []
    loop.append(loop)
    deep, levels = plain(loop), 0
    while isinstance(deep, list):
        deep, levels = deep[0], levels + 1
    assert levels == DEEPEST
