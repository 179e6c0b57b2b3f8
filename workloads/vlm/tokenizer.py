"""Text to token ids and back, with the tokenizer of a checkpoint's folder, exactly as the official code has it.

Source: `tokenizer_image_token`, the same in Meituan-AutoML/MobileVLM @ 688fdec and MILVLG/imp @ 363a9bb.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from edgewatt.harness.api import UsageError
from edgewatt.workloads.vlm import tokenizer_bpe, tokenizer_llama
from edgewatt.workloads.vlm.architecture import IMAGE_TOKEN
from edgewatt.workloads.vlm.prompts import IMAGE
from edgewatt.workloads.vlm.tokenizer_files import TokenizerFiles

_BYTES_PER_ID = 4  # of English, roughly, in vocabularies of 32 to 150 thousand


class Tokenizer(Protocol):
    """Text to ids and back."""

    name: str  # what it was made from
    size: int  # one more than the largest id
    bos_id: int | None

    def encode(self, text: str) -> list[int]:
        """Ids of a text on its own: with BOS in front, if this tokenizer adds it."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""


def open(path: Path | str, system: str | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint's folder, or of a bare SentencePiece file (without any special tokens then).

    Where a folder has both, `system` "mobilevlm" takes tokenizer.model, as its code does, and others tokenizer.json.
    UsageError if there is none, or it is damaged.
    """
    path = Path(path)
    if path.is_file():
        return tokenizer_llama.LlamaTokenizer(TokenizerFiles(path.parent).read(path.name))
    files = TokenizerFiles(path)
    is_slow = system == "mobilevlm"
    if files.has("tokenizer.model") and (is_slow or not files.has("tokenizer.json")):
        return tokenizer_llama.of_folder(TokenizerFiles(path, "Llama", is_slow), is_fast=not is_slow)
    if files.has("tokenizer.json") or files.has("vocab.json", "merges.txt"):
        return tokenizer_bpe.of_folder(files)
    raise UsageError(
        f"{path}: has no tokenizer; wanted tokenizer.model, tokenizer.json, or vocab.json and merges.txt: copy them "
        "from the checkpoint"
    )


def ids_with_images(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt, with `IMAGE_TOKEN` wherever it says `IMAGE`.

    The pieces between are tokenised each on its own; if the first begins with BOS, all others lose their first id.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the question holds {prompt[error.start]!r}, half a character; mend it") from error
    pieces = [tokenizer.encode(piece) for piece in prompt.split(IMAGE)]
    has_bos = bool(pieces[0]) and pieces[0][0] == tokenizer.bos_id
    ids = pieces[0]
    for piece in pieces[1:]:
        ids = [*ids, IMAGE_TOKEN, *piece[has_bos:]]
    return ids


class Synthetic:
    """Stands in for a tokenizer where there is no checkpoint: about as many ids as a real one, but no meaning.

    One id for every four bytes of UTF-8, begun or whole, drawn from those bytes alone; BOS, id 1, in front. Ids below
    3, which are special in most vocabularies, are not drawn. Whoever uses it says so in the result.
    """

    name = "synthetic"
    bos_id: int | None = 1

    def __init__(self, vocab: int) -> None:
        if vocab < 8:
            raise UsageError(f"a vocabulary of {vocab} ids; wanted at least 8")
        self.size = vocab

    def encode(self, text: str) -> list[int]:
        content = text.encode(errors="replace")
        cut = [content[k : k + _BYTES_PER_ID] for k in range(0, len(content), _BYTES_PER_ID)]
        numbers = (int.from_bytes(hashlib.sha256(piece).digest()[:8], "big") for piece in cut)
        return [1, *(3 + number % (self.size - 3) for number in numbers)]

    def decode(self, ids: Sequence[int]) -> str:
        """Such as "[17] [4711]"; it cannot be turned back."""
        return " ".join(f"[{number}]" for number in ids if number >= 3)


def synthetic(vocab: int) -> Synthetic:
    """A stand-in for the tokenizer of a vocabulary of that size."""
    return Synthetic(vocab)
