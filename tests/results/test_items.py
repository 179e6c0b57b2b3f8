"""Items in their file: every row and its tokens as they were, and files of the format before."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest

from edgewatt.harness.api import HarnessError, Items
from edgewatt.results import items
from edgewatt.results.plain import dumped

COLUMNS = ("item", "picture", "phase", "part", "repeat", "start_s", "end_s", "tokens")
TWO = Items(
    ("prefill", "decode"), np.array([0, 0, 0, 1, 1]), np.array([4, 4, 4, 2, 2]), np.array([0, 1, 1, 0, 1]),
    np.zeros(5, np.int64), np.zeros(5, np.int64), np.array([1.0, 2.0, 2.5, 4.0, 5.0]),
    np.array([2.0, 2.5, 3.0, 5.0, 5.000000001]), ("window",), np.array([180, 1, 1, 200, 0]),
)  # fmt: skip


def test_rows_and_tokens_come_back_as_they_were(tmp_path):
    items.write(TWO, tmp_path / "items.parquet")
    back = items.read(tmp_path / "items.parquet")
    assert (back.names, back.parts) == (TWO.names, TWO.parts)
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(back, column), getattr(TWO, column))


def written_as(path, number, columns):
    """The file with another number of its format and fewer columns."""
    table = pq.read_table(path)
    about = items.json.loads(table.schema.metadata[items.KEY]) | {"format": number}
    table = table.drop_columns([c for c in table.column_names if c not in columns])
    pq.write_table(table.replace_schema_metadata({items.KEY: dumped(about).encode()}), path)


def test_file_of_the_first_format_has_no_tokens(tmp_path):
    path = tmp_path / "items.parquet"
    items.write(dataclasses.replace(TWO, tokens=np.zeros(5, np.int64)), path)
    written_as(path, 1, ("item", "picture", "phase", "part", "repeat", "start_ns", "start_s", "end_ns", "end_s"))
    back = items.read(path)
    assert back.tokens.tolist() == [0] * 5
    np.testing.assert_array_equal(back.start_s, TWO.start_s)


def test_later_format_is_refused(tmp_path):
    path = tmp_path / "items.parquet"
    items.write(TWO, path)
    written_as(path, 3, pq.read_table(path).column_names)
    with pytest.raises(HarnessError, match="format 2 or older"):
        items.read(path)
