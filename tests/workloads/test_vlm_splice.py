"""Pictures' embeddings among those of the text: six batches of the official code, and what must hold for any."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from edgewatt.harness.api import UsageError
from edgewatt.workloads.vlm.architecture import IMAGE_TOKEN, of_config

torch = pytest.importorskip("torch")
splice = pytest.importorskip("edgewatt.workloads.vlm.splice")

pytestmark = pytest.mark.needs_torch

# Made by Imp's official code; the options and numbers of pictures are those of splice_cases.json beside the original.
CASES = {
    "two_images_one_row": {},
    "batch_right": {"padding_side": "right"},
    "batch_left": {"padding_side": "left"},
    "row_without_image": {"padding_side": "right"},
    "truncated": {"max_length": 22},
    "image_first_last": {"padding_side": "right"},
}
DATA = Path(__file__).parent.parent / "data" / "vlm" / "splice_cases.npz"
PATCHES, WIDTH = 16, 80


@pytest.fixture(scope="module")
def cases():
    return dict(np.load(DATA))


def tensor(array):
    return torch.from_numpy(array)


def pictures_of(case, cases):
    """The pictures' embeddings, found in the official result where the labels say that there are pictures.

    A row without a place for one takes one that is nowhere to be seen.
    """
    found = []
    for row, labels, ids in zip(*(cases[f"{case}.{k}"] for k in ("inputs_embeds", "labels", "input_ids")), strict=True):
        seen = row[(labels == -100) & np.abs(row).any(-1)]
        count = max(int((ids == IMAGE_TOKEN).sum()), 1)
        if len(seen) == 0:
            seen = np.full((PATCHES, WIDTH), np.nan, np.float32)
        found += list(seen.reshape(count, PATCHES, WIDTH))
    return tensor(np.stack(found))


@pytest.mark.parametrize("case", CASES)
def test_official_batches_of_imp_are_met(cases, case):
    table = tensor(cases["embed_tokens"])
    given_ids, given_mask = (tensor(cases[f"{case}.{k}"]) for k in ("input_ids", "attention_mask_in"))
    found = splice.spliced(
        "imp",
        given_ids,
        pictures_of(case, cases),
        lambda i: table[i],
        mask=given_mask,
        labels=given_ids,
        **CASES[case],
    )
    np.testing.assert_array_equal(found.embeds, cases[f"{case}.inputs_embeds"])
    np.testing.assert_array_equal(found.mask, cases[f"{case}.attention_mask"])
    np.testing.assert_array_equal(found.positions, cases[f"{case}.position_ids"])
    np.testing.assert_array_equal(found.labels, cases[f"{case}.labels"])


@pytest.mark.needs_shared
@pytest.mark.parametrize("case", CASES)
def test_official_batches_of_imp_are_met_from_the_pictures_on(shared, case):
    network = pytest.importorskip("edgewatt.workloads.vlm.network")
    folder = shared / "data/golden/imp/tiny_phi2"
    golden = np.load(folder / "splice_cases.npz")
    net = network.empty(of_config("imp", json.loads((folder / "config.json").read_text())))
    for key, value in load_file(folder / "weights.safetensors").items():
        net.place(key, tensor(value))
    ids = tensor(golden[f"{case}.input_ids"])
    images = net.encode(tensor(golden[f"{case}.images"]))
    mask = tensor(golden[f"{case}.attention_mask_in"])
    found = splice.spliced("imp", ids, images, net.embedded, mask=mask, labels=ids, **CASES[case])
    np.testing.assert_allclose(found.embeds, golden[f"{case}.inputs_embeds"], rtol=0, atol=2e-5)
    for name, part in (("attention_mask", found.mask), ("position_ids", found.positions), ("labels", found.labels)):
        np.testing.assert_array_equal(part, golden[f"{case}.{name}"])


def numbers(ids):
    """Embeddings one wide: the ids themselves."""
    return ids[:, None].float()


def images(count, tokens=3):
    """Pictures whose embeddings are 1000, 1001, ... then 2000, 2001, ..."""
    return (1000 * torch.arange(1, count + 1)[:, None] + torch.arange(tokens)).float()[..., None]


def test_mobilevlm_lengthens_the_mask_at_the_left_and_pads_at_the_right():
    ids = torch.tensor([[5, IMAGE_TOKEN, 6, 0], [7, IMAGE_TOKEN, IMAGE_TOKEN, 8]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    found = splice.spliced("mobilevlm", ids, images(3), numbers, mask=mask, labels=ids)
    assert found.embeds[..., 0].tolist() == [
        [5, 1000, 1001, 1002, 6, 0, 0, 0],
        [7, 2000, 2001, 2002, 3000, 3001, 3002, 8],
    ]
    assert found.mask.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]]
    assert found.positions.tolist() == [[0, 1, 2, 3, 4, 5, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert found.labels.tolist() == [
        [5, -100, -100, -100, 6, 0, -100, -100],
        [7, -100, -100, -100, -100, -100, -100, 8],
    ]


def test_row_of_mobilevlm_without_a_place_takes_a_picture_all_the_same():
    ids = torch.tensor([[5, 6], [7, IMAGE_TOKEN]])
    found = splice.spliced("mobilevlm", ids, images(2), numbers)
    assert found.embeds[..., 0].tolist() == [[5, 6, 0, 0], [7, 2000, 2001, 2002]]
    assert found.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert found.labels is None


@pytest.mark.parametrize("system", ["mobilevlm", "imp"])
def test_text_without_pictures_is_only_looked_up(system):
    found = splice.spliced(system, torch.tensor([[5, 6], [7, 8]]), None, numbers)
    assert found.embeds[..., 0].tolist() == [[5, 6], [7, 8]]


@pytest.mark.parametrize("system", ["mobilevlm", "imp"])
@pytest.mark.parametrize(
    ("ids", "pictures", "message"),
    [
        ([[5, IMAGE_TOKEN]], None, "fewer pictures"),
        ([[5, IMAGE_TOKEN, IMAGE_TOKEN]], 1, "fewer pictures"),
        ([[5, 6], [7, IMAGE_TOKEN]], 1, "fewer pictures"),
        ([[5, IMAGE_TOKEN]], 2, "more pictures"),
    ],
)
def test_wrong_number_of_pictures_is_one_clear_line(system, ids, pictures, message):
    with pytest.raises(UsageError, match=message):
        splice.spliced(system, torch.tensor(ids), pictures and images(pictures), numbers)


@given(
    rows=st.lists(st.lists(st.sampled_from([1, 2, 3, IMAGE_TOKEN]), min_size=1, max_size=8), min_size=1, max_size=4),
    tokens=st.integers(1, 5),
    system=st.sampled_from(["mobilevlm", "imp"]),
    side=st.sampled_from(["left", "right"]),
    limit=st.none() | st.integers(1, 20),
)
@settings(deadline=None)
def test_lengths_order_and_padding_hold_for_any_batch(rows, tokens, system, side, limit):
    width = max(map(len, rows))
    ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    needed = sum(max(r.count(IMAGE_TOKEN), 1) for r in rows)
    found = splice.spliced(
        system, ids, images(needed, tokens), numbers, mask=mask, labels=ids, max_length=limit, padding_side=side
    )
    lengths, number = [], 0
    for i, row in enumerate(rows):
        wanted = []
        for token in row:
            if token == IMAGE_TOKEN:
                number += 1
                wanted += [1000 * number + k for k in range(tokens)]
            else:
                wanted.append(token)
        number += IMAGE_TOKEN not in row
        if system == "imp":
            wanted = wanted[:limit]
        assert found.embeds[i, found.mask[i].bool(), 0].tolist() == wanted
        assert found.positions[i, found.mask[i].bool()].tolist() == list(range(len(wanted)))
        assert found.labels[i, found.mask[i].bool()].tolist() == [v if v < 1000 else -100 for v in wanted]
        assert found.embeds[i, ~found.mask[i].bool(), 0].eq(0).all()
        lengths.append(len(wanted))
    if system == "imp":
        assert found.embeds.shape[1] == max(lengths)
