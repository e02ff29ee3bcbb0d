"""Real node processes, real TLS, real SQLite files, spoken to by hand."""

from __future__ import annotations

import shutil
import sqlite3
import sys
import time
from contextlib import asynccontextmanager

import pytest
import trio
import trio.socket

from cluster.env import RealEnv
from cluster.local import LocalFederation, make_federation
from relay.core import wire
from relay.core.wire import Code, Fault
from relay.errors import OperatorError, ProtocolError
from relay.limits import DAY, MAX_FRAME, MAX_LIFETIME, MINUTE
from tests.flipping import flipped
from tests.e2e.raw import Person, open_raw, seal
from tests.patience import PATIENCE_S


def now() -> int:
    return int(time.time() * 1000)


@asynccontextmanager
async def federation(directory, *regions):
    layout = make_federation(directory, regions, RealEnv(), borders=len(regions) > 1)
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        yield fed, layout


async def test_inside_a_region_across_a_border_and_after_sigkill(tmp_path):
    async with federation(tmp_path / "f", "norden", "sauda") as (fed, layout):
        alice, bob, carol = (Person(layout, region, now()) for region in ("norden", "norden", "sauda"))
        async with open_raw(layout, "norden", now()) as b, open_raw(layout, "sauda", now()) as c:
            await b.sign_in(bob)
            await c.sign_in(carol)
            assert isinstance(await c.hear(), wire.Empty)
            async with open_raw(layout, "norden", now()) as a:
                await a.sign_in(alice)
                near, far = seal(bob.user, now()), seal(carol.user, now())
                assert [item.code for item in await a.submit("norden", near)] == [Code.STORED]
                assert [item.code for item in await a.submit("sauda", far)] == [Code.ACCEPTED]
                assert (await b.hear_a(wire.Deliver)).envelope == near
                assert (await c.hear_a(wire.Deliver)).envelope == far
                notice = await a.hear_a(wire.Notice)
                assert (notice.code, notice.cell) == (Code.STORED, "sauda/1")

        # Nobody has acknowledged: after SIGKILL everything is there again, at the same positions.
        fed.kill("sauda")
        await fed.start("sauda")
        async with open_raw(layout, "sauda", now()) as c:
            welcome = await c.sign_in(carol)
            delivered = await c.hear_a(wire.Deliver)
            assert delivered.envelope == far
            await c.say(wire.Ack(delivered.position))
            await c.hear_a(wire.Empty)
        async with open_raw(layout, "sauda", now()) as c:
            await c.sign_in(carol, log_id=welcome.log_id, cursor=delivered.position)
            assert isinstance(await c.hear(), wire.Empty)


async def test_mail_for_a_region_that_is_cut_off_waits_and_then_arrives(tmp_path):
    async with federation(tmp_path / "f", "norden", "sauda") as (fed, layout):
        alice, carol = Person(layout, "norden", now()), Person(layout, "sauda", now())
        async with open_raw(layout, "norden", now()) as a, open_raw(layout, "sauda", now()) as c:
            await a.sign_in(alice)
            await c.sign_in(carol)
            first = seal(carol.user, now(), body=b"before")
            await a.submit("sauda", first)
            assert (await c.hear_a(wire.Deliver)).envelope == first
            fed.border("sauda").cut()
            waiting = [seal(carol.user, now(), body=bytes([n])) for n in range(20)]
            assert {item.code for item in await a.submit("sauda", *waiting)} == {Code.ACCEPTED}
            fed.border("sauda").heal()
            assert [(await c.hear_a(wire.Deliver)).envelope for _ in waiting] == waiting


async def test_bad_requests_get_their_codes_and_everybody_else_is_served(tmp_path):
    async with federation(tmp_path / "f", "norden") as (_, layout):
        alice, bob = Person(layout, "norden", now()), Person(layout, "norden", now())
        async with open_raw(layout, "norden", now()) as a, open_raw(layout, "norden", now()) as b:
            await a.sign_in(alice)
            await b.sign_in(bob)
            t = now()
            cases = [
                (seal(bytes(32), t), "norden", Code.UNKNOWN_USER),
                (seal(bytes(32), t), "atlantis", Code.UNKNOWN_REGION),
                (seal(bob.user, t, life=MAX_LIFETIME + 1), "norden", Code.LIFETIME),
                (seal(bob.user, t - DAY, life=MINUTE), "norden", Code.EXPIRED),
                (seal(bob.user, t - DAY, life=2 * DAY), "norden", Code.STALE),
                (seal(bob.user, t, version=9), "norden", Code.UNREACHABLE),  # his home may still hear of that version
                (b"no envelope", "norden", Code.BAD_ENVELOPE),
            ]
            for envelope, hint, code in cases:
                assert [item.code for item in await a.submit(hint, envelope)] == [code], Code(code).name
            assert (await a.submit("norden", seal(bob.user, now())))[0].code == Code.STORED
            await b.hear_a(wire.Deliver)


@pytest.mark.parametrize(
    "frame",
    [
        b"", b"\xc1", b"\x93\x01", b"\x91" * 100_000, b"\x95\x01\x00\x00\x00", bytes(MAX_FRAME + 1),
        b"\x96\x01\x00\xa0\x00\xc3\xa0",
    ],
    ids=["empty", "reserved", "truncated", "nested", "wrong types", "oversized", "text for bytes"],
)
async def test_garbage_ends_the_connection_with_a_reason(garbage_federation, frame):
    layout = garbage_federation
    async with open_raw(layout, "norden", now()) as raw:
        await raw.socket.send(frame)
        if len(frame) <= MAX_FRAME:
            error = await raw.hear_a(wire.Error)
            assert error.code == Fault.PROTOCOL and error.text
        with pytest.raises(Exception, match=r"."), trio.fail_after(PATIENCE_S):
            while True:
                await raw.socket.receive()
    async with open_raw(layout, "norden", now()) as raw:
        await raw.sign_in(Person(layout, "norden", now()))


@pytest.fixture
async def garbage_federation(tmp_path):
    async with federation(tmp_path / "f", "norden") as (_, layout):
        yield layout


async def test_a_wrong_key_is_refused(garbage_federation):
    layout = garbage_federation
    alice, eve = Person(layout, "norden", now()), Person(layout, "norden", now())
    async with open_raw(layout, "norden", now()) as raw:
        alice.key = eve.key
        with pytest.raises(Exception, match=r"."):
            await raw.sign_in(alice)
        assert [m.code for m in raw.seen if isinstance(m, wire.Error)] == [Fault.AUTH]


async def test_clients_leave_no_address_anywhere(tmp_path):
    """127.0.0.77 connects, speaks well and badly, and is nowhere to be found afterwards."""

    async def dial(host, port):
        own = trio.socket.socket()
        await own.bind(("127.0.0.77", 0))
        await own.connect((host, port))
        return trio.SocketStream(own)

    directory = tmp_path / "f"
    async with federation(directory, "norden") as (fed, layout):
        alice, bob = Person(layout, "norden", now()), Person(layout, "norden", now())
        async with open_raw(layout, "norden", now(), dial=dial) as b:
            await b.sign_in(bob)
            async with open_raw(layout, "norden", now(), dial=dial) as a:
                await a.sign_in(alice)
                await a.submit("norden", seal(bob.user, now()))
            async with open_raw(layout, "norden", now(), dial=dial) as a:
                await a.socket.send(b"\xc1")
                await a.hear_a(wire.Error)
            broken = await dial(str(layout.node("norden").clients_addr.host), layout.node("norden").clients_addr.port)
            await broken.send_all(b"GET / HTTP/1.1\r\n\r\nno TLS at all")
            await broken.aclose()
            async with await trio.open_tcp_stream("127.0.0.1", layout.node("norden").admin_addr.port) as admin:
                await admin.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                metrics = b"".join([chunk async for chunk in admin])
        assert b"posthouse_submitted_total 1.0" in metrics
        await fed.stop("norden")
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if b"127.0.0.77" in path.read_bytes()] == []
    assert b"127.0.0.77" not in metrics


async def test_a_store_in_use_a_foreign_and_a_damaged_one_stop_the_node_with_a_reason(tmp_path):
    async with federation(tmp_path / "f", "norden") as (fed, layout):
        alice = Person(layout, "norden", now())
        async with open_raw(layout, "norden", now()) as a:
            await a.sign_in(alice)
            for n in range(30):
                await a.submit("norden", seal(alice.user, now(), body=bytes([n]) * 500))
        node = layout.node("norden")
        ran = await trio.run_process(
            [sys.executable, "-m", "cluster.cli", "node", "run", str(node.config_path)],
            check=False, capture_stderr=True, capture_stdout=True,
        )
        assert ran.returncode == 3 and b"Traceback" not in ran.stderr, ran.stderr[-2000:]
        fed.kill("norden")
        await fed.ended()
        store = node.data_dir / "log.sqlite"
        with sqlite3.connect(store) as db:
            index, body = db.execute("SELECT idx, sealed FROM block ORDER BY idx DESC LIMIT 1").fetchone()
            db.execute("UPDATE block SET sealed = ? WHERE idx = ?", (flipped(body, -9), index))
        db.close()
        with pytest.raises(OperatorError, match=f"block {index}"):
            await fed.start("norden")
        (node.data_dir / "log.sqlite").rename(tmp_path / "log.sqlite")
        with pytest.raises(OperatorError, match="missing or empty"):
            await fed.start("norden")
        (tmp_path / "log.sqlite").rename(node.data_dir / "log.sqlite")
    other = make_federation(tmp_path / "g", ["norden"], RealEnv())
    shutil.copy(store, other.node("norden").data_dir / "log.sqlite")
    async with LocalFederation(other) as fed:
        with pytest.raises(OperatorError, match="the store of another federation"):
            await fed.start("norden")


async def test_a_wrong_subprotocol_is_refused_with_a_text(garbage_federation, monkeypatch):
    layout = garbage_federation
    monkeypatch.setattr("relay.ws.SUBPROTOCOL", "chat")
    with pytest.raises(ProtocolError):
        async with open_raw(layout, "norden", now()):
            pass
