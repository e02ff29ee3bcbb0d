"""What waits at the leader: first come, first placed, whole, bounded, and nobody waits for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pytest import MonkeyPatch

from cluster.core import linkwire
from cluster.core.linkwire import Peer
from cluster.core.raft import Members, NotLeader
from cluster.journal.proposals import Placed, Proposals, ask_leader, sift
from cluster.journal.shapes import from_members
from relay.core.wire import Code
from relay.errors import Overloaded, PeerError, Refused, ResidencyError
from relay.limits import LINK_DEADLINE_S, MAX_BLOCK, MAX_BLOCK_RECORDS, MAX_INTAKE
from tests.cluster.journal.conftest import CELL
from tests.cluster.journal.virtual import virtual_cell, virtually

PLACED = Placed(7, b"h" * 32, 2)


def test_it_is_first_come_first_placed() -> None:
    waiting = Proposals(1)
    assert not waiting and waiting.take() == []
    made = [waiting.add([b"%d" % number]) for number in range(5)]
    assert waiting
    assert waiting.take() == made and not waiting


def test_a_proposal_stays_whole_and_a_block_has_bounds() -> None:
    waiting = Proposals(1)
    half = waiting.add([b"x" * (MAX_BLOCK // 2)])
    rest = waiting.add([b"x" * (MAX_BLOCK // 2), b"y"])
    many, more = waiting.add([b""] * (MAX_BLOCK_RECORDS - 1)), waiting.add([b""] * 2)
    assert [waiting.take() for _ in range(4)] == [[half], [rest], [many], [more]]


def test_a_block_is_filled_to_its_bounds() -> None:
    waiting = Proposals(1)
    made = [waiting.add([b""] * (MAX_BLOCK_RECORDS - 1)), waiting.add([b"x"])]
    assert waiting.take() == made
    made = [waiting.add([b"x" * (MAX_BLOCK - 1)]), waiting.add([b"y"])]
    assert waiting.take() == made and not waiting


@pytest.mark.parametrize("records", [[], [b""] * (MAX_BLOCK_RECORDS + 1), [b"x" * MAX_BLOCK, b"y"]])
def test_what_fits_into_no_block_is_refused(records: list[bytes]) -> None:
    waiting = Proposals(1)
    with pytest.raises(ValueError, match="records"):
        waiting.add(records)
    assert not waiting


def test_a_change_of_members_is_not_for_the_asking() -> None:
    """Alone in a block it would be one (Members is what the core calls it; the log's record looks like this)."""
    with pytest.raises(ValueError, match="members"):
        Proposals(1).add([b"x", from_members(Members())])


@pytest.mark.parametrize("nodes", [1, 3])
def test_what_waits_is_bounded_in_bytes(nodes: int) -> None:
    waiting = Proposals(nodes)
    for _ in range(nodes * MAX_INTAKE // MAX_BLOCK):
        waiting.add([b"x" * MAX_BLOCK])
    with pytest.raises(Overloaded):
        waiting.add([b"x"])
    taken = waiting.take()
    waiting.add([b"x"])
    with pytest.raises(Overloaded):
        waiting.add([b"x" * MAX_BLOCK])
    waiting.put_back(taken)
    with pytest.raises(Overloaded):
        waiting.add([b"x"])


def test_what_is_put_back_comes_first_again() -> None:
    waiting = Proposals(1)
    first, second = waiting.add([b"1"]), waiting.add([b"2"])
    taken = waiting.take()
    third = waiting.add([b"3"])
    waiting.put_back(taken)
    assert waiting.take() == [first, second, third]


def test_a_leader_that_is_none_any_more_says_so_to_all_who_wait() -> None:
    waiting = Proposals(1)
    made = [waiting.add([b"x" * MAX_BLOCK]) for _ in range(3)]
    (taken,) = waiting.take()
    taken.settle(PLACED)
    waiting.fail(error := NotLeader(None))
    assert [one.outcome for one in made] == [PLACED, error, error] and all(one.done.is_set() for one in made)
    assert not waiting
    for _ in range(MAX_INTAKE // MAX_BLOCK):  # and there is room again
        waiting.add([b"x" * MAX_BLOCK])


async def test_who_is_cancelled_while_his_records_go_into_a_block_is_only_cancelled() -> None:
    """The driver fails over a block: what it has taken is neither in the queue nor placed, and its errors are its."""
    waiting = Proposals(1)
    made = waiting.add([b"1"])
    waiting.take()
    with trio.move_on_after(0) as scope:
        await waiting.outcome(made)
    assert scope.cancelled_caught and waiting._bytes == 0


def test_of_what_may_not_rest_each_asker_is_told_which_of_its_records() -> None:
    waiting, asked = Proposals(1), list[list[bytes]]()
    made = [waiting.add(records) for records in ([b"1", b"0"], [b"2", b"bad"], [b"3"], [b"bad", b"4"])]

    def check(records):
        asked.append(list(records))
        for ordinal, record in enumerate(records):
            if record == b"bad":
                raise ResidencyError("not here", "", ordinal)
        return ((b"fact", b""),)

    assert sift(waiting.take(), check) == ([made[0], made[2]], ((b"fact", b""),))
    assert asked[-1] == [b"1", b"0", b"3"]
    assert [one.outcome.ordinal if one.outcome else None for one in made] == [None, 1, None, 0]


class SilentLinks:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def ask(self, node: str, message: linkwire.Propose, deadline_s: float) -> linkwire.Answer:
        await trio.sleep(deadline_s)
        raise self.error


@pytest.mark.parametrize("error", [PeerError("silent"), Refused(Code.UNREACHABLE, "cut")])
async def test_nobody_waits_for_a_leader_that_is_silent_or_was_followed_by_another(autojump_clock, error) -> None:
    links, message, changed = SilentLinks(error), linkwire.Propose(b"l" * 16, (b"x",)), trio.Event()
    began = trio.current_time()
    assert await ask_leader(links, "n2", message, changed) == linkwire.NotLeading("")
    assert trio.current_time() == (silent := began + LINK_DEADLINE_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_leader, links, "n2", message, changed)
        await trio.sleep(1)
        changed.set()
    assert trio.current_time() == silent + 1


@given(st.lists(st.one_of(st.integers(1, MAX_BLOCK // 3), st.just(0), st.just(-1)), max_size=60))
def test_bytes_are_counted_right_whatever_happens(steps: list[int]) -> None:
    """Above 0: a proposal of so many bytes; 0: a block is taken and placed; -1: one is taken and put back."""
    waiting, sizes = Proposals(1), list[int]()
    for step in steps:
        if step > 0:
            try:
                waiting.add([bytes(step)])
            except Overloaded:
                assert sum(sizes) + step > MAX_INTAKE
                continue
            sizes.append(step)
        elif step:
            waiting.put_back(waiting.take())
        else:
            del sizes[: len(waiting.take())]
        assert waiting._bytes == sum(sizes)


@virtually
async def test_who_gives_up_waiting_leaves_nothing_in_the_queue(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """A leader that cannot commit is asked again and again: each copy would wait, and be written when it can."""
    async with virtual_cell(tmp_path) as world:
        leader = world.leader()
        asker = next(node for node in world.running.values() if node is not leader)
        journal, peer = leader.journal, Peer("norden", CELL, asker.name)
        with monkeypatch.context() as slow:
            slow.setattr(journal, "_propose", lambda: None)  # its disk takes nothing for a while
            with pytest.raises(Overloaded):
                await leader.cell.answer(peer, linkwire.Propose(journal.log_id, (b"once",)))
        assert not journal._proposals and not journal._proposals._bytes
        await journal.append([b"after"])
        blocks = [await journal.read(index) for index in range(journal.first, journal.tip + 1)]
        assert b"once" not in [record for block in blocks for record in block.records]


@virtually
async def test_what_is_behind_a_block_full_of_refused_records_is_placed_at_once(tmp_path: Path, monkeypatch):
    """Nothing else need happen before: in an idle cell that would be the next heartbeat."""
    async with virtual_cell(tmp_path) as world:
        journal = world.leader().journal
        await world.until(lambda: journal._job is None)

        def check(records):
            for ordinal, record in enumerate(records):
                if record.startswith(b"bad"):
                    raise ResidencyError("not here", "", ordinal)
            return ()

        monkeypatch.setattr(journal._chain, "check", check)
        bad = [journal._proposals.add([b"bad".ljust(MAX_BLOCK)]) for _ in range(2)]
        good = journal._proposals.add([b"good"])
        journal._propose()
        assert [type(one.outcome) for one in bad] == [ResidencyError, ResidencyError]
        assert isinstance(good.outcome, Placed) and not journal._proposals
