"""The published figures that ship with the package: every row sound, every known contradiction told."""

import csv
import shutil
from pathlib import Path

import pytest

from edgewatt import reports
from edgewatt.harness.api import HarnessError, UsageError
from edgewatt.reports import published_data
from edgewatt.reports.published_data import QUANTITIES, load, notes_of

HOME = Path(reports.__file__).parent
PRINTED = ("system", "variant", "device", "processor", "backend", "precision", "metric", "value", "unit", "source")


def row(key):
    return next(f for f in load() if f.key == key)


def found(value, metric, **printed):
    """The one row with that value and original name of metric."""
    same = [f for f in load() if f.printed["metric"] == metric and float(f.printed["value"]) == value]
    for column, text in printed.items():
        same = [f for f in same if text in f.printed[column]]
    (only,) = same
    return only


def test_every_row_has_a_source_and_its_original_name():
    assert len(load()) == 148 + 209 + 379
    for f in load():
        assert f.printed["source"].strip(), f.key
        assert f.printed["metric"].strip(), f.key
        assert tuple(f.printed) == PRINTED


@pytest.mark.needs_shared
@pytest.mark.parametrize("system", published_data.SYSTEMS)
def test_rows_are_those_that_were_collected_unchanged(shared, system):
    with (shared / f"data/published/{system}.csv").open(newline="") as file:
        collected = list(csv.DictReader(file))
    ours = [dict(f.printed) for f in load() if f.topic == system]
    assert ours == collected


# Contradictions named in the sources' own reading (shared/specs: mobilevlm.md 11, imp.md 18, femtodet.md 8), by hand:
# note, value and metric of one side, of the other.
CONFLICTS = [
    ("sqa-readme-paper", (57.3, "acc_sqa_img"), (54.7, "acc_sqa_img")),
    ("sqa-readme-paper", (61.2, "acc_sqa_img"), (61.0, "acc_sqa_img")),
    ("sd888-paper-doc", (6.82, "vision_encode_per_patch"), (21148.71, "vision_encode_time")),
    ("sd888-paper-doc", (6.82, "vision_encode_per_patch"), (21149.51, "vision_encode_time")),
    ("sd888-paper-doc", (21.54, "decode_rate"), (14.12, "decode_rate")),
    ("sd888-paper-doc", (21.54, "decode_rate"), (14.07, "decode_rate")),
    ("v2-3b-orin-rate", (30.8, "end_to_end_rate", {"variant": "V2-3B"}), (8.38, "total_time")),
    ("oneplus-total", (22799.1, "total_time_ms"), (35, "end_to_end_latency_text")),
    ("oneplus-total", (22.7991, "total_latency"), (35, "end_to_end_latency_text")),
    ("oneplus-power", (3.5, "peak_power"), (57, "rail_current")),
    ("oneplus-power", (3.5, "power_peak_about"), (57, "rail_current")),
    ("imp2b-vizwiz", (39.16, "accuracy_VizWiz"), (39.6, "accuracy_VizWiz")),
    ("imp2b-mmbench", (56.95, "accuracy_MMBench-dev"), (63.8, "accuracy_MMBench-dev")),
    ("imp3b-pope", (88.87, "accuracy_POPE"), (88.0, "accuracy_POPE")),
    ("femtodet-ap50", (46.3, "accuracy_AP50_VOC", {"source": "v5 abstract"}), (46.5, "accuracy_AP50_VOC")),
    ("778g-latest-slow", (18728.52, "vision_encode_time"), (288268.88, "vision_encode_time")),
    ("sd888-two-papers", (12.21, "decode_rate"), (8.15, "generation_rate")),
]


@pytest.mark.parametrize(("note", "a", "b"), CONFLICTS)
def test_contradiction_is_told_on_both_sides(note, a, b):
    one, other = (found(x[0], x[1], **(x[2] if len(x) > 2 else {})) for x in (a, b))
    assert other.key in one.conflicts_with
    assert one.key in other.conflicts_with
    for f in (one, other):
        assert (note, "conflict") in [(n.name, n.kind) for n in f.notes]


# Doubts and definitions named there, and a row each of them must be tied to.
NOTES = [
    ("average-rounding", "doubt", (72.1, "avg6", {"source": "README"})),
    ("second-hand-v2", "doubt", (51.63, "end_to_end_rate")),
    ("end-to-end-rate", "definition", (51.63, "end_to_end_rate")),
    ("patch-definition", "definition", (6.82, "vision_encode_per_patch")),
    ("llamacpp-load", "definition", (23574.72, "load_time")),
    ("paper-total", "definition", (18.51, "total_time")),
    ("oneplus-paper", "doubt", (9989.0, "image_decode_time")),
    ("oneplus-stages", "doubt", (15300.2, "prompt_eval_time")),
    ("oneplus-memory", "doubt", (5.1, "memory_used")),
    ("oneplus-gpu-words", "doubt", (0, "gpu_busy")),
    ("nf4-slower", "context", (1.399, "warm_latency_min")),
    ("mobilevlm-576-tokens", "doubt", (22.23, "total_latency")),
    ("imp-equation1", "doubt", (70.12, "total_latency")),
    ("imp-table4-setup", "doubt", (12.73, "generation_rate")),
    ("imp-abstract-13", "rounding", (13, "decode_rate")),
    ("imp-storage", "doubt", (1.9, "storage_size")),
    ("mlc-imp-encoding", "definition", (18.0, "image_encoding_time")),
    ("mlc-imp-power", "doubt", (1.3, "power_mean_about")),
    ("collected-twice", "duplicate", (2.3344, "model_load_time")),
    ("femtodet-power-method", "doubt", (64.47, "throughput")),
    ("femtodet-device-changed", "context", (7.83, "power")),
    ("femtodet-params-form", "definition", (68.77, "params")),
    ("femtodet-ap50-protocol", "definition", (45.7, "accuracy_AP50_VOC")),
    ("femtodet-port", "context", (45.7, "accuracy_AP50_VOC")),
    ("second-hand-femtodet", "doubt", (12.5, "energy change")),
    ("drivevlm-architecture", "context", (117.4, "decode_rate")),
]


@pytest.mark.parametrize(("name", "kind", "where"), NOTES)
def test_doubt_is_tied_to_its_row(name, kind, where):
    f = found(where[0], where[1], **(where[2] if len(where) > 2 else {}))
    assert (name, kind) in [(n.name, n.kind) for n in f.notes]


def test_values_are_in_si_units():
    assert found(21148.71, "vision_encode_time").value == pytest.approx(21.14871)
    assert found(56.1, "acc_gqa", source="README").value == pytest.approx(0.561)
    assert found(68.77, "params").value == pytest.approx(68_770)
    assert found(57, "rail_current").value == pytest.approx(0.057)
    assert found(3348242432, "tensor_bytes").value == 3348242432
    assert found(1.9, "storage_size").value == pytest.approx(1.9e9)


def test_what_was_rounded_is_half_a_unit_of_the_last_digit():
    assert found(56.1, "acc_gqa", source="README").rounding == pytest.approx(0.0005)
    assert found(21.54, "decode_rate").rounding == pytest.approx(0.005)
    assert found(13, "decode_rate").rounding == pytest.approx(0.5)


def test_a_name_of_ours_for_every_way_it_is_printed():
    for printed in ("decode_rate", "generation_rate", "decode_rate_headline"):
        assert {f.quantity for f in load() if f.printed["metric"] == printed} == {"decode_tokens_per_s"}
    for printed in ("acc_sqa_img", "accuracy_SQA-IMG"):
        assert {f.quantity for f in load() if f.printed["metric"] == printed} == {"scienceqa_image_accuracy"}
    assert {f.quantity for f in load()} <= set(QUANTITIES)


def test_every_quantity_is_described_in_the_documentation():
    root = Path(__file__).parent.parent.parent
    text = (root / "docs/published-figures.md").read_text(encoding="utf-8")
    missing = [q for q in QUANTITIES if f"`{q}`" not in text]
    assert not missing


def test_prompts_hold_the_tokens_of_their_picture():
    assert found(12.73, "generation_rate").prompt_tokens == 196 + 41
    assert found(11.02, "generation_rate").prompt_tokens == 729 + 41
    assert found(8.15, "generation_rate").prompt_tokens == 144 + 41
    assert found(14.12, "decode_rate").prompt_tokens == 246
    assert found(21.54, "decode_rate").output_tokens == 256


def test_only_rows_of_a_system_are_loaded():
    assert {f.topic for f in load("femtodet")} == {"femtodet"}
    mobilevlm = load("mobilevlm")
    assert {f.topic for f in mobilevlm} == {"mobilevlm", "imp"}, "the Imp paper measured MobileVLM-3B too"
    assert all(f.topic == "mobilevlm" or f.model == "mobilevlm/v1-3b" for f in mobilevlm)


def test_every_note_is_used():
    names = {n.name for n in notes_of(load())}
    with (HOME / "published_notes.csv").open(newline="") as file:
        assert {r["name"] for r in csv.DictReader(file)} == names


def test_unknown_system_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="mobilevlm"):
        load("mobilevm")


# ---------------------------------------------------------------------------------------------------------------------
# Damaged files


def damaged(folder, name, change):
    for path in HOME.glob("published_*.csv"):
        shutil.copyfile(path, folder / path.name)
    path = folder / name
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


def put(column, text, line=0):
    return lambda rows: rows[line].__setitem__(column, text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("source", " "), "line 2: source is empty"),
        (put("value", "much"), "line 2: could not convert"),
        (put("value", "nan"), "line 2: nan"),
        (put("value", "146.3"), "line 2: 146.3 percent is no vqav2_accuracy"),
        (put("value", "-1"), "line 2: -1 percent"),
        (put("unit", "furlong"), "line 2: 'furlong'"),
        (put("unit", "tokens/s"), "line 2: tokens/s is no unit of vqav2_accuracy"),
        (put("quantity", "beauty"), "line 2: 'beauty'"),
        (put("model", "imp v1"), "line 2: model 'imp v1'"),
        (put("part", "npu"), "line 2: part 'npu' is none of cpu, gpu"),
        (put("size_px", "-4"), "line 2: size_px is -4"),
        (put("note", "no-such-note"), "line 2: 'no-such-note'"),
        (put("key", "imp-2"), "twice"),
        (put("conflicts_with", "imp-2"), "imp-1 contradicts imp-2, not the other way round"),
        (lambda rows: rows.append(rows[0] | {"key": "imp-900"}), "twice"),
    ],
)
def test_damaged_row_is_named(tmp_path, change, said):
    damaged(tmp_path, "published_imp.csv", change)
    with pytest.raises(HarnessError, match=r"install edgewatt anew|other way round") as raised:
        load(folder=tmp_path)
    assert said in str(raised.value)


def test_missing_column_and_missing_file_are_named(tmp_path):
    damaged(tmp_path, "published_imp.csv", lambda rows: [r.pop("source") for r in rows])
    with pytest.raises(HarnessError, match=r"published_imp\.csv: has columns"):
        load(folder=tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(HarnessError, match=r"published_notes\.csv: cannot be read"):
        load(folder=other)
