"""A model of tokens through everything: run by the agent, stored, read back, computed anew, exported, reported."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgewatt.devices.host import Host
from edgewatt.harness.api import Job, Score, Workload
from edgewatt.harness.measure import Protocol, measure, recompute
from edgewatt.reports import text, tradeoff
from edgewatt.results.export import export
from edgewatt.results.store import Store
from support import pages, sysfs_tree

STEP_S = 0.02  # of each phase and each token: at most 50 tokens a second are decoded
WATTS = 10.0
COSTS = {"prefill": {"macs": [0, 1e6, 0], "bytes": [0, 0, 0]}, "decode": {"macs": [0, 1e6, 10], "bytes": [1e6, 0, 100]}}


@dataclass(frozen=True)
class Talking(Workload):
    """Pictures 0 to 3: a prompt of 10 + k tokens, then k more one by one, each step `STEP_S` long."""

    name = "talking"

    def prepare(self, device):
        engine = {"costs": COSTS, "read_bandwidth_bytes_per_s": 1e9, "read_bandwidth_error_bytes_per_s": 1e7}
        params = {"s": STEP_S, "engine": engine}
        phases = ("vision", "prefill", "decode")
        return Job("support.fake_runner:Talker", params, 4, phases, isolate=("decode",))

    def score(self, outputs: Path, into: Path) -> Score:
        return Score()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a machine that draws 10 W whatever it does."""
    folder = tmp_path_factory.mktemp("tokens")
    tree = sysfs_tree.shaped(folder / "sys", "server", sysfs_tree.Wave("constant", WATTS / 1.5))
    quick = Protocol(repeats=2, idle_s=0.3, window_s=1.0, isolated_s=0.5, warmup_min_s=0.1, warmup_max_s=0.3)
    with tree.live():
        run = measure(Host(sysfs=str(tree.root)), Talking(), quick, folder / "into")
    assert run.error is None, run.error
    return run


def figure(run, metric, phase="window", meter=""):
    found = [m for m in run.measurements if (m.metric, m.phase, m.meter) == (metric, phase, meter)]
    assert len(found) == 1, f"{metric} of {phase}: {len(found)} found"
    return found[0]


def of_windows(run):
    """Picture of each item of the windows, by hand from the rows."""
    its = run.items
    rows = np.flatnonzero((its.part == its.parts.index("window")) & (its.phase == its.names.index("vision")))
    return its.picture[rows]


def test_tokens_are_counted_and_every_figure_is_there(run):
    pictures = of_windows(run)
    n, decoded = len(pictures), int(pictures.sum())
    assert n >= 8 and pictures[:4].tolist() == [0, 1, 2, 3]
    assert figure(run, "prefill_tokens").value == pytest.approx(10 + decoded / n)
    assert figure(run, "decode_tokens").value == pytest.approx(decoded / n)
    assert figure(run, "decode_tokens_per_s").n == figure(run, "tpot_s").n == decoded
    assert figure(run, "decode_tokens_per_s").value <= 1 / STEP_S
    assert figure(run, "tpot_s").value >= STEP_S
    assert figure(run, "ttft_s").value >= 2 * STEP_S
    # Contexts after each step of decode of picture k: 10 + k + 1 ... 10 + 2 k.
    contexts = sum(10 + k + j for k in pictures for j in range(1, k + 1))
    assert figure(run, "macs_per_inference", "decode").value == pytest.approx((1e6 * decoded + 10 * contexts) / n)
    assert figure(run, "bytes_per_token", "decode").value == pytest.approx(1e6 + 100 * contexts / decoded)
    bandwidth = figure(run, "bandwidth_bytes_per_s", "decode").value
    assert figure(run, "bandwidth_utilisation", "decode").value == pytest.approx(bandwidth / 1e9)


def test_phases_and_tokens_make_up_the_time_of_an_item(run):
    """T = T_VE + N_prompt / S_prompt + N_gen / S_gen (Imp, Table 4), each from a figure of its own."""
    its = run.items
    window = its.part == its.parts.index("window")
    vision_s = (its.end_s - its.start_s)[window & (its.phase == its.names.index("vision"))].mean()
    prefill, decode = (
        figure(run, f"{p}_tokens").value / figure(run, f"{p}_tokens_per_s").value for p in ("prefill", "decode")
    )
    n = len(of_windows(run))
    whole_s = (its.end_s - its.start_s)[window].sum() / n
    assert vision_s + prefill + decode == pytest.approx(whole_s, rel=0.01)


def test_energy_of_a_token_is_the_power_by_its_time(run):
    """Of decode looped alone, with 0, 1, 2, 3 tokens by turns in each of its two stretches."""
    m = figure(run, "energy_per_token_j", "decode", "rapl")
    alone = [p for p in run.phases if p.phase == "decode"]
    assert m.n == sum(k % 4 for p in alone for k in range(p.items))
    assert m.value == pytest.approx(WATTS * sum(p.duration_s for p in alone) / m.n, rel=0.05)


def test_stored_run_gives_the_same_figures_again(run, tmp_path):
    store = Store(tmp_path / "runs")
    store.add(run)
    back = store.get(run.id)
    for column in ("item", "picture", "phase", "part", "repeat", "tokens"):
        np.testing.assert_array_equal(getattr(back.items, column), getattr(run.items, column))
    again = recompute(back, Talking(), tmp_path / "again")
    assert again.measurements == run.measurements
    assert again.flags == run.flags
    out = io.StringIO()
    export(store, [run.id], "csv", out)
    rows = {(r["metric"], r["phase"]): r for r in csv.DictReader(io.StringIO(out.getvalue()))}
    assert float(rows["decode_tokens_per_s", "window"]["value"]) == figure(run, "decode_tokens_per_s").value
    assert rows["energy_per_token_j", "decode"]["unit"] == "J"


def test_reports_show_what_a_language_model_is_asked_for(run, tmp_path):
    said = text.summary(run)
    for words in ("Time to first token, median", "Decoding speed", "tokens/s", "Energy per token"):
        assert words in said
    tradeoff.write([run], tmp_path / "one.html")
    one = pages.page(tmp_path / "one.html").text
    for words in ("Time to first token, median", "Decoding speed", "Energy per token decoded", "FLOP/s"):
        assert words in one
    tradeoff.write([run, run], tmp_path / "two.html")
    two = pages.page(tmp_path / "two.html").text
    for words in ("Time to first token, median", "Prefill speed", "Decoding speed", "Energy per token"):
        assert words in two
    tradeoff.write([run], tmp_path / "one.svg")
