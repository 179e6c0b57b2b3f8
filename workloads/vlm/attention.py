"""Attention and its cache, for towers and language models alike.

One function and one class stand in for those of `transformers`: torch's fused kernel without a mask tensor wherever
none is needed, and a cache that is written in place instead of copied for every token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

NAME = "edgewatt"  # the name it is registered under


class KvCache:
    """Keys and values of all tokens so far, of each layer (1, kv heads, tokens, head dim).

    Holds `room` tokens without moving anything; beyond that it doubles.
    """

    def __init__(self, layers: int, room: int) -> None:
        self.length = 0  # tokens of finished passes
        self._room = max(room, 1)
        self._stores: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values of this layer, those of the pass that is running at their end: views, no copies."""
        end = self.length + key.shape[-2]
        key_store, value_store = self._store(layer, key, value, end)
        key_store[..., self.length : end, :] = key
        value_store[..., self.length : end, :] = value
        return key_store[..., :end, :], value_store[..., :end, :]

    def get_seq_length(self, *_: Any) -> int:
        return self.length

    @property
    def bytes(self) -> int:
        """Memory that is held, room included."""
        return sum(t.nbytes for store in self._stores if store for t in store)

    def _store(self, layer: int, key: Tensor, value: Tensor, end: int) -> tuple[Tensor, Tensor]:
        store = self._stores[layer]
        if store is None or store[0].shape[-2] < end:
            while self._room < end:
                self._room *= 2
            new = tuple(t.new_empty(*t.shape[:-2], self._room, t.shape[-1]) for t in (key, value))
            if store is not None:
                for to, old in zip(new, store, strict=True):
                    to[..., : self.length, :] = old[..., : self.length, :]
            store = self._stores[layer] = (new[0], new[1])
        return store


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(query key^T * scaling) value, (1, queries, heads, head dim); the queries are the last of the keys.

    Scores and softmax are float32 whatever the inputs, which Phi-2 needs in float16. On a GPU the kernel sees to that.
    Its half-precision form for the CPU does too, but without instructions for such numbers one query against 256 or
    1024 keys takes it 1.2 to 3 times as long as with the inputs made float32 first (torch 2.13, an EPYC with AVX2).
    """
    queries, keys = query.shape[-2], key.shape[-2]
    causal = module.is_causal if is_causal is None else is_causal
    mask = None
    if causal and sliding_window is not None and keys > sliding_window:
        if queries == 1:
            key, value = key[..., -sliding_window:, :], value[..., -sliding_window:, :]
        else:
            mask = _seen(queries, keys, sliding_window, query.device)
    elif causal and 1 < queries < keys:
        mask = _seen(queries, keys, keys, query.device)
    dtype = query.dtype
    if query.device.type == "cpu":
        query, key, value = query.float(), _float32("key", key), _float32("value", value)
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal and queries > 1 and mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.to(dtype).transpose(1, 2), None


def _float32(name: str, x: Tensor) -> Tensor:
    """x in float32. What is made of a long cache for every token and layer lies in one place, made once: new pages for
    it took longer than the attention."""
    if x.dtype == torch.float32:
        return x
    place = _places.get(name)
    if place is None or place.numel() < x.numel():
        with torch.inference_mode(False):  # it may be written to in and out of that mode
            place = _places[name] = torch.empty(x.numel() * 5 // 4)
    return place[: x.numel()].view(x.shape).copy_(x)


_places: dict[str, Tensor] = {}


def _seen(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """(queries, keys): whether a query sees a key: itself and the window - 1 before it."""
    back = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (back >= 0) & (back < window)


AttentionInterface.register(NAME, attend)
