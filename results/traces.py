"""Traces in Parquet, without loss and small.

Columns of one file: `t_ns` (integers, rising: where a window is found), and for each channel `counts:NAME` (integers
times a step) and `value:NAME` (what is not such a multiple, as it is). Null in both is a missing reading, NaN. `t_s`
holds the times that are not whole nanoseconds. Steps, channels, meter and facts stand in the metadata `edgewatt.trace`.

Sensors count in whole steps, and neighbouring counts are near one another: differences in as many bits as they need
(DELTA_BINARY_PACKED) and a light zstd store 20 million instants of 5 noisy rails in 170 MB, where the same numbers as
floats take 3 times that and more. Every value is decoded again before it is written; what does not come back bit for
bit goes into `value:`.

Format 1: the first.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from edgewatt.harness.api import Channel, Floats, HarnessError, Ints, Trace
from edgewatt.results.plain import dumped

FORMAT = 1
KEY = b"edgewatt.trace"
ROWS = 1 << 17  # of a row group: what a window must read at least, 2 minutes at 1 kHz
LARGEST_COUNT = 2.0**53  # beyond it a float cannot tell one count from the next
SI_STEPS = (1.0, 1e-3, 1e-6, 1e-9, 2.0**-14)  # kernels count in milli-, micro-, nano-; RAPL in 1/16384 J

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Step:
    """How counts become values: `count * size`, or `count / size` where the maker divides (the bits differ)."""

    size: float
    divides: bool = False

    def values(self, counts: Ints) -> Floats:
        combined: Floats = (np.divide if self.divides else np.multiply)(counts, self.size, dtype=np.float64)
        return combined

    def counts(self, values: Floats) -> tuple[Ints, Bools]:
        """The nearest counts, and for which of them the value comes back bit for bit."""
        with np.errstate(all="ignore"):
            near = np.rint(values * self.size if self.divides else values / self.size)
            near[~(np.abs(near) < LARGEST_COUNT)] = 0.0
            counts = near.astype(np.int64)
            return counts, self.values(counts).view(np.int64) == values.view(np.int64)


NANOSECONDS = (Step(1e9, divides=True), Step(1e-9))


def fitting_step(values: Floats, candidates: Iterable[Step]) -> Step | None:
    """The first candidate of which nearly all readings are multiples; None if there is none."""
    known = values[~np.isnan(values)][:: max(1, len(values) // 4096)]
    for step in candidates:
        if len(known) and np.mean(step.counts(known)[1]) >= 0.99:
            return step
    return None


def steps_of(channel: Channel) -> list[Step]:
    """Steps a channel may count in, the largest first: the fewer counts, the fewer bits."""
    sizes = {*SI_STEPS, channel.quantum or 1.0}
    steps = [(size, Step(size)) for size in sizes if size > 0 and math.isfinite(size)]
    steps += [(size, Step(round(1 / size), True)) for size, _ in steps if size < 1 and math.isfinite(1 / size)]
    return [step for _, step in sorted(steps, key=lambda s: -s[0])]


class TraceWriter:
    """A trace being written, chunk by chunk, in the memory of one row group. Whoever opens it closes it.

    After an exception inside `with`, the file is incomplete and of no use.
    """

    def __init__(
        self, path: Path, meter: str, clock: str, channels: Sequence[Channel], facts: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self.n = path, 0
        self._about = {"format": FORMAT, "meter": meter, "clock": clock, "facts": facts or {}}
        self._channels = tuple(channels)
        if len({c.name for c in channels}) < len(channels):
            raise HarnessError(f"{meter}: two channels have the same name ({', '.join(c.name for c in channels)})")
        self._waiting: list[tuple[Floats, Floats]] = []
        self._file: pq.ParquetWriter | None = None
        self._sink: pa.OSFile | None = None
        self._time: Step = NANOSECONDS[0]
        self._steps: tuple[Step | None, ...] = ()

    def append(self, t_s: Floats, values: Floats) -> None:
        """Further samples: t_s (n,), values (n, c). They are copied only where they have to wait."""
        if values.shape != (len(t_s), len(self._channels)):
            raise ValueError(
                f"values of shape {values.shape} for {len(t_s)} instants of {len(self._channels)} channels"
            )
        waiting = sum(len(t) for t, _ in self._waiting)
        while waiting + len(t_s) >= ROWS:
            taken = ROWS - waiting
            self._waiting.append((t_s[:taken], values[:taken]))
            self._write()
            t_s, values, waiting = t_s[taken:], values[taken:], 0
        if len(t_s):
            self._waiting.append((np.array(t_s, np.float64), np.array(values, np.float64)))

    def close(self) -> None:
        """The rest is written, and the file is whole."""
        try:
            if self._waiting or self._file is None:
                self._write()
            for file in (self._file, self._sink):
                if file is not None:
                    file.close()
        finally:
            self._let_go()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._let_go()

    def _let_go(self) -> None:
        """Nothing stays open; what went wrong once (a full disk) goes wrong again here, and has been told."""
        for file in (self._file, self._sink):
            with suppress(OSError):
                if file is not None:
                    file.close()

    def _write(self) -> None:
        """One row group of what waits."""
        c = len(self._channels)
        t_s = np.concatenate([np.empty(0), *(t for t, _ in self._waiting)])
        columns = [np.concatenate([np.empty(0), *(v[:, k] for _, v in self._waiting)]) for k in range(c)]
        self._waiting = []
        if self._file is None:
            self._open(t_s, columns)
        assert self._file is not None
        if not len(t_s):
            return
        arrays = _time_arrays(t_s, self._time)
        for values, step in zip(columns, self._steps, strict=True):
            arrays += _value_arrays(values, step)
        self._file.write_table(pa.Table.from_arrays(arrays, schema=self._file.schema), row_group_size=ROWS)
        self.n += len(t_s)

    def _open(self, t_s: Floats, columns: Sequence[Floats]) -> None:
        """The file begun: the first row group decides in which steps each column counts."""
        self._time = fitting_step(t_s, NANOSECONDS) or NANOSECONDS[0]
        self._steps = tuple(fitting_step(v, steps_of(c)) for v, c in zip(columns, self._channels, strict=True))
        about = self._about | {
            "channels": [dataclasses.asdict(c) for c in self._channels],
            "time": dataclasses.asdict(self._time),
            "steps": [dataclasses.asdict(s) if s else None for s in self._steps],
        }
        fields, delta, split = [("t_ns", pa.int64()), ("t_s", pa.float64())], ["t_ns"], ["t_s"]
        dictionary: list[str] = []
        for channel, values, step in zip(self._channels, columns, self._steps, strict=True):
            if step:
                fields.append((f"counts:{channel.name}", pa.int64()))
                delta.append(f"counts:{channel.name}")
            fields.append((f"value:{channel.name}", pa.float64()))
            # Few different floats (an ADC's, in a step nobody told us) are smallest as numbers of their own list.
            few = len(np.unique(values)) <= max(16, len(values) // 8)
            (dictionary if few else split).append(f"value:{channel.name}")
        encoding = dict.fromkeys(delta, "DELTA_BINARY_PACKED") | dict.fromkeys(split, "BYTE_STREAM_SPLIT")
        # Ours to close: Parquet's writer leaves a path open when it fails.
        self._sink = pa.OSFile(str(self.path), "wb")
        self._file = pq.ParquetWriter(
            self._sink,
            pa.schema(fields, metadata={KEY: dumped(about).encode()}),
            compression="zstd",
            compression_level=1,
            use_dictionary=dictionary,
            column_encoding=encoding,
            write_statistics=["t_ns"],
            write_page_checksum=True,
        )


def _time_arrays(t_s: Floats, step: Step) -> list[pa.Array]:
    """`t_ns`, never null, and `t_s` where it is not the same."""
    counts, exact = step.counts(t_s)
    return [pa.array(counts), exceptions(t_s, exact)]


def _value_arrays(values: Floats, step: Step | None) -> list[pa.Array]:
    """A channel's counts, if it has a step, and its values where they are no multiple of it. NaN is null in both."""
    if step is None:
        return [exceptions(values, np.isnan(values))]
    counts, exact = step.counts(values)
    return [pa.array(counts, mask=None if exact.all() else ~exact), exceptions(values, exact | np.isnan(values))]


def exceptions(values: Floats, elsewhere: Bools) -> pa.Array:
    if elsewhere.all():
        return pa.nulls(len(values), pa.float64())
    return pa.array(values, mask=elsewhere)


@dataclass(frozen=True)
class _File:
    """An open trace file and what its metadata say."""

    parquet: pq.ParquetFile
    about: Mapping[str, Any]

    @staticmethod
    @contextmanager
    def at(path: Path) -> Iterator[_File]:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            about = json.loads((parquet.schema_arrow.metadata or {}).get(KEY, b"{}"))
            if about.get("format", FORMAT + 1) > FORMAT:
                raise HarnessError(
                    f"{path}: not a trace of format {FORMAT} or older; upgrade edgewatt or check the file"
                )
            yield _File(parquet, about)

    def trace(self, groups: Sequence[int]) -> Trace:
        """The samples of some row groups."""
        metadata = self.parquet.metadata
        n = sum(metadata.row_group(g).num_rows for g in groups)
        channels = tuple(Channel(**c) for c in self.about["channels"])
        t_s, values = np.empty(n), np.empty((n, len(channels)))
        steps = [Step(**s) if s else None for s in self.about["steps"]]
        at = 0
        for g in groups:
            columns = self.parquet.read_row_group(g)
            rows = slice(at, at + len(columns))
            at += len(columns)
            t_s[rows] = joined(columns, "t_ns", "t_s", Step(**self.about["time"]))
            for k, (channel, step) in enumerate(zip(channels, steps, strict=True)):
                values[rows, k] = joined(columns, f"counts:{channel.name}", f"value:{channel.name}", step)
        return Trace(self.about["meter"], self.about["clock"], channels, t_s, values, self.about["facts"])

    def groups(self, start_s: float, end_s: float) -> list[int]:
        """The row groups that may hold samples of an interval."""
        metadata, found = self.parquet.metadata, []
        for g in range(metadata.num_row_groups):
            first = metadata.row_group(g).column(0).statistics
            # Times were rounded to whole nanoseconds.
            if first is None or (first.min / 1e9 <= end_s + 1e-6 and first.max / 1e9 >= start_s - 1e-6):
                found.append(g)
        return found


def joined(columns: pa.Table, counted: str, exact: str, step: Step | None) -> Floats:
    """A column put together again from its counts and its exceptions."""
    value = columns.column(exact).combine_chunks()
    if step is None:
        return _numpy(value, np.nan)
    count = columns.column(counted).combine_chunks()
    whole = step.values(_numpy(count, 0))
    if count.null_count:
        whole[~_numpy(count.is_valid(), False)] = np.nan
    if value.null_count < len(value):
        there = _numpy(value.is_valid(), False)
        whole[there] = _numpy(value, np.nan)[there]
    return whole


def _numpy(array: pa.Array, missing: float) -> npt.NDArray[Any]:
    return (array.fill_null(missing) if array.null_count else array).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def write(trace: Trace, path: Path) -> None:
    """A whole trace written to `path`."""
    with TraceWriter(path, trace.meter, trace.clock, trace.channels, trace.facts) as file:
        file.append(trace.t_s, trace.values)


def read(path: Path) -> Trace:
    """The whole trace in `path`, bit for bit as it was written (facts as JSON values)."""
    with _File.at(path) as file:
        return file.trace(range(file.parquet.metadata.num_row_groups))


def read_window(path: Path, start_s: float, end_s: float) -> Trace:
    """The samples from `start_s` to `end_s` (both included, on the trace's clock); only what holds them is read."""
    with _File.at(path) as file:
        near = file.trace(file.groups(start_s, end_s))
    inside = (near.t_s >= start_s) & (near.t_s <= end_s)
    return dataclasses.replace(near, t_s=near.t_s[inside], values=near.values[inside])
