"""What is said of broadcast channels on one connection, and whose answer is whose."""

from __future__ import annotations

from functools import partial

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relay.client.channeltalk import ChannelTalk
from relay.core import wire
from relay.core.wire import Code

CELL, CHANNEL = "norden/1", b"c" * 32


class Said(list[wire.ClientMessage]):
    async def say(self, message: wire.ClientMessage) -> None:
        self.append(message)


def talking() -> tuple[ChannelTalk, Said]:
    said = Said()
    return ChannelTalk(said.say, bytes(32), bytes(32), CELL), said


def page(after: int, first: int = 1, *, last: int = 99, posts: tuple[bytes, ...] = (b"post",)) -> wire.Page:
    return wire.Page(CHANNEL, after, Code.STORED, first, last, posts)


async def test_who_leaves_says_so_while_there_is_a_connection() -> None:
    talk, said = talking()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(talk.subscribe, CHANNEL, CELL, bytes(32), live=True))
        await wait_all_tasks_blocked()
        talk.take(wire.Channel(1, CHANNEL, Code.STORED, b"", 0, 0))
    await talk.unsubscribe(CHANNEL)
    assert said[1:] == [wire.Unsubscribe(CHANNEL)] and not talk._live
    talk.end()
    await talk.unsubscribe(CHANNEL)
    assert len(said) == 2


async def test_a_page_goes_to_who_asked_for_it(autojump_clock: MockClock) -> None:
    """Two may read one channel; and the answer to who gave up comes all the same. It would hide what lies between."""
    talk, said = talking()
    got: dict[int, wire.Page] = {}

    async def reads(after: int) -> None:
        got[after] = await talk.read(CHANNEL, after)

    with trio.move_on_after(1):
        await talk.read(CHANNEL, 20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads, 5)
        nursery.start_soon(reads, 30)
        await wait_all_tasks_blocked()
        talk.take(page(20))
        await wait_all_tasks_blocked()
        assert not got and len(said) == 3
        talk.take(page(30))
        await wait_all_tasks_blocked()
        assert list(got) == [30]
        talk.take(page(11, 12))  # what was asked for has left the window
    assert got == {30: page(30), 5: page(11, 12)}


async def test_an_empty_page_from_a_later_place_is_an_answer(autojump_clock: MockClock) -> None:
    """Nothing is kept any more."""
    talk, _ = talking()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.read, CHANNEL, 5)
            await wait_all_tasks_blocked()
            talk.take(page(8, 0, last=8, posts=()))
