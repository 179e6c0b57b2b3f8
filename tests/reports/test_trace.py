import dataclasses
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from edgewatt.harness.api import Channel, Flag, Phase, UsageError
from edgewatt.reports import trace
from support.example_run import example_run
from support.hand_runs import bare_run, hand_run, trace_of
from support.pages import page, pdf_text

RAIL = Channel("VDD", "power", "W", "gauge", "the board", "board")
COUNTER = Channel("package-0", "energy", "J", "counter", "CPU package", "package")
WINDOW = Phase("window", 100.0, 110.0, 50)


def written(run, folder, form=".html"):
    path = folder / f"trace{form}"
    trace.write(run, path)
    return path


def shown(run, folder):
    return page(written(run, folder))


def fast(n=20_000):
    t = np.linspace(100, 110, n)
    return bare_run(phases=[WINDOW], traces=[trace_of(RAIL, t, 5 + np.sin(t))])


def test_phases_are_named_with_their_times(tmp_path):
    text = shown(fast(), tmp_path).text
    assert "window 0.000 10.000 window, repeat 1: 10 s, 50 items" in text


def test_every_panel_of_the_run_is_there(tmp_path):
    found = shown(hand_run(), tmp_path)
    words = [a["aria-label"] for _, a in found.tags if " over time: " in a.get("aria-label", "")]
    assert [w.split(" over")[0] for w in words] == [
        "Phases of the run", "Power", "Temperature", "Clock frequency", "Utilisation",
    ]  # fmt: skip
    assert "rapl: package-0 (CPU package)" in found.text


def test_counter_shown_as_power_says_so(tmp_path):
    t = np.arange(100.0, 110.0, 0.1)
    run = bare_run(phases=[WINDOW], traces=[trace_of(COUNTER, t, 5 * t)])
    assert "An energy counter is shown as power: the mean between two fresh readings" in shown(run, tmp_path).text


def test_thinned_lines_say_how_many_points_are_drawn(tmp_path):
    said = re.search(r"Drawn are (\d+) of 20000 points", shown(fast(), tmp_path).text)
    assert said
    assert 1000 < int(said[1]) <= 4000
    assert "Every point is drawn." in shown(fast(500), tmp_path).text


def test_page_of_millions_of_samples_stays_small(tmp_path):
    assert written(fast(2_000_000), tmp_path).stat().st_size < 1_600_000


def test_gaps_are_listed_with_their_times(tmp_path):
    t = np.concatenate([np.arange(100.0, 104.0, 0.1), np.arange(107.0, 110.0, 0.1)])
    run = bare_run(phases=[WINDOW], traces=[trace_of(RAIL, t, np.full(len(t), 5.0))])
    text = shown(run, tmp_path).text
    assert "3.900 m: VDD: no reading for 3.100 s" in text


def test_run_without_power_says_so(tmp_path):
    run = hand_run(with_power=False)
    text = shown(run, tmp_path).text
    assert "no joules: host has no power sensor that could be read" in text
    assert "Temperature" in text


def test_flags_stand_above_the_lines(tmp_path):
    text = shown(hand_run(flags=[Flag("throttled", (), "2.4 to 1.2 GHz", "health")]), tmp_path).text
    assert text.index("throttled: health") < text.index("Over time")


def test_run_without_samples_says_so(tmp_path):
    assert "This run left no samples to draw." in shown(bare_run(), tmp_path).text


def test_run_that_ended_badly_is_drawn_as_far_as_it_went(tmp_path):
    found = shown(example_run(1, error="hung"), tmp_path)
    assert "This run ended badly: hung" in found.text
    assert "Power over time" in " ".join(a.get("aria-label", "") for _, a in found.tags)


def test_text_of_a_device_is_text_on_the_page(tmp_path):
    evil = "<script>alert(1)</script>$$x$$<img src=x>"
    channel = dataclasses.replace(RAIL, name=evil, covers=evil)
    run = bare_run(
        phases=[dataclasses.replace(WINDOW, phase=evil)], traces=[trace_of(channel, [100, 101, 102], [1, 2, 3])]
    )
    found = shown(run, tmp_path)
    assert evil in found.text
    assert not [t for t, _ in found.tags if t == "img"]
    # What is drawn must not look like mathematics, for which a typesetter would be fetched.
    assert "$$" not in re.sub(r"<[^>]*>", "", written(run, tmp_path).read_text().rsplit("docs_json", 1)[1])


@pytest.mark.parametrize(
    "run", [fast(), hand_run(), hand_run(with_power=False), bare_run()], ids=["fast", "hand", "dark", "bare"]
)
def test_trace_on_paper_is_searchable_text(tmp_path, run):
    text = pdf_text(written(run, tmp_path, ".pdf"))
    assert run.id in text
    if run.traces:
        assert "Time since the run began (s)" in text
        assert "window" in text
    svg = " ".join(ElementTree.parse(written(run, tmp_path, ".svg")).getroot().itertext())
    assert run.id in svg


def test_trace_on_paper_without_power_says_so(tmp_path):
    assert "no joules: host has no power sensor" in pdf_text(written(hand_run(with_power=False), tmp_path, ".pdf"))


def test_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"found suffix '\.gif', wanted"):
        trace.write(fast(), tmp_path / "trace.gif")
