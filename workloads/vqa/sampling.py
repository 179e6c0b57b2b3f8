"""Which questions are asked when not all are: drawn at random, without replacement, in whole groups."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def drawn(groups: Sequence[Hashable], strata: Sequence[Hashable], limit: int, seed: int) -> list[int]:
    """Rising indices of at most `limit` questions, or of one group where even that has more.

    Question k belongs to `groups[k]` and `strata[k]`. Groups (both questions about a picture of MME, all rotations of
    one of MMBench) are drawn whole, each of a stratum with the same chance. Strata (POPE's categories, MME's tasks) are
    drawn from in turn, so that each has as many groups as any other, as long as it has enough: the scores are
    means or sums over strata, and need every one of them.
    """
    rng = np.random.default_rng(seed)
    members: dict[Hashable, list[int]] = {}
    queues: dict[Hashable, list[Hashable]] = {}
    for k, (group, stratum) in enumerate(zip(groups, strata, strict=True)):
        if group not in members:
            members[group] = []
            queues.setdefault(stratum, []).append(group)
        members[group].append(k)
    shuffled = [[queue[k] for k in rng.permutation(len(queue))] for queue in queues.values()]
    turns = [shuffled[k] for k in rng.permutation(len(shuffled))]
    taken: list[int] = []
    for turn in range(max(map(len, turns), default=0)):
        for queue in turns:
            if turn < len(queue):
                group_members = members[queue[turn]]
                if taken and len(taken) + len(group_members) > limit:
                    return sorted(taken)
                taken += group_members
    return sorted(taken)
