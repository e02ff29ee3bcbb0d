"""One connection over streams in memory: the protocol, its deadlines, its last words."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
import trio
import trio.testing
from msgspec import structs
from nacl.signing import SigningKey

from relay import ws
from relay.core import wire
from relay.core.codec import digest
from relay.core.envelope import envelope_id
from relay.core.wire import Code, Fault
from relay.errors import Overloaded, Refused, RolledBack
from relay.limits import MAX_FRAME, MAX_LOOKUPS
from relay.gateway.connection import Connection, Surroundings
from relay.gateway.outbox import Queued
from tests.relay.gateway.honest import Caller, FakeEnv, FakeMetrics, HonestOffice, deliver, memory_call

SUBMIT = wire.Submit((wire.SubmitItem("norden", b"envelope"),))


async def test_a_session_from_hello_to_receipt_and_delivery() -> None:
    office, metrics = HonestOffice(backlog=[b"waiting"]), FakeMetrics()
    async with memory_call(office, metrics) as (socket, connection):
        caller = Caller(socket)
        welcome = await caller.enter()
        assert (welcome.home_version, welcome.max_envelope) == (1, 131072)
        assert (connection.device, connection.user) == (caller.device, caller.user)
        assert await caller.hear() == wire.Deliver(1, b"waiting")
        assert await caller.hear() == wire.Empty(1)
        await caller.say(wire.Ack(1))
        await caller.say(SUBMIT)
        receipt = await caller.hear()
        assert (receipt.items[0].id, receipt.items[0].code) == (envelope_id(b"envelope"), Code.STORED)
        assert await caller.hear() == wire.Deliver(2, b"envelope")
        assert office.acked == [1]
        assert metrics.sessions._value.get() == 1
    assert office.detached == [connection]
    assert metrics.sessions._value.get() == metrics.connections._value.get() == metrics.outbox_bytes._value.get() == 0


async def test_a_submitting_connection_is_not_delivered_to_and_may_not_ack() -> None:
    office = HonestOffice(backlog=[b"waiting"])
    async with memory_call(office) as (socket, _):
        caller = Caller(socket)
        await caller.enter(receive=False)
        await caller.say(SUBMIT)
        assert isinstance(await caller.hear(), wire.Receipt)
        await caller.say(wire.Ack(1))
        error, code = await caller.farewell()
        assert (error.code, code) == (Fault.PROTOCOL, 4000 + Fault.PROTOCOL)
        assert "only submits" in error.text
    assert office.acked == []


async def test_the_other_requests() -> None:
    office = HonestOffice()
    async with memory_call(office) as (socket, _):
        caller = Caller(socket)
        await caller.enter(receive=False)
        await caller.say(wire.Lookup(7, caller.user, "norden", 0))
        assert await caller.hear() == wire.Record(7, Code.STORED, (b"record",))
        await caller.say(wire.Roster(b"head", ()))
        assert (await caller.hear()).items[0].id == digest(b"head")
        await caller.say(wire.Ephemeral(caller.user, "norden", b"typing"))
        await caller.say(wire.Lookup(8, caller.user, "norden", 0))
        await caller.hear()
        assert [told.payload for told in office.told] == [b"typing"]


@pytest.mark.parametrize(
    ("raised", "code"),
    [(Refused(Code.UNREACHABLE, "no link"), Code.UNREACHABLE), (Overloaded("full"), Code.OVERLOADED)],
)
async def test_a_refused_submit_is_answered_and_the_connection_goes_on(raised: Exception, code: Code) -> None:
    async def refuse() -> None:
        raise raised

    office = HonestOffice(on_submit=refuse)
    async with memory_call(office) as (socket, _):
        caller = Caller(socket)
        await caller.enter(receive=False)
        await caller.say(SUBMIT)
        item = (await caller.hear()).items[0]
        assert (item.id, item.code) == (envelope_id(b"envelope"), code)
        office.on_submit = None
        await caller.say(SUBMIT)
        assert (await caller.hear()).items[0].code == Code.STORED


NESTED = b"\x91" * 100_000 + b"\x90"
WRONG: list[tuple[bytes, str]] = [
    (b"", "not msgpack"),
    (b"\xc1garbage", "not msgpack"),
    (wire.encode_message(SUBMIT)[:-3], "not msgpack"),
    (wire.encode_message(SUBMIT) + b"\x00", "not msgpack"),
    (NESTED, "client message"),
    (msgpack.packb({"tag": 1}), "client message"),
    (msgpack.packb([99]), "wrong shape"),
    (msgpack.packb([4, "one"]), "wrong shape"),
    (msgpack.packb([4, 1, 2]), "wrong shape"),
    (msgpack.packb([3, [["x" * 300, b"e"]]]), "wrong shape"),
    (msgpack.packb([3, []]), "wrong shape"),
    (wire.encode_message(wire.Hello(0, b"", 0, True, "again")), "a second time"),
    (bytes(MAX_FRAME + 1), f"more than {MAX_FRAME} bytes"),
]


@pytest.mark.parametrize(("frame", "says"), WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("live", [False, True])
async def test_what_is_wrong_gets_an_error_that_says_so(frame: bytes, says: str, live: bool) -> None:
    office, metrics = HonestOffice(), FakeMetrics()
    async with memory_call(office, metrics) as (socket, connection):
        caller = Caller(socket)
        if live:
            await caller.enter()
        elif says == "a second time":
            await caller.say(wire.Hello(0, b"", 0, True, "test"))
            says = "before AUTH"
        await caller.socket.send(frame)
        error, code = await caller.farewell()
        assert (error.code, code) == (Fault.PROTOCOL, 4001)
        assert says in error.text
    assert office.detached == ([connection] if live else [])
    assert metrics.refused.labels("protocol")._value.get() == 1


async def test_a_text_message_is_an_error() -> None:
    async with memory_call(HonestOffice()) as (socket, _):
        await socket._connection.send_message("hello")
        error, _code = await Caller(socket).farewell()
        assert "text message" in error.text and "binary" in error.text


async def test_a_frame_that_is_none_gets_an_error_too() -> None:
    async with memory_call(HonestOffice()) as (socket, _):
        caller = Caller(socket)
        await caller.enter()
        await caller.hear()
        await socket._stream.send_all(b"\xf2\x80\x00\x00\x00\x00")  # reserved bits
        error, _code = await caller.farewell()
        assert (error.code, "no WebSocket frame" in error.text) == (Fault.PROTOCOL, True)


async def test_a_message_in_crumbs_is_an_error() -> None:
    async with memory_call(HonestOffice()) as (socket, _):
        caller = Caller(socket)
        await caller.enter()
        await caller.hear()
        await socket._stream.send_all(b"\x02\x80\0\0\0\0")  # opens a message, without a byte
        with trio.fail_after(5):
            await socket._stream.send_all(b"\x00\x80\0\0\0\0" * 10_000)  # goes on with it, as before
            error, _code = await caller.farewell()
        assert (error.code, "fragments" in error.text) == (Fault.PROTOCOL, True)


async def test_a_large_message_that_arrives_in_small_segments_is_one() -> None:
    async with memory_call(HonestOffice()) as (socket, _):
        caller = Caller(socket)
        await caller.enter()
        await caller.hear()
        await socket._stream.send_all(b"\x82\xff" + (800_000).to_bytes(8, "big") + bytes(4))  # one frame, no mask
        for _part in range(1_600):  # a slow line with a small MTU
            await socket._stream.send_all(bytes(500))
            await trio.testing.wait_all_tasks_blocked()
        error, _code = await caller.farewell()
        assert "fragments" not in error.text and "client message" in error.text  # zeros say nothing


async def test_newcomers_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.gateway.connection.UNPROVEN_BYTES", 100_000)
    async with memory_call(HonestOffice()) as (socket, connection):
        unproven = connection._around.unproven
        unproven.size += 90_000  # of others
        await socket._stream.send_all(b"\x02\xfe\xff\xff\0\0\0\0" + bytes(0xFFFF))  # opens a message, and is silent
        error, _code = await Caller(socket).farewell()
        assert (error.code, "newcomers" in error.text) == (Fault.OVERLOADED, True)
    assert unproven.size == 90_000
    async with memory_call(HonestOffice()) as (socket, connection):
        connection._around.unproven.size += 100_000  # who only wants to shake hands may
        await Caller(socket).enter()
        assert connection._around.unproven.size == 100_000


async def test_a_wrong_key_a_stranger_and_a_guest() -> None:
    office = HonestOffice()
    async with memory_call(office) as (socket, _):
        caller = Caller(socket)
        auth = caller.auth(await caller.challenge())
        await caller.say(wire.Auth(auth.user, bytes(SigningKey.generate().verify_key), auth.signature, ()))
        assert (await caller.farewell())[0].code == Fault.AUTH
    for denied, fault in ((office.strangers, Fault.AUTH), (office.elsewhere, Fault.NOT_HOME)):
        async with memory_call(office) as (socket, _):
            caller = Caller(socket)
            denied.add(caller.device)
            await caller.say(caller.auth(await caller.challenge()))
            assert (await caller.farewell())[0].code == fault
    assert office.detached == []


@pytest.mark.parametrize(
    ("raised", "fault"),
    [(RolledBack("beyond the tip"), Fault.ROLLED_BACK), (Overloaded("full", 700), Fault.OVERLOADED)],
)
async def test_a_start_that_fails_says_why_and_detaches(raised: Exception, fault: Fault) -> None:
    async def fail() -> None:
        raise raised

    office = HonestOffice(on_start=fail)
    async with memory_call(office) as (socket, connection):
        caller = Caller(socket)
        await caller.say(caller.auth(await caller.challenge()))
        error, _code = await caller.farewell()
        assert error.code == fault
        assert error.retry_after_ms == (700 if fault is Fault.OVERLOADED else 0)
    assert office.detached == [connection]


@pytest.mark.parametrize("where", ["on_submit", "on_serve", "on_lookup"])
async def test_our_own_trouble_ends_one_connection_and_tells_no_secrets(
    where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async def crash(*_: Any) -> None:
        raise KeyError("secret of 127.0.0.77")

    office = HonestOffice(**{where: crash})
    async with memory_call(office) as (socket, connection):
        caller = Caller(socket)
        await caller.enter()
        await caller.say(SUBMIT if where == "on_submit" else wire.Lookup(1, caller.user, "", 0))
        error, _code = await caller.farewell()
        assert (error.code, "secret" in error.text) == (Fault.INTERNAL, False)
    assert office.detached == [connection]
    logged = "".join(capfd.readouterr())
    assert "connection_failed" in logged and "KeyError" in logged and "crash" in logged
    assert "secret" not in logged and "127.0.0.77" not in logged


@pytest.mark.parametrize("after", ["nothing", "hello", "start"])
async def test_the_handshake_has_a_deadline(after: str, autojump_clock: Any) -> None:
    office = HonestOffice(on_start=trio.sleep_forever)
    async with memory_call(office, handshake_s=10) as (socket, connection):
        began = trio.current_time()
        caller = Caller(socket)
        if after == "hello":
            await caller.challenge()
        if after == "start":
            await caller.say(caller.auth(await caller.challenge()))
        error, _code = await caller.farewell()
        assert error.code == Fault.TIMEOUT
        assert trio.current_time() - began == pytest.approx(10, abs=0.1)
    assert office.detached == ([connection] if after == "start" else [])


async def test_silence_ends_a_connection_and_a_ping_is_not_silence(autojump_clock: Any) -> None:
    office = HonestOffice()
    async with memory_call(office, idle_s=120) as (socket, connection):
        caller = Caller(socket)
        await caller.enter()
        await caller.hear()
        for _ in range(10):
            await trio.sleep(100)
            await socket.ping()
        last = trio.current_time()
        assert (await caller.farewell())[0].code == Fault.TIMEOUT
        assert 110 <= trio.current_time() - last <= 121
    assert office.detached == [connection]


async def test_the_time_that_the_office_takes_is_not_silence(autojump_clock: Any) -> None:
    async def slow() -> None:
        await trio.sleep(70)

    async with memory_call(HonestOffice(on_submit=slow), idle_s=120) as (socket, _):
        caller = Caller(socket)
        await caller.enter(receive=False)
        for _ in range(4):
            await caller.say(SUBMIT)
        for _ in range(4):
            assert isinstance(await caller.hear(), wire.Receipt)


async def test_lookups_run_beside_and_are_bounded() -> None:
    free = trio.Event()

    async def wait(_request: wire.Lookup) -> None:
        await free.wait()

    office = HonestOffice(on_lookup=wait)
    async with memory_call(office) as (socket, _):
        caller = Caller(socket)
        await caller.enter(receive=False)
        await caller.say(wire.Lookup(0, caller.user, "", 0))
        await caller.say(SUBMIT)
        assert isinstance(await caller.hear(), wire.Receipt)  # overtakes the lookup
        for request in range(1, 3 * MAX_LOOKUPS):
            await caller.say(wire.Lookup(request, caller.user, "", 0))
        await trio.testing.wait_all_tasks_blocked()
        assert office.looking == MAX_LOOKUPS + 1
        free.set()
        answered = {(await caller.hear()).request for _ in range(3 * MAX_LOOKUPS)}
        assert answered == set(range(3 * MAX_LOOKUPS))


async def test_a_newer_session_of_the_device_fences_the_older() -> None:
    office, key = HonestOffice(), SigningKey.generate()
    async with memory_call(office) as (old_socket, old), memory_call(office) as (new_socket, new):
        await Caller(old_socket, key).enter()
        await Caller(new_socket, key).enter()
        error, code = await Caller(old_socket, key).farewell()
        assert (error.code, code) == (Fault.FENCED, 4004)
        assert office.detached == [old]
        assert new.push([deliver(1)])
        assert not old.push([deliver(1)])
        old.flush()


async def test_nothing_is_pushed_before_welcome() -> None:
    office, pushed = HonestOffice(), []

    async def early() -> None:
        pushed.append(connection.push([deliver(1)]))

    office.on_start = early
    async with memory_call(office) as (socket, connection):
        await Caller(socket).enter()
    assert pushed == [False]


async def test_a_client_that_leaves_while_the_office_works_is_detached_once() -> None:
    office = HonestOffice()
    async with memory_call(office) as (socket, connection):
        caller = Caller(socket)
        await caller.enter()
        await socket.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert office.detached == [connection]
        connection.end(Fault.FENCED, "too late")
        assert not connection.push([deliver(1)])
    assert office.detached == [connection]


async def test_cancellation_detaches_and_closes_at_every_stage() -> None:
    for stage in range(1, 60):
        office, (ours, theirs) = HonestOffice(), trio.testing.memory_stream_pair()
        metrics = FakeMetrics()
        around = Surroundings(office, FakeEnv(), metrics, Queued(metrics.outbox_bytes))

        async def dial(_h: str, _p: int, stream: trio.abc.Stream = theirs) -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            return stream

        async def talk() -> None:
            try:
                async with ws.connect("ws://memory:1", dial=dial) as socket:
                    caller = Caller(socket)
                    await caller.enter()
                    while True:
                        await caller.hear()
            except (ws.Closed, ws.NotConnected):
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(Connection(ours, around, inner).run)
                    for _ in range(stage):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            nursery.cancel_scope.deadline = trio.current_time() + 5
        assert len(office.detached) <= 1
        assert office.lines == {}
        assert metrics.connections._value.get() == metrics.sessions._value.get() == 0
        with pytest.raises(trio.ClosedResourceError):
            await ours.send_all(b"x")


async def test_the_root_document_that_the_office_goes_by_now_is_given() -> None:
    office = HonestOffice()
    async with memory_call(office) as (socket, _):
        caller = Caller(socket)
        await caller.enter(receive=False)
        await caller.say(wire.AskRoot(1, 1, 0))
        assert await caller.hear() == wire.RootPart(1, 1, 0, 0, b"")
        office.root = structs.replace(office.root, payload=structs.replace(office.root.payload, version=2))
        await caller.say(wire.AskRoot(1, 1, 0))
        assert await caller.hear() == wire.RootPart(1, 2, len(office.root.signed), 0, office.root.signed)
