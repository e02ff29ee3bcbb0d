"""The SDK and nodes, stores, senders and apps that do not behave: loud where it must be, else undisturbed."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import trio
from nacl.signing import SigningKey
from trio.testing import MockClock

from relay.client import Client, Fenced, NotReceiving, SendRefused, add_device
from relay.client.shapes import Part, pair
from relay.client.store import Store, get, load_own
from relay.core import wire
from relay.core.codec import encode
from relay.core.envelope import To, join
from relay.core.sealing import Inner, make_header, seal_mailbox
from relay.core.wire import Code, Fault
from relay.errors import OperatorError, RolledBack, StoreLocked
from tests.relay.client.fake_cell import Cell, Federation
from tests.relay.client.helpers import collect, enrol, opened, rest, texts
from tests.flipping import flipped


async def test_a_rolled_back_node_is_loud(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    cell = fed.cells["norden/1"]
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"x")
        await collect(bob, 1)
        await trio.sleep(1)
        cell.log.clear()
        cell.drop_connections()
        with pytest.raises(RolledBack, match="operator"):
            await collect(bob, 1)
        with pytest.raises(RolledBack):
            await bob.send(alice.card, b"y")


async def test_a_renewed_log_starts_from_its_own_cursor(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    cell = fed.cells["norden/1"]
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        for i in range(5):
            await alice.send(bob.card, str(i).encode(), wait="stored")
        await trio.sleep(1)
        cell.log_id = b"renewed-log-id.."
        cell.cursors.clear()
        cell.drop_connections()
        await alice.send(bob.card, b"5", wait="stored")
        assert texts(await rest(bob)) == ["0", "1", "2", "3", "4", "5"]
        assert bob.stats.duplicates_dropped == 5


async def test_a_second_session_of_one_device_fences_the_first(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    a = enrol(fed, tmp_path / "a", "norden")
    (tmp_path / "copy").write_bytes(a.read_bytes())
    (tmp_path / "copy").chmod(0o600)
    async with opened(fed, a) as first:
        await first.caught_up()
        async with opened(fed, tmp_path / "copy") as second:
            await second.caught_up()
            with pytest.raises(Fenced, match="newer session"):
                await collect(first, 1)


async def test_a_session_of_ours_that_starts_late_is_no_copy_of_the_store(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    """A node that stalled may write what it was asked before we went to another one. Once that is pardoned."""
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    cell = fed.cells["norden/1"]

    def fence(client: Client) -> None:
        cell.sessions[client.device].socket.say(wire.Error(Fault.FENCED, "a newer session", 0))

    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.caught_up()
        await bob.caught_up()
        fence(bob)  # it had no other
        with pytest.raises(Fenced):
            await collect(bob, 1)
        cell.drop_connections()
        await trio.sleep(30)
        fence(alice)
        await trio.sleep(30)
        await alice.send(bob.card, b"1", wait="stored")
        fence(alice)
        with pytest.raises(Fenced):
            await collect(alice, 1)


async def test_one_receives_while_others_submit(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "sueden")
    async with opened(fed, a) as receiver, opened(fed, a) as submitter, opened(fed, b) as bob:
        assert receiver.receives and not submitter.receives
        with pytest.raises(NotReceiving):
            submitter.messages()
        with pytest.raises(StoreLocked):
            async with opened(fed, a, receive=True):
                pass
        for i in range(10):
            await (receiver, submitter)[i % 2].send(bob.card, str(i).encode(), wait="stored")
        assert texts(await collect(bob, 10)) == [str(i) for i in range(10)]
        await bob.send(receiver.card, b"back")
        assert texts(await collect(receiver, 1)) == ["back"]


async def test_a_note_to_oneself(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a = enrol(fed, tmp_path / "a", "norden")
    async with opened(fed, a) as alice:
        await alice.send(alice.card, b"milk", wait="stored")
        assert texts(await collect(alice, 1)) == ["milk"]


async def test_mistakes_at_opening_are_told(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no client store"):
        async with opened(fed, tmp_path / "nobody"):
            pass
    a = enrol(fed, tmp_path / "a", "norden")
    with pytest.raises(ZeroDivisionError):  # what the app raises comes out as it is
        async with opened(fed, a):
            _ = 1 / 0
    a.chmod(0o644)
    with pytest.raises(OperatorError, match="chmod 600"):
        async with opened(fed, a):
            pass


async def test_a_full_inbox_stops_the_mail_but_not_the_sending(
    clock: MockClock, fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.client.line.MAX_INBOX", 10_000)
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        for _ in range(30):
            await alice.send(bob.card, bytes(3_000))
        await trio.sleep(5)
        assert bob.stats.received < 30
        await bob.send(alice.card, b"still here", wait="stored")
        assert len(await collect(bob, 30)) == 30
        assert texts(await collect(alice, 1)) == ["still here"]


async def test_a_node_that_drains_is_left_in_time(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    cell = fed.cells["norden/1"]
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"1")
        began = trio.current_time()
        for session in cell.attached:
            session.socket.say(wire.Drain(2_000))
        await trio.sleep(0.5)
        await alice.send(bob.card, b"2")
        assert trio.current_time() - began > 0.9
        assert texts(await collect(bob, 2)) == ["1", "2"]
        assert alice.stats.reconnects == 1


async def test_garbage_from_the_node_or_from_others_harms_nobody(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    cell = fed.cells["norden/1"]
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"1")
        header = make_header(To.MAILBOX, bob.user, 1, fed.now, fed.now + 1_000_000)
        empty = b"\x93\x90\xc4\x00\xc4\x00"
        forged = [b"\x00", join(header, b"\xc1"), flipped(cell.submitted[0]), join(header, empty)]
        for envelope in forged:
            cell.append(frozenset([bob.device]), lambda at, e=envelope: wire.Deliver(at, e))  # type: ignore[misc]
        cell.pump()
        await alice.send(bob.card, b"2")
        assert texts(await collect(bob, 2)) == ["1", "2"]
        assert bob.stats.unreadable == 4 and bob.stats.gaps == 0
        cell.sessions[bob.device].socket.say(b"\xc1 no message at all")
        await alice.send(bob.card, b"3")
        assert texts(await collect(bob, 1)) == ["3"] and bob.stats.reconnects == 1


async def test_a_device_that_is_not_enrolled_is_not_believed(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    """Its envelope waits for the sender's record, which does not name it, and is dropped."""
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"1")
        (record,) = (device for device in fed.cells["norden/1"].newest(bob.user).devices)
        forger = SigningKey(b"f" * 32)
        inner = Inner(1, alice.user, bytes(forger.verify_key), "norden", b"c" * 32, 1, 1, fed.now, b"")
        header = make_header(To.MAILBOX, bob.user, 1, fed.now, fed.now + 1_000_000)
        envelope = seal_mailbox(header, inner, forger, [(record, 1)], b"e" * 32)
        cell = fed.cells["norden/1"]
        cell.append(frozenset([bob.device]), lambda at: wire.Deliver(at, envelope))
        cell.pump()
        assert texts(await rest(bob)) == ["1"] and await bob.unread() == (0, 1)
        await trio.sleep(200)  # its cell may only have to hear of it
        assert await bob.unread() == (0, 0) and bob.stats.unreadable == 1


@pytest.mark.parametrize(("counter", "first"), [(1, 2**64 - 1), (2**63 - 1, 2**63 - 1), (2**62, 2**62), (2**62, 1)])
async def test_counters_at_the_end_of_the_scale_harm_nobody(
    clock: MockClock, fed: Federation, tmp_path: Path, counter: int, first: int
) -> None:
    """An enrolled stranger's, well signed: neither the batch that it comes in nor the store may break over it."""
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    cell = fed.cells["norden/1"]
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        envelope = _from(fed, a, alice, bob, counter, first)
        cell.append(frozenset([bob.device]), lambda at: wire.Deliver(at, envelope))
        cell.pump()
        await bob.send(alice.card, b"still here", wait="stored")
        await alice.send(bob.card, b"and I", wait="stored")
        assert "and I" in texts(await rest(bob)) and bob.stats.reconnects == 0


def _from(fed: Federation, store: Path, alice: Client, bob: Client, counter: int, first: int) -> bytes:
    """A message from alice's device under any counters."""
    keys = Store(store, inline=True)
    own = keys.transact(lambda db: load_own(db, fed.client_now()))
    keys.close()
    (device,) = fed.cells["norden/1"].newest(bob.user).devices
    part = encode(Part(bob.user, b"", "", 0, 1, b"far"))
    inner = Inner(1, own.user, own.device, "norden", pair(alice.user, bob.user), counter, 1, fed.now, part)
    header = make_header(To.MAILBOX, bob.user, 1, fed.now, fed.now + 1_000_000)
    return seal_mailbox(header, inner, own.signing, [(device, first)], b"e" * 32)


async def test_asking_with_no_time_left_yields_nothing_twice(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        for text in (b"1", b"2"):
            await alice.send(bob.card, text, wait="stored")
        assert texts(await collect(bob, 2)) == ["1", "2"]
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(bob.messages())
        await alice.send(bob.card, b"3", wait="stored")
        assert texts(await collect(bob, 1)) == ["3"]
        assert not await rest(bob)


@pytest.mark.parametrize("region", ["nowhere", "sueden"])
async def test_nobody_suppresses_what_another_says_by_a_wrong_region(
    clock: MockClock, fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, region: str
) -> None:
    """A stranger writes in alice's name, with a region that nobody has, or that cannot be reached; what alice says
    and what is for her come while that region is asked."""
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    cell = fed.cells["norden/1"]
    fed.cells["sueden/1"].faults.cut = True
    held: list[wire.Record] = []
    honest = fed.look_up

    def late(request: wire.Lookup, asked: Cell) -> wire.Record:
        if held or request.hint != region:
            return honest(request, asked)
        held.append(honest(request, asked))
        return wire.Record(0, Code.UNREACHABLE, ())  # nobody's request

    monkeypatch.setattr(fed, "look_up", late)
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        envelope = _forged(fed, alice, b, region)
        cell.append(frozenset([bob.device]), lambda at: wire.Deliver(at, envelope))
        cell.pump()
        await trio.sleep(1)
        await alice.send(bob.card, b"I am alice", wait="stored")
        sent = await bob.send(alice.card, b"I am bob", wait="queued")
        await trio.sleep(1)
        assert await bob.unread() == (0, 2)  # the forged and the genuine one wait for alice's record
        cell.sessions[bob.device].socket.say(held[0])
        with trio.fail_after(30):
            await bob.outcome(sent, "stored")
        assert texts(await rest(bob)) == ["I am alice"] and not bob.failures
        assert texts(await rest(alice)) == ["I am bob"]


def _user(path: Path) -> bytes:
    store = Store(path, inline=True)
    try:
        return store.transact(lambda db: get(db, "user"))
    finally:
        store.close()


def _forged(fed: Federation, alice: Client, store: Path, region: str) -> bytes:
    bob = fed.cells["norden/1"].newest(_user(store))
    forger = SigningKey(b"f" * 32)
    inner = Inner(1, alice.user, bytes(forger.verify_key), region, b"c" * 32, 1, 1, fed.now, b"")
    header = make_header(To.MAILBOX, bob.user, 1, fed.now, fed.now + 1_000_000)
    return seal_mailbox(header, inner, forger, [(device, 1) for device in bob.devices], b"e" * 32)


async def test_a_device_that_the_node_hears_of_a_minute_later(
    clock: MockClock, fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes answer from a cache: what a new device says first is neither lost nor believed before its record came."""
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"1", wait="stored")
        assert texts(await collect(bob, 1)) == ["1"]
        await bob.look_up(alice.card)
        add_device(tmp_path / "a2", of=a, registrar=fed.registrars["norden"], now_ms=fed.client_now())
        async with opened(fed, tmp_path / "a2") as second:
            honest = fed.look_up

            def stale(request: wire.Lookup, asked: Cell) -> wire.Record:
                return wire.Record(request.request, 2, ()) if request.user == alice.user else honest(request, asked)

            monkeypatch.setattr(fed, "look_up", stale)
            await second.send(bob.card, b"2", wait="stored")
            await trio.sleep(60)
            assert (await bob.unread())[1] == 1
            monkeypatch.undo()
            assert texts(await rest(bob, 30)) == ["2"] and bob.stats.unreadable == 0


@pytest.mark.parametrize("refused", [False, True])
async def test_what_another_process_finished_before_anybody_waited_is_seen(
    clock: MockClock, fed: Federation, tmp_path: Path, refused: bool
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    cell = fed.cells["norden/1"]
    async with opened(fed, b) as bob, opened(fed, a) as receiver:
        await receiver.caught_up()
        if refused:
            cell.faults.refuse[bob.user] = Code.NOT_PERMITTED
        cell.down = True  # for who dials now: the submitter does not get through
        async with opened(fed, a, receive=False) as submitter:
            sent = await submitter.send(bob.card, b"x", wait="queued")
            await receiver.drained()
            await trio.sleep(2)  # the submitter has looked meanwhile, and nobody waited
            with trio.fail_after(5), pytest.raises(SendRefused) if refused else nullcontext():
                await submitter.outcome(sent)
