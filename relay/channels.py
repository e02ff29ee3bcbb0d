"""Broadcast channels on a node: who is subscribed, the live posts to them, and pages for those who read (ADR 36).

What a node keeps of a subscriber is an entry in two dicts, from SUBSCRIBE until the connection ends. Nobody has a
cursor here: readers say from where. A post goes out encoded once, in rounds, with one write for all that came since the
last one (as relay.fanout); a line that takes no more misses it, is told as soon as it takes something again, and reads
the rest on demand. So a slow reader delays nobody, and holds no more than its outbox and one page.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

import trio

from relay.core import records, wire
from relay.core.block import Block
from relay.core.frames import server_frame
from relay.core.mailroom import reading
from relay.core.mailroom.channels import post_of
from relay.core.mailroom.channelstate import ChannelState, Kept
from relay.core.mailroom.effects import Posted
from relay.core.mailroom.state import State, split_key
from relay.core.trust.channels import VerifiedTerms
from relay.core.wire import Code
from relay.gateway.api import Line
from relay.limits import (
    CHANNEL_BEHIND_S, CHANNEL_PAGE, CHANNEL_PAGE_POSTS, CHANNEL_PAGES, CHANNEL_READS, FANOUT_BYTES, FANOUT_PIECE,
    FANOUT_REST, FANOUT_REST_S, MAX_SUBSCRIPTIONS,
)
from relay.observe.metrics import Metrics
from relay.ports import Journal

_SLICE: Final = 32  # lines that are written to before others have their turn: below a millisecond
_ENTRY: Final = 512  # bytes of memory that a kept page takes beside its frame
_TRIES: Final = 4  # to read a post that a carry moves at the same time
_PROVEN, _LIVE, _BEHIND = range(3)  # what a line is to a channel: it may read; is sent posts; missed some


class Known(NamedTuple):
    """What is known of a channel: its terms, and the numbers of the oldest post that is kept (0: none is) and of the
    newest that was taken."""

    terms: VerifiedTerms
    span: tuple[int, int]


class Channels:
    """Owns the subscriptions. `posted` and `changed` while a block is applied; one task runs `run`."""

    def __init__(self, state: State, journal: Journal, metrics: Metrics) -> None:
        self.journal = journal
        self.far: dict[bytes, Known] = {}  # channels of other cells (relay.farchannels)
        self.pages = _Pages()
        self._state = state
        self._metrics = metrics
        self._readers: dict[bytes, dict[Line, int]] = {}  # by channel
        self._channels: dict[Line, tuple[bytes, ...]] = {}
        self._keys: dict[bytes, bytes] = {}  # of each channel with readers, the key that they proved
        self._filed: dict[bytes, list[bytes]] = {}  # frames of live posts that are not given out yet
        self._filed_bytes = 0
        self._altered: dict[bytes, None] = {}  # channels with other terms, of which nobody has heard yet
        self._owed: dict[Line, dict[bytes, Code]] = {}  # what lines are to hear, once they take it, of which channels
        self._wake = trio.Event()
        self._turns = trio.CapacityLimiter(CHANNEL_READS)

    # --- who reads -------------------------------------------------------------------------------
    def subscribe(self, line: Line, terms: VerifiedTerms, *, live: bool) -> bool:
        """The line has shown a ticket. False where it has MAX_SUBSCRIPTIONS already."""
        key = terms.channel
        known = self._channels.get(line, ())
        if key not in known:
            if len(known) >= MAX_SUBSCRIPTIONS:
                return False
            self._channels[line] = (*known, key)
            self._metrics.subscriptions.inc()
        self._settle(line, key)  # the answer says it
        self._keys[key] = terms.terms.reader_key
        self._readers.setdefault(key, {})[line] = _LIVE if live else _PROVEN
        return True

    def unsubscribe(self, line: Line, channel: bytes) -> None:
        """The line wants no more of it."""
        left = tuple(key for key in self._channels.pop(line, ()) if key != channel)
        if left:
            self._channels[line] = left
        self._settle(line, channel)
        self._forget(line, channel)

    def leave(self, line: Line) -> None:
        """The line has ended."""
        for channel in self._channels.pop(line, ()):
            self._forget(line, channel)
        self._owed.pop(line, None)

    def _forget(self, line: Line, channel: bytes) -> None:
        readers = self._readers.get(channel, {})
        if readers.pop(line, None) is not None:
            self._metrics.subscriptions.dec()
            if not readers:
                del self._readers[channel], self._keys[channel]

    def may_read(self, line: Line, channel: bytes) -> bool:
        """Has the line shown a ticket that the newest terms accept?"""
        return line in self._readers.get(channel, ())

    def is_read(self, channel: bytes) -> bool:
        """Has any line subscribed to it?"""
        return channel in self._readers

    def is_live(self, channel: bytes) -> bool:
        """Is any line to be sent posts as they come?"""
        return any(what != _PROVEN for what in self._readers.get(channel, {}).values())

    def known(self, channel: bytes) -> Known | None:
        """What is known of a channel, of this cell or of another one; None where nothing is."""
        here = self._state.channels.get(channel)
        return Known(here.terms, _span(here)) if here is not None else self.far.get(channel)

    def news(self, channel: bytes, code: Code = Code.STORED, request: int = 0) -> wire.Channel:
        """What there is of a channel now."""
        known = self.known(channel)
        if known is None or code != Code.STORED:
            return wire.Channel(request, channel, code, b"", 0, 0)
        return wire.Channel(request, channel, code, known.terms.signed, *known.span)

    # --- what the fold says ----------------------------------------------------------------------
    def posted(self, effect: Posted, block: Block) -> None:
        """A post was taken: for whoever is subscribed here. Never waits."""
        if effect.channel not in self._readers:
            return
        _, ordinal = split_key(effect.source)
        self.give(effect.channel, [post_of(records.decode_record(block.records[ordinal]))])

    def give(self, channel: bytes, posts: Sequence[bytes], *, whole: bool = True) -> None:
        """New posts of a channel with readers. Not `whole`: there are more, which who is live reads on demand."""
        for post in posts if whole else ():
            frame = page_frame(wire.Posted(post))
            self._filed.setdefault(channel, []).append(frame)
            self._filed_bytes += len(frame)
        if self._filed_bytes > FANOUT_BYTES:
            self._overrun()
        if not whole:
            self._miss_all(channel)
        self._wake.set()

    def changed(self, channel: bytes) -> None:
        """A channel has other terms, or has ended: who may not read any more does not from here on."""
        known = self.known(channel)
        if channel not in self._readers:
            return
        if known is not None and known.terms.terms.reader_key == self._keys[channel]:
            self._altered[channel] = None
            self._wake.set()
        else:
            self.end(channel, Code.NOT_SUBSCRIBER if known else Code.UNKNOWN_CHANNEL)

    def end(self, channel: bytes, code: Code) -> None:
        """Nobody reads it any more; whoever did is told `code`."""
        for line in list(self._readers.get(channel, ())):
            self.unsubscribe(line, channel)
            self._owe(line, channel, code)
        self._wake.set()

    def _owe(self, line: Line, channel: bytes, code: Code = Code.STORED) -> None:
        self._owed.setdefault(line, {})[channel] = code

    def _settle(self, line: Line, channel: bytes) -> None:
        owed = self._owed.get(line, {})
        if owed.pop(channel, None) is not None and not owed:
            del self._owed[line]

    def _overrun(self) -> None:
        """More is posted than lines are written to: everybody who lacks it reads on demand."""
        for channel in self._filed:
            self._miss_all(channel)
        self._filed, self._filed_bytes = {}, 0

    def _miss_all(self, channel: bytes) -> None:
        for line, what in self._readers.get(channel, {}).items():
            if what == _LIVE:
                self._miss(line, channel)

    def _miss(self, line: Line, channel: bytes) -> None:
        self._readers[channel][line] = _BEHIND
        self._metrics.demoted.labels("posts").inc()
        self._owe(line, channel)

    # --- giving ----------------------------------------------------------------------------------
    async def run(self) -> None:
        """Rounds, until cancelled."""
        again = -math.inf  # when news may be told again
        while True:
            with trio.move_on_after(CHANNEL_BEHIND_S if self._owed or self._altered else math.inf):
                await self._wake.wait()
            self._wake = trio.Event()
            began = trio.current_time()
            await self._round()
            if (self._owed or self._altered) and began >= again:
                again = began + CHANNEL_BEHIND_S
                await self._tell()
            await trio.sleep(min(FANOUT_REST_S, FANOUT_REST * (trio.current_time() - began)))

    async def _round(self) -> None:
        """Everything that is filed now, to everybody who is live."""
        filed, self._filed, self._filed_bytes = self._filed, {}, 0
        for channel, frames in filed.items():
            pieces, given = list(_joined(frames)), 0
            for number, line in enumerate(list(self._readers.get(channel, ())), 1):
                if self._readers.get(channel, {}).get(line) == _LIVE:
                    if all(line.push((piece,)) for piece in pieces):
                        given += len(frames)
                    else:
                        self._miss(line, channel)
                    line.flush()
                if number % _SLICE == 0:
                    await trio.lowlevel.checkpoint()
            self._metrics.delivered.inc(given)

    async def _tell(self) -> None:
        """Whoever is owed news hears how it is now, once its line takes that; who had missed posts is live again."""
        altered, self._altered = self._altered, {}
        for channel in altered:
            for line in self._readers.get(channel, ()):
                self._owe(line, channel)
        frames: dict[tuple[bytes, Code], bytes] = {}
        for number, line in enumerate(list(self._owed), 1):
            for what in list(self._owed.get(line, {}).items()):
                frame = frames.get(what) or frames.setdefault(what, page_frame(self.news(*what)))
                if not line.push((frame,)):
                    break
                self._heard(line, what[0])
            line.flush()
            if number % _SLICE == 0:
                await trio.lowlevel.checkpoint()
                frames.clear()  # an overrun meanwhile is news

    def _heard(self, line: Line, channel: bytes) -> None:
        self._settle(line, channel)
        readers = self._readers.get(channel, {})
        if readers.get(line) == _BEHIND:
            readers[line] = _LIVE

    # --- reading on demand -----------------------------------------------------------------------
    async def page(self, channel: bytes, after: int) -> bytes:
        """The frame of the next posts past `after`, the same for everybody who asks for the same."""
        async with self._turns:
            known = self._state.channels.get(channel)
            if known is not None:
                frame = self.pages.find(channel, max(after, _span(known)[0] - 1), _span(known))
                if frame is not None:
                    return frame
            page = await self._make(channel, after)
            frame = page_frame(page)
            if page.posts:  # one without is made as fast as it is found, and anybody may ask from anywhere
                self.pages.keep(channel, page.after, (page.first, page.last), frame)
            return frame

    async def read(self, channel: bytes, after: int) -> wire.Page:
        """The same for a node of another cell, which keeps it for its readers."""
        async with self._turns:
            return await self._make(channel, after)

    async def _make(self, channel: bytes, after: int) -> wire.Page:
        for _ in range(_TRIES):
            known = self._state.channels.get(channel)
            if known is None:
                return wire.Page(channel, after, Code.UNKNOWN_CHANNEL, 0, 0, ())
            first, last = _span(known)
            after_ = max(after, first - 1)
            ended = next(known.window.after(after_), None) is None
            posts = await self._posts(known, after_)
            if posts or ended:
                return wire.Page(channel, after_, Code.STORED, first, last, tuple(posts))
        return wire.Page(channel, after, Code.OVERLOADED, 0, 0, ())  # an empty page would say: no more

    async def _posts(self, channel: ChannelState, after: int) -> list[bytes]:
        posts: list[bytes] = []
        size = 0
        for kept in list(islice(channel.window.after(after), CHANNEL_PAGE_POSTS)):
            try:
                post = await self._read(kept, channel)
            except LookupError:
                break  # readers ask again
            if post is None:
                continue  # it went from the window meanwhile
            size += len(post)
            if posts and size > CHANNEL_PAGE:
                break
            posts.append(post)
        return posts

    async def _read(self, kept: Kept, channel: ChannelState) -> bytes | None:
        """A post from where it lies; None where it is not kept any more. Raises LookupError where it was carried
        elsewhere again and again while it was read."""
        sources = self._state.sources
        for _ in range(_TRIES):
            source = sources.find(kept.source)
            if source is None or kept.time + channel.terms.terms.keep_ms <= self._state.time:
                return None
            with suppress(LookupError):
                block = await self.journal.read(source.index)
                if sources.find(kept.source) == source:
                    return post_of(reading.record_of(block, source))
            await trio.lowlevel.checkpoint()
        raise LookupError(kept.number)


class _Pages:
    """Frames of pages that were made lately. One holds as long as its channel keeps and knows the same posts."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[bytes, int], tuple[tuple[int, int], bytes]] = OrderedDict()
        self._bytes = 0

    def find(self, channel: bytes, after: int, span: tuple[int, int]) -> bytes | None:
        kept = self._kept.get((channel, after))
        return kept[1] if kept is not None and kept[0] == span else None

    def keep(self, channel: bytes, after: int, span: tuple[int, int], frame: bytes) -> None:
        old = self._kept.pop((channel, after), None)
        self._kept[channel, after] = (span, frame)
        self._bytes += _weight(frame) - (_weight(old[1]) if old else 0)
        while self._bytes > CHANNEL_PAGES:
            self._bytes -= _weight(self._kept.popitem(last=False)[1][1])


def _weight(frame: bytes) -> int:
    """What a kept page takes, bytes."""
    return len(frame) + _ENTRY


def _span(channel: ChannelState) -> tuple[int, int]:
    """(number of the oldest post that is kept, of the newest that was taken); what is kept is 0 where nothing is."""
    first = channel.window.first()
    return first.number if first is not None else 0, channel.last


def page_frame(message: wire.ServerMessage) -> bytes:
    """What goes to every line that is told the same."""
    return server_frame(wire.encode_message(message))


def _joined(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Frames, joined up to FANOUT_PIECE: each piece is one write."""
    piece: list[bytes] = []
    size = 0
    for frame in frames:
        if piece and size + len(frame) > FANOUT_PIECE:
            yield b"".join(piece)
            piece, size = [], 0
        piece.append(frame)
        size += len(frame)
    if piece:
        yield b"".join(piece)
