"""The next token from the network's logits: the most probable one, or one drawn with a seed.

Temperature, top-k and top-p act in the order and with the ties of transformers' logits warpers.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from edgewatt.harness.api import HarnessError


def most_probable(logits: Tensor) -> int:
    """Index of the largest of (vocabulary,); the first of several. HarnessError if that is infinite or not a number."""
    largest, index = logits.max(dim=0)  # torch documents: the first of equal ones; NaN is larger than all
    if not largest.isfinite():
        raise HarnessError(
            f"the network's largest logit is {largest.item()}, wanted a finite number; its weights or its precision "
            "are at fault: use bf16"
        )
    return int(index)


def probabilities(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Of each token, float64 (vocabulary,) on the CPU.

    Kept are the `top_k` largest (0: all), then the smallest set that holds at least `top_p`.
    """
    most_probable(logits)  # refuses what is no number
    scores = logits.detach().to("cpu", torch.float64)
    scores = (scores - scores.max()) / temperature
    if 0 < top_k < len(scores):
        least = scores.topk(top_k).values[-1]
        scores = scores.masked_fill(scores < least, -torch.inf)
    shares = scores.softmax(dim=0)
    if top_p < 1:
        falling, order = shares.sort(descending=True, stable=True)
        before = falling.cumsum(dim=0) - falling
        shares[order[before >= top_p]] = 0  # the largest has nothing before it, and stays
        shares /= shares.sum()
    return shares


def drawn(shares: Tensor, generator: torch.Generator) -> int:
    """An index of (vocabulary,), each with its probability."""
    return int(torch.multinomial(shares, 1, generator=generator))


def generator(seed: int, item: int | str) -> torch.Generator:
    """A generator for one item of a run, the same whatever was drawn for other items before."""
    digest = hashlib.sha256(f"{seed} {item}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
