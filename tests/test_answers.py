"""From a simulated sensor and a small network to the joules of each question, through the installed command."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgewatt.reports import answers
from edgewatt.results.store import Store
from support import sysfs_tree, tiny_vlm
from support.command import Command

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.needs_torch, pytest.mark.needs_shared]

WATTS = 10.0


def lengths_s(items, index):
    """How long each item of that input took in the window, from the stored rows of its phases."""
    here = (items.picture == index) & (items.part == items.parts.index("window"))
    each = [here & (items.item == k) for k in np.unique(items.item[here])]
    return [items.end_s[rows].max() - items.start_s[rows].min() for rows in each]


def test_every_question_has_its_joules_beside_its_answer(shared, tmp_path):
    """At a power that is constant a question costs 10 W by the time it took, and all of them what the windows did."""
    folder, case = tiny_vlm.mobilevlm(shared, tmp_path / "checkpoint")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(3):
        Image.new("RGB", (40 + 10 * k, 40), (80 * k, 90, 200)).save(pictures / f"{k}.png")
    tree = sysfs_tree.Tree(tmp_path / "sys")
    tree.rapl([sysfs_tree.Wave("constant", WATTS)])
    (tmp_path / "devices.toml").write_text(f'[devices.bench]\nkind = "host"\nsysfs = "{tree.root}"\nrate_hz = 200\n')
    settings = (
        f"weights={folder}", f"data={pictures}", f"question={case['question']}", "precision=fp32", "max_new_tokens=120",
        "ignore_eos=true", "threads=1", "repeats=1", "idle_s=0.5", "window_s=2.5", "isolated_s=0", "warmup_min_s=0.1",
        "warmup_max_s=0.5",
    )  # fmt: skip
    edgewatt = Command(tmp_path)
    with tree.live():
        run = edgewatt.json("run", "mobilevlm", "--device", "bench", "--set", *settings)
    assert run["error"] is None
    stored = Store(tmp_path / "runs", create=False).get(run["run"])
    found = answers.answers(stored)
    assert [r["id"] for r in found.rows] == ["0.png", "1.png", "2.png"]
    (window,) = [p for p in run["phases"] if p["phase"] == "window"]
    assert sum(r["items"] for r in found.rows) == window["items"]
    left = json.loads(Path(run["outputs"]["raw/answers.json"]).read_text())  # by the runner
    kept = {a["index"]: a for a in left["answers"]}
    for row in found.rows:
        assert row["answer"] == kept[row["index"]]["text"] and row["answer_tokens"] == 120
        assert row["prompt_tokens"] > 144 and row["stopped_by"] == "max_new_tokens"
        assert 0 < row["ttft_s"] < row["latency_s"]
    answers.write(found, tmp_path / "answers.csv")
    with (tmp_path / "answers.csv").open(newline="") as file:
        assert [r["id"] for r in csv.DictReader(file)] == ["0.png", "1.png", "2.png"]
    known = [(r, e) for r in found.rows for e in r["energy"] if e["energy_j"] is not None]
    took_s = {index: lengths_s(stored.items, index) for index in kept}
    for row, energy in known:
        assert len(took_s[row["index"]]) == row["items"]
        assert row["latency_s"] == pytest.approx(np.median(took_s[row["index"]]))
        assert energy["energy_j"] == pytest.approx(WATTS * np.mean(took_s[row["index"]]), rel=0.1)
    if len(known) < 3:  # so busy a machine that reads came late: that is told, and no number given
        assert any("of 3 inputs" in n for n in found.notes)
        return
    whole = sum(e["energy_j"] * r["items"] for r, e in known)
    bar = sum(e["uncertainty_j"] * r["items"] for r, e in known)
    least_j, most_j = WATTS * sum(map(sum, took_s.values())), WATTS * (window["end_s"] - window["start_s"])
    bar = max(bar, 0.02 * most_j)
    assert least_j - bar <= whole <= most_j + bar  # between two items a busy machine may do other things
