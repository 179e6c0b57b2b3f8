"""An answer, token by token, with a cache: batch 1, as the official code of both systems generates it.

Sources: `KeywordsStoppingCriteria` and scripts/inference.py of Meituan-AutoML/MobileVLM @ 688fdec, the same in
MILVLG/imp @ 363a9bb; `generate` of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from edgewatt.harness.api import UsageError
from edgewatt.workloads.vlm import sampling
from edgewatt.workloads.vlm.tokenizer import Tokenizer

Ended = Literal["eos", "stop string", "max_new_tokens", "context"]
Moment = Literal["prefill", "decode", "end"]


class Model(Protocol):
    """What answers are generated with; the cache is its own affair."""

    def prefill(self, embeds: Tensor) -> tuple[Tensor, Any]:
        """Reads the prompt (1, tokens, width): logits (vocabulary,) after its last token, and the cache."""

    def decode(self, token: int, cache: Any) -> Tensor:
        """Reads one more token: logits (vocabulary,) after it."""


@dataclass(frozen=True)
class Options:
    """How an answer is generated, and when it ends; UsageError for what makes no sense."""

    max_new_tokens: int = 512
    temperature: float = 0.0  # 0: greedy, always the most probable token
    top_p: float = 1.0  # 1: off
    top_k: int = 50  # 0: off; transformers' default, which the official code leaves in place; greedy is not affected
    seed: int = 0
    ignore_eos: bool = False  # for timing a fixed length: neither EOS nor a stop string ends the answer
    eos_ids: Sequence[int] = ()
    stop_strings: Sequence[str] = ()
    context: int | None = None  # the most tokens the network can hold, the prompt's included

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (math.isfinite(self.temperature) and self.temperature >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "more than 0, at most 1"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "stop_strings": (all(self.stop_strings) and not isinstance(self.stop_strings, str), "strings, none empty"),
        }
        for name, (is_right, wanted) in checks.items():
            if not is_right:
                raise UsageError(f"{name}={getattr(self, name)!r}: wanted {wanted}")


@dataclass(frozen=True)
class Generated:
    """An answer: its token ids (EOS included, if it came), its text, the prompt's length in tokens, why it ended."""

    ids: tuple[int, ...]
    text: str
    n_prompt: int
    stopped_by: Ended


def generate(
    model: Model,
    embeds: Tensor,
    tokenizer: Tokenizer,
    options: Options,
    mark: Callable[[Moment], None] = lambda moment: None,
    item: int | str = 0,
) -> Generated:
    """The answer to a prompt of embeddings (1, tokens, width).

    `mark` is called with "prefill" before the prompt is read, with "decode" before each step after it, and with "end"
    once the last token is known. The first token comes out of the prompt, so N tokens take N - 1 steps.
    Draws, if `options.temperature` is not 0, depend on its seed and on `item` alone.
    """
    n_prompt = embeds.shape[1]
    if options.context is not None and n_prompt > options.context:
        raise UsageError(
            f"the prompt has {n_prompt} tokens with its pictures, but the network's context is {options.context}; "
            "shorten the question, or show fewer pictures"
        )
    draws = sampling.generator(options.seed, item) if options.temperature > 0 else None
    stop = _Stop(tokenizer, options, n_prompt)
    ids: list[int] = []
    with torch.inference_mode():
        mark("prefill")
        logits, cache = model.prefill(embeds)
        while True:
            ids.append(_next(logits, options, draws))
            ended = stop.reason(ids)
            if ended is not None:
                break
            mark("decode")
            logits = model.decode(ids[-1], cache)
        mark("end")
    return Generated(tuple(ids), answer_text(tokenizer, ids, options.stop_strings), n_prompt, ended)


def answer_text(tokenizer: Tokenizer, ids: Sequence[int], stop_strings: Sequence[str]) -> str:
    """The text of an answer's ids, without special tokens, a stop string at its end, and space around it."""
    text = tokenizer.decode(ids).strip()
    for stop in stop_strings:
        text = text.removesuffix(stop)
    return text.strip()


def _next(logits: Tensor, options: Options, draws: torch.Generator | None) -> int:
    if draws is None:
        return sampling.most_probable(logits)
    return sampling.drawn(sampling.probabilities(logits, options.temperature, options.top_k, options.top_p), draws)


class _Stop:
    """When an answer ends."""

    def __init__(self, tokenizer: Tokenizer, options: Options, n_prompt: int) -> None:
        self._tokenizer, self._options = tokenizer, options
        self._strings = [] if options.ignore_eos else list(options.stop_strings)
        self._eos_ids = frozenset(() if options.ignore_eos else options.eos_ids)
        self._string_ids = [self._ids(string) for string in self._strings]
        # Of as many ids at the end as the longest stop string has, the text is looked into.
        self._longest = max(map(len, self._string_ids), default=0)
        # The last token is not read again, so it needs no place in the context.
        self._room = math.inf if options.context is None else options.context - n_prompt + 1

    def reason(self, ids: list[int]) -> Ended | None:
        if ids[-1] in self._eos_ids:
            return "eos"
        if self._has_stop_string(ids):
            return "stop string"
        if len(ids) >= self._options.max_new_tokens:
            return "max_new_tokens"
        return "context" if len(ids) >= self._room else None

    def _has_stop_string(self, ids: list[int]) -> bool:
        if any(ids[-len(string) :] == string for string in self._string_ids):
            return True
        tail = self._tokenizer.decode(ids[-self._longest :]) if self._strings else ""
        return any(string in tail for string in self._strings)

    def _ids(self, string: str) -> list[int]:
        ids = self._tokenizer.encode(string)
        return ids[1:] if len(ids) > 1 and ids[0] == self._tokenizer.bos_id else ids
