"""Channels of other cells, for the readers of this node (ADR 36): asked across the border on demand, in memory only.

One question is in flight for all who want the same page; while anybody reads live, one question every FAR_POLL_S asks
for news, whoever and how many they are. Any ticket that the owner's cell accepted asks for all: what readers here
proved is the same key. Nothing of it is written or logged; what is known goes with its last reader.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from relay.channels import Channels, Known, page_frame
from relay.core import wire
from relay.core.farposts import NO_POSTS, Question, Reply, Shown, check_reply, is_code
from relay.core.policy import Policies, region_of
from relay.core.posts import read_header
from relay.core.trust import Root
from relay.core.trust.channels import verify_ticket
from relay.core.wire import Code
from relay.errors import PeerError, ProtocolError, Refused, TrustError
from relay.gateway.api import Line
from relay.limits import FAR_ASK_S, FAR_ASKS, FAR_FRESH_S, FAR_POLL_S, FAR_REST_S, MAX_FAR_CHANNELS
from relay.ports import Abroad

_log = structlog.get_logger("relay.channels")
# What ends reading for everybody here. Other answers, as one that does not hold, say nothing of the channel.
_ENDS: Final = {Code.UNKNOWN_CHANNEL, Code.NOT_SUBSCRIBER, Code.NOT_PERMITTED, Code.UNKNOWN_REGION}


@dataclass
class _Far:
    """A channel of another cell. `known` is replaced, never changed."""

    cell: str
    shown: Shown  # the newest ticket that was accepted
    known: Known
    heard: float  # trio's clock, when its cell last answered
    told: int  # number of the post up to which whoever is live has posts, or news
    asking: bool = False
    looked: float = -math.inf  # when its cell was last asked for a ticket that our terms say is bad
    look: _Flight | None = None  # such a question, about to be asked


class _Flight:
    """A page that is being asked for, and what came of it: nothing where who asked was cancelled. For terms alone the
    frame is empty."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.frame: bytes | None = None
        self.error: Refused | None = None


def check_readable(root: Root, policies: Policies, own: str, cell: str) -> None:
    """Raises Refused where readers of cell `own` may not read channels of `cell`."""
    if root.cell(cell) is None:
        raise Refused(Code.UNKNOWN_REGION, f"the federation has no cell {cell!r}")
    if why := policies.forbidden(cell, own):
        raise Refused(Code.NOT_PERMITTED, why)


class FarChannels:
    """`check` raises Refused for a cell of which nothing may be read now; it is asked before everything. One task runs
    `run`."""

    def __init__(self, channels: Channels, abroad: Abroad, check: Callable[[str], None]) -> None:
        self._channels = channels
        self._abroad = abroad
        self._check = check
        self._far: dict[bytes, _Far] = {}
        self._flights: dict[tuple[bytes, int], _Flight] = {}
        self._turns: dict[str, trio.CapacityLimiter] = {}  # by cell
        self._down: dict[str, tuple[float, str]] = {}  # cells that gave none that holds: left be until when, and why
        self._wake = trio.Event()

    def has(self, channel: bytes) -> bool:
        """Is it one that somebody here reads across a border?"""
        return channel in self._far

    # --- who reads -------------------------------------------------------------------------------
    async def subscribe(self, line: Line, request: wire.SubscribeFar, nonce: bytes) -> Code:
        """Have the channel's cell judge a ticket. The code that the line is told."""
        channel = request.channel
        try:
            far = await self._enter(request, Shown(line.device, nonce, request.ticket))
        except Refused as error:
            return Code(error.code)
        if not self._channels.is_live(channel):
            far.told = far.known.span[1]
        if not self._channels.subscribe(line, far.known.terms, live=request.live):
            return Code.OVERLOADED
        return Code.STORED

    async def _enter(self, request: wire.SubscribeFar, shown: Shown) -> _Far:
        """Raises Refused."""
        channel, cell = request.channel, request.cell
        self._check(cell)
        far = self._far.get(channel)
        if far is not None and far.cell != cell:
            raise Refused(Code.UNKNOWN_CHANNEL, "that cell does not have it")
        if far is not None and self._is_fresh(far) and not _fits(far, channel, shown):
            await self._look_again(channel, far)
            if (far := self._far.get(channel)) is not None and not _fits(far, channel, shown):
                raise Refused(Code.NOT_SUBSCRIBER, "the ticket is not good")
        if far is None:
            self._make_room()
        reply, known = await self._ask(cell, Question(channel, shown, NO_POSTS))
        far = self._far.get(channel)
        if far is None:
            self._make_room()
            far = self._far[channel] = _Far(cell, shown, known, trio.current_time(), reply.last)
            self._channels.far[channel] = known
            self._wake.set()
        else:
            far.shown = shown
            self._learn(channel, far, known)
        return far

    async def _look_again(self, channel: bytes, far: _Far) -> None:
        """Have its cell say which terms hold by now: there may be newer ones than ours. It is asked after this call,
        with the ticket that it took, once every FAR_POLL_S for all whose own is bad. Raises Refused."""
        while self._far.get(channel) is far:
            if far.look is None:
                await self._look(channel, far)
                return
            look = far.look
            await look.done.wait()
            if look.error is not None:
                raise look.error.with_traceback(None)
            if look.frame is not None:
                return

    async def _look(self, channel: bytes, far: _Far) -> None:
        look = far.look = _Flight()
        shown = far.shown
        try:
            await trio.sleep_until(far.looked + FAR_POLL_S)
            far.look, far.looked = None, trio.current_time()  # who comes from here on waits for the next one
            shown = far.shown
            _, known = await self._ask(far.cell, Question(channel, shown, NO_POSTS))
            look.frame = b""
            if self._far.get(channel) is far:
                self._learn(channel, far, known)
        except Refused as error:
            if error.code != Code.NOT_SUBSCRIBER:
                look.error = error
                raise
            look.frame = b""  # the terms are others: each has its own ticket judged
            self._over(channel, far, shown, Code.NOT_SUBSCRIBER)
        finally:
            far.look = None if far.look is look else far.look
            look.done.set()

    def _over(self, channel: bytes, far: _Far, shown: Shown, code: Code) -> None:
        """Its cell does not take that ticket any more, and so no other one that was taken until now."""
        if far.shown is shown and self._far.get(channel) is far:
            _log.info("channel_ended", region=region_of(far.cell), code=code.name.lower())
            self._channels.end(channel, code)
            self._forget(channel)

    def _make_room(self) -> None:
        """Raises Refused."""
        if len(self._far) >= MAX_FAR_CHANNELS:
            self._prune()
        if len(self._far) >= MAX_FAR_CHANNELS:
            raise Refused(Code.OVERLOADED, "this node reads too many channels of other cells", "Try again", 1000)

    def _prune(self) -> None:
        for channel in [one for one in self._far if not self._channels.is_read(one)]:
            self._forget(channel)

    def _forget(self, channel: bytes) -> None:
        del self._far[channel], self._channels.far[channel]

    def _learn(self, channel: bytes, far: _Far, known: Known) -> None:
        """What its cell says now. Other terms end subscriptions by another key, and are told to who is left."""
        altered = known.terms.signed != far.known.terms.signed
        far.known, far.heard = known, trio.current_time()
        self._channels.far[channel] = known
        if altered:
            self._channels.changed(channel)

    @staticmethod
    def _is_fresh(far: _Far) -> bool:
        return trio.current_time() - far.heard < FAR_FRESH_S

    # --- asking ----------------------------------------------------------------------------------
    async def _ask(self, cell: str, question: Question) -> tuple[Reply, Known]:
        """A STORED reply, checked, and what it says of the channel. Raises Refused, with a code for readers."""
        self._check_up(cell)
        turns = self._turns.setdefault(cell, trio.CapacityLimiter(FAR_ASKS))
        with trio.move_on_after(FAR_ASK_S) as waits:
            await turns.acquire()
        if waits.cancelled_caught:
            raise Refused(Code.OVERLOADED, "more is asked of the channel's cell than it answers")
        try:
            self._check_up(cell)  # it may have been long
            return await self._answer(cell, question)
        finally:
            turns.release()

    async def _answer(self, cell: str, question: Question) -> tuple[Reply, Known]:
        try:
            return self._checked(cell, question, await self._abroad.read_channel(cell, question))
        except PeerError as error:
            raise self._rest(cell, Refused(Code.UNREACHABLE, error.text)) from None
        except (TrustError, ProtocolError) as error:
            _log.warning("channel_answer_refused", cell=cell, reason=error.text)
            raise self._rest(cell, Refused(Code.BAD_RECORD, error.text)) from None
        except Refused as error:
            known = error.code if is_code(error.code) else Code.UNREACHABLE
            refused = Refused(known, error.text)
            raise (self._rest(cell, refused) if known == Code.UNREACHABLE else refused) from None

    def _check_up(self, cell: str) -> None:
        self._check(cell)
        until, why = self._down.get(cell, (0.0, ""))
        if trio.current_time() < until:  # of this channel nothing was said
            raise Refused(Code.UNREACHABLE, why)
        self._down.pop(cell, None)

    def _rest(self, cell: str, error: Refused) -> Refused:
        self._down[cell] = (trio.current_time() + FAR_REST_S, error.text)
        return error

    def _checked(self, cell: str, question: Question, reply: Reply) -> tuple[Reply, Known]:
        """Raises Refused for a code, or what is older than what was shown before; TrustError, ProtocolError."""
        if reply.code != Code.STORED:
            raise Refused(reply.code if is_code(reply.code) else Code.BAD_RECORD, "its cell gives nothing")
        far = self._far.get(question.channel)
        if far is not None and far.cell != cell:
            raise Refused(Code.UNKNOWN_CHANNEL, "another cell showed it meanwhile")
        known = far.known if far is not None else None
        terms = check_reply(reply, question, cell, known.terms if known else None)
        if known is not None and (terms.version < known.terms.version or reply.last < known.span[1]):
            raise Refused(Code.OVERLOADED, "the node that was asked is behind others of its cell")
        return reply, Known(terms, (reply.first, reply.last))

    # --- reading on demand -----------------------------------------------------------------------
    async def page(self, channel: bytes, after: int) -> bytes:
        """The frame of the next posts past `after`, one question for everybody who asks for the same."""
        while (far := self._far.get(channel)) is not None:
            try:
                self._check(far.cell)
                place = max(after, far.known.span[0] - 1)
                if self._is_fresh(far) and (frame := self._kept(channel, far, place)) is not None:
                    return frame
                flight = self._flights.get((channel, place))
                if flight is None:
                    return (await self._lead(channel, far, place))[0]
            except Refused as error:
                return page_frame(wire.Page(channel, after, Code(error.code), 0, 0, ()))
            await flight.done.wait()
            if flight.error is not None:
                return page_frame(wire.Page(channel, after, Code(flight.error.code), 0, 0, ()))
            if flight.frame is not None:
                return flight.frame
        return page_frame(wire.Page(channel, after, Code.UNKNOWN_CHANNEL, 0, 0, ()))

    def _kept(self, channel: bytes, far: _Far, place: int) -> bytes | None:
        first, last = far.known.span
        if place >= last:
            return page_frame(wire.Page(channel, place, Code.STORED, first, last, ()))
        return self._channels.pages.find(channel, place, far.known.span)

    async def _lead(self, channel: bytes, far: _Far, place: int) -> tuple[bytes, Reply]:
        """Ask, for all who want this page. Raises Refused."""
        flight = self._flights[channel, place] = _Flight()
        try:
            flight.frame, reply = await self._fetch(channel, far, place)
            return flight.frame, reply
        except Refused as error:
            flight.error = error
            raise
        finally:
            del self._flights[channel, place]
            flight.done.set()

    async def _fetch(self, channel: bytes, far: _Far, place: int) -> tuple[bytes, Reply]:
        reply, known = await self._ask(far.cell, Question(channel, far.shown, place))
        frame = page_frame(wire.Page(channel, reply.after, Code.STORED, reply.first, reply.last, reply.posts))
        if self._far.get(channel) is far:
            self._learn(channel, far, known)
            self._channels.pages.keep(channel, reply.after, known.span, frame)
        return frame, reply

    # --- news ------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Ask for news of what is read live, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                if not self._far:
                    await self._wake.wait()
                await trio.sleep(FAR_POLL_S)
                self._prune()
                for channel, far in self._far.items():
                    if not far.asking and self._channels.is_live(channel):
                        far.asking = True
                        nursery.start_soon(self._poll, channel, far)

    async def _poll(self, channel: bytes, far: _Far) -> None:
        shown, told = far.shown, far.told
        try:
            if (channel, told) in self._flights:
                return  # a reader asks the same
            _, reply = await self._lead(channel, far, told)
        except Refused as error:
            if error.code in _ENDS:
                self._over(channel, far, shown, Code(error.code))
            return
        finally:
            far.asking = False
        if self._far.get(channel) is far and far.told == told < reply.last:
            far.told = reply.last
            self._channels.give(channel, reply.posts, whole=_reaches(reply))


def _fits(far: _Far, channel: bytes, shown: Shown) -> bool:
    """Is the ticket good by the terms that we know?"""
    try:
        verify_ticket(far.known.terms.terms.reader_key, channel, shown.nonce, shown.device, shown.ticket)
    except TrustError:
        return False
    return True


def _reaches(reply: Reply) -> bool:
    """Does a page end with the newest post?"""
    return bool(reply.posts) and read_header(reply.posts[-1]).number == reply.last
