"""MobileVLM and Imp from their parameters to their answers, the runner in this process, and what they refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgewatt.harness.api import UsageError
from edgewatt.harness.settings import resolved
from edgewatt.workloads.imp.workload import Imp
from edgewatt.workloads.mobilevlm.workload import MobileVlm
from edgewatt.workloads.vlm.workload import PHASES
from support import tiny_vlm
from support.command import QUICK, Command
from support.here import Here

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.needs_torch


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cached(cache, monkeypatch):
    monkeypatch.setenv("EDGEWATT_CACHE", str(cache))


def executed(workload, folder, job=None):
    """Every question of the workload's job answered here: the folder of the answers, what was marked, the facts."""
    from edgewatt.workloads.vlm.runner import VisionLanguageRunner

    job = job or workload.prepare(Here())
    assert job.runner == f"{VisionLanguageRunner.__module__}:{VisionLanguageRunner.__name__}"
    runner = VisionLanguageRunner(json.loads(json.dumps(job.params)))  # a job travels as JSON
    facts = runner.load()
    marks, found = [], {}
    for index in range(job.item_count):
        found[index] = runner.run(index, lambda phase, tokens=0: marks.append((phase, tokens)))
    for phase in job.isolate:
        runner.run_phase(phase, 0)
    raw = folder / "raw"
    raw.mkdir(parents=True)
    runner.save(found, raw)
    return raw, marks, facts


@pytest.mark.needs_shared
@pytest.mark.parametrize(("name", "template"), [("tiny_ldpnet", ""), ("tiny_ldpnetv2", "vicuna_v1")])
def test_checkpoint_gives_the_official_answer_and_counts_its_tokens(
    shared: Path, tmp_path: Path, name: str, template: str
) -> None:
    folder, case = tiny_vlm.mobilevlm(shared, tmp_path / "checkpoint", name)
    workload = MobileVlm(
        weights=str(folder), data=shared / "data" / "golden" / "mobilevlm" / name / "image.png",
        question=case["question"], template=template, precision="fp32", max_new_tokens=16, threads=1,
    )  # fmt: skip
    raw, marks, facts = executed(workload, tmp_path)
    (answer,) = json.loads((raw / "answers.json").read_text())["answers"]
    assert answer["ids"] == case["generated_ids"]
    prompt_tokens = len(case["input_ids"]) - 1 + 144
    assert answer["prompt_tokens"] == prompt_tokens
    steps = len(case["generated_ids"]) - 1
    assert marks == [("preprocess", 0), ("vision", 0), ("prefill", prompt_tokens), *[("decode", 1)] * steps]
    assert [m for m, _ in marks[:4]] == list(PHASES)
    assert facts["template"] == "v1" and facts["image_mode"] == "pad" and facts["image_tokens"] == 144


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"variant": "v1-1.7"}, "v1-1.7b"),
        ({"precision": "int3"}, "int"),
        ({"dataset": "pop", "data": "."}, "pope"),
        ({"dataset": "gqa"}, "data"),
        ({"max_new_tokens": "-1"}, "max_new_tokens"),
        ({"temperature": "-1"}, "temperature"),
        ({"top_p": "0"}, "top_p"),
        ({"image_mode": "stretch"}, "image_mode"),
        ({"template": "phi-3"}, "template='phi-3' is unknown; did you mean phi3"),
        ({"weights": "no/such/folder"}, "no/such/folder"),
        ({"images_per_question": "2", "limit": "0"}, "limit"),
        ({"size": "2000"}, "size"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(settings: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        resolved("mobilevlm", settings)[0].prepare(Here())
    assert "\n" not in str(refused.value)


@pytest.mark.needs_shared
@pytest.mark.parametrize(("workload", "mode"), [(MobileVlm, "crop"), (Imp, "square")])
def test_pictures_of_scienceqa_are_made_square_as_each_official_runner_does(shared, tmp_path, workload, mode) -> None:
    data = shared / "data" / "golden" / "vqa" / "sqa"
    pictured = {k: v for k, v in json.loads((data / "problems.json").read_text()).items() if v.get("image")}
    for key, problem in pictured.items():
        for name in (f"{key}/{problem['image']}", f"test/{key}/{problem['image']}"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30, 20)).save(tmp_path / name)
    job = workload(dataset="scienceqa", data=data, images_dir=tmp_path).prepare(Here())
    assert job.params["image_mode"] == mode and job.params["max_new_tokens"] == 1024
    assert {bool(i["pictures"]) for i in job.params["items"]} == {True, False}
    assert job.isolate == ("prefill", "decode"), "without a picture there is nothing of vision to be looped"
    by_hand = workload(dataset="scienceqa", data=data, images_dir=tmp_path, image_mode="pad")
    assert by_hand.prepare(Here()).params["image_mode"] == "pad"


def test_phones_agent_is_refused_with_what_would_do() -> None:
    class Phone(Here):
        agent_kind = "native"

    with pytest.raises(UsageError, match="torch"):
        Imp().prepare(Phone())


@pytest.mark.needs_shared
@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8", "int4"])
def test_every_precision_answers_and_says_what_multiplies(shared: Path, tmp_path: Path, precision: str) -> None:
    folder, case = tiny_vlm.mobilevlm(shared, tmp_path / "checkpoint")
    workload = MobileVlm(
        weights=str(folder), question=case["question"], precision=precision, max_new_tokens=5, ignore_eos=True, limit=1,
    )  # fmt: skip
    raw, marks, facts = executed(workload, tmp_path)
    (answer,) = json.loads((raw / "answers.json").read_text())["answers"]
    assert len(answer["ids"]) == 5 and answer["stopped_by"] == "max_new_tokens"
    assert marks.count(("decode", 1)) == 4
    assert facts["precision"] == precision and precision in facts["kernels"]


@pytest.mark.needs_shared
def test_memory_without_room_to_measure_its_bandwidth_costs_that_figure_alone(shared, tmp_path, monkeypatch):
    """All that is left is needed for a buffer of twice the last caches, of which it may take a quarter."""
    from edgewatt.workloads.vlm import bandwidth

    folder, case = tiny_vlm.mobilevlm(shared, tmp_path / "checkpoint")
    monkeypatch.setattr(bandwidth, "last_cache_bytes", lambda _: bandwidth.memory.available())
    workload = MobileVlm(weights=str(folder), question=case["question"], max_new_tokens=2, limit=1)
    raw, _, facts = executed(workload, tmp_path)
    assert "read_bandwidth_bytes_per_s" not in facts
    score = workload.score(raw, tmp_path)
    (said,) = [w for w in score.warnings if w.startswith("no bandwidth_utilisation: ")]
    assert "bytes of memory are free" in said and "end other programs" in said
    line = json.loads(score.outputs["answers.jsonl"].read_text())
    assert line["model_id"] == "mobilevlm", "a network of no published shape has no variant"


@pytest.mark.needs_shared
def test_exact_kernels_are_another_choice_and_said(shared: Path, tmp_path: Path) -> None:
    folder, case = tiny_vlm.mobilevlm(shared, tmp_path / "checkpoint")
    told = {}
    for exact in (True, False):
        workload = MobileVlm(
            weights=str(folder), question=case["question"], precision="int4", exact=exact, max_new_tokens=2, limit=1
        )
        told[exact] = executed(workload, tmp_path / str(exact))[2]["kernels"]["int4"]
    assert "onnxruntime" in told[False] and "onnxruntime" not in told[True]


@pytest.mark.needs_shared
@pytest.mark.parametrize("pictures", [0, 2])
def test_questions_about_several_pictures_or_none(shared: Path, tmp_path: Path, pictures: int) -> None:
    folder, case = tiny_vlm.mobilevlm(shared, tmp_path / "checkpoint")
    workload = MobileVlm(
        weights=str(folder), question=case["question"], precision="fp32", max_new_tokens=3, ignore_eos=True, limit=1,
        images_per_question=pictures,
    )  # fmt: skip
    raw, marks, facts = executed(workload, tmp_path)
    (answer,) = json.loads((raw / "answers.json").read_text())["answers"]
    text_tokens = len(case["input_ids"]) - 1
    if pictures == 2:  # one picture and its newline are two pieces more: see the golden prompt with two
        assert answer["prompt_tokens"] > text_tokens + 2 * 144
    else:
        assert answer["prompt_tokens"] < text_tokens
    assert dict(marks)["prefill"] == answer["prompt_tokens"]
    phases = tuple(dict.fromkeys(phase for phase, _ in marks))
    assert workload.prepare(Here()).item_phases == phases == (PHASES if pictures else (PHASES[0], *PHASES[2:]))
    assert facts["uneven"] == {}


@pytest.mark.needs_shared
def test_questions_with_and_without_pictures_have_no_common_time_of_vision(shared, tmp_path):
    """Such as ScienceQA's; here the second of two has lost its picture."""
    folder, _ = tiny_vlm.mobilevlm(shared, tmp_path / "checkpoint")
    workload = MobileVlm(weights=str(folder), precision="fp32", max_new_tokens=2, limit=2)
    job = workload.prepare(Here())
    assert job.isolate == PHASES
    job.params["items"][1]["pictures"] = []
    _, marks, facts = executed(workload, tmp_path, job)
    assert facts["uneven"] == {"vision": "questions have 0 or 1 pictures"} and "vision" not in facts["costs"]
    assert [phase for phase, _ in marks].count("vision") == 2, "the agent wants every phase of every item"


@pytest.mark.needs_shared
def test_benchmark_is_asked_and_scored_and_its_answer_file_is_the_official_form(shared: Path, tmp_path: Path) -> None:
    """Answers of a random network to the golden POPE questions: its own evaluator's rule gives the same score."""
    folder, _ = tiny_vlm.mobilevlm(shared, tmp_path / "checkpoint")
    golden = shared / "data" / "golden" / "vqa" / "pope"
    images = tmp_path / "images"
    images.mkdir()
    asked = [json.loads(line) for line in (golden / "llava_pope_test.jsonl").read_text().splitlines()]
    for name in {q["image"] for q in asked}:
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(images / name)
    workload = MobileVlm(
        weights=str(folder), dataset="pope", data=golden, images_dir=images, precision="fp32", max_new_tokens=2
    )
    raw, _, _ = executed(workload, tmp_path)
    into = tmp_path / "into"
    into.mkdir()
    score = workload.score(raw, into)
    lines = [json.loads(line) for line in (into / "answers.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == [q["question_id"] for q in asked]
    labels: dict[str, list[str]] = {}
    for kind in ("random", "popular", "adversarial"):
        rows = (golden / "coco" / f"coco_pope_{kind}.json").read_text().splitlines()
        labels[kind] = [json.loads(r)["label"] for r in rows]
    right = total = 0
    for kind, wanted in labels.items():
        texts = [line["text"] for line, q in zip(lines, asked, strict=True) if q["category"] == kind]
        said = [
            "no" if {"No", "not", "no"} & set(t.split(".")[0].replace(",", "").split(" ")) else "yes" for t in texts
        ]
        right += sum(s == w for s, w in zip(said, wanted, strict=True)) / len(wanted)
        total += 1
    found = {m.metric: m.value for m in score.measurements}
    assert found["pope_accuracy"] == pytest.approx(right / total)


@pytest.mark.needs_shared
def test_command_measures_stores_and_recomputes(shared: Path, tmp_path: Path) -> None:
    folder, case = tiny_vlm.mobilevlm(shared, tmp_path / "checkpoint")
    edgewatt = Command(tmp_path)
    picture = shared / "data" / "golden" / "mobilevlm" / "tiny_ldpnetv2" / "image.png"
    settings = [f"weights={folder}", f"data={picture}", f"question={case['question']}", "precision=fp32"]
    done = edgewatt("run", "mobilevlm", "--set", *settings, "max_new_tokens=16", *QUICK, "--json")
    run = json.loads(done.stdout)
    assert run["error"] is None
    found = {(m["metric"], m["phase"]): m for m in run["measurements"]}
    decode = found["decode_tokens_per_s", "window"]
    window = next(p for p in run["phases"] if p["phase"] == "window")
    assert decode["n"] == 15 * window["items"]
    assert found["ttft_s", "window"]["value"] < found["latency_s", "window"]["value"]
    assert found["macs_per_inference", "vision"]["value"] > 0
    assert run["engine"]["read_bandwidth_bytes_per_s"] > 1e8
    answers = Path(run["outputs"]["answers.jsonl"]).read_text()
    assert json.loads(answers)["question_id"] == "image.png"
    again = json.loads(edgewatt("recompute", run["run"], "--json").stdout)
    assert again["run"] == run["run"]

    (row,) = edgewatt.json("answers", run["run"])["questions"]
    assert (row["id"], row["items"], row["answer_tokens"]) == ("image.png", window["items"], 16)
    edgewatt("answers", run["run"], "-o", "answers.csv")
    assert (edgewatt.folder / "answers.csv").read_text().startswith("index,id,question,answer,")

    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1000])
    refused = edgewatt("run", "mobilevlm", "--set", f"weights={cut}", f"data={picture}", status=2)
    assert len(refused.stderr.strip().splitlines()) == 1 and "model.safetensors" in refused.stderr
