"""Answers: which tokens, in how many steps, when they end; held against a scripted network and the golden ones."""

import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.needs_torch

from edgewatt.harness.api import HarnessError, UsageError  # noqa: E402
from edgewatt.workloads.vlm import architecture, pictures, sampling, tokenizer  # noqa: E402
from edgewatt.workloads.vlm.generate import Options, answer_text, generate  # noqa: E402
from edgewatt.workloads.vlm.prompts import STOPS, prompt  # noqa: E402

VOCAB = 32
EOS = 2


class Letters:
    """Ids from 3 on are the letters from a on, 0 is a space, 31 is the whole of "</s>"; EOS and BOS have no text."""

    name, size, bos_id = "letters", VOCAB, 1

    def encode(self, text):
        return [1, 31] if text == "</s>" else [1, *(ord(letter) - ord("a") + 3 for letter in text)]

    def decode(self, ids):
        texts = {0: " ", 1: "", EOS: "", 29: "</", 30: "s>", 31: "</s>"}
        return "".join(texts.get(i, chr(ord("a") + i - 3)) for i in ids)


class Scripted:
    """A network that has one answer, and checks that it is asked for every token of it in turn."""

    def __init__(self, *answer):
        self.answer, self.steps = answer, 0

    def logits(self):
        made = torch.zeros(VOCAB)
        made[self.answer[self.steps]] = 1.0
        return made

    def prefill(self, embeds):
        assert embeds.shape == (1, 5, 4)
        return self.logits(), "the cache"

    def decode(self, token, cache):
        assert (token, cache) == (self.answer[self.steps], "the cache")
        self.steps += 1
        return self.logits()


def answered(*answer, **options):
    model, marks = Scripted(*answer), []
    made = generate(model, torch.zeros(1, 5, 4), Letters(), Options(**{"eos_ids": (EOS,), **options}), marks.append)
    assert marks == ["prefill", *["decode"] * (len(made.ids) - 1), "end"]
    assert model.steps == len(made.ids) - 1
    assert made.n_prompt == 5
    return made


# ---------------------------------------------------------------------------------------------------------------------
# When an answer ends


def test_eos_ends_and_is_kept():
    made = answered(3, 4, 5, EOS, 6)
    assert made.ids == (3, 4, 5, EOS)
    assert (made.text, made.stopped_by) == ("abc", "eos")


def test_eos_at_once_takes_no_step():
    made = answered(EOS, 6)
    assert (made.ids, made.text, made.stopped_by) == ((EOS,), "", "eos")


def test_one_of_several_eos():
    assert answered(3, 7, EOS, eos_ids=(EOS, 7)).ids == (3, 7)


def test_ids_of_the_stop_string_end():
    made = answered(3, 4, 31, 5, stop_strings=["</s>"])
    assert made.ids == (3, 4, 31)
    assert (made.text, made.stopped_by) == ("ab", "stop string")


def test_text_of_the_tail_ends():
    """The stop string is two ids in the encoder here, so that the tail looked into is long enough to hold it."""

    class Halves(Letters):
        def encode(self, text):
            return [1, 29, 9] if text == "</s>" else super().encode(text)

    options = Options(stop_strings=["</s>"])
    made = generate(Scripted(3, 29, 30, 4), torch.zeros(1, 5, 4), Halves(), options)
    assert made.ids == (3, 29, 30)
    assert (made.text, made.stopped_by) == ("a", "stop string")


def test_stop_string_needs_all_its_ids():
    made = answered(4, 3, 4, 5, 6, stop_strings=["abc"])
    assert (made.ids, made.text, made.stopped_by) == ((4, 3, 4, 5), "b", "stop string")


def test_most_new_tokens():
    made = answered(3, 4, 5, 6, max_new_tokens=3)
    assert (made.ids, made.text, made.stopped_by) == ((3, 4, 5), "abc", "max_new_tokens")
    assert answered(3, 4, max_new_tokens=1).ids == (3,)


@pytest.mark.parametrize(("context", "tokens"), [(5, 1), (6, 2), (8, 4)])
def test_context_holds_the_prompt_and_every_token_but_the_last(context, tokens):
    made = answered(3, 4, 5, 6, 7, 8, context=context)
    assert (len(made.ids), made.stopped_by) == (tokens, "context")


@pytest.mark.parametrize(
    ("answer", "options", "reason"),
    [
        ((3, EOS), {"max_new_tokens": 2, "context": 6}, "eos"),
        ((3, 31), {"max_new_tokens": 2, "context": 6, "stop_strings": ["</s>"]}, "stop string"),
        ((3, 4), {"max_new_tokens": 2, "context": 6}, "max_new_tokens"),
    ],
)
def test_of_several_reasons_the_answer_s_own_is_told(answer, options, reason):
    assert answered(*answer, **options).stopped_by == reason


def test_fixed_length_goes_past_every_end():
    made = answered(3, EOS, 31, 4, 5, 6, max_new_tokens=5, ignore_eos=True, stop_strings=["</s>"])
    assert (made.ids, made.stopped_by) == ((3, EOS, 31, 4, 5), "max_new_tokens")


def test_prompt_longer_than_the_context():
    marks = []
    with pytest.raises(UsageError, match=r"has 5 tokens .* context is 4"):
        generate(Scripted(3), torch.zeros(1, 5, 4), Letters(), Options(context=4), marks.append)
    assert marks == []


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ((0, 3, 4, 0), "ab"),
        ((3, 0, 31), "a"),
        ((3, 31, 31), "a</s>"),  # one is taken, as in the official code
        ((31, 3), "</s>a"),
        ((), ""),
    ],
)
def test_text_is_stripped_and_loses_one_stop_string_at_its_end(ids, text):
    assert answer_text(Letters(), ids, ["</s>"]) == text


# ---------------------------------------------------------------------------------------------------------------------
# Which token


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_takes_the_first_of_equal_ones(dtype):
    assert sampling.most_probable(torch.tensor([0.0, 3.0, 1.0, 3.0], dtype=dtype)) == 1
    assert sampling.most_probable(torch.full((50_000,), -7.0, dtype=dtype)) == 0


def test_greedy_is_argmax():
    logits = np.random.default_rng(4).normal(size=(50, 999)).astype(np.float32)
    assert [sampling.most_probable(torch.from_numpy(row)) for row in logits] == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("logits", "largest"),
    [((1.0, math.nan, 2.0), "nan"), ((1.0, math.inf, math.inf), "inf"), ((-math.inf, -math.inf), "-inf")],
)
def test_logits_that_are_no_numbers(logits, largest, temperature):
    class Broken(Scripted):
        def logits(self):
            return torch.tensor(logits)

    with pytest.raises(HarnessError, match=f"largest logit is {largest}, wanted a finite number"):
        generate(Broken(), torch.zeros(1, 5, 4), Letters(), Options(temperature=temperature))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_that_are_ruled_out_are_not_drawn(temperature):
    class Masked(Scripted):
        def logits(self):
            return torch.full((VOCAB,), -math.inf).index_fill(0, torch.tensor([7]), -3.0)

    options = Options(max_new_tokens=1, temperature=temperature)
    assert generate(Masked(), torch.zeros(1, 5, 4), Letters(), options).ids == (7,)


LOGITS = torch.tensor([0.1, 0.5, 0.05, 0.35]).log()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "expected"),
    [
        (1.0, 0, 1.0, [0.1, 0.5, 0.05, 0.35]),
        (0.5, 0, 1.0, [0.01, 0.25, 0.0025, 0.1225]),  # squares
        (2.0, 0, 1.0, [0.1**0.5, 0.5**0.5, 0.05**0.5, 0.35**0.5]),
        (1e-4, 0, 1.0, [0, 1, 0, 0]),
        (1e-300, 0, 1.0, [0, 1, 0, 0]),
        (1.0, 1, 1.0, [0, 1, 0, 0]),
        (1.0, 2, 1.0, [0, 0.5, 0, 0.35]),
        (1.0, 9, 1.0, [0.1, 0.5, 0.05, 0.35]),
        (1.0, 0, 1e-9, [0, 1, 0, 0]),
        (1.0, 0, 0.49, [0, 1, 0, 0]),
        (1.0, 0, 0.51, [0, 0.5, 0, 0.35]),
        (1.0, 0, 0.84, [0, 0.5, 0, 0.35]),
        (1.0, 0, 0.86, [0.1, 0.5, 0, 0.35]),
        (1.0, 0, 0.96, [0.1, 0.5, 0.05, 0.35]),
        (1.0, 2, 0.58, [0, 1, 0, 0]),  # of the two, 0.5 / 0.85 = 0.588
        (1.0, 2, 0.6, [0, 0.5, 0, 0.35]),
    ],
)
def test_probabilities_in_closed_form(temperature, top_k, top_p, expected):
    made = sampling.probabilities(LOGITS, temperature, top_k, top_p)
    np.testing.assert_allclose(made, np.array(expected) / sum(expected), rtol=1e-6, atol=1e-12)


def test_equal_ones_at_the_edge():
    """All as large as the k-th stay; of equal ones top-p takes the first that are needed."""
    np.testing.assert_allclose(sampling.probabilities(torch.zeros(4), 1.0, top_k=2), [0.25] * 4)
    np.testing.assert_allclose(sampling.probabilities(torch.zeros(4), 1.0, top_p=0.6), [1 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(sampling.probabilities(torch.zeros(4), 1.0, top_p=0.5), [0.5, 0.5, 0, 0])


def test_draws_come_as_often_as_they_are_probable():
    shares = sampling.probabilities(LOGITS, 1.0)
    draws, count = sampling.generator(11, 0), 4000
    found = np.bincount([sampling.drawn(shares, draws) for _ in range(count)], minlength=4)
    expected = np.array([0.1, 0.5, 0.05, 0.35]) * count
    assert ((found - expected) ** 2 / expected).sum() < 16.27  # chi-square, 3 degrees of freedom, p = 0.001


class Fair:
    """A network that finds eight tokens equally good."""

    def prefill(self, embeds):
        return torch.zeros(8), None

    def decode(self, token, cache):
        return torch.zeros(8)


def drawn(**changes):
    options = {"temperature": 1.0, "max_new_tokens": 20, "seed": 1}
    item = changes.pop("item", 0)
    return generate(Fair(), torch.zeros(1, 5, 4), Letters(), Options(**{**options, **changes}), item=item).ids


def test_draws_depend_on_the_seed_and_the_item_alone():
    first = drawn()
    drawn(item=1)
    torch.manual_seed(5)
    assert drawn() == first
    assert len({first, drawn(item=1), drawn(item="1 "), drawn(seed=2), drawn(seed=-1)}) == 5
    assert set(first) == set(range(8))


def test_greedy_and_nearly_greedy_agree():
    for options in ({}, {"temperature": 1e-6}, {"temperature": 1.0, "top_k": 1}):
        assert answered(3, 9, 4, EOS, **options).ids == (3, 9, 4, EOS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("stop_strings", [""]),
        ("stop_strings", "</s>"),
    ],
)
def test_options_that_make_no_sense(name, value):
    with pytest.raises(UsageError, match=f"{name}=.*: wanted"):
        Options(**{name: value})


# ---------------------------------------------------------------------------------------------------------------------
# The golden networks, from picture and question to answer


def golden_network(folder, system):
    network = pytest.importorskip("edgewatt.workloads.vlm.network")
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    tower = folder / "vision_config.json"
    form = architecture.of_config(system, config, json.loads(tower.read_text()) if tower.exists() else None)
    made = network.empty(form)
    weights = folder / ("model.safetensors" if system == "mobilevlm" else "weights.safetensors")
    for key, tensor in load_file(weights).items():
        made.place(key, tensor)
    return made


def spliced(network, folder, ids):
    form = network.architecture
    picture = pictures.tensor(folder / "image.png", form.vision.image_px, form.image_mode, form.vision.kind)
    return network.spliced(ids, network.encode(torch.from_numpy(picture)[None]))


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", ["tiny_ldpnet", "tiny_ldpnetv2"])
def test_golden_mobilevlm_answers(shared, name):
    pytest.importorskip("sentencepiece")
    folder = shared / "data/golden/mobilevlm" / name
    case = json.loads((folder / "case.json").read_text())
    network = golden_network(folder, "mobilevlm")
    words = tokenizer.open(folder.parent / "tokenizer.model")
    template = network.architecture.template
    ids = tokenizer.ids_with_images(words, prompt(template, case["question"]))
    options = Options(
        max_new_tokens=case["max_new_tokens"],
        eos_ids=network.architecture.eos_ids,
        stop_strings=[STOPS[template]],
        context=network.architecture.text.positions,
    )
    made = generate(network, spliced(network, folder, ids), words, options)
    assert list(made.ids) == case["generated_ids"]
    assert made.text == case["generated_text"].strip()
    assert made.n_prompt == len(case["input_ids"]) - 1 + case["num_image_tokens"]
    assert made.stopped_by == ("eos" if made.ids[-1] == 2 else "max_new_tokens")


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", ["tiny_phi2", "tiny_qwen2", "tiny_phi3", "tiny_phi3_window"])
def test_golden_imp_answers(shared, name):
    folder = shared / "data/golden/imp" / name
    case = json.loads((folder / "tokens.json").read_text())
    network = golden_network(folder, "imp")
    options = Options(max_new_tokens=len(case["greedy_ids"]))
    words = tokenizer.synthetic(network.architecture.text.vocab)
    made = generate(network, spliced(network, folder, case["prompt_ids"]), words, options)
    assert list(made.ids) == case["greedy_ids"]
    assert (made.n_prompt, made.stopped_by) == (case["spliced_length"], "max_new_tokens")
