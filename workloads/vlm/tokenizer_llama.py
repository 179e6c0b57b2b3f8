"""The tokenizer of LLaMA as MobileVLM uses it: SentencePiece behind a search for special tokens.

Follows the slow `LlamaTokenizer` of transformers 4.33 to the letter, which later versions no longer have: every
stretch of text between special tokens gets SentencePiece's own dummy space in front ("legacy"), or none of them does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edgewatt.harness.api import UsageError
from edgewatt.workloads.vlm.tokenizer_files import Added, TokenizerFiles

_SPACE = "▁"  # SentencePiece writes a space so

# Read after a model, sets normalizer_spec.add_dummy_prefix to false (fields 3 and 3 of sentencepiece_model.proto): in
# a protocol buffer the last value wins.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class LlamaTokenizer:
    """A SentencePiece model (the content of its file) and the tokens that are searched for in a text before it."""

    name = "sentencepiece"

    def __init__(
        self,
        model: bytes,
        added: Sequence[Added] = (),
        *,
        bos: str = "<s>",
        eos: str = "</s>",
        unk: str = "<unk>",
        adds_bos: bool = True,
        adds_eos: bool = False,
        is_legacy: bool = True,
        joint: str = " ",
    ) -> None:
        """UsageError if it is no such model. Without `added`, even "</s>" in a text is plain text.

        `joint` stands in decoded text on both sides of an added token that is not special.
        """
        self._pieces = _processor(model if is_legacy else model + _NO_DUMMY_PREFIX)
        self._count = int(self._pieces.get_piece_size())
        self._is_legacy, self._unk, self._joint = is_legacy, unk, joint
        self._added = {token.content: token for token in added}
        contents = sorted(self._added, key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, contents))) if contents else None
        self._ids = {token.content: self._id(token) for token in added}
        self._contents = {number: content for content, number in self._ids.items() if number >= self._count}
        special = {bos, eos, unk, *(token.content for token in added if token.is_special)}
        self._skipped = {self._ids.get(content, self._pieces.piece_to_id(content)) for content in special}
        self.bos_id: int | None = self._pieces.piece_to_id(bos) if adds_bos else None
        self._eos_id = self._pieces.piece_to_id(eos) if adds_eos else None
        self.size = max(self._count, *(number + 1 for number in self._ids.values()), 0)

    def encode(self, text: str) -> list[int]:
        """Ids of a text on its own: with BOS in front, if this tokenizer adds it."""
        ids = [] if self.bos_id is None else [self.bos_id]
        ids += self._encoded(text)
        return ids if self._eos_id is None else [*ids, self._eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens and what is in no vocabulary; broken UTF-8 becomes U+FFFD."""
        texts: list[str] = []
        run: list[str] = []
        for number in ids:
            if number in self._contents and number not in self._skipped:
                texts += [*self._texts(run), self._contents[number]]
                run = []
            elif 0 <= number < self._count and number not in self._skipped:
                run.append(self._pieces.id_to_piece(number))
        return self._joint.join([*texts, *self._texts(run)])

    def _id(self, token: Added) -> int:
        number = int(self._pieces.piece_to_id(token.content))
        is_piece = number != self._pieces.unk_id() or token.content == self._unk
        return number if is_piece or token.id is None else token.id

    def _encoded(self, text: str) -> list[int]:
        if not self._is_legacy and text:
            text = _SPACE + text.replace(_SPACE, " ")
        parts = self._parts(text)
        ids: list[int] = []
        for part in parts:
            ids += [self._ids[part]] if part in self._ids else self._plain(part)
        if not self._is_legacy and len(parts) > 1 and parts[0] == _SPACE and self._added[parts[1]].is_special:
            return ids[1:]  # a special token at the start has no space before it
        return ids

    def _parts(self, text: str) -> list[str]:
        """The text cut at the added tokens, with the spaces gone that they take, and nothing empty."""
        if self._split is None:
            return [text] if text else []
        parts: list[str] = []
        end = 0
        for match in self._split.finditer(text):
            parts += [text[end : match.start()], match.group()]
            end = match.end()
        parts.append(text[end:])
        for k in range(1, len(parts), 2):
            token = self._added[parts[k]]
            if token.rstrip:
                parts[k + 1] = parts[k + 1].lstrip()
            if token.lstrip:
                parts[k - 1] = parts[k - 1].rstrip()
        return [part for part in parts if part]

    def _plain(self, text: str) -> list[int]:
        if self._is_legacy or not text.startswith((_SPACE, " ")):
            return list(self._pieces.encode(text))
        # SentencePiece would swallow the space at the start, so something is put before it and taken away again.
        return list(self._pieces.encode(self._unk + text))[len(self._pieces.encode(self._unk)) :]

    def _texts(self, pieces: list[str]) -> list[str]:
        """One text, or none for no pieces."""
        return [str(self._pieces.decode([pieces[0].removeprefix(_SPACE), *pieces[1:]]))] if pieces else []


def of_folder(files: TokenizerFiles, is_fast: bool) -> LlamaTokenizer:
    """The tokenizer of a folder with tokenizer.model; `is_fast`: as transformers converts it, always legacy."""
    tokens = {name: files.token(f"{name}_token") for name in ("bos", "eos", "unk")}
    try:
        return LlamaTokenizer(
            files.read("tokenizer.model"),
            files.added(),
            **{name: content for name, content in tokens.items() if content is not None},
            adds_bos=files.flag("add_bos_token", True),
            adds_eos=files.flag("add_eos_token", False),
            is_legacy=is_fast or files.flag("legacy", True),
            joint="" if is_fast else " ",
        )
    except UsageError as error:
        said = str(error)
        raise UsageError(said if str(files.folder) in said else f"{files.folder}: {said}") from error


def _processor(model: bytes) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise UsageError(f"a tokenizer.model needs sentencepiece ({error}): pip install 'edgewatt[vlm]'") from error
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
        if processor.get_piece_size() < 1:
            raise RuntimeError("it has no pieces")
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UsageError(
            f"tokenizer.model: not a SentencePiece model ({said}); copy it from the checkpoint anew"
        ) from error
    return processor
