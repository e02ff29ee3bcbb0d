"""What a simulated device does with broadcast channels on one connection: it brings its own channels' terms and posts,
and reads those whose cards it has, as an SDK does. It holds the relay to ADR 36 at every message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from relay.core import wire
from relay.core.codec import digest
from relay.core.posts import read_header
from relay.core.trust.channels import make_ticket
from relay.core.wire import Code
from relay.errors import ProtocolError
from tests.simulation.channels import Book, SimChannel, Work
from tests.simulation.frames import Gone
from tests.simulation.people import region_of
from tests.simulation.world import START_MS, Violation

if TYPE_CHECKING:
    from tests.simulation.devices import SimDevice

ANSWER_S: Final = 30.0  # seconds for an answer before another connection is tried
AGAIN_S: Final = 3.0  # seconds until what was refused for now is asked again, and between two looks at a channel
DENIED_S: Final = 20.0  # the same for what was denied
NEVER: Final = float("inf")
STRANGER: Final = -1  # the era of who was never given a secret


@dataclass(eq=False, slots=True)
class Place:
    """A reader's own place in a channel, and its card. `era`: which secret it has."""

    device: SimDevice
    channel: SimChannel
    era: int
    live: bool
    have: int = 0  # number of the last post that was read
    reads: bool = True  # it wants to

    @property
    def secret(self) -> bytes:
        return self.channel.secrets[self.era] if self.era >= 0 else digest(self.device.name.encode(), b"stranger")

    @property
    def entitled(self) -> bool:
        """Does it have the newest card, of a channel that is there?"""
        channel = self.channel
        return self.era == channel.era and channel.newest is not None and not (channel.left or channel.over)


@dataclass(eq=False, slots=True)
class _Sub:
    """A subscription on one connection."""

    place: Place
    doing: str = "nothing"  # or subscribing, subscribed, reading
    since: float = 0.0  # when that was asked
    not_before: float = 0.0
    request: int = 0
    era: int = STRANGER - 1  # of the ticket that was shown last; below STRANGER: none
    sure: bool = False  # the channel's cell had taken the terms of that era when it was shown
    live: bool = False  # asked for, ever on this connection
    newest: int = 0  # of the newest post that was heard of
    last_live: int = 0
    pages: int = 0  # that are owed
    asked: int = 0  # the place that the last one was asked for


class Seat:
    """Of one connection of a device."""

    def __init__(self, device: SimDevice, number: int) -> None:
        self._device, self._number, self._trace = device, number, device.ledger.trace
        self._book: Book = device.ledger.channels
        self._subs: dict[bytes, _Sub] = {}
        self._requests = 0
        self._nonce, self._cell = b"", ""
        self._intrusions: set[bytes] = set()  # digests of what this device had no right to send

    def begin(self, challenge: wire.Challenge) -> None:
        """The connection is served."""
        self._nonce, self._cell = challenge.nonce, challenge.cell

    # --- what is sent --------------------------------------------------------------------------------
    def next(self, now: float) -> wire.ClientMessage | None:
        """Something to say now. Raises Gone where an answer did not come."""
        for channel in self._device.channels:
            if (message := self._bring(channel, now)) is not None:
                return message
        if self._device.intrudes:
            message = self._device.intrudes.popleft()
            self._intrusions.add(digest(message.posts[0] if isinstance(message, wire.Posts) else message.terms))
            return message
        for place in self._book.places.get(self._device.name, {}).values():
            if (message := self._ask(place, now)) is not None:
                return message
        return None

    def due(self) -> float:
        """When `next` may have something, if nobody wakes us."""
        due = NEVER
        for channel in self._device.channels:
            work = channel.work
            if work is not None and not channel.over:
                due = min(due, work.sent_at + ANSWER_S if work.sent_on == self._number else work.not_before)
        for place in self._book.places.get(self._device.name, {}).values():
            sub = self._subs.get(place.channel.id)
            if sub is not None and (place.reads or sub.doing != "nothing"):
                due = min(due, sub.since + ANSWER_S if sub.doing in ("subscribing", "reading") else sub.not_before)
        return due

    def _bring(self, channel: SimChannel, now: float) -> wire.ClientMessage | None:
        work = channel.next(self._device.ledger, self._device.random, START_MS + int(now * 1000))
        if work is None or channel.over:
            return None
        if work.sent_on == self._number:
            if now - work.sent_at > ANSWER_S:
                raise Gone("no receipt for a channel")
            return None
        if work.not_before > now:
            return None
        work.sent_on, work.sent_at = self._number, now
        self._book.sent.add((self._device.id, work.own))
        return wire.Posts((work.data,)) if work.number else wire.Terms(work.data)

    def _ask(self, place: Place, now: float) -> wire.ClientMessage | None:
        key = place.channel.id
        sub = self._subs.get(key) or self._subs.setdefault(key, _Sub(place))
        if sub.doing in ("subscribing", "reading"):
            if now - sub.since > ANSWER_S:
                raise Gone("no answer about a channel")
            return None
        if not place.reads:
            if sub.doing == "nothing":
                return None
            sub.doing, sub.not_before = "nothing", 0.0
            return wire.Unsubscribe(key)
        if sub.not_before > now and (sub.doing == "subscribed" or sub.era == place.era):
            return None
        if sub.doing == "nothing":
            return self._subscribe(sub, now)
        if place.have < sub.newest or not place.live:
            sub.doing, sub.since, sub.asked = "reading", now, place.have
            sub.pages += 1
            return wire.Read(key, place.have)
        sub.not_before = NEVER
        return None

    def _subscribe(self, sub: _Sub, now: float) -> wire.ClientMessage:
        place, channel = sub.place, sub.place.channel
        self._requests += 1
        sub.doing, sub.since, sub.request, sub.era = "subscribing", now, self._requests, place.era
        sub.newest, sub.last_live, sub.live = 0, 0, sub.live or place.live
        sub.sure = channel.newest is not None and channel.newest.era == place.era
        ticket = make_ticket(place.secret, channel.id, self._nonce, self._device.id)
        if self._cell == channel.cell:
            return wire.Subscribe(self._requests, channel.id, ticket, place.live)
        return wire.SubscribeFar(self._requests, channel.id, ticket, place.live, channel.cell)

    # --- what comes ----------------------------------------------------------------------------------
    def take(self, message: wire.Channel | wire.Page | wire.Posted) -> None:
        """Raises Violation."""
        if isinstance(message, wire.Posted):
            self._posted(message.post)
        else:
            sub = self._subs.get(message.channel)
            if sub is None:
                raise Violation(f"{self._device.name} was told of a channel that it never asked for")
            self._page(sub, message) if isinstance(message, wire.Page) else self._news(sub, message)
        self._device.wake.unpark_all()

    def _news(self, sub: _Sub, news: wire.Channel) -> None:
        code = Code(news.code)
        if news.request:
            if news.request != sub.request or sub.doing != "subscribing":
                raise Violation(f"{self._device.name} was answered what it did not ask")
            self._trace("subscription", self._device.name, code.name.lower(), sub.era)
            sub.doing = "subscribed"
        elif sub.doing in ("nothing", "subscribing"):
            return  # it was under way when we wanted no more
        if code is Code.STORED:
            self._permitted(sub)
            sub.newest = max(sub.newest, news.last)
            sub.not_before = 0.0
            return
        if not news.request:
            self._trace("subscription ended", self._device.name, code.name.lower())
            sub.sure = True  # it was good before
        self._refused(sub, code)

    def _permitted(self, sub: _Sub) -> None:
        place, channel = sub.place, sub.place.channel
        if sub.era == STRANGER:
            raise Violation(f"{self._device.name} may read a channel that nobody gave it the card of")
        if not self._book.rules.open(channel.region, region_of(self._cell)):
            raise Violation(f"{place.device.name} may read a channel of {channel.cell} in {self._cell}")

    def _refused(self, sub: _Sub, code: Code) -> None:
        """The relay gives nothing. Is there a reason?"""
        channel = sub.place.channel
        sub.doing = "nothing"
        wait = DENIED_S if code in (Code.NOT_SUBSCRIBER, Code.NOT_PERMITTED) else AGAIN_S
        sub.not_before = trio.current_time() + wait * self._device.random.uniform(0.5, 1.0)
        honest = self._book.honest(channel, self._device.person)
        name = f"{self._device.name} (a reader of channel {channel.id[:4].hex()} of {channel.cell}, in {self._cell})"
        match code:
            case Code.NOT_SUBSCRIBER:
                good = sub.sure and sub.era == channel.era and not channel.left
            case Code.UNKNOWN_CHANNEL:
                good = sub.sure and not channel.left
            case Code.NOT_PERMITTED:
                good = self._book.rules.open(channel.region, region_of(self._cell))
            case Code.OVERLOADED | Code.UNREACHABLE:
                good = False
            case _:
                good = True
        if good and honest:
            raise Violation(f"{name} was told {code.name}, and there is no reason")

    def _page(self, sub: _Sub, page: wire.Page) -> None:
        if not sub.pages:
            raise Violation(f"{self._device.name} was given a page that it did not ask for")
        sub.pages -= 1
        if sub.doing != "reading":
            return  # the subscription ended while the page was under way
        sub.doing = "subscribed"
        place, code, again = sub.place, Code(page.code), trio.current_time() + AGAIN_S
        if code is not Code.STORED:
            sub.doing = "subscribed" if code is Code.OVERLOADED else "nothing"  # the answer to the next ticket tells
            sub.not_before = again
            return
        if page.after < sub.asked:
            raise Violation(f"{self._device.name} asked for posts past {sub.asked}, and was given earlier ones")
        self._skip(place, page.after)
        before = page.after
        for post in page.posts:
            number = self._checked(sub, post)
            if not before < number <= page.last:
                raise Violation(f"{self._device.name}: post {number} follows {before} in a page up to {page.last}")
            before = number
            self._read(place, number)
        if not page.posts:
            self._skip(place, page.last)
        sub.newest = max(sub.newest, page.last)
        sub.not_before = 0.0 if page.posts else again

    def _posted(self, post: bytes) -> None:
        """Live."""
        header = read_header(post)
        sub = self._subs.get(header.channel)
        if sub is None or not sub.live:
            raise Violation(f"{self._device.name} was sent a post that it never subscribed to")
        number = self._checked(sub, post)
        if number <= sub.last_live:
            raise Violation(f"{self._device.name} was sent post {number} after {sub.last_live}")
        sub.last_live = number
        self._trace.counts["posted"] += 1
        if number == sub.place.have + 1:
            self._read(sub.place, number)
        else:
            sub.newest = max(sub.newest, number)
        if sub.doing == "subscribed":
            sub.not_before = 0.0

    def _checked(self, sub: _Sub, post: bytes) -> int:
        """The number of a post, which is what the owner posted, and for who was given the secret."""
        channel = sub.place.channel
        try:
            header = read_header(post)
        except ProtocolError:
            raise Violation(f"{self._device.name} was given a post that cannot be read") from None
        true = channel.posts[header.number - 1] if header.number <= len(channel.posts) else None
        if header.channel != channel.id or true is None or true.data != post:
            raise Violation(f"{self._device.name} was given a post that the owner of the channel did not post")
        if true.era > sub.era:
            what = f"post {true.number}, sealed with secret {true.era}"
            raise Violation(f"{self._device.name} was given {what}, and has shown {sub.era}")
        return true.number

    def _read(self, place: Place, number: int) -> None:
        """A post reaches the app, if it is news."""
        if number > place.have:
            self._skip(place, number - 1)
            place.have = number
            self._trace("post read", self._device.name, number)
            self._trace.counts["post read abroad"] += self._cell != place.channel.cell

    def _skip(self, place: Place, upto: int) -> None:
        """There are no more posts up to this number: all of them have left the window."""
        for number in range(place.have + 1, upto + 1):
            if not self._book.gone(place.channel, number):
                what = f"no post {number} of channel {place.channel.id[:4].hex()}"
                raise Violation(f"{self._device.name} was shown {what}, which is there")
            self._trace.counts["post missed"] += 1
        place.have = max(place.have, upto)

    # --- receipts ------------------------------------------------------------------------------------
    def answered(self, item: wire.ReceiptItem) -> bool:
        """Is it about channels? Raises Violation."""
        if item.id in self._intrusions:
            self._trace("intrusion", self._device.name, Code(item.code).name.lower())
            if Code(item.code).taken:
                raise Violation(f"{self._device.name} has posted to a channel that it does not own")
            return True
        for channel in self._device.channels:
            if (work := channel.all.get(item.id)) is not None:
                if work is channel.work:
                    self._outcome(channel, work, Code(item.code))
                return True
        return False

    def _outcome(self, channel: SimChannel, work: Work, code: Code) -> None:
        what = f"post {work.number}" if work.number else "terms"
        name, kind = channel.owned_by.name, "post of a channel" if work.number else "terms of a channel"
        self._trace(kind, code.name.lower(), name, work.number, work.version)
        if code is Code.STORED:
            self._book.acknowledged(channel, work)
            channel.took()
        elif not code.final:
            work.sent_on = 0
            work.not_before = trio.current_time() + self._device.random.uniform(0.3, 1.0)
        elif code is Code.LIFETIME and work.terms is not None:
            if self._book.rules.keeps(channel.region, work.terms.keep_ms):
                raise Violation(f"{name}: {what} of a channel refused, LIFETIME, and no policy is against it")
            channel.over = True
        elif channel.left or not self._book.honest(channel):
            channel.over = True
        else:
            raise Violation(f"{name}: {what} of a channel refused, {code.name}, and there is no reason")
        self._device.wake.unpark_all()
