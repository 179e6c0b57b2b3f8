"""The prompts of both systems: conversation templates, and the strings that end an answer.

Source: `conversation.py` of Meituan-AutoML/MobileVLM @ 688fdec and MILVLG/imp @ 363a9bb.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgewatt.harness.api import UsageError
from edgewatt.harness.plugins import nearest

IMAGE = "<image>"  # stands in a prompt where a picture's embeddings go

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Template:
    """How a conversation is written: what stands before and after each text; `after_answer` ends an answer."""

    before_system: str
    after_system: str
    before_question: str
    after_question: str
    before_answer: str  # without a space at its end where the answer is yet to come
    after_answer: str


def _of_marks(system: str, user: str, assistant: str, end: str) -> Template:
    return Template(f"{system}\n", end, f"\n{user}\n", end, f"\n{assistant}\n", end)


TEMPLATES: Mapping[str, Template] = {
    "v1": Template("", " ", "USER: ", " ", "ASSISTANT: ", "</s>"),  # MobileVLM
    "phi2": Template("", " ", "USER: ", " ", "ASSISTANT: ", "</s>"),  # this and the others: Imp
    "qwen2": _of_marks("<|im_start|>system", "<|im_start|>user", "<|im_start|>assistant", "<|im_end|>"),
    "phi3": _of_marks("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
}

# What the official code calls some of them too.
ALIASES: Mapping[str, str] = {"vicuna_v1": "v1", "qwen1.5": "qwen2"}

# The string that ends an answer, by template.
STOPS: Mapping[str, str] = {name: template.after_answer for name, template in TEMPLATES.items()}


def template_name(name: str) -> str:
    """The template's own name, for it or an alias; UsageError, with the nearest, if there is none of that name."""
    name = ALIASES.get(name, name)
    if name not in TEMPLATES:
        raise UsageError(f"template={name!r} is unknown; {nearest(name, (*TEMPLATES, *ALIASES))}")
    return name


def prompt(template: str, question: str, n_images: int = 1, turns: Sequence[tuple[str, str]] = ()) -> str:
    """The prompt up to where the answer begins, with `IMAGE` once for each of `n_images` pictures.

    `turns` are the questions asked before and the answers to them. The pictures stand before the first question, each
    followed by a newline, unless the texts hold `IMAGE` themselves, as often as there are pictures.
    """
    form = TEMPLATES[template_name(template)]
    questions = [*(asked for asked, _ in turns), question]
    answers = [answer for _, answer in turns]
    placed = sum(text.count(IMAGE) for text in (*questions, *answers))
    if placed == 0:
        questions[0] = f"{IMAGE}\n" * n_images + questions[0]
    elif placed != n_images:
        raise UsageError(
            f"the question holds {IMAGE} {placed} times, but there are {n_images} pictures; write it once for each, "
            "or leave it out"
        )
    if not all((*questions, *answers)):
        raise UsageError("a question or an answer is empty, and there is no picture in its place; write one")
    written = form.before_system + SYSTEM + form.after_system
    for asked, answer in zip(questions, answers, strict=False):
        written += form.before_question + asked + form.after_question
        written += form.before_answer + answer + form.after_answer
    return written + form.before_question + questions[-1] + form.after_question + form.before_answer.rstrip(" ")
