import dataclasses

from edgewatt.reports import listing
from edgewatt.results.store import Row


def test_list_of_runs_is_a_line_each_with_its_state():
    row = Row("20260101T000000-aa", "2026-01-01T00:00:00Z", "host", "femtodet", {"size": 416}, "", (), (), "", 0)
    bad = dataclasses.replace(row, id="b", error="out_of_memory")
    void = dataclasses.replace(row, id="c", flags=("gap", "few_samples"), voids=("energy_j",))
    lines = listing.table([row, bad, void]).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "run date workload device parameters state",
        "20260101T000000-aa 2026-01-01T00:00:00 femtodet host size=416 valid",
        "b 2026-01-01T00:00:00 femtodet host size=416 ended badly: out of memory",
        "c 2026-01-01T00:00:00 femtodet host size=416 void in part: gap, few samples",
    ]


def test_empty_list_says_so():
    assert listing.table([]) == "no runs"
