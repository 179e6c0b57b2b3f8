"""Whether two runs are the same in every field, arrays bit for bit (any NaN equals any other)."""

import dataclasses

import numpy as np

from edgewatt.harness.api import Items, Run, Trace


def assert_same_array(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    if a.dtype == np.float64:
        assert np.array_equal(np.isnan(a), np.isnan(b))
        a, b = (np.where(np.isnan(x), np.nan, x).copy().view(np.int64) for x in (a, b))
    assert np.array_equal(a, b)


def assert_same_trace(a: Trace, b: Trace) -> None:
    assert (a.meter, a.clock, a.channels, dict(a.facts)) == (b.meter, b.clock, b.channels, dict(b.facts))
    assert_same_array(a.t_s, b.t_s)
    assert_same_array(a.values, b.values)


def assert_same_items(a: Items, b: Items) -> None:
    assert (a.names, a.parts) == (b.names, b.parts)
    for name in ("item", "picture", "phase", "part", "repeat", "start_s", "end_s"):
        assert_same_array(getattr(a, name), getattr(b, name))


def assert_same_run(a: Run, b: Run) -> None:
    """The outputs' contents are compared; where they lie is the store's choice."""
    assert len(a.traces) == len(b.traces)
    for x, y in zip(a.traces, b.traces, strict=True):
        assert_same_trace(x, y)
    assert_same_items(a.items, b.items)
    assert {k: p.read_bytes() for k, p in a.outputs.items()} == {k: p.read_bytes() for k, p in b.outputs.items()}
    for field in dataclasses.fields(Run):
        if field.name not in ("traces", "items", "outputs"):
            assert getattr(a, field.name) == getattr(b, field.name), field.name
