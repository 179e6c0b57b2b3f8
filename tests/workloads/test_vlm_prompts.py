"""Prompts are written as the official code of both systems writes them, to the letter."""

import json

import pytest

from edgewatt.harness.api import UsageError
from edgewatt.workloads.vlm.prompts import STOPS, prompt, template_name
from edgewatt.workloads.vqa.question import SHORT

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


@pytest.mark.needs_shared
@pytest.mark.parametrize("template", ["phi2", "qwen2", "phi3"])
def test_imp_golden(shared, template):
    case = json.loads((shared / "data/golden/imp/conversation_prompts.json").read_text())[template]
    assert prompt(template, "What is shown?") == case["single_turn"]
    assert prompt(template, "Colour?", turns=[("What is shown?", "A bus.")]) == case["two_turn"]
    assert STOPS[template] == case["sep2"]


@pytest.mark.needs_shared
def test_mobilevlm_golden(shared):
    cases = json.loads((shared / "data/golden/mobilevlm/prompts.json").read_text())["cases"]
    known = {case["prompt"] for case in cases if case["prompt"].startswith(SYSTEM)}
    picture, lamp, signal = "What is in the picture?", f"Is the lamp on?\n{SHORT}", "Señal 25 °C — 漢字?"
    made = {prompt("v1", question, n) for question in (picture, lamp, signal) for n in (0, 1)}
    made.add(prompt("v1", lamp, turns=[(picture, "two")]))
    assert made == known


@pytest.mark.needs_shared
@pytest.mark.parametrize("case", ["tiny_ldpnet", "tiny_ldpnetv2"])
def test_mobilevlm_golden_case(shared, case):
    about = json.loads((shared / "data/golden/mobilevlm" / case / "case.json").read_text())
    assert prompt(about["conv_mode"], about["question"]) == about["prompt"]


# From the tables of the two specifications.
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("v1", f"{SYSTEM} USER: <image>\nQ ASSISTANT:"),
        ("phi2", f"{SYSTEM} USER: <image>\nQ ASSISTANT:"),
        (
            "qwen2",
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<image>\nQ<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("phi3", f"<|system|>\n{SYSTEM}<|end|>\n<|user|>\n<image>\nQ<|end|>\n<|assistant|>\n"),
    ],
)
def test_single_turn(template, expected):
    assert prompt(template, "Q") == expected
    assert prompt(template, "Q", 0) == expected.replace("<image>\n", "")
    assert prompt(template, "Q", 3) == expected.replace("<image>\n", "<image>\n" * 3)


@pytest.mark.parametrize(
    ("template", "between"),
    [
        ("phi2", " ASSISTANT: A</s>USER: "),
        ("qwen2", "<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\n"),
        ("phi3", "<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\n"),
    ],
)
def test_several_turns_have_the_picture_in_the_first(template, between):
    written = prompt(template, "Q3", turns=[("Q1", "A"), ("Q2", "A")])
    assert f"<image>\nQ1{between}Q2{between}Q3" in written
    assert written.count("<image>") == 1


def test_question_may_say_where_the_pictures_go():
    assert "USER: first <image> then <image> ASSISTANT:" in prompt("v1", "first <image> then <image>", 2)
    assert "USER: Q1 ASSISTANT: A</s>USER: <image> now? ASSISTANT:" in prompt("v1", "<image> now?", 1, [("Q1", "A")])
    for n_images in (0, 1, 3):
        with pytest.raises(UsageError, match=f"holds <image> 2 times, but there are {n_images} pictures"):
            prompt("v1", "first <image> then <image>", n_images)


def test_nothing_asked_is_refused():
    assert prompt("v1", "").endswith("USER: <image>\n ASSISTANT:")
    for given in ({"question": "", "n_images": 0}, {"question": "Q", "turns": [("Q", "")]}):
        with pytest.raises(UsageError, match="is empty"):
            prompt("v1", **given)


def test_names_of_templates():
    assert template_name("qwen1.5") == "qwen2"
    assert template_name("vicuna_v1") == "v1"
    assert prompt("qwen1.5", "Q") == prompt("qwen2", "Q")
    with pytest.raises(UsageError, match=r"template='phi-3' is unknown; did you mean phi3\?"):
        prompt("phi-3", "Q")


def test_stop_strings():
    assert STOPS == {"v1": "</s>", "phi2": "</s>", "qwen2": "<|im_end|>", "phi3": "<|end|>"}
