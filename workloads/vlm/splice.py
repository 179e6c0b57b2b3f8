"""Pictures' embeddings put among those of the text, as each system's official code does it. Needs the extra `vlm`.

Sources: MobileVLM @ 688fdec, mobilevlm/model/mobilevlm.py; Imp @ 363a9bb, imp_llava/model/llava_arch.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from edgewatt.harness.api import UsageError
from edgewatt.workloads.vlm.architecture import IMAGE_TOKEN, System

NO_LABEL = -100  # a position that no loss is taken from

Embed = Callable[[Tensor], Tensor]  # token ids (n,) to embeddings (n, width)


@dataclass(frozen=True)
class Batch:
    """What a language model takes in; all are (rows, tokens), `embeds` (rows, tokens, width)."""

    embeds: Tensor
    mask: Tensor  # 1: a token, 0: padding
    positions: Tensor  # 0, 1, ... over the tokens of a row, 0 on its padding
    labels: Tensor | None


def spliced(
    system: System,
    ids: Tensor,
    images: Tensor | None,
    embed: Embed,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    max_length: int | None = None,
    padding_side: Literal["left", "right"] = "right",
) -> Batch:
    """Rows of token ids (rows, tokens), every -200 replaced by the next picture's embeddings, padded with zeros.

    Pictures (n, tokens, width) are taken in order over the whole batch; a row without a place for one takes one all the
    same and drops it. Without pictures (None) there may be no places, and nothing is taken.

    Imp drops what `mask` calls padding beforehand, cuts rows to `max_length` afterwards and pads at `padding_side`.
    MobileVLM keeps padding where it is, lengthens `mask` by ones at its left, and always pads at the right. Its own
    code cannot pad rows of unequal length unless it is given labels; this one can.

    Raises:
        UsageError: not as many pictures as they take.
    """
    pictures = None if images is None else iter(images)
    rows, sources = [], []
    for i, row in enumerate(ids):
        kept = torch.arange(len(row))
        if system == "imp" and mask is not None:
            kept = kept[mask[i].bool()]
        embeds, source = spliced_row(row[kept], pictures, embed)
        if system == "imp":
            embeds, source = embeds[:max_length], source[:max_length]
        rows.append(embeds)
        sources.append(torch.where(source < 0, source, kept[source]))
    if pictures is not None and next(pictures, None) is not None:
        raise UsageError(f"more pictures than {len(rows)} rows have places for; give as many as there are places")
    masks = [torch.ones(len(r), dtype=torch.long) for r in rows]
    if system == "mobilevlm" and mask is not None:
        for own, given in zip(masks, mask, strict=True):
            own[len(own) - len(given) :] = given
    side = padding_side if system == "imp" else "right"
    return Batch(
        embeds=_stacked(rows, 0, side),
        mask=_stacked(masks, 0, side),
        positions=_stacked([torch.arange(len(r)) for r in rows], 0, side),
        labels=None if labels is None else _stacked(_labels(sources, labels), NO_LABEL, side),
    )


def spliced_row(ids: Tensor, pictures: Iterator[Tensor] | None, embed: Embed) -> tuple[Tensor, Tensor]:
    """One row without padding: its embeddings (tokens, width), and where in `ids` each is from (-1: a picture).

    `pictures` None: a row of text.

    Raises:
        UsageError: too few pictures.
    """
    places = (ids == IMAGE_TOKEN).nonzero().flatten().tolist()
    pieces, sources, start = [], [], 0
    if pictures is not None and not places:
        _next(pictures)
    for place in places:
        pieces.append(embed(ids[start:place]))
        pieces.append(_next(pictures).to(pieces[0]))
        sources += [torch.arange(start, place), torch.full(pieces[-1].shape[:1], -1)]
        start = place + 1
    pieces.append(embed(ids[start:]))
    sources.append(torch.arange(start, len(ids)))
    return torch.cat(pieces), torch.cat(sources)


def _next(pictures: Iterator[Tensor] | None) -> Tensor:
    picture = next(pictures, None) if pictures is not None else None
    if picture is None:
        raise UsageError("fewer pictures than the prompt takes; give one for each <image>, and one for a row without")
    return picture


def _labels(sources: list[Tensor], labels: Tensor) -> list[Tensor]:
    return [torch.where(s < 0, NO_LABEL, own[s]) for s, own in zip(sources, labels, strict=True)]


def _stacked(rows: list[Tensor], fill: int, side: Literal["left", "right"]) -> Tensor:
    """Rows of unequal length, along their first dimension, as one tensor."""
    longest = max(len(r) for r in rows)
    ends = [(longest - len(r), 0) if side == "left" else (0, longest - len(r)) for r in rows]
    return torch.stack([F.pad(r, (0, 0) * (r.ndim - 1) + end, value=fill) for r, end in zip(rows, ends, strict=True)])
