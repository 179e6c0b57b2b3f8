"""Tokenizers give the ids and texts that the official code's versions of transformers give.

tests/data/vlm_tokens holds the golden tokenizer and prompts of MobileVLM, and small tokenizer folders of every form
with what transformers 4.33.1 (slow.json) and 4.36.0 (fast.json) made of texts and ids; `made_with` says by which class.
"""

import json
import re
import shutil
from pathlib import Path

import pytest

from edgewatt.harness.api import UsageError
from edgewatt.workloads.vlm import tokenizer, tokenizer_files
from edgewatt.workloads.vlm.architecture import IMAGE_TOKEN
from edgewatt.workloads.vlm.tokenizer import ids_with_images, synthetic

pytest.importorskip("sentencepiece")
tokenizers = pytest.importorskip("tokenizers")

DATA = Path(__file__).resolve().parent.parent / "data" / "vlm_tokens"
MODEL = DATA / "tokenizer.model"
FORMS = [
    (file, name)
    for file in ("slow.json", "fast.json")
    for name in json.loads((DATA / file).read_text(encoding="utf-8"))["folders"]
]


def written(folder, files, model=False):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    if model:
        shutil.copy(MODEL, folder)
    return folder


def refusal(path, system="imp"):
    with pytest.raises(UsageError) as caught:
        tokenizer.open(path, system)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Golden data, and the official code's versions of transformers


def check_prompts(file):
    made = tokenizer.open(file.parent / "tokenizer.model")
    cases = json.loads(file.read_text(encoding="utf-8"))["cases"]
    assert len(cases) == 12
    for case in cases:
        assert ids_with_images(made, case["prompt"]) == case["input_ids"], case["prompt"]


def test_golden_prompts():
    check_prompts(DATA / "prompts.json")


@pytest.mark.needs_shared
def test_golden_prompts_as_shared(shared):
    check_prompts(shared / "data/golden/mobilevlm/prompts.json")


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", ["tiny_ldpnet", "tiny_ldpnetv2"])
def test_golden_texts(shared, name):
    case = json.loads((shared / "data/golden/mobilevlm" / name / "case.json").read_text())
    made = tokenizer.open(MODEL)
    assert ids_with_images(made, case["prompt"]) == case["input_ids"]
    assert made.decode(case["generated_ids"]) == case["generated_text"]


@pytest.mark.parametrize(("file", "name"), FORMS)
def test_folder_as_transformers_reads_it(file, name, tmp_path):
    form = json.loads((DATA / file).read_text(encoding="utf-8"))
    case = form["folders"][name]
    has_vocabulary = {"vocab.json", "tokenizer.json"} & set(case["files"])
    made = tokenizer.open(written(tmp_path / name, case["files"], model=not has_vocabulary), form["system"])
    for text, ids in case["encoded"]:
        assert made.encode(text) == ids, text
    for ids, text in case["decoded"]:
        assert made.decode(ids) == text, ids


# ---------------------------------------------------------------------------------------------------------------------
# Rules, by small examples


def test_bare_model_knows_no_special_tokens_in_a_text_and_a_folder_does(tmp_path):
    bare, folder = tokenizer.open(MODEL), tokenizer.open(written(tmp_path, {}, model=True), "mobilevlm")
    assert 2 not in bare.encode("two</s>")
    assert folder.encode("two</s>")[-1] == 2
    assert folder.encode("</s>") == [1, 2]
    assert bare.decode([1, *bare.encode("two</s>")[1:], 2]) == "two</s>"
    assert (bare.name, bare.bos_id, bare.size) == ("sentencepiece", 1, 420)


class Letters:
    """One id per letter, a=10, b=11 and so on; BOS 1 in front if it is told so."""

    name, size = "letters", 99

    def __init__(self, bos, bos_id):
        self.bos, self.bos_id = bos, bos_id

    def encode(self, text):
        return [*self.bos, *(ord(letter) - ord("a") + 10 for letter in text)]


@pytest.mark.parametrize(
    ("bos", "bos_id", "expected"),
    [
        ([1], 1, [1, 10, IMAGE_TOKEN, 11, IMAGE_TOKEN, 12]),  # LLaMA, Phi-3: kept once
        ([], 50256, [10, IMAGE_TOKEN, 11, IMAGE_TOKEN, 12]),  # Phi-2: has one, adds none
        ([], None, [10, IMAGE_TOKEN, 11, IMAGE_TOKEN, 12]),  # Qwen: has none
        ([7], None, [7, 10, IMAGE_TOKEN, 7, 11, IMAGE_TOKEN, 7, 12]),  # what is not BOS stays
    ],
)
def test_bos_is_kept_once(bos, bos_id, expected):
    assert ids_with_images(Letters(bos, bos_id), "a<image>b<image>c") == expected


def test_pictures_at_both_ends_and_none():
    letters = Letters([1], 1)
    assert ids_with_images(letters, "<image>a<image>") == [1, IMAGE_TOKEN, 10, IMAGE_TOKEN]
    assert ids_with_images(letters, "ab") == [1, 10, 11]
    assert ids_with_images(Letters([], None), "<image>") == [IMAGE_TOKEN]
    assert ids_with_images(Letters([], None), "") == []


def test_half_a_character_is_refused():
    with pytest.raises(UsageError, match="half a character"):
        ids_with_images(tokenizer.open(MODEL), "a\ud83d b")


def test_byte_level_stop_strings_are_one_id(tmp_path):
    folders = json.loads((DATA / "fast.json").read_text(encoding="utf-8"))["folders"]
    phi2 = tokenizer.open(written(tmp_path / "phi2", folders["phi2_slow"]["files"]))
    qwen2 = tokenizer.open(written(tmp_path / "qwen2", folders["qwen_json"]["files"]))
    phi3 = tokenizer.open(written(tmp_path / "phi3", folders["phi3_json"]["files"]))
    assert len(phi2.encode("</s>")) == len(qwen2.encode("<|im_end|>")) == 1
    assert phi3.encode("<|end|>")[0] == phi3.bos_id == 1 and len(phi3.encode("<|end|>")) == 2
    assert (phi2.name, qwen2.name, phi3.name) == ("vocab.json", "tokenizer.json", "tokenizer.json")
    assert qwen2.bos_id is None
    for made, stop in ((phi2, "</s>"), (qwen2, "<|im_end|>"), (phi3, "<|end|>")):
        assert made.decode(made.encode(f"a bus{stop}")) == "a bus"
        assert made.decode([made.size, made.size + 1000, *made.encode("a")]) == "a"  # padding rows of the table


def test_system_says_which_of_two_tokenizers_a_folder_has(tmp_path):
    files = json.loads((DATA / "fast.json").read_text(encoding="utf-8"))["folders"]["phi3_json"]["files"]
    folder = written(tmp_path / "both", files, model=True)
    assert tokenizer.open(folder, "mobilevlm").name == "sentencepiece"
    assert tokenizer.open(folder, "imp").name == tokenizer.open(folder).name == "tokenizer.json"


def test_limits_that_a_tokenizer_file_sets_are_lifted(tmp_path):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_truncation(2)
    made.enable_padding(length=9, pad_id=1, pad_token="b")
    made.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.open(tmp_path).encode("a a a a") == [0, 0, 0, 0]


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, in one line

QWEN2 = {"tokenizer_class": "Qwen2Tokenizer"}
BYTES = {"vocab.json": {"a": 0, "b": 1, "ab": 2}, "merges.txt": "#version: 0.2\na b\n"}


def test_folder_without_a_tokenizer(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        assert refusal(path).startswith(f"{path}: has no tokenizer; wanted tokenizer.model")
    assert "has no tokenizer" in refusal(written(tmp_path, {"vocab.json": {}}))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer.model": "no model"}, "not a SentencePiece model"),
        ({"tokenizer.model": ""}, "not a SentencePiece model"),
        ({"tokenizer.json": "{"}, "not a tokenizer's file"),
        ({"tokenizer.json": {"version": "1.0"}}, "not a tokenizer's file"),
        ({**BYTES, "vocab.json": "[1", "tokenizer_config.json": QWEN2}, "not a tokenizer's file"),
        ({**BYTES, "merges.txt": "x y z\n", "tokenizer_config.json": QWEN2}, "not a tokenizer's file"),
        (BYTES, "of tokenizer class 'unknown'; wanted"),
        ({**BYTES, "tokenizer_config.json": {"tokenizer_class": "EvilTokenizer"}}, "of tokenizer class 'Evil'"),
        ({**BYTES, "tokenizer_config.json": "]"}, "not JSON"),
        ({**BYTES, "tokenizer_config.json": "[" * 100_000}, "not JSON"),
        ({**BYTES, "tokenizer_config.json": []}, "holds a list; wanted an object"),
        ({**BYTES, "tokenizer_config.json": {**QWEN2, "eos_token": 5}}, "hold 5; wanted a token"),
        ({**BYTES, "tokenizer_config.json": {**QWEN2, "added_tokens_decoder": {"x": {}}}}, "'x' as the id of a token"),
        (
            {**BYTES, "tokenizer_config.json": {**QWEN2, "added_tokens_decoder": {"9": {"content": "<|im_end|>"}}}},
            "gives '<|im_end|>' the id 3, but its files say 9",
        ),
    ],
)
def test_damaged_files(files, said, tmp_path):
    assert said in refusal(written(tmp_path, files))


def test_file_of_absurd_length_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_files, "_MAX_BYTES", 100)
    assert re.search(r"tokenizer\.model: 6443 bytes; .* at most 100", refusal(written(tmp_path, {}, model=True)))


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    """The folder names its own Python class, as repositories do that ask for trust_remote_code."""
    ran = tmp_path / "ran"
    config = {**QWEN2, "auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "eos_token": None, "unk_token": None}
    files = {**BYTES, "tokenizer_config.json": config, "evil.py": f"open({str(ran)!r}, 'w')"}
    assert tokenizer.open(written(tmp_path / "folder", files)).encode("ab")[0] == 2
    assert not ran.exists()


# ---------------------------------------------------------------------------------------------------------------------
# The stand-in


def test_stand_in_gives_one_id_for_four_bytes():
    made = synthetic(32000)
    assert made.name == "synthetic" and made.size == 32000
    assert [len(made.encode(text)) for text in ("", "a", "abcd", "abcde", "é漢字")] == [1, 2, 2, 3, 3]
    prompt = "A chat between a curious user and an artificial intelligence assistant. "
    ids = ids_with_images(made, prompt + "<image>\nWhat?")
    assert ids[0] == 1 and ids.count(IMAGE_TOKEN) == 1 and len(ids) == 1 + 18 + 1 + 2
    assert all(3 <= i < 32000 for i in ids[1:] if i != IMAGE_TOKEN)
    assert made.encode(prompt) == synthetic(32000).encode(prompt) != synthetic(31999).encode(prompt)
    assert made.decode([1, 17, 2, 4711]) == "[17] [4711]"


def test_stand_in_needs_some_ids():
    with pytest.raises(UsageError, match="at least 8"):
        synthetic(3)
