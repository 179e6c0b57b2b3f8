"""Phases of several steps, and tokens: how the Python agent takes them from a runner and tells of them."""

import itertools

import numpy as np
import pytest

from edgewatt.devices.agent.run import Batch, marking, steps_of
from edgewatt.harness.record import Record
from support.agents import agent_of, numbers

PHASES = ["vision", "prefill", "decode"]


def job(agent, **more):
    return {
        "runner": "support.fake_runner:Talker", "params": {"s": 0.002}, "item_count": 4, "item_phases": PHASES,
        "isolate": ["decode"], "folder": str(agent.folder / "outputs"), "repeats": 1, "idle_s": 0, "window_s": 0,
        "isolated_s": 0.02, "steady": {"max_s": 0}, **more,
    }  # fmt: skip


@pytest.fixture
def agent(tmp_path):
    return agent_of("python", tmp_path)


def test_marking_a_phase_again_begins_another_step():
    clock = itertools.count(100)
    stamps, marked, tokens = [], [], []
    mark = marking(lambda: next(clock), stamps, marked, tokens)
    mark("prefill", 7)
    mark("decode", 1)
    mark("decode", 1)
    assert (stamps, marked, tokens) == ([100, 101, 102], ["prefill", "decode", "decode"], [7, 1, 1])
    assert steps_of(marked, ["prefill", "decode"]) == [1, 2]


@pytest.mark.parametrize(
    ("marked", "said"),
    [([], "no phase"), (["a", "b", "a"], "a, b, a"), (["b", "b", "a"], "b, a"), (["a", "a"], "a")],
)
def test_phases_that_are_not_those_of_an_item_are_told_once_each(marked, said):
    with pytest.raises(ValueError, match=f"^the runner marked {said}; wanted a, b$"):
        steps_of(marked, ["a", "b"])


@pytest.mark.parametrize("tokens", [[1, -1], [1, 0.5], [1, "1"], [1, 2**70]])
def test_tokens_that_are_no_counts_leave_the_batch_as_it_was(tokens):
    batch = Batch()
    with pytest.raises(ValueError, match="wanted whole numbers"):
        batch.add(0, [1, 1], tokens, [1, 2, 3])
    assert not any(map(len, (batch.picture, batch.steps, batch.tokens, batch.marks)))


def test_items_of_one_row_a_phase_are_told_as_ever():
    batch = Batch()
    batch.add(5, [1, 1], [0, 0], [1, 2, 3])
    assert list(batch.told()) == ["picture", "marks_ns"]


def test_rows_of_a_run_are_the_steps_its_runner_took(agent):
    """Item k: 10 + k tokens of prompt, then k one by one; item 0 decodes none, in one row."""
    said = agent.events("run", job(agent))
    assert said[-1]["event"] == "end", said[-1]
    record = Record()
    for event in said:
        record.take(event)
    its = record.items
    window = its.part == its.parts.index("window")
    assert its.tokens[window].tolist() == [0, 10, 0, 0, 11, 1, 0, 12, 1, 1, 0, 13, 1, 1, 1]
    phases = [its.names[k] for k in its.phase[window]]
    assert phases == [p for k in range(4) for p in ("vision", "prefill", *["decode"] * max(k, 1))]
    lasted_s = (its.end_s - its.start_s)[window]
    assert (lasted_s[[k for k in range(15) if k != 2]] >= 0.002).all() and lasted_s[2] < 0.002
    # One step ends where the next begins.
    same = its.item[window][1:] == its.item[window][:-1]
    np.testing.assert_array_equal(its.end_s[window][:-1][same], its.start_s[window][1:][same])
    alone = its.part == its.parts.index("decode")
    assert its.tokens[alone].tolist() == [k % 4 for k in range(alone.sum())], "what run_phase says it worked on"


def test_heart_beats_with_the_tokens_of_a_long_item_and_its_step_alone_is_limited(agent):
    """Two items of 1.6 s, in steps of 0.05 s, under a limit of 1 s for a step."""
    params = {"s": 0.05, "steps": 30}
    said = agent.events("run", job(agent, params=params, item_count=2, isolate=[], item_limit_s=1))
    assert said[-1]["event"] == "end", said[-1]
    beats = [e for e in said if e["event"] == "alive" and e["phase"] == "window"]
    assert all(e["step_s"] < 1 for e in beats)
    assert any(10 < e.get("tokens", 0) < 10 + 1 + 30 for e in beats), "in the middle of an item"
    assert max(e["share"] for e in beats) > 0.5, "it goes on within an item: by items alone it would be 0 or 0.5"


def test_step_that_hangs_is_named(agent):
    params = {"s": 0.001, "hang_at": 2}
    said = agent.events("run", job(agent, params=params, item_limit_s=0.5))
    assert said[-1]["kind"] == "hung"
    assert said[-1]["message"].startswith("window: item 3, step 2 of decode, has been at work for")


def test_lines_of_many_steps_stay_short(agent):
    """Items of three rows each: so many that one event cannot hold them all in half a second."""
    batches = [e for e in agent.events("run", job(agent, params={"s": 0.0}, window_s=0.3)) if e["event"] == "items"]
    rows = [len(numbers(e["tokens"])) for e in batches if "tokens" in e]
    assert rows and max(rows) <= 16384 + 5
