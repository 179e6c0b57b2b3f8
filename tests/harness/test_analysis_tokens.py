"""Tokens, their times, their energy and their cost, against counts by hand."""

import dataclasses

import numpy as np
import pytest

from edgewatt.harness.analysis import analyse
from edgewatt.harness.analysis_tokens import decode_rate_at
from edgewatt.harness.api import Items, Phase, Trace
from edgewatt.harness.flags import TOKEN_METRICS
from support import made_run as made

NAMES = ("vision", "prefill", "decode")
VISION_S, PREFILL_S, STEP_S = 0.2, 0.5, 0.04
PROMPT, STEPS = 180, 12
ITEM_S = VISION_S + PREFILL_S + STEPS * STEP_S  # 1.18 s


def spoken(windows, prompt=PROMPT, part="window"):
    """Items one after the other from 100 s on, 1 s between two windows: each the lengths of its steps of decode."""
    rows, phases, now = [], [], 100.0
    for repeat, items in enumerate(windows):
        start = now
        for k, steps in enumerate(items):
            # An item that decodes nothing marks the phase all the same.
            whole = [(0, 0, VISION_S), (1, prompt, PREFILL_S), *((2, 1, s) for s in steps)]
            for phase, tokens, seconds in [*whole, *([(2, 0, 1e-6)] if not len(steps) else [])]:
                rows.append((k, phase, repeat, now, now + seconds, tokens))
                now += seconds
        phases.append(Phase(part, start, now, len(items), repeat))
        now += 1.0
    item, phase, repeat, start_s, end_s, tokens = (np.array(c) for c in zip(*rows, strict=True))
    zero = np.zeros(len(item), np.int64)
    return phases, Items(NAMES, item, item, phase, zero, repeat, start_s, end_s, (part,), tokens)


def found(windows, engine=None, **more):
    phases, items = spoken(windows, **more)
    return analyse(made.run(phases, its=items, engine=engine or {}))


ALIKE = [[[STEP_S] * STEPS] * 10] * 2


def value(measurements, metric, phase="window"):
    m = made.one(measurements, metric, phase)
    return m.value, m.unit, m.n


def test_times_and_speeds_of_items_that_are_all_alike():
    each, _, _ = found(ALIKE)
    assert value(each, "ttft_s") == (pytest.approx(0.7), "s", 20)  # picture, then prompt
    assert value(each, "ttft_p90_s")[0] == value(each, "ttft_p99_s")[0] == pytest.approx(0.7)
    assert value(each, "vision_s") == (pytest.approx(0.2), "s", 20)
    assert value(each, "tpot_s") == (pytest.approx(0.04), "s", 240)
    assert value(each, "prefill_tokens_per_s") == (pytest.approx(360), "1/s", 3600)
    assert value(each, "decode_tokens_per_s") == (pytest.approx(25), "1/s", 240)
    assert value(each, "prefill_tokens") == (180, "1", 20)
    assert value(each, "decode_tokens") == (12, "1", 20)
    for metric in ("ttft_s", "tpot_s", "prefill_tokens_per_s", "decode_tokens_per_s"):
        assert made.one(each, metric).uncertainty == pytest.approx(0, abs=1e-9)


def test_phases_of_an_item_with_steps_make_up_the_whole_item():
    each, _, _ = found(ALIKE)
    assert value(each, "latency_s") == (pytest.approx(ITEM_S), "s", 20)
    assert value(each, "latency_s", "decode") == (pytest.approx(0.48), "s", 20)
    assert value(each, "latency_s", "prefill") == (pytest.approx(0.5), "s", 20)
    # The Imp paper's Table 4: T = T_VE + N_prompt / S_prompt + N_gen / S_gen.
    one = {m.metric: m.value for m in each if m.phase == "window"}
    total = one["vision_s"] + one["prefill_tokens"] / one["prefill_tokens_per_s"]
    total += one["decode_tokens"] / one["decode_tokens_per_s"]
    assert total == pytest.approx(one["latency_s"])


def test_item_that_decodes_nothing_counts_as_an_item_and_its_step_as_none():
    each, _, _ = found([[[STEP_S] * 4, [], [STEP_S] * 5]])
    assert value(each, "decode_tokens") == (3, "1", 3)
    assert value(each, "decode_tokens_per_s") == (pytest.approx(25), "1/s", 9)
    assert value(each, "tpot_s") == (pytest.approx(0.04), "s", 9)
    assert value(each, "ttft_s")[2] == 3


def test_interval_of_a_speed_is_that_of_items_not_of_steps():
    """Twenty items of 100 steps, half of them twice as slow: seconds an item are 4 or 8, so their mean of 6 is known
    within t(19) x 2 sqrt(20 / 19) / sqrt(20) = 0.96, and 100 / 6 tokens a second within 16 %."""
    each, _, _ = found([[[s] * 100 for s in (0.04, 0.08) * 10]])
    m = made.one(each, "decode_tokens_per_s")
    assert m.value == pytest.approx(100 / 6)
    assert m.uncertainty == pytest.approx(0.16 * 100 / 6, rel=0.1)


def test_repeats_that_differ_widen_the_interval():
    rng = np.random.default_rng(5)
    alike = [[STEP_S * (1 + 0.01 * rng.random(20)) for _ in range(10)] for _ in range(3)]
    apart = [[s * (1 + 0.1 * k) for s in items] for k, items in enumerate(alike)]
    for metric in ("decode_tokens_per_s", "tpot_s"):
        narrow, wide = (made.one(found(w)[0], metric) for w in (alike, apart))
        assert narrow.uncertainty < 0.01 * narrow.value
        # Repeats 10 % apart: t(2) x 10 % / sqrt(3) = 25 %.
        assert wide.parts["repeats"] == pytest.approx(0.25 * wide.value, rel=0.15)


def test_one_item_says_nothing_of_its_spread():
    each, flags, _ = found([[[STEP_S] * STEPS]])
    assert made.one(each, "decode_tokens_per_s").uncertainty is None
    assert made.one(each, "tpot_s").uncertainty is None
    voids = {v for f in flags for v in f.voids if f.flag == "few_samples"}
    # A median needs 6 values, a 90 % quantile 36: there are 12 steps, and one item.
    assert {"ttft_s", "ttft_p90_s", "tpot_p90_s"} <= voids
    assert not {"tpot_s", "decode_tokens_per_s"} & voids


def test_run_without_tokens_has_none_of_these_figures():
    each, _, _ = analyse(made.run(made.phases()))
    assert not {m.metric for m in each} & {*TOKEN_METRICS, "prefill_tokens", "energy_per_token_j", "macs_per_inference"}


def test_phase_in_which_items_differ_in_kind_has_no_time_but_a_word():
    """Of items half of which have no picture, a median of `vision` would be that of none of them."""
    each, _, warnings = found(ALIKE, {"uneven": {"vision": "questions have 0 or 1 pictures"}})
    of_vision = {(m.metric, m.phase) for m in each if "vision" in (m.phase, m.metric.removesuffix("_s"))}
    assert of_vision == set()
    (said,) = [w for w in warnings if w.startswith("vision: ")]
    assert "questions have 0 or 1 pictures" in said
    assert value(each, "latency_s", "prefill") == (pytest.approx(0.5), "s", 20)
    assert value(each, "ttft_s")[0] == pytest.approx(0.7)
    for nonsense in (["vision"], "vision", 3, None):
        assert value(found(ALIKE, {"uneven": nonsense})[0], "vision_s")[0] == pytest.approx(0.2)


# ---------------------------------------------------------------------------------------------------------------------
# Speed at a position


def test_speed_of_decode_at_a_position():
    """Step j takes 40 + 0.1 j ms. Around 32, on average 43.2 ms; around 256, 65.6 ms; the prompt does not count."""
    steps = 0.04 + 0.0001 * np.arange(1, 301)
    _, items = spoken([[steps, steps[:40]], [steps]])
    near, far = (decode_rate_at(items, position, 8) for position in (32, 256))
    assert (near.value, near.n) == (pytest.approx(1 / 0.0432), 3)
    assert (far.value, far.n) == (pytest.approx(1 / 0.0656), 2)
    assert near.width == pytest.approx(0, abs=1e-9)
    assert decode_rate_at(items, 400, 8) is None
    assert decode_rate_at(Items.none(), 32, 8) is None


# ---------------------------------------------------------------------------------------------------------------------
# Work

COSTS = {
    "vision": {"macs": [7e9, 0, 0], "bytes": [1e9, 0, 0]},
    "prefill": {"macs": [1e6, 2e6, 10], "bytes": [1e8, 5, 2000]},
    "decode": {"macs": [0, 2e6, 10], "bytes": [1e8, 5, 2000]},
}
# 1e6 + 2e6 x 180 + 10 x 180 x 180 in a prefill; after it contexts of 181 to 192 tokens, together 2238.
PREFILL_MACS, DECODE_MACS, DECODE_BYTES = 361_324_000, 12 * 2e6 + 10 * 2238, 12 * (1e8 + 5) + 2000 * 2238


def test_work_of_each_phase_is_what_its_steps_cost():
    each, _, _ = found(ALIKE, {"costs": COSTS})
    assert value(each, "macs_per_inference", "vision") == (7e9, "MAC", 20)
    assert value(each, "macs_per_inference", "prefill") == (PREFILL_MACS, "MAC", 20)
    assert value(each, "macs_per_inference", "decode") == (DECODE_MACS, "MAC", 20)
    assert value(each, "macs_per_inference") == (7e9 + PREFILL_MACS + DECODE_MACS, "MAC", 20)
    assert made.one(each, "macs_per_inference").uncertainty is None
    assert value(each, "flops_per_s", "vision") == (pytest.approx(2 * 7e9 / 0.2), "FLOP/s", 20)
    assert value(each, "flops_per_s", "prefill") == (pytest.approx(2 * PREFILL_MACS / 0.5), "FLOP/s", 20)
    assert value(each, "flops_per_s", "decode") == (pytest.approx(2 * DECODE_MACS / 0.48), "FLOP/s", 20)
    assert value(each, "bytes_per_token", "decode") == (pytest.approx(DECODE_BYTES / 12), "B", 240)
    assert value(each, "bandwidth_bytes_per_s", "decode") == (pytest.approx(DECODE_BYTES / 0.48), "B/s", 20)


def test_bandwidth_utilisation_is_against_the_measured_read_bandwidth():
    facts = {"read_bandwidth_bytes_per_s": 5e9, "read_bandwidth_error_bytes_per_s": 1e8}
    each, _, warnings = found(ALIKE, {"costs": COSTS, **facts})
    m = made.one(each, "bandwidth_utilisation", "decode")
    assert m.value == pytest.approx(DECODE_BYTES / 0.48 / 5e9)  # 0.5019
    assert m.uncertainty == pytest.approx(0.02 * m.value)  # the steps are all alike
    assert made.one(each, "read_bandwidth_bytes_per_s", "run").uncertainty == 1e8
    assert not any("fetched" in w for w in warnings)


def test_more_than_memory_can_give_is_told():
    _, _, warnings = found(ALIKE, {"costs": COSTS, "read_bandwidth_bytes_per_s": 2e9})
    assert any("decode fetched 2.51e+09 B/s" in w for w in warnings)


def test_no_number_where_a_fact_is_missing():
    each, _, _ = found(ALIKE, {"costs": {"decode": {"macs": [0, 2e6, 10]}}})
    assert ("flops_per_s", "decode") in made.names(each)
    absent = {"bandwidth_bytes_per_s", "bandwidth_utilisation", "bytes_per_token", "read_bandwidth_bytes_per_s"}
    assert not absent & {m.metric for m in each}
    assert ("flops_per_s", "vision") not in made.names(each)


def test_step_that_decodes_nothing_does_no_work():
    costs = {"decode": {"macs": [5e6, 2e6, 10], "bytes": [1e8, 0, 0]}}
    each, _, _ = found([[[STEP_S] * 2, []]], {"costs": costs})
    # Two steps, contexts of 181 and 182 tokens; two items.
    assert value(each, "macs_per_inference", "decode")[0] == (2 * (5e6 + 2e6) + 10 * (181 + 182)) / 2
    assert value(each, "bytes_per_token", "decode")[0] == 1e8
    none, _, _ = found([[[], []]], {"costs": costs})
    assert "flops_per_s" not in {m.metric for m in none}


@pytest.mark.parametrize(
    "costs",
    ["much", {"decode": 3}, {"decode": {"macs": [1, 2]}}, {"decode": {"macs": [1, 2, "3"]}},
     {"decode": {"macs": [1, 2, -3]}}, {"decode": {"macs": [1, 2, float("nan")]}}],
)  # fmt: skip
def test_costs_that_make_no_sense_are_left_out_with_a_word(costs):
    each, _, warnings = found(ALIKE, {"costs": costs})
    assert "flops_per_s" not in {m.metric for m in each}
    assert any("costs that make no sense" in w for w in warnings)


# ---------------------------------------------------------------------------------------------------------------------
# Energy

WATTS = {"vision": 15.0, "prefill": 20.0, "decode": 8.0}


def counter(phases, items, rate_hz, idle_w=2.0):
    """The counter of a device that draws `idle_w` wherever no step runs, else what its phase draws."""
    edges = np.array([phases[0].start_s - 5, *np.column_stack([items.start_s, items.end_s]).ravel(),
                      phases[-1].end_s + 5])  # fmt: skip
    watts = np.full(len(edges) - 1, idle_w)
    watts[1::2] = [WATTS[items.names[k]] for k in items.phase]
    joules = np.concatenate([[0.0], np.cumsum(np.diff(edges) * watts)])
    t_s = np.arange(edges[0], edges[-1], 1 / rate_hz)
    return Trace("rapl", "boottime", (made.counter(),), t_s, np.interp(t_s, edges, joules)[:, None], {})


def test_energy_of_a_token_is_that_of_its_phase_by_its_tokens():
    phases, items = spoken(ALIKE)
    each, _, _ = analyse(made.run(phases, [counter(phases, items, 1000)], items))
    m = made.one(each, "energy_per_token_j", "window/decode")
    assert (m.value, m.n) == (pytest.approx(8 * 0.04, rel=2e-3), 240)
    assert abs(m.value - 8 * 0.04) < m.uncertainty
    assert made.one(each, "energy_per_token_j", "window/prefill").value == pytest.approx(20 * 0.5 / 180, rel=2e-3)
    assert ("energy_per_token_j", "window/vision") not in made.names(each)
    assert made.one(each, "energy_per_inference_j", "window/decode").value == pytest.approx(8 * 0.48, rel=2e-3)


def test_meter_slower_than_a_token_still_sees_the_decode_of_an_item():
    """A reading every 20 ms: 20 of them fit into the 480 ms of a decode, two into a token."""
    phases, items = spoken(ALIKE)
    each, _, _ = analyse(made.run(phases, [counter(phases, items, 50)], items))
    m = made.one(each, "energy_per_token_j", "window/decode")
    assert m.n == 240 and "20 slices of 2 windows" in m.method
    assert abs(m.value - 8 * 0.04) < m.uncertainty < 0.05 * m.value
    assert made.one(each, "energy_j", "window/decode").n == 20


def test_energy_of_a_token_of_a_phase_looped_alone():
    """Decode of 12 tokens in 0.48 s at 8 W, ten times: 38.4 J for 120 tokens, 28.8 J of them above idle."""
    rows = np.arange(10)
    start = 110.0 + 0.48 * rows
    zero = np.zeros(10, np.int64)
    items = Items(NAMES, rows, rows, zero + 2, zero, zero, start, start + 0.48, ("decode",), zero + 12)
    phases = [Phase("idle", 100.0, 108.0), Phase("decode", 110.0, 114.8, 10), Phase("idle", 116.0, 124.0)]
    each, _, _ = analyse(made.run(phases, [counter(phases, items, 1000)], items))
    assert value(each, "energy_per_token_j", "decode") == (pytest.approx(38.4 / 120, rel=1e-3), "J", 120)
    assert value(each, "energy_per_token_net_j", "decode") == (pytest.approx(28.8 / 120, rel=1e-3), "J", 120)
    assert value(each, "energy_per_inference_j", "decode") == (pytest.approx(3.84, rel=1e-3), "J", 10)
    m = made.one(each, "energy_per_token_j", "decode")
    per_item = made.one(each, "energy_per_inference_j", "decode")
    assert m.uncertainty == pytest.approx(per_item.uncertainty / 12)


def test_items_given_without_tokens_have_none():
    phases, items = spoken(ALIKE)
    bare = dataclasses.replace(items, tokens=np.empty(0, np.int64))
    assert bare.tokens.tolist() == [0] * len(items)
    each, _, _ = analyse(made.run(phases, its=bare))
    assert "decode_tokens_per_s" not in {m.metric for m in each}
    assert made.one(each, "latency_s", "decode").value == pytest.approx(0.48)


def test_tokens_of_other_rows_are_refused():
    _, items = spoken(ALIKE)
    with pytest.raises(ValueError, match="3 rows of tokens, wanted"):
        dataclasses.replace(items, tokens=np.ones(3, np.int64))
