"""Tokenizers that the library `tokenizers` runs: byte-level BPE (Phi-2's CodeGen, Qwen), and any tokenizer.json.

Follows the fast tokenizers of transformers 4.36, without their code: nothing of a checkpoint is ever executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgewatt.harness.api import UsageError
from edgewatt.workloads.vlm.tokenizer_files import Added, TokenizerFiles

# How Qwen cuts a text before BPE: tokenization_qwen2.py in MILVLG/imp @ 363a9bb.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# transformers' clean_up_tokenization: spaces that an English text does not have before these.
_CLEANED = (" .", " ?", " !", " ,", (" ' ", "'"), " n't", " 'm", " 's", " 've", " 're")


class BpeTokenizer:
    """A `tokenizers.Tokenizer`; `cleans`: the spaces before punctuation and such vanish from decoded text."""

    def __init__(self, name: str, tokenizer: Any, bos_id: int | None, cleans: bool) -> None:
        self.name, self.bos_id = name, bos_id
        self._tokenizer, self._cleans = tokenizer, cleans
        self.size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str) -> list[int]:
        """Ids of a text on its own: with BOS in front, if this tokenizer adds it."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens and what is in no vocabulary; broken UTF-8 becomes U+FFFD."""
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        if self._cleans:
            for found in _CLEANED:
                text = text.replace(*found) if isinstance(found, tuple) else text.replace(found, found[1:])
        return text


def of_folder(files: TokenizerFiles) -> BpeTokenizer:
    """The tokenizer of a folder with tokenizer.json, or vocab.json and merges.txt."""
    try:
        import tokenizers
    except ImportError as error:
        raise UsageError(
            f"{files.folder}: its tokenizer needs tokenizers ({error}): pip install 'edgewatt[vlm]'"
        ) from error
    name = "tokenizer.json" if files.has("tokenizer.json") else "vocab.json"
    content = files.read(name)
    if name == "vocab.json":
        files.read("merges.txt")
        build = _builder(files)
    try:
        made = tokenizers.Tokenizer.from_str(content.decode()) if name == "tokenizer.json" else build(tokenizers)
        made.no_truncation()
        made.no_padding()
        _add(made, tokenizers, files.added())
    except UsageError as error:
        raise UsageError(f"{files.folder}: {error}") from error
    except Exception as error:  # the library raises bare Exceptions
        said = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{files.folder / name}: not a tokenizer's file ({said}); copy it from the checkpoint anew"
        ) from error
    bos = files.token("bos_token")
    bos_id = None if bos is None else made.token_to_id(bos)
    if files.kind == "Llama":
        made.post_processor = _llama_ends(tokenizers, files, made)
    cleans = files.flag("clean_up_tokenization_spaces", files.kind not in ("Llama", "Qwen2"))
    return BpeTokenizer(name, made, bos_id, cleans)


def _builder(files: TokenizerFiles) -> Any:
    """What makes the tokenizer of vocab.json and merges.txt, which do not say how a text is cut before BPE."""
    if files.kind not in ("CodeGen", "GPT2", "Qwen2"):
        raise UsageError(
            f"{files.folder}: vocab.json and merges.txt of tokenizer class {files.kind or 'unknown'!r}; wanted "
            "tokenizer_config.json to name CodeGenTokenizer, GPT2Tokenizer or Qwen2Tokenizer, or a tokenizer.json"
        )

    def build(tokenizers: Any) -> Any:
        paths = (str(files.folder / name) for name in ("vocab.json", "merges.txt"))
        made = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*paths))
        before = tokenizers.pre_tokenizers
        if files.kind == "Qwen2":
            made.normalizer = tokenizers.normalizers.NFC()
            cut = before.Split(tokenizers.Regex(_QWEN2_SPLIT), behavior="isolated")
            made.pre_tokenizer = before.Sequence([cut, before.ByteLevel(add_prefix_space=False, use_regex=False)])
        else:
            made.pre_tokenizer = before.ByteLevel(add_prefix_space=files.flag("add_prefix_space", False))
        made.decoder = tokenizers.decoders.ByteLevel()
        return made

    return build


def _add(made: Any, tokenizers: Any, tokens: Sequence[Added]) -> None:
    """Adds what the vocabulary lacks; each token must get the id that its file gives it."""
    for token in tokens:
        options = {key: getattr(token, key) for key in ("lstrip", "rstrip", "single_word", "normalized")}
        added = tokenizers.AddedToken(token.content, special=token.is_special, **options)
        (made.add_special_tokens if token.is_special else made.add_tokens)([added])
        number = made.token_to_id(token.content)
        if token.id is not None and number != token.id:
            raise UsageError(
                f"the tokenizer gives {token.content!r} the id {number}, but its files say {token.id}; a file is of "
                "another checkpoint, or missing"
            )


def _llama_ends(tokenizers: Any, files: TokenizerFiles, made: Any) -> Any:
    """What transformers' LlamaTokenizerFast adds at both ends, whatever tokenizer.json says."""
    ends = []
    for name, default in (("bos", True), ("eos", False)):
        token = files.token(f"{name}_token") if files.flag(f"add_{name}_token", default) else None
        ends.append([] if token is None else [(token, made.token_to_id(token))])
    single = " ".join([*(t for t, _ in ends[0]), "$A", *(t for t, _ in ends[1])])
    return tokenizers.processors.TemplateProcessing(single=single, special_tokens=[*ends[0], *ends[1]])
