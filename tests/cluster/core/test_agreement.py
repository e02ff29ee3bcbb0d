"""Who is right about the state: every way in which up to five nodes can differ."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import pytest

from cluster.core.agreement import Verdict, judge


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_when_all_are_known_a_majority_stays_and_the_rest_goes_or_all_stop(size):
    for states in product(b"abcde"[:size], repeat=size):
        verdicts = [
            judge(bytes([own]), [bytes([one]) for m, one in enumerate(states) if m != n], size)
            for n, own in enumerate(states)
        ]
        favourite, most = Counter(states).most_common(1)[0]
        if most > size // 2:
            expected = [Verdict.AGREED if own == favourite else Verdict.OUTVOTED for own in states]
        else:
            expected = [Verdict.SPLIT] * size
        assert verdicts == expected


@pytest.mark.parametrize("size", [3, 5])
def test_nobody_judges_before_it_is_decided(size):
    """What is known of a part is OPEN, or what it is of the whole, however the unknown ones turn out."""
    for states in product(b"abc", repeat=size):
        for known in range(1, size):
            for part in combinations(range(size), known):
                own, *others = (bytes([states[n]]) for n in part)
                early = judge(own, others, size)
                late = judge(own, [bytes([states[n]]) for n in range(size) if n != part[0]], size)
                assert early in (Verdict.OPEN, late)


def test_a_node_alone_in_its_cell_agrees_with_itself():
    assert judge(b"a", [], 1) is Verdict.AGREED
