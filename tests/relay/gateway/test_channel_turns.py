"""What a connection asks of channels stays in its order; a cell abroad that does not answer holds up no mail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relay.core import wire
from relay.gateway.connection import Connection
from relay.limits import MAX_LOOKUPS
from tests.relay.gateway.honest import Caller, HonestOffice, memory_call

SUBMIT = wire.Submit((wire.SubmitItem("norden", b"envelope"),))
FAR, TICKET = b"f" * 32, bytes(64)


class Desk:
    """Whatever is about channel FAR takes until it may `go`."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.go = trio.Event()

    def crosses(self, message: Any) -> bool:
        return isinstance(message, wire.SubscribeFar) or getattr(message, "channel", b"") == FAR

    async def _take(self, message: Any) -> None:
        self.asked.append(message)
        if self.crosses(message):
            await self.go.wait()

    async def subscribe(self, line: object, request: wire.Subscribe | wire.SubscribeFar, nonce: bytes) -> None:
        await self._take(request)

    async def read(self, line: object, request: wire.Read) -> None:
        await self._take(request)

    def unsubscribe(self, line: object, channel: bytes) -> None:
        self.asked.append(wire.Unsubscribe(channel))

    async def post(self, line: object, posts: tuple[bytes, ...]) -> None:
        await self._take(wire.Posts(posts))


@asynccontextmanager
async def called() -> AsyncIterator[tuple[Desk, Caller, Connection]]:
    office: Any = HonestOffice()
    office.channels = desk = Desk()
    async with memory_call(office) as (socket, connection):
        caller = Caller(socket)
        await caller.enter(receive=False)
        yield desk, caller, connection


async def test_mail_goes_on_while_a_cell_abroad_does_not_answer(autojump_clock: MockClock) -> None:
    async with called() as (desk, caller, _):
        await caller.say(wire.SubscribeFar(1, FAR, TICKET, True, "sauda/1"))
        with trio.fail_after(1):
            await caller.say(SUBMIT)
            assert isinstance(await caller.hear(), wire.Receipt)
        assert len(desk.asked) == 1


async def test_what_comes_after_it_waits_its_turn(autojump_clock: MockClock) -> None:
    async with called() as (desk, caller, connection):
        said = [
            wire.SubscribeFar(1, FAR, TICKET, True, "sauda/1"), wire.Read(FAR, 0), wire.Read(b"o" * 32, 0),
            wire.Unsubscribe(FAR), wire.Subscribe(2, b"o" * 32, TICKET, False), wire.Posts((b"post",)),
            wire.Read(b"o" * 32, 7),
        ]  # fmt: skip
        for message in said:
            await caller.say(message)
        await wait_all_tasks_blocked()
        assert desk.asked == said[:1]
        desk.go.set()
        await wait_all_tasks_blocked()
        assert desk.asked == said
        assert connection._lookups == 0 and connection._channels._waiting is None


async def test_so_many_wait_and_no_post_does(autojump_clock: MockClock) -> None:
    for message, read_on in ((wire.Read(FAR, 1), MAX_LOOKUPS), (wire.Posts((b"post",)), 0)):
        async with called() as (desk, caller, connection):
            await caller.say(wire.Read(FAR, 0))
            for _ in range(MAX_LOOKUPS + 2):
                await caller.say(message)
            await caller.say(SUBMIT)
            with trio.move_on_after(100) as silence:
                await caller.hear()
            assert silence.cancelled_caught and len(connection._channels._waiting or ()) == read_on
            desk.go.set()
            with trio.fail_after(1):
                assert isinstance(await caller.hear(), wire.Receipt)
            await wait_all_tasks_blocked()
            assert len(desk.asked) == MAX_LOOKUPS + 3


async def test_who_hangs_up_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with called() as (desk, caller, connection):
        for after in range(3):
            await caller.say(wire.Read(FAR, after))
        await wait_all_tasks_blocked()
    assert len(desk.asked) == 1 and connection._channels._waiting is None
