"""Attention as it should see, in every precision, and the cache of keys and values."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgewatt.workloads.vlm import attention  # noqa: E402
from edgewatt.workloads.vlm.runner import Watched  # noqa: E402
from support import plain_vlm  # noqa: E402
from support.tiny_networks import TINY, close, filled, made, pictures  # noqa: E402

pytestmark = [pytest.mark.needs_torch, pytest.mark.usefixtures("one_thread")]


@settings(deadline=None, max_examples=60)
@given(
    past=st.integers(0, 9),
    queries=st.integers(1, 9),
    window=st.none() | st.integers(1, 20),
    kv_heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 9),
)
def test_attention_sees_just_the_keys_it_should(past, queries, window, kv_heads, seed):
    draw = np.random.default_rng(seed)
    keys = past + queries
    q = draw.normal(0, 1, (4, queries, 8))
    k, v = draw.normal(0, 1, (2, kv_heads, keys, 8))
    back = np.arange(past, keys)[:, None] - np.arange(keys)
    seen = (back >= 0) & (back < (window or keys))
    wanted = plain_vlm.attention(q, *(np.repeat(x, 4 // kv_heads, axis=0) for x in (k, v)), seen)
    q, k, v = (torch.from_numpy(x).float()[None] for x in (q, k, v))
    causal = SimpleNamespace(is_causal=True)
    found, _ = attention.attend(causal, q, k, v, None, scaling=8**-0.5, sliding_window=window)
    close(found.flatten(2)[0], wanted, 1e-5)
    if kv_heads == 4 and window is None:
        found, _ = attention.attend(causal, q, k, v, None, scaling=8**-0.5, is_causal=False)
        close(found.flatten(2)[0], plain_vlm.attention(*(x[0].numpy() for x in (q, k, v)), np.ones_like(seen)), 1e-5)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_beyond_float16_stay_finite_in_half_precision(queries, window, dtype):
    key = torch.full((1, 1, 3, 80), 192.0, dtype=dtype)
    key[0, 0, :2] -= 1  # products 80 * 192 * 192 = 2949120 and 2933760: both infinite in float16
    value = torch.tensor([1.0, 2.0, 3.0], dtype=dtype)[None, None, :, None].expand(1, 1, 3, 80)
    causal = SimpleNamespace(is_causal=True)
    query = key[:, :, 2:].expand(1, 1, queries, 80)
    found, _ = attention.attend(causal, query, key, value, None, scaling=80**-0.5, sliding_window=window)
    assert found[0, -1].unique().tolist() == [3.0]
    assert torch.isfinite(found).all()


def test_phi_2_with_large_scores_stays_finite_in_float16():
    _, plain = made("phi2")
    arrays = {k: v.astype(np.float32) for k, v in plain.w.items()}
    for i in range(2):
        for part in "qk":
            arrays[f"model.layers.{i}.self_attn.{part}_proj.weight"] *= 150
    net = filled(TINY["phi2"], arrays, torch.float16)
    q = net.text.model.layers[0].self_attn.q_proj(net.text.model.layers[0].input_layernorm(net.spliced([1, 2, 3])[0]))
    assert (q.float() ** 2).reshape(3, 4, 20).sum(-1).max() > 65504  # what a float16 score would have to hold
    logits, cache = net.prefill(net.spliced([1, 2, 3]))
    assert logits.dtype == torch.float16
    assert torch.isfinite(logits).all() and torch.isfinite(net.decode(4, cache)).all()


@pytest.mark.parametrize("name", ["ldpnet", "qwen2, grouped heads", "phi3"])
def test_rms_norm_squares_in_float32(name):
    net = filled(TINY[name], {k: v.astype(np.float32) for k, v in made(name)[1].w.items()}, torch.float16)
    x = torch.full((1, 1, 32), 300.0, dtype=torch.float16)  # squared: 90000, infinite in float16
    norm = net.text.model.norm
    np.testing.assert_array_equal(norm(x)[0, 0], norm.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", TINY)
def test_half_precision_runs_point_the_same_way(name, dtype):
    net, plain = made(name)
    half = filled(TINY[name], {k: v.astype(np.float32) for k, v in plain.w.items()}, dtype)
    pixels = torch.from_numpy(pictures(TINY[name], 1))
    found, wanted = half.encode(pixels), net.encode(pixels)
    assert found.dtype == half.dtype == dtype
    assert torch.cosine_similarity(found.float().flatten(), wanted.flatten(), 0) > 0.999
    logits, cache = half.prefill(half.spliced([1, 2, 3]))
    other, _ = net.prefill(net.spliced([1, 2, 3]))
    assert torch.cosine_similarity(logits.float(), other, 0) > 0.995
    assert half.decode(1, cache).dtype == dtype


def test_cache_holds_its_room_without_moving_and_then_doubles():
    net, _ = made("ldpnet")
    _, cache = net.prefill(net.spliced([1, 2, 3]), room=5)
    layers, tensors, heads, dim, size = 2, 2, 4, 8, 4
    assert cache.bytes == layers * tensors * heads * dim * size * (3 + 5)
    places = [t.data_ptr() for store in cache._stores for t in store]
    for _ in range(5):
        net.decode(1, cache)
    assert [t.data_ptr() for store in cache._stores for t in store] == places
    net.decode(1, cache)
    assert cache.length == 9
    assert cache.bytes == layers * tensors * heads * dim * size * 16


@pytest.mark.parametrize(("prompt", "steps"), [(298, 1), (299, 1), (300, 0)])
def test_answer_is_decoded_again_as_far_as_the_context_goes(prompt, steps):
    """300 places: the one token that comes of a prompt that fills them cannot be read."""
    net, _ = made("phi2")
    watched = Watched(net, room=4)
    watched.prefill(torch.zeros(1, prompt, 80))
    watched.ids = (1,)
    assert [watched.again() for _ in range(2)] == [steps, steps]


def test_cache_hands_out_views_of_what_it_keeps():
    cache = attention.KvCache(1, room=4)
    keys, values = cache.update(torch.ones(1, 2, 3, 5), torch.ones(1, 2, 3, 5), 0)
    assert keys.shape == values.shape == (1, 2, 3, 5)
    cache.length = 3
    again, _ = cache.update(torch.zeros(1, 2, 1, 5), torch.zeros(1, 2, 1, 5), 0)
    assert again.data_ptr() == keys.data_ptr() and again.shape == (1, 2, 4, 5)
