"""Nodes that are not of the cell, or not who they say: what is the cell's own business is refused and counted, it ends
their link, and the cell goes on."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from cluster.core.linkwire import (
    NO_REQUEST, VERSION, AuditHead, CellEphemeral, CellNote, CellStatus, Done, FetchBlocks, FetchCheckpoint, FetchFacts,
    Join,
    LinkHello, LinkMessage, LookUp, Peer, Propose, StateDigest, TakeSnapshot, encode_frame, encode_message,
    federation_id,
)
from cluster.links import Links
from relay.errors import PeerError, Refused
from tests.cluster.links.plain import PlainSecurity
from tests.patience import PATIENCE_S

ID, USER = bytes(16), bytes(32)
NOTE = CellNote(ID, ID, 1, b"a vote")
ALL = ("n1", "n2", "n3")


def frame(request: int, message: LinkMessage) -> bytes:
    return encode_frame(request, encode_message(message))


def hello(fed: Any, cell: str, node: str, name: str = "test") -> bytes:
    return frame(NO_REQUEST, LinkHello(VERSION, federation_id(fed.make_root(name)), cell, node))


async def say(fed: Any, context: ssl.SSLContext | None, *pieces: bytes) -> tuple[bytes, str]:
    """Say `pieces` to n2 of a running cell, which goes on. What n2 answered, and the reason that it logged."""
    n1, n2, n3 = (fed.nodes[name] for name in ALL)
    heard = b""
    with trio.fail_after(PATIENCE_S), structlog.testing.capture_logs() as logs:
        async with fed.running(*ALL):
            await fed.met(*ALL)
            stream: trio.abc.Stream = await fed.env.dial("127.0.0.1", fed.ports["n2"])
            if context is not None:
                stream = trio.SSLStream(stream, context)
            try:
                for piece in pieces:
                    await stream.send_all(piece)
                async for data in stream:
                    heard += data
            except trio.BrokenResourceError:
                pass
            await trio.aclose_forcefully(stream)
            while not n2.links.refused:
                await trio.lowlevel.checkpoint()
            assert n3.links.note("n2", NOTE) and await n3.links.ask("n2", Join(ID)) == Done()
            assert await n1.links.ask("n2", Join(ID)) == Done()
    assert n2.notes == [(n3.peer, NOTE)] and len(n2.asked) == 2
    assert n2.links.refused == n2.metrics.refused.labels("LINK")._value.get() == 1
    (reason,) = [entry["reason"] for entry in logs if entry["event"] in ("link_refused", "link_cut")]
    return heard, reason


# --- not of the cell -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "message",
    [
        NOTE,
        Propose(ID, (b"record",)), Join(ID), TakeSnapshot(1, 1), FetchCheckpoint(ID, 0, 0), FetchFacts(ID, 0, b""),
        FetchBlocks(ID, 1, 2), CellEphemeral(USER, USER, USER, b"hi"), CellStatus(), StateDigest(ID, 2, 900, USER),
        AuditHead(b"checkpoint", b"certificate"),
    ],
)  # fmt: skip
async def test_what_is_the_cells_own_is_refused_to_other_cells(cell: Any, message: LinkMessage) -> None:
    context = cell.lying_client(*cell.files("sueden", "sueden"))
    said = frame(NO_REQUEST if message is NOTE else 1, message)
    _, reason = await say(cell, context, hello(cell, "sueden/1", "n1"), said)
    assert f"{type(message).__name__} from a node of another cell" in reason


async def test_it_is_refused_in_one_piece_with_the_hello_too(cell: Any) -> None:
    context = cell.lying_client(*cell.files("sueden", "sueden"))
    heard, reason = await say(cell, context, hello(cell, "sueden/1", "n1") + frame(NO_REQUEST, NOTE))
    assert "CellNote from a node of another cell" in reason and b"another cell" in heard


async def test_a_node_that_asks_the_wrong_cell_loses_only_that_link(cell: Any) -> None:
    """By a mistake in our own code, say."""
    sueden, n2 = cell.nodes["sueden"], cell.nodes["n2"]
    with trio.fail_after(PATIENCE_S):
        async with cell.running("n1", "n2", "sueden"):
            await cell.met("n1", "n2")
            with pytest.raises(Refused, match="the link ended before the answer"):
                await sueden.links.request("norden/1", Join(ID))
            assert await sueden.links.request("norden/1", LookUp(USER, 0))
            assert cell.nodes["n1"].links.note("n2", NOTE)
            assert cell.nodes["n1"].links.refused + n2.links.refused == 1


# --- not who they say ----------------------------------------------------------------------------
async def test_garbage_from_a_node_of_the_cell_ends_its_link(cell: Any) -> None:
    context = cell.lying_client(*cell.files("norden", "norden", "n1"))
    _, reason = await _as_n1(cell, context, b"\x00\x00\x00\x05\xc1junk")
    assert "link broken by the peer" in reason


async def _as_n1(cell: Any, context: ssl.SSLContext, *pieces: bytes) -> tuple[bytes, str]:
    """As `say`, where the real n1 is off."""
    n2, n3 = cell.nodes["n2"], cell.nodes["n3"]
    with trio.fail_after(PATIENCE_S), structlog.testing.capture_logs() as logs:
        async with cell.running("n2", "n3"):
            await cell.met("n2", "n3")
            stream = trio.SSLStream(await cell.env.dial("127.0.0.1", cell.ports["n2"]), context)
            await stream.send_all(hello(cell, "norden/1", "n1") + b"".join(pieces))
            heard = b""
            try:
                async for data in stream:
                    heard += data
            except trio.BrokenResourceError:
                pass
            await trio.aclose_forcefully(stream)
            while not n2.links.refused:
                await trio.lowlevel.checkpoint()
            assert n3.links.note("n2", NOTE) and await n3.links.ask("n2", Join(ID)) == Done()
    (reason,) = [entry["reason"] for entry in logs if entry["event"] in ("link_refused", "link_cut")]
    return heard, reason


@pytest.mark.parametrize(
    ("where", "node", "name", "reason"),
    [
        ("norden/1", "n1", "test", "says that it is norden/1/n1, its certificate says norden/1/n3"),
        ("sueden/1", "n3", "test", "says that it is sueden/1/n3, its certificate says norden/1/n3"),
        ("norden/1", "n3", "other", "belongs to another federation"),
    ],
)
async def test_a_hello_that_does_not_fit(cell: Any, where: str, node: str, name: str, reason: str) -> None:
    context = cell.lying_client(*cell.files("norden", "norden", "n3"))
    heard, said = await say(cell, context, hello(cell, where, node, name), frame(NO_REQUEST, NOTE))
    assert reason in said and reason.encode() in heard


async def test_a_second_process_with_the_files_of_this_node(cell: Any) -> None:
    context = cell.lying_client(*cell.files("norden", "norden", "n2"))
    _, reason = await say(cell, context, hello(cell, "norden/1", "n2"), frame(NO_REQUEST, NOTE))
    assert "proves to be this very node" in reason


async def test_a_node_of_the_region_that_the_root_does_not_list(cell: Any) -> None:
    context = cell.lying_client(*cell.files("norden", "norden", "n9"))
    _, reason = await say(cell, context, hello(cell, "norden/1", "n9"), frame(NO_REQUEST, NOTE))
    assert "the root does not list norden/1/n9" in reason


async def test_another_regions_authority_makes_nobody_a_node_of_the_cell(cell: Any) -> None:
    context = cell.lying_client(*cell.files("sueden", "norden", "n3"))
    _, reason = await say(cell, context, hello(cell, "norden/1", "n3"), frame(NO_REQUEST, NOTE))
    assert reason == "a certificate for norden/1/n3 was issued by the authority of region sueden"


async def test_another_node_at_the_address_of_this_one(cellnet: Any) -> None:
    """Also of the own cell: each link is to one node."""
    cellnet.env.listeners[cellnet.ports["n2"]] = cellnet.env.listeners[cellnet.ports["n3"]]
    links = cellnet.nodes["n1"].links
    with trio.fail_after(PATIENCE_S):
        async with cellnet.running("n1", "n3"):
            with pytest.raises(PeerError, match="norden/1/n3 answers for norden/1/n2"):
                await links.ask("n2", Join(ID))
            assert not links.reaches("n2") and not links.note("n2", NOTE)
            assert await links.ask("n3", Join(ID)) == Done()


# --- the same checks, whatever secures the link --------------------------------------------------
@pytest.mark.parametrize(
    ("peer", "vouched_by", "reason"),
    [
        (Peer("norden", "norden/1", "n3"), "sueden", "was issued by the authority of region sueden"),
        (Peer("norden", "norden/1", "n3"), "", "was issued by the authority of nobody in this federation"),
        (Peer("norden", "norden/1", "n9"), "norden", "does not list norden/1/n9"),
        (Peer("sueden", "norden/1", "n3"), "sueden", "does not list norden/1/n3"),
        (Peer("osten", "osten/1", "n1"), "osten", "unknown region"),
        (Peer("norden", "norden/1", "n2"), "norden", "proves to be this very node"),
    ],
)
async def test_a_claim_is_believed_only_as_the_root_has_it(
    cellnet: Any, peer: Peer, vouched_by: str, reason: str
) -> None:
    n2, liar = cellnet.nodes["n2"], PlainSecurity(peer, vouched_by)
    with trio.fail_after(PATIENCE_S), structlog.testing.capture_logs() as logs:
        async with cellnet.running("n2"):
            stream, _ = await liar.secure_client(await cellnet.env.dial("127.0.0.1", cellnet.ports["n2"]), "norden")
            await stream.send_all(hello(cellnet, peer.cell, peer.node) + frame(NO_REQUEST, NOTE))
            async for _ in stream:
                pass
    (said,) = [entry["reason"] for entry in logs if entry["event"] == "link_refused"]
    assert reason in said and n2.links.refused == 1 and not n2.notes


async def test_a_dialer_believes_no_claim_that_the_root_has_not(cellnet: Any) -> None:
    n2 = cellnet.nodes["n2"]
    liar = Links(cellnet.env, cellnet.root, n2.peer, PlainSecurity(n2.peer, "sueden"))
    with trio.fail_after(PATIENCE_S):
        async with cellnet.running("n1"), trio.open_nursery() as nursery:
            await nursery.start(liar.run, n2.listeners, n2)
            with pytest.raises(PeerError, match="issued by the authority of region sueden"):
                await cellnet.nodes["n1"].links.ask("n2", Join(ID))
            nursery.cancel_scope.cancel()


async def test_a_node_of_the_cell_finds_room_where_others_find_none(
    cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.links.incoming.MAX_LINKS", 1)
    sueden, n1, n2 = cell.nodes["sueden"], cell.nodes["n1"], cell.nodes["n2"]
    with trio.fail_after(PATIENCE_S):
        async with cell.running("n1", "n2", "sueden"):
            await cell.met("n1", "n2")
            with pytest.raises(Refused):
                await sueden.links.request("norden/1", LookUp(USER, 0), 0.5)
            assert n1.links.note("n2", NOTE) and n2.links.note("n1", NOTE)
