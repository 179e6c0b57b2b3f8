"""Per-item times in Parquet: one row per (item, phase, step), whole nanoseconds where they are, floats where not.

Format 1: the first, one row per (item, phase). 2: `tokens`, and several steps of a phase.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edgewatt.harness.api import HarnessError, Items
from edgewatt.results.plain import dumped
from edgewatt.results.traces import NANOSECONDS, ROWS, Step, exceptions, fitting_step, joined

FORMAT = 2
KEY = b"edgewatt.items"
INTEGERS = ("item", "picture", "phase", "part", "repeat", "tokens")
TIMES = ("start", "end")


def write(items: Items, path: Path) -> None:
    """All items written to `path`."""
    names = list(INTEGERS)
    arrays = [pa.array(np.asarray(getattr(items, k), np.int64)) for k in INTEGERS]
    step = fitting_step(np.concatenate([items.start_s, items.end_s]), NANOSECONDS) or NANOSECONDS[0]
    for k in TIMES:
        seconds = np.asarray(getattr(items, f"{k}_s"), np.float64)
        counts, exact = step.counts(seconds)
        arrays += [pa.array(counts), exceptions(seconds, exact)]
        names += [f"{k}_ns", f"{k}_s"]
    about = {"format": FORMAT, "names": items.names, "parts": items.parts, "size": step.size, "divides": step.divides}
    table = pa.Table.from_arrays(arrays, names=names).replace_schema_metadata({KEY: dumped(about).encode()})
    integers = [n for n in names if not n.endswith("_s")]
    pq.write_table(
        table,
        path,
        row_group_size=ROWS,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        column_encoding=dict.fromkeys(integers, "DELTA_BINARY_PACKED"),
        write_page_checksum=True,
    )


def read(path: Path) -> Items:
    """All items in `path`, as they were written."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        about = json.loads((file.schema_arrow.metadata or {}).get(KEY, b"{}"))
        if about.get("format", FORMAT + 1) > FORMAT:
            raise HarnessError(
                f"{path}: not item times of format {FORMAT} or older; upgrade edgewatt or check the file"
            )
        table = file.read()
    step = Step(about["size"], about["divides"])
    columns = {k: table.column(k).to_numpy() for k in INTEGERS if k in table.column_names}
    columns |= {f"{k}_s": joined(table, f"{k}_ns", f"{k}_s", step) for k in TIMES}
    return Items(names=tuple(about["names"]), parts=tuple(about["parts"]), **columns)
