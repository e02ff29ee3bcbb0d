"""Links between the nodes of one cell: kept while a node runs, notes one way, requests to one node. On loopback with
real TLS, or in memory without."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
import trio
import trio.testing

from cluster.core.linkwire import (
    CellNote, Done, HandItem, HandOver, Join, LookUp, Records, TakeSnapshot, encode_message,
)
from relay.core.wire import Code
from relay.errors import DiskFailed, PeerError, ProtocolError, Refused, StoreDamaged
from relay.limits import (
    CELL_BACKOFF_MAX_S, CELL_SILENCE_S, LINK_DEADLINE_S, MAX_NOTE, MIB, NOTE_BYTES, SNAPSHOT_DEADLINE_S,
)

ID = bytes(16)
ALL = ("n1", "n2", "n3")


def note(number: int, size: int = 0) -> CellNote:
    return CellNote(ID, ID, number, bytes(size))


async def arrived(node: Any, count: int) -> list[CellNote]:
    """The notes of a node, once there are `count`."""
    for _ in range(10_000):
        if len(node.notes) >= count:
            break
        await trio.sleep(0.001)
    return [message for _, message in node.notes]


# --- what is up ----------------------------------------------------------------------------------
async def test_links_inside_a_cell_come_up_by_themselves_and_carry_both(cell: Any) -> None:
    n1, n2, n3 = (cell.nodes[name] for name in ALL)
    assert n1.links.peers() == ("n2", "n3") and cell.nodes["sueden"].links.peers() == ()
    assert not n1.links.reaches("n2") and n1.metrics.peers_up.labels("n2")._value.get() == 0
    with trio.fail_after(10):
        async with cell.running(*ALL):
            await cell.met(*ALL)
            assert n1.metrics.peers_up.labels("n2")._value.get() == 1
            assert [n1.links.note("n2", note(number)) for number in range(500)] == [True] * 500
            assert n3.links.note("n2", note(7, MAX_NOTE))
            assert await n1.links.ask("n2", LookUp(bytes(32), 0)) == Records(Code.STORED, (bytes(32),))
            await arrived(n2, 501)
            assert [said for peer, said in n2.notes if peer == n1.peer] == [note(number) for number in range(500)]
            assert (n3.peer, note(7, MAX_NOTE)) in n2.notes and n2.asked == [(n1.peer, LookUp(bytes(32), 0))]
            assert not n1.notes and not n3.notes and not n2.links.refused


async def test_the_same_without_tls(cellnet: Any) -> None:
    n1, n2 = cellnet.nodes["n1"], cellnet.nodes["n2"]
    with trio.fail_after(10):
        async with cellnet.running(*ALL, "sueden"):
            await cellnet.met(*ALL)
            assert n2.links.note("n1", note(1, 1000)) and await n2.links.ask("n1", Join(ID)) == Done()
            assert await arrived(n1, 1) == [note(1, 1000)] and n1.notes[0][0] == n2.peer
            assert await cellnet.nodes["sueden"].links.request("norden/1", LookUp(bytes(32), 0))


async def test_notes_that_are_dropped_are_counted_by_node_and_reason(cellnet: Any, autojump_clock: Any) -> None:
    n1 = cellnet.nodes["n1"]

    def dropped() -> dict[tuple[str, str], float]:
        (family,) = n1.metrics.notes_dropped.collect()
        totals = [sample for sample in family.samples if sample.name.endswith("_total")]
        return {(one.labels["node"], one.labels["reason"]): one.value for one in totals}

    none = dict.fromkeys(product(("n2", "n3"), ("no_link", "no_room")), 0.0)
    assert dropped() == none, "there from the start, so that a rise can be seen"
    assert not n1.links.note("n2", note(1)) and not n1.links.note("n9", note(1))
    assert dropped() == none | {("n2", "no_link"): 1}
    async with cellnet.running("n1", "n2"):
        await cellnet.met("n1", "n2")
        for number in range(NOTE_BYTES // MIB + 2):
            n1.links.note("n2", note(number, MIB))
        lost = dropped()[("n2", "no_room")]
        assert lost >= 2 and dropped() == none | {("n2", "no_link"): 1, ("n2", "no_room"): lost}
        await arrived(cellnet.nodes["n2"], 1)
        assert n1.links.note("n2", note(99)) and dropped()[("n2", "no_room")] == lost


async def test_where_there_is_no_link_nothing_waits(cellnet: Any, autojump_clock: Any) -> None:
    links = cellnet.nodes["n1"].links
    assert not links.note("n2", note(1))
    with pytest.raises(Refused, match="not running"):
        await links.ask("n2", Join(ID))
    async with cellnet.running("n1"):
        for stranger in ("n1", "n9", "sueden", ""):
            assert not links.note(stranger, note(1)) and not links.reaches(stranger)
            with pytest.raises(Refused, match="the cell has no other node") as caught:
                await links.ask(stranger, Join(ID))
            assert caught.value.code == Code.UNREACHABLE
        with pytest.raises(Refused, match="no other cell"):
            await links.request("norden/1", LookUp(bytes(32), 0))
        with pytest.raises(Refused, match=r"node n2 gave no answer in 0\.5 s") as caught:
            await links.ask("n2", Join(ID), 0.5)
        assert caught.value.code == Code.UNREACHABLE
        assert not links.note("n2", note(1))
        async with cellnet.running("n2"):
            await cellnet.met("n1", "n2")
            assert links.note("n2", note(2))
            assert await arrived(cellnet.nodes["n2"], 1) == [note(2)]


async def test_errors_of_a_node_come_back_as_from_a_cell(cellnet: Any) -> None:
    cellnet.nodes["n2"].error = Refused(Code.UNKNOWN_USER, "nobody")
    with trio.fail_after(10):
        async with cellnet.running("n1", "n2"):
            with pytest.raises(Refused, match="node n2: nobody") as caught:
                await cellnet.nodes["n1"].links.ask("n2", Join(ID))
            assert caught.value.code == Code.UNKNOWN_USER and cellnet.nodes["n1"].links.reaches("n2")


# --- the queue -----------------------------------------------------------------------------------
async def test_the_queue_is_bounded_in_bytes_and_the_newest_is_dropped(cell: Any) -> None:
    links, n2 = cell.nodes["n1"].links, cell.nodes["n2"]
    with trio.fail_after(20):
        async with cell.running("n1", "n2"):
            await cell.met("n1", "n2")
            taken = [links.note("n2", note(number, MIB)) for number in range(40)]  # nothing is read meanwhile
            fit = sum(taken)  # what is queued, and what a socket took at once
            assert taken == [True] * fit + [False] * (40 - fit)
            assert fit >= NOTE_BYTES // len(encode_message(note(0, MIB)))
            assert links.note("n2", note(99))  # a small one still fits
            assert await arrived(n2, fit + 1) == [*(note(number, MIB) for number in range(fit)), note(99)]
            assert links.note("n2", note(100, MIB))  # there is room again
            assert len(await arrived(n2, fit + 2)) == fit + 2
            with pytest.raises(ProtocolError, match="link message of"):
                links.note("n2", note(0, MAX_NOTE + 2048))


async def test_a_note_leaves_with_the_call(cell: Any) -> None:
    """Nobody else has a turn before it is on the wire."""
    links, n2 = cell.nodes["n1"].links, cell.nodes["n2"]
    with trio.fail_after(20):
        async with cell.running("n1", "n2"):
            await cell.met("n1", "n2")
            assert links.note("n2", note(1, 1000))
            outgoing = links._nodes["n2"]._live
            assert outgoing is not None and not outgoing._notes and not outgoing._unsent
            assert await arrived(n2, 1) == [note(1, 1000)]


async def test_a_broken_socket_ends_the_link_and_nobody_who_has_something_to_say(cell: Any, monkeypatch: Any) -> None:
    """A note is written by who queues it: by the journal, which would end with what that raises."""
    links = cell.nodes["n1"].links

    def broken(queue: Any) -> int:
        raise ConnectionResetError

    with trio.fail_after(20):
        async with cell.running("n1", "n2"):
            await cell.met("n1", "n2")
            kept = links._nodes["n2"]
            outgoing, changed = kept._live, kept._changed
            assert outgoing is not None
            monkeypatch.setattr(outgoing._sink, "write", broken)
            assert links.note("n2", note(1))
            await changed.wait()
            assert outgoing.ended


async def test_queued_frames_go_out_in_few_writes(cellnet: Any) -> None:
    with trio.fail_after(10):
        async with cellnet.running("n1", "n2"):
            await cellnet.met("n1", "n2")
            wires = cellnet.env.wires
            before = sum(wire.sends for wire in wires)
            for number in range(200):
                assert cellnet.nodes["n1"].links.note("n2", note(number, 100))
            await arrived(cellnet.nodes["n2"], 200)
            assert sum(wire.sends for wire in wires) - before <= 2


async def test_notes_and_requests_do_not_wait_for_all_of_each_other(cellnet: Any) -> None:
    n1, n2 = cellnet.nodes["n1"], cellnet.nodes["n2"]
    large = HandOver(bytes(16), 0, 1, (HandItem(1, bytes(100_000), b""),))
    orders: list[str] = []

    async def answer(peer: Any, message: Any) -> Done:
        orders.append("request")
        return Done()

    def take(peer: Any, message: Any) -> None:
        orders.append("note")

    n2.answer, n2.note = answer, take
    with trio.fail_after(10):
        async with cellnet.running("n1", "n2"):
            await cellnet.met("n1", "n2")
            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(n1.links.ask, "n2", large)
                await trio.testing.wait_all_tasks_blocked()
                orders.clear()
                for _ in range(40):
                    nursery.start_soon(n1.links.ask, "n2", large)
                    n1.links.note("n2", note(0, 100_000))
    assert orders.count("note") == orders.count("request") == 40
    assert "note" in orders[:20] and "request" in orders[:20]


# --- what ends a link ----------------------------------------------------------------------------
@pytest.mark.parametrize("error", [PeerError("junk"), ProtocolError("junk"), KeyError("a mistake of ours")])
async def test_a_note_that_makes_no_sense_ends_its_link_and_nobody_elses(cellnet: Any, error: Exception) -> None:
    n1, n2, n3 = (cellnet.nodes[name] for name in ALL)
    with trio.fail_after(10):
        async with cellnet.running(*ALL):
            await cellnet.met(*ALL)
            n2.note_error = error
            dials = len(cellnet.env.dials)
            assert n1.links.note("n2", note(1))
            while not n2.links.refused:
                await trio.lowlevel.checkpoint()
            n2.note_error = None
            assert n3.links.reaches("n2") and await n3.links.ask("n2", Join(ID)) == Done()
            assert await n1.links.ask("n2", Join(ID)) == Done()  # it comes back
            assert n1.links.note("n2", note(2)) and await arrived(n2, 1) == [note(2)]
            assert n2.links.refused == n2.metrics.refused.labels("LINK")._value.get() == 1
            assert len(cellnet.env.dials) == dials + 1


@pytest.mark.parametrize("error", [DiskFailed("fsync: EIO"), StoreDamaged("block 7")])
async def test_trouble_of_the_node_itself_in_a_note_ends_the_node(cellnet: Any, error: Exception) -> None:
    cellnet.nodes["n2"].note_error = error
    with trio.fail_after(10), pytest.RaisesGroup(type(error), flatten_subgroups=True):
        async with cellnet.running("n1", "n2"):
            await cellnet.met("n1", "n2")
            cellnet.nodes["n1"].links.note("n2", note(1))
            await trio.sleep_forever()


# --- time ----------------------------------------------------------------------------------------
async def test_a_node_that_comes_back_is_found_within_the_short_backoff(cellnet: Any, autojump_clock: Any) -> None:
    links, env = cellnet.nodes["n1"].links, cellnet.env
    async with cellnet.running("n1"):
        async with cellnet.running("n2"):
            await cellnet.met("n1", "n2")
        del env.listeners[cellnet.ports["n2"]]
        await trio.sleep(60)
        assert not links.reaches("n2") and not links.note("n2", note(1))
        at = [when for when, port in zip(env.dials, env.dialled, strict=True) if port == cellnet.ports["n2"]]
        pauses = [b - a for a, b in pairwise(at[-50:])]
        assert all(CELL_BACKOFF_MAX_S / 2 <= pause <= CELL_BACKOFF_MAX_S for pause in pauses) and len(set(pauses)) > 40
        await cellnet.listen_again("n2")
        async with cellnet.running("n2"):
            await trio.sleep(CELL_BACKOFF_MAX_S + 0.01)
            assert links.reaches("n2") and links.note("n2", note(2))
            assert await arrived(cellnet.nodes["n2"], 1) == [note(2)]


async def test_a_half_open_link_is_noticed_soon_though_only_notes_go_over_it(cellnet: Any, autojump_clock: Any) -> None:
    links, env = cellnet.nodes["n1"].links, cellnet.env
    async with cellnet.running("n1", "n2"):
        await cellnet.met("n1", "n2")
        env.swallow()
        async with trio.open_nursery() as nursery:

            async def chatter() -> None:
                while True:
                    links.note("n2", note(1))
                    await trio.sleep(0.1)

            nursery.start_soon(chatter)
            await trio.sleep(CELL_SILENCE_S + 1)
            assert links.reaches("n2") and cellnet.nodes["n2"].notes
            nursery.cancel_scope.cancel()
        await trio.sleep(3600)  # and one that is well is kept, however idle
        assert len([port for port in env.dialled if port != cellnet.ports["n3"]]) == 4


async def test_a_snapshot_may_take_longer_than_other_requests(cellnet: Any, autojump_clock: Any) -> None:
    links, n2 = cellnet.nodes["n1"].links, cellnet.nodes["n2"]
    n2.gate = trio.Event()
    async with cellnet.running("n1", "n2"), trio.open_nursery() as nursery:
        answers: list[object] = []

        async def take() -> None:
            answers.append(await links.ask("n2", TakeSnapshot(9, 3), SNAPSHOT_DEADLINE_S))

        nursery.start_soon(take)
        await trio.sleep(LINK_DEADLINE_S * 4)
        assert links.reaches("n2") and not answers
        began = trio.current_time()
        with pytest.raises(Refused, match="cannot serve this now"):
            await links.ask("n2", Join(ID), LINK_DEADLINE_S * 2)
        assert trio.current_time() - began < LINK_DEADLINE_S + 1
        n2.gate.set()
        await trio.sleep(1)
        assert answers == [Done()]


async def test_cancelling_a_node_in_the_middle_leaves_nothing_behind(cellnet: Any, autojump_clock: Any) -> None:
    n1, n2 = cellnet.nodes["n1"], cellnet.nodes["n2"]
    n2.gate = trio.Event()
    ended: list[str] = []

    async def ask() -> None:
        with pytest.raises(Refused) as caught:
            await n1.links.ask("n2", Join(ID))
        ended.append(caught.value.text)

    async with trio.open_nursery() as nursery:
        async with cellnet.running("n1", "n2"):
            await cellnet.met("n1", "n2")
            for _ in range(100):
                nursery.start_soon(ask)
            await trio.sleep(1)
            for number in range(7):
                assert n1.links.note("n2", note(number, MIB))
        assert not n1.links.reaches("n2") and not n1.links.note("n2", note(1))
    assert len(ended) == 100 and n2.running == 0
    assert n1.metrics.peers_up.labels("n2")._value.get() == 0


async def test_an_answer_of_a_cell_arrives_as_it_was_given(cellnet: Any) -> None:
    async def answer(peer: Any, message: Any) -> Done:
        return Done()

    cellnet.nodes["n2"].answer = answer
    with trio.fail_after(10):
        async with cellnet.running("n1", "n2"):
            assert await cellnet.nodes["n1"].links.ask("n2", Join(ID)) == Done()
