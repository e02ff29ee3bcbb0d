"""Peers that lie about who they are, or break the protocol: cut off, counted, logged; everybody else is served.
On loopback, with real TLS."""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from cluster.core.linkwire import (
    NO_REQUEST, VERSION, Done, LinkFault, LinkHello, LinkMessage, LookUp, Ping, Records, encode_frame, encode_message,
    federation_id,
)
from cluster.pki import issue_node, make_authority
from relay.core.wire import Code
from relay.errors import PeerError, Refused
from relay.limits import LINK_REQUESTS, MAX_LINK_FRAME
from tests.patience import PATIENCE_S

LOOKUP = LookUp(bytes(32), 0)
YEAR = 366 * 86_400_000
NOW = 1_700_000_000_000  # Unix ms, long ago


def frame(request: int, message: LinkMessage) -> bytes:
    return encode_frame(request, encode_message(message))


def hello(fed: Any, cell: str = "norden/1", node: str = "n1", version: int = VERSION, name: str = "test") -> bytes:
    return frame(NO_REQUEST, LinkHello(version, federation_id(fed.make_root(name)), cell, node))


async def talk(fed: Any, context: ssl.SSLContext | None, *pieces: bytes) -> bytes:
    """Say `pieces` to sueden; everything that it says until it closes."""
    stream: trio.abc.Stream = await fed.env.dial("127.0.0.1", fed.ports["sueden"])
    heard = b""
    try:
        if context is not None:
            stream = trio.SSLStream(stream, context)
        for piece in pieces:
            await stream.send_all(piece)
        async for data in stream:
            heard += data
    except trio.BrokenResourceError:
        pass
    finally:
        await trio.aclose_forcefully(stream)
    return heard


async def refused_and_others_served(fed: Any, context: ssl.SSLContext | None, *pieces: bytes) -> tuple[bytes, str]:
    """What the liar heard, and the reason in sueden's log."""
    sueden = fed.nodes["sueden"]
    with trio.fail_after(PATIENCE_S), structlog.testing.capture_logs() as logs:
        async with fed.running("westen", "sueden"):
            heard = await talk(fed, context, *pieces)
            while not sueden.links.refused:
                await trio.lowlevel.checkpoint()
            assert not sueden.asked
            await fed.nodes["westen"].links.request("sueden/1", LOOKUP)
    assert sueden.links.refused == 1
    assert sueden.metrics.refused.labels("LINK")._value.get() == 1
    assert "127.0.0.1" not in str(logs)
    (reason,) = [entry["reason"] for entry in logs if entry["event"] in ("link_refused", "link_cut")]
    return heard, reason


# --- who a dialer is -----------------------------------------------------------------------------
async def test_a_region_cannot_vouch_for_another_regions_node(fed: Any) -> None:
    context = fed.lying_client(*fed.files("norden", "westen"))
    heard, reason = await refused_and_others_served(fed, context, hello(fed, "westen/1"))
    assert reason == "a certificate for westen/1/n1 was issued by the authority of region norden" and not heard


@pytest.mark.parametrize(
    ("issuer", "claims", "node", "reason"),
    [
        (make_authority("norden"), "norden", "n1", "self"),
        (make_authority("osten"), "osten", "n1", "self"),
    ],
)
async def test_an_authority_that_nobody_knows(fed: Any, issuer: Any, claims: str, node: str, reason: str) -> None:
    context = fed.lying_client(*fed.files(issuer, claims, node))
    _, said = await refused_and_others_served(fed, context, hello(fed, f"{claims}/1"))
    assert "the peer's certificate is refused" in said


async def test_a_node_that_the_root_does_not_list(fed: Any) -> None:
    context = fed.lying_client(*fed.files("norden", "norden", "n9"))
    _, said = await refused_and_others_served(fed, context, hello(fed, node="n9"))
    assert "the root does not list norden/1/n9" in said


async def test_an_expired_certificate(fed: Any) -> None:
    context = fed.lying_client(*fed.files("norden", "norden", now_ms=NOW))
    _, said = await refused_and_others_served(fed, context, hello(fed))
    assert "certificate has expired" in said


async def test_a_self_signed_authority_is_no_node(fed: Any) -> None:
    authority, key = make_authority("norden")
    cert, pem = fed.folder / "ca.crt", fed.folder / "ca.key"
    cert.write_text(ssl.DER_cert_to_PEM_cert(authority))
    pem.write_bytes(key)
    _, said = await refused_and_others_served(fed, fed.lying_client(cert, pem), hello(fed))
    assert "the peer's certificate is refused" in said


async def test_no_certificate(fed: Any) -> None:
    heard, said = await refused_and_others_served(fed, fed.lying_client(), hello(fed))
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in said and not heard


async def test_tls_1_2_is_not_spoken(fed: Any) -> None:
    context = fed.lying_client(*fed.files("norden", "norden"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    _, said = await refused_and_others_served(fed, context, hello(fed))
    assert "UNSUPPORTED_PROTOCOL" in said


async def test_no_tls_at_all(fed: Any) -> None:
    _, said = await refused_and_others_served(fed, None, b"GET / HTTP/1.1\r\nHost: sueden\r\n\r\n")
    assert "TLS does not hold" in said


# --- what a dialer says --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ({"node": "n2"}, "says that it is norden/1/n2, its certificate says norden/1/n1"),
        ({"cell": "westen/1"}, "says that it is westen/1/n1"),
        ({"version": 9}, "speaks link version 9"),
        ({"name": "other"}, "belongs to another federation"),
    ],
)
async def test_a_hello_that_does_not_fit_is_answered_with_the_reason(fed: Any, what: Any, reason: str) -> None:
    context = fed.lying_client(*fed.files("norden", "norden"))
    heard, said = await refused_and_others_served(fed, context, hello(fed, **what))
    assert reason in said and reason.encode() in heard


async def test_what_breaks_the_protocol_is_cut_off(fed: Any) -> None:
    garbage = b"\x00\x00\x00\x04junk"
    for number, broken in enumerate(
        (
            [garbage],
            [frame(1, Ping())],  # before hello
            [b"\x00\x00\xff\xff"],  # a hello of 64 KiB
            [hello(fed), garbage],
            [hello(fed), hello(fed)],
            [hello(fed), frame(1, Done())],  # an answer, to a listener
            [hello(fed), (MAX_LINK_FRAME + 1).to_bytes(4, "big")],
            [hello(fed), frame(0, LinkFault(1, "bye", 0))],
        ),
        1,
    ):
        context = fed.lying_client(*fed.files("norden", "norden"))
        with trio.fail_after(PATIENCE_S), structlog.testing.capture_logs() as logs:
            async with fed.running("sueden", "westen"):
                await talk(fed, context, *broken)
                while fed.nodes["sueden"].links.refused < 1:
                    await trio.lowlevel.checkpoint()
                await fed.nodes["westen"].links.request("sueden/1", LOOKUP)
        assert "link broken by the peer" in str(logs), number
        for region in ("sueden", "westen"):
            await fed.listen_again(region)


async def test_a_truncated_frame_is_only_a_lost_link(fed: Any) -> None:
    context = fed.lying_client(*fed.files("norden", "norden"))
    with trio.fail_after(PATIENCE_S), structlog.testing.capture_logs() as logs:
        async with fed.running("sueden"):
            stream = trio.SSLStream(await fed.env.dial("127.0.0.1", fed.ports["sueden"]), context)
            await stream.send_all(hello(fed) + frame(1, LOOKUP)[:-3])
            await stream.receive_some()
            await trio.aclose_forcefully(stream)
            while not any(entry["event"] == "link_closed" for entry in logs):
                await trio.lowlevel.checkpoint()
    assert not fed.nodes["sueden"].links.refused and not fed.nodes["sueden"].asked


async def test_a_second_link_of_the_same_node_ends_the_first(fed: Any) -> None:
    context = fed.lying_client(*fed.files("norden", "norden"))
    with trio.fail_after(PATIENCE_S):
        async with fed.running("sueden"):
            first = trio.SSLStream(await fed.env.dial("127.0.0.1", fed.ports["sueden"]), context)
            await first.send_all(hello(fed))
            await first.receive_some()
            second = trio.SSLStream(await fed.env.dial("127.0.0.1", fed.ports["sueden"]), context)
            await second.send_all(hello(fed) + frame(1, LOOKUP))
            with pytest.raises(trio.BrokenResourceError):
                await first.receive_some()
            heard = b""
            while not heard.endswith(frame(1, Records(Code.STORED, (bytes(32),)))):
                heard += await second.receive_some()
            for stream in (first, second):
                await trio.aclose_forcefully(stream)


async def test_strangers_who_only_hold_connections_open_keep_nobody_out(
    fed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.links.incoming.MAX_LINKS", 3)
    with trio.fail_after(5):
        async with fed.running("westen", "sueden"):
            silent = [await fed.env.dial("127.0.0.1", fed.ports["sueden"]) for _ in range(5)]
            assert await silent[0].receive_some() == b""
            await fed.nodes["westen"].links.request("sueden/1", LOOKUP, 2.0)
            for stream in silent:
                await trio.aclose_forcefully(stream)


async def test_a_dialer_that_does_not_read_its_answers_may_not_go_on_asking(fed: Any) -> None:
    sueden = fed.nodes["sueden"]

    async def answer(peer: Any, message: Any) -> Records:
        sueden.asked.append((peer, message))
        return Records(Code.STORED, (bytes(MAX_LINK_FRAME // 2),))

    sueden.answer = answer
    context = fed.lying_client(*fed.files("norden", "norden"))
    with trio.fail_after(PATIENCE_S), structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(sueden.links.run, sueden.listeners, sueden)
            stream = trio.SSLStream(await fed.env.dial("127.0.0.1", fed.ports["sueden"]), context)
            await stream.send_all(hello(fed))
            await stream.receive_some()
            with contextlib.suppress(trio.BrokenResourceError):
                for number in range(1, 10 * LINK_REQUESTS):
                    await stream.send_all(frame(number, LOOKUP))
                    await trio.testing.wait_all_tasks_blocked()
            await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()
    assert "requests of" in str(logs)
    assert len(sueden.asked) < 2 * LINK_REQUESTS  # some answers are in the kernel's buffers


# --- who a dialer finds --------------------------------------------------------------------------
async def listen_as(fed: Any, nursery: trio.Nursery, context: ssl.SSLContext, *pieces: bytes) -> None:
    """Somebody answers in sueden's place."""
    for listener in fed.listeners["sueden"]:
        await listener.aclose()
    (listener,) = await fed.env.listen("127.0.0.1", fed.ports["sueden"])

    async def serve(transport: trio.SocketStream) -> None:
        stream = trio.SSLStream(transport, context, server_side=True)
        try:
            for piece in pieces:
                await stream.send_all(piece)
            async for _ in stream:
                pass
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(transport)

    nursery.start_soon(trio.serve_listeners, serve, [listener])


def lying_server(*files: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context


async def asked_of_a_liar(fed: Any, context: ssl.SSLContext, *pieces: bytes) -> tuple[BaseException, str]:
    with trio.fail_after(PATIENCE_S), structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery, fed.running("norden"):
            await listen_as(fed, nursery, context, *pieces)
            with pytest.raises((PeerError, Refused)) as caught:
                await fed.nodes["norden"].links.request("sueden/1", LOOKUP, 2.0)
            assert not fed.nodes["norden"].links.connected("sueden/1")
            nursery.cancel_scope.cancel()
    assert "127.0.0.1" not in str(logs) + str(caught.value)
    return caught.value, str(logs)


@pytest.mark.parametrize(
    ("issuer", "claims", "when", "reason"),
    [
        ("norden", "sueden", None, "the peer's certificate is refused"),  # norden's authority claims sueden
        ("westen", "westen", None, "the peer's certificate is refused"),  # a good node of another region
        (make_authority("sueden"), "sueden", None, "the peer's certificate is refused"),
        ("sueden", "sueden", NOW, "certificate has expired"),
    ],
)
async def test_a_dialer_believes_only_the_regions_own_authority(
    fed: Any, issuer: Any, claims: str, when: int | None, reason: str
) -> None:
    context = lying_server(*fed.files(issuer, claims, now_ms=when))
    error, logs = await asked_of_a_liar(fed, context, hello(fed, "sueden/1"))
    assert isinstance(error, PeerError) and reason in str(error) and "link_peer_refused" in logs


async def test_a_dialer_believes_only_the_listed_node(fed: Any) -> None:
    context = lying_server(*fed.files("sueden", "sueden", "n9"))
    error, _ = await asked_of_a_liar(fed, context, hello(fed, "sueden/1", "n9"))
    assert isinstance(error, PeerError) and "does not list sueden/1/n9" in str(error)


@pytest.mark.parametrize(
    "said",
    [
        frame(NO_REQUEST, LinkHello(VERSION, bytes(32), "sueden/1", "n1")),
        frame(NO_REQUEST, LinkFault(Code.NOT_PERMITTED, "go away", 0)),
        frame(1, Done()),
        b"\xff\xff\xff\xff",
    ],
)
async def test_a_listener_that_says_something_else(fed: Any, said: bytes) -> None:
    context = lying_server(*fed.files("sueden", "sueden"))
    error, _ = await asked_of_a_liar(fed, context, said)
    assert isinstance(error, PeerError)


async def test_a_listener_without_room_is_tried_again(fed: Any) -> None:
    context = lying_server(*fed.files("sueden", "sueden"))
    said = frame(NO_REQUEST, LinkFault(Code.OVERLOADED, "no room", 1000))
    error, _ = await asked_of_a_liar(fed, context, said)
    assert isinstance(error, Refused) and error.code == Code.UNREACHABLE


def test_a_certificate_can_be_issued_for_a_host_name() -> None:
    assert issue_node(*make_authority("norden"), "norden", "norden/1", "n1", ["n1.norden.example", "::1"])
