"""What a checkpoint's folder says of its tokenizer, besides the vocabulary: options, special and added tokens.

The rules are those of transformers 4.33 and 4.36, with which the official code of MobileVLM and Imp runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgewatt.harness.api import UsageError

_MAX_BYTES = 1 << 26  # of one file; the largest published one, Qwen's tokenizer.json, has 7 MB

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Special tokens a tokenizer class has though its files do not name them.
_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "Llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "CodeGen": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "GPT2": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "Qwen2": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
}


@dataclass(frozen=True)
class Added:
    """A token that is found in a text before anything else is; `lstrip`: spaces to its left vanish."""

    content: str
    id: int | None = None  # None: wherever it stands in the vocabulary
    is_special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class TokenizerFiles:
    """The folder of one tokenizer. UsageError for a file that is not what it should be."""

    def __init__(self, folder: Path, kind: str = "", is_slow: bool = False) -> None:
        """`kind` is the class the tokenizer has if tokenizer_config.json names none: Llama, CodeGen, Qwen2.

        `is_slow`: a token given as a bare string takes the spaces at both sides, as in transformers 4.33.
        """
        self.folder, self._is_slow = folder, is_slow
        self.config = self._json("tokenizer_config.json")
        given = self.config.get("tokenizer_class")
        self.kind = given.removesuffix("Fast").removesuffix("Tokenizer") if isinstance(given, str) else kind
        self._has_decoder = isinstance(self.config.get("added_tokens_decoder"), dict)  # since transformers 4.34
        self._map = {} if self._has_decoder else self._json("special_tokens_map.json")

    def has(self, *names: str) -> bool:
        return all((self.folder / name).is_file() for name in names)

    def read(self, name: str) -> bytes:
        """The content of a file that is there."""
        path = self.folder / name
        try:
            size = path.stat().st_size
            if size > _MAX_BYTES:
                raise UsageError(
                    f"{path}: {size} bytes; a tokenizer's file has at most {_MAX_BYTES}: is it the right one?"
                )
            return path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror}); copy it from the checkpoint anew") from error

    def flag(self, name: str, default: bool) -> bool:
        """An option of tokenizer_config.json; null is the default."""
        value = self.config.get(name)
        return default if value is None else bool(value)

    def token(self, name: str) -> str | None:
        """The content of bos_token, eos_token and so on; None if there is none."""
        value = self._named().get(name)
        return value.content if value else None

    def added(self) -> list[Added]:
        """All added tokens in the order of their ids, then those special tokens that have no id of their own."""
        named = [*self._named().values(), *self._additional()]
        tokens: dict[str, Added] = {}
        if self._has_decoder:
            for number, entry in sorted(self.config["added_tokens_decoder"].items(), key=lambda item: _id(item[0])):
                token = self._token(entry, _id(number), is_special=False)
                tokens[token.content] = token
        else:
            special = {token.content: token for token in named}
            for content, number in sorted(self._json("added_tokens.json").items(), key=lambda item: _id(item[1])):
                bare = Added(content, None, False, self._is_slow, self._is_slow, normalized=True)
                tokens[content] = replace(special.get(content, bare), id=_id(number))
        for token in named:
            tokens.setdefault(token.content, token)
        return list(tokens.values())

    def _named(self) -> dict[str, Added]:
        found: dict[str, Added] = {}
        for name in _NAMED:
            value = self.config.get(name, _DEFAULTS.get(self.kind, {}).get(name))
            if value is not None:
                found[name] = self._token(value)
            value = self._map.get(name)
            if value is not None:
                found[name] = self._token(value, strips=self._is_slow)
        return found

    def _additional(self) -> Iterator[Added]:
        value = self._map.get("additional_special_tokens", self.config.get("additional_special_tokens"))
        for entry in value if isinstance(value, list) else ():
            yield self._token(entry, strips=self._is_slow)

    def _token(self, entry: Any, number: int | None = None, is_special: bool = True, strips: bool = False) -> Added:
        if isinstance(entry, str):
            return Added(entry, number, is_special, strips, strips)
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not entry["content"]:
            raise UsageError(
                f"{self.folder}: the tokenizer's files hold {entry!r:.60}; wanted a token with its content"
            )
        options = {key: bool(entry.get(key, False)) for key in ("lstrip", "rstrip", "single_word", "normalized")}
        return Added(entry["content"], number, bool(entry.get("special", is_special)), **options)

    def _json(self, name: str) -> dict[str, Any]:
        """A file's object; an empty one if there is no such file."""
        if not self.has(name):
            return {}
        try:
            value = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{self.folder / name}: not JSON ({error}); copy it from the checkpoint anew") from error
        if not isinstance(value, dict):
            raise UsageError(f"{self.folder / name}: holds a {type(value).__name__}; wanted an object")
        return value


def _id(number: Any) -> int:
    try:
        return int(number)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the tokenizer's files give {number!r:.40} as the id of a token; wanted a number") from error
