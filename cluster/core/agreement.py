"""Do the nodes of a cell agree on what the log comes to? (Rule 10.) Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum


class Verdict(Enum):
    """What a node makes of the digests of the state after one block."""

    AGREED = "a majority of the cell has this node's state"
    OPEN = "no majority is known to agree yet"
    OUTVOTED = "a majority has another state than this node"
    SPLIT = "no majority agrees, whatever the others will say"


def judge(own: bytes, others: Iterable[bytes], size: int) -> Verdict:
    """The verdict of a node with digest `own` in a cell of `size` nodes, of which `others` are those known so far."""
    counts = Counter([own, *others])
    favourite, most = counts.most_common(1)[0]
    if most > size // 2:
        return Verdict.AGREED if favourite == own else Verdict.OUTVOTED
    unknown = max(0, size - counts.total())
    return Verdict.OPEN if most + unknown > size // 2 else Verdict.SPLIT
