"""The blocks that are not committed yet: in one chain, with what they teach the residency check; and what becomes of
both when another leader's blocks take their place."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.journal.chain import Chain, Fact
from relay.core.block import GENESIS, Block, make_block
from relay.errors import NotPermitted, ResidencyError, StoreDamaged

LOG = b"L" * 16


class Knowing:
    """Takes "member x" always, and "for x" where x is a member by what is learned, or above."""

    def __init__(self) -> None:
        self.members = set[bytes]()

    def check(self, records: Sequence[bytes], above: Sequence[Fact] = (), *, made: bool = False) -> Sequence[Fact]:
        known = self.members | {value for _, value in above}
        taught = list[Fact]()
        for ordinal, record in enumerate(records):
            kind, _, name = record.partition(b" ")
            if kind == b"member":
                known.add(name)
                taught.append((name.ljust(32), name))
            elif kind == b"for" and name not in known:
                raise ResidencyError(f"{name.decode()} is not at home here", ordinal=ordinal)
        return taught

    def learn(self, facts: Sequence[Fact]) -> None:
        self.members |= {value for _, value in facts}


def chain_of(*blocks: Sequence[bytes], guard: Knowing | None = None) -> Chain:
    chain = Chain(LOG, 0, GENESIS, 0, guard or Knowing())
    for records in blocks:
        chain.take(chain.make(records, 5))
    return chain


def test_blocks_are_made_one_after_the_other_and_time_never_goes_back() -> None:
    chain = chain_of()
    made = list[Block]()
    for time in (10, 7, 12):
        made.append(chain.make([b"x"], time))
        chain.add(made[-1], ())
    assert [(block.index, block.time) for block in made] == [(1, 10), (2, 10), (3, 12)]
    assert [block.prev for block in made] == [GENESIS, made[0].hash, made[1].hash]
    assert chain.last == 3


def test_what_does_not_follow_is_two_histories() -> None:
    chain = chain_of([b"1"])
    first = make_block(LOG, 1, GENESIS, 5, [b"1"])
    for block in (
        make_block(LOG, 2, GENESIS, 5, [b"x"]),  # another before it
        make_block(LOG, 3, first.hash, 5, [b"x"]),  # a gap
        make_block(LOG, 2, first.hash, 4, [b"x"]),  # time goes back
    ):
        with pytest.raises(StoreDamaged, match="keep all stores"):
            chain.add(block, ())
    assert chain.last == 1


def test_what_an_uncommitted_block_teaches_counts_for_those_above_it() -> None:
    guard = Knowing()
    chain = chain_of([b"member a"], [b"for a"], guard=guard)
    assert guard.members == set()  # not before it is committed
    with pytest.raises(ResidencyError) as refused:
        chain.take(chain.make([b"x", b"for b"], 5))
    assert refused.value.ordinal == 1 and chain.last == 2
    for link in chain.commit(1):
        guard.learn(link.facts)
    assert guard.members == {b"a"} and chain.last == 2
    chain.take(chain.make([b"for a"], 5))


def test_what_a_truncated_block_taught_is_forgotten() -> None:
    guard = Knowing()
    chain = chain_of([b"x"], [b"member a"], [b"for a"], guard=guard)
    chain.truncate(2)
    assert chain.last == 1
    with pytest.raises(ResidencyError):
        chain.check([b"for a"])
    assert chain.commit(1) and guard.members == set()


def test_another_leaders_block_takes_the_place_of_what_stood_there() -> None:
    guard = Knowing()
    chain = chain_of([b"x"], [b"member a"], [b"for a"], guard=guard)
    other = chain_of([b"x"])
    fresh = other.make([b"member b"], 6)
    assert chain.take(fresh) == ((b"b".ljust(32), b"b"),)
    assert chain.last == 2 and chain.holds(fresh)
    chain.check([b"for b"])
    with pytest.raises(ResidencyError):
        chain.check([b"for a"])


def test_a_block_that_is_there_already_leaves_the_rest_alone() -> None:
    """Raft may have a block written again that was sent twice."""
    chain = chain_of([b"member a"], [b"for a"])
    again = chain_of([b"member a"])
    assert chain.take(make_block(LOG, 1, GENESIS, 5, [b"member a"])) == chain.facts(1) == again.facts(1)
    assert chain.last == 2


def test_another_block_below_what_is_committed_is_two_histories() -> None:
    chain = chain_of([b"1"], [b"2"])
    chain.commit(2)
    with pytest.raises(StoreDamaged):
        chain.take(make_block(LOG, 2, make_block(LOG, 1, GENESIS, 5, [b"1"]).hash, 5, [b"other"]))


def test_nothing_is_committed_that_is_not_there() -> None:
    chain = chain_of([b"1"])
    with pytest.raises(StoreDamaged, match="ends at 1"):
        chain.commit(2)
    assert [link.block.index for link in chain.commit(1)] == [1]
    assert chain.commit(1) == []
    assert chain.make([b"2"], 0).time == 5  # the time of what has gone still holds


@given(st.lists(st.tuples(st.sampled_from(["make", "take", "truncate", "commit"]), st.integers(1, 8)), max_size=40))
def test_it_is_always_one_chain_whose_facts_are_those_of_its_blocks(steps: list[tuple[str, int]]) -> None:
    guard, blocks, base = Knowing(), list[Block](), 0
    chain = chain_of(guard=guard)

    def block_after(place: int, records: list[bytes]) -> Block:
        before = blocks[place - 1].hash if place else GENESIS
        return make_block(LOG, place + 1, before, 5, records)

    for number, (what, at) in enumerate(steps):
        if what == "make":
            blocks.append(chain.make([b"member m%d" % number], 5))
            chain.take(blocks[-1])
        elif what == "take" and base <= at - 1 <= len(blocks):
            blocks[at - 1 :] = [block_after(at - 1, [b"member t%d" % number])]
            chain.take(blocks[-1])
        elif what == "truncate" and at > base:
            del blocks[at - 1 :]
            chain.truncate(at)
        elif what == "commit" and base < at <= len(blocks):
            assert [link.block for link in chain.commit(at)] == blocks[base:at]
            base = at
        assert chain.last == len(blocks)
        for block in blocks[base:]:
            assert chain.holds(block)
            assert [value for _, value in chain.facts(block.index)] == [block.records[0].removeprefix(b"member ")]


def test_a_policy_is_asked_about_what_is_made_and_not_about_what_was() -> None:
    """Nodes hold different root documents while they are restarted one by one (ADR 25)."""

    class Judging(Knowing):
        def check(self, records: Sequence[bytes], above: Sequence[Fact] = (), *, made: bool = False) -> Sequence[Fact]:
            if not made and b"abroad" in records:
                raise NotPermitted("here does not send there")
            return super().check(records, above, made=made)

    chain = chain_of(guard=Judging())
    with pytest.raises(NotPermitted):
        chain.check([b"abroad"])
    chain.take(chain.make([b"abroad"], 5))
    assert chain.last == 1
