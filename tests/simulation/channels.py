"""Broadcast channels of a world (ADR 36): what owners said, what every cell took of it, and so what every window holds.

The windows are kept here a second time, from the blocks alone and by the words of the ADR: after each block the fold
must have the same, and a page that a node gives must be what the window held while the node made it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from relay import channels as served
from relay.core import records, wire
from relay.core.block import Block
from relay.core.codec import digest, encode, pack
from relay.core.mailroom import channels as folded
from relay.core.mailroom.state import State
from relay.core.posts import PostHeader, post_id, read_header
from relay.core.trust.channels import ChannelTerms
from relay.core.trust.signing import sign
from relay.core.wire import Code
from relay.delivery import Delivery
from tests.channels import Channel
from tests.frames import payload
from tests.simulation.keys import key
from tests.simulation.ledger import CANARY, Ledger, Letter
from tests.simulation.nodes import SimNode
from tests.simulation.people import REGIONS, Person
from tests.simulation.rules import Rules
from tests.simulation.world import Violation

_CHANNEL, _POST = 14, 15  # tags of the records
_ROW: Final = 32  # bytes that the fold keeps of a post


@dataclass(eq=False, slots=True)
class Work:
    """Something that an owner wants its cell to take: a post, or, where there is no `number`, terms."""

    own: bytes  # the digest by which a receipt names it
    data: bytes
    version: int
    era: int  # how many secrets came before the one that holds from here on, or that the post is sealed with
    number: int = 0
    terms: ChannelTerms | None = None
    taken: bool = False  # says a receipt
    sent_on: int = 0
    sent_at: float = 0.0
    not_before: float = 0.0


class SimChannel(Channel):
    """A channel as its owner knows it. One thing at a time is brought to the cell, in the order of `work`."""

    def __init__(self, number: int, owner: Any) -> None:
        self.owned_by, self.person, self._key = owner, owner.person, owner.key
        super().__init__(key(owner.key), self.person.cell, digest(b"channel %d" % number))
        self.region = self.person.region
        self._homes = len(self.person.homes)
        self.secrets = [self.secret]
        self.wants: deque[tuple[str, Any]] = deque()
        self.work: Work | None = None  # that is under way
        self.all: dict[bytes, Work] = {}  # that was ever under way
        self.posts: list[Work] = []  # by number, from 1
        self.newest: Work | None = None  # terms that a receipt says were taken
        self.closing = self.closed = False  # its owner will close it, and has
        self.over = False  # its cell has it no more, or never had

    @property
    def left(self) -> bool:
        """May it have ended, or never have begun?"""
        other_key = self.newest is None and self.owned_by.key != self._key  # before its cell knew whose it is
        return len(self.person.homes) > self._homes or self.owned_by.revoked_in > 0 or self.closed or other_key

    @property
    def era(self) -> int:
        """Of the newest secret there is, taken or not."""
        return len(self.secrets) - 1

    def next(self, ledger: Ledger, random: Random, now_ms: int) -> Work | None:
        """What is under way, or is now."""
        if self.work is None and self.wants and not self.over:
            kind, what = self.wants.popleft()
            self.work = self._new_post(ledger, random, what, now_ms) if kind == "post" else self._new_terms(what)
            self.all[self.work.own] = self.work
        return self.work

    def _new_terms(self, changed: dict[str, Any]) -> Work:
        if "secret" in changed:
            self.secret = changed["secret"]
            self.secrets.append(self.secret)
        self.closed = self.closed or changed.get("keep_ms") == 0
        terms = self.draft(**{name: value for name, value in changed.items() if name != "secret"})
        signed = self.sign(terms)
        return Work(digest(signed), signed, terms.version, self.era, terms=terms)

    def _new_post(self, ledger: Ledger, random: Random, size: int, now_ms: int) -> Work:
        """Its body is in the clear, so that it is recognised wherever it lies."""
        number = len(self.posts) + 1
        here = frozenset((self.region,))
        letter = Letter(
            number, self.owned_by.name, random.randbytes(CANARY), self.id, False, "", self.version, number, here,
            set(), frozenset(), 0, False, size, 0.0, may_rest=lambda: here, later=set(REGIONS),
        )  # fmt: skip
        ledger.mark(letter)
        head = encode(PostHeader(1, self.id, self.version, number, now_ms, 1))
        post = pack([head, letter.body, sign(self.owner, b"posthouse.post\x00", pack([head, letter.body]))])
        self.posts.append(Work(post_id(post), post, self.version, self.era, number))
        return self.posts[-1]

    def took(self) -> None:
        """Its cell has taken what was under way."""
        assert self.work is not None
        self.work.taken = True
        if self.work.terms is not None:
            self.terms, self.newest = self.work.terms, self.work
        self.work = None


class Window:
    """What a cell has to keep of a channel. `gone`: the block after which a post was there no more."""

    def __init__(self, channel: SimChannel) -> None:
        self.channel = channel
        self.terms: ChannelTerms
        self.version = self.last = self.bytes = 0
        self.kept: deque[tuple[int, int, int]] = deque()  # number, time, size
        self.taken: dict[int, int] = {}  # number → block
        self.gone: dict[int, int] = {}
        self.ended = False

    def trim(self, block: Block, *, all_: bool = False) -> None:
        while self.kept and (
            all_ or len(self.kept) > self.terms.keep_posts or self.bytes > self.terms.keep_bytes
            or self.kept[0][1] + self.terms.keep_ms <= block.time
        ):  # fmt: skip
            number, _, size = self.kept.popleft()
            self.bytes -= size
            self.gone[number] = block.index


class Book:
    """All channels of a world."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.trace = ledger, ledger.trace
        self.channels: dict[bytes, SimChannel] = {}
        self.rules = Rules({})
        self.places: dict[str, dict[bytes, Any]] = {}  # device → channel → tests.simulation.readers.Place
        self.sent: set[tuple[bytes, bytes]] = set()  # device, digest: from owners
        self._logs: dict[bytes, dict[bytes, Window]] = {}
        self._tips: dict[bytes, int] = {}

    def honest(self, channel: SimChannel, person: Person | None = None) -> bool:
        """Has the liar no part in it?"""
        exposed = self.ledger.exposed
        return not exposed(channel.person.name) and not (person is not None and exposed(person.name))

    def gone(self, channel: SimChannel, number: int) -> bool:
        """Has this post left its window, or the window its cell?"""
        windows = [one[channel.id] for one in self._logs.values() if channel.id in one]
        return any(number in one.gone or (one.ended and number > one.last) for one in windows)

    def acknowledged(self, channel: SimChannel, work: Work) -> None:
        """A receipt says that this was taken."""
        windows = [one[channel.id] for one in self._logs.values() if channel.id in one]
        if work.number and not any(work.number in one.taken for one in windows):
            raise Violation(f"post {work.number} of {channel.owned_by.name} is acknowledged, and in no window")
        if not work.number and not any(one.version >= work.version for one in windows) and not channel.left:
            raise Violation(f"terms {work.version} of {channel.owned_by.name} are acknowledged, and hold nowhere")

    def missing(self, devices: Iterable[Any]) -> list[str]:
        """Who has not read all that there is, of those who may and want to."""
        found = []
        for device in devices:
            for place in self.places.get(device.name, {}).values():
                channel = place.channel
                reads = place.reads and place.entitled and self.rules.open(channel.region, device.person.region)
                if reads and self.honest(channel, device.person):
                    newest = max((post.number for post in channel.posts if post.taken), default=0)
                    rest = [n for n in range(place.have + 1, newest + 1) if not self.gone(channel, n)]
                    if rest:
                        found.append(f"{device.name} (post {rest[0]} of a channel of {channel.cell})")
        return found

    def unanswered(self) -> list[str]:
        """Owners who wait for an answer, and can have one."""
        waits = [one for one in self.channels.values() if (one.work or one.wants) and not one.over]
        return [one.owned_by.name for one in waits if not one.owned_by.revoked_in and self.honest(one)]

    # --- the fold ------------------------------------------------------------------------------------
    def applied(self, node: SimNode, delivery: Delivery, block: Block) -> None:
        """A node has applied a block."""
        if not self.channels or block.index <= self._tips.get(block.log_id, 0):
            return
        self._tips[block.log_id] = block.index
        windows, state = self._logs.setdefault(block.log_id, {}), delivery.room.state
        for window in windows.values():
            window.trim(block)
        for data in block.records:
            if len(data) > 1 and data[0] >> 4 == 9 and data[1] in (_CHANNEL, _POST):
                self._record(windows, state, block, records.decode_record(data), len(data))
        for window in windows.values():
            self._compare(node, state, block, window)
        for unknown in state.channels.keys() - windows.keys():
            raise Violation(f"{node}: channel {unknown[:4].hex()} is in the state, and nobody's")

    def _record(self, windows: dict[bytes, Window], state: State, block: Block, record: Any, size: int) -> None:
        is_post = isinstance(record, records.Post)
        own = digest(record.post if is_post else record.terms)
        channel = next((one for one in self.channels.values() if own in one.all), None)
        if channel is None or (record.device, own) not in self.sent or channel.cell != state.cell:
            return
        work, window, known = channel.all[own], windows.get(channel.id), state.channels.get(channel.id)
        if state.devices.peek(record.device) is None and (  # it came too late, or just not
            known is None or (known.last < work.number if is_post else known.terms.version < work.version)
        ):
            return
        if is_post:
            if window is not None and not window.ended and work.number > window.last and work.version == window.version:
                window.kept.append((work.number, block.time, size))
                window.last, window.bytes = work.number, window.bytes + size
                window.taken[work.number] = block.index
                self.trace.counts["post taken"] += 1
                window.trim(block)
            return
        assert work.terms is not None
        if window is None and work.terms.keep_ms and work.version == 1:
            window = windows[channel.id] = Window(channel)
        if window is not None and not window.ended and work.version > window.version:
            window.terms, window.version = work.terms, work.version
            window.ended = work.terms.keep_ms == 0
            window.trim(block, all_=window.ended)

    def _compare(self, node: SimNode, state: State, block: Block, window: Window) -> None:
        """The fold's window with ours."""
        channel, known = window.channel, state.channels.get(window.channel.id)
        name = f"{node}: after block {block.index} channel {channel.id[:4].hex()}"
        if known is None:
            if not window.ended and not channel.left and self.honest(channel):
                raise Violation(f"{name} is gone, and its owner is here and has not closed it")
            window.ended = True
            window.trim(block, all_=True)
            return
        if window.ended:
            raise Violation(f"{name} has ended, and is still there")
        first = known.window.first()
        has = first.number if first else 0, len(known.window), known.bytes, known.last, known.terms.version
        ours = window.kept[0][0] if window.kept else 0, len(window.kept), window.bytes, window.last, window.version
        if has != ours:
            raise Violation(f"{name}: first, count, bytes, last post and version are {has}, and should be {ours}")

    # --- pages ---------------------------------------------------------------------------------------
    def gave(self, state: State, channel: bytes, after: int, began: int, page: wire.Page) -> None:
        """A node made a page, or found it, between the block `began` and the newest that it has applied."""
        window = self._logs.get(state.log_id, {}).get(channel)
        if page.code != Code.STORED or window is None:
            return
        self.trace.counts["page"] += 1
        numbers = [read_header(post).number for post in page.posts]
        name = f"a page of channel {channel[:4].hex()} past {after}, made after block {state.index},"
        for number in numbers:
            if window.gone.get(number, state.index + 1) <= began:
                raise Violation(f"{name} shows post {number}, which had left the window at {window.gone[number]}")
        whole = max(numbers, default=0)
        for number in range(after + 1, max(whole, window.last) + 1):
            there = window.taken.get(number, state.index + 1) <= began and number not in numbers
            if there and (number < whole or not whole) and window.gone.get(number, state.index + 1) > state.index:
                raise Violation(f"{name} leaves out post {number}, taken at {window.taken[number]}")

    # --- the end -------------------------------------------------------------------------------------
    def at_end(self, nodes: Iterable[SimNode]) -> None:
        """Run long enough after healing, of each cell with the node that has applied most. What is over has left the
        state, and nothing in the state tells of readers."""
        for node in nodes:
            assert node.delivery is not None
            room = node.delivery.room
            for id_, known in room.state.channels.items():
                channel = self.channels[id_]
                if not self.honest(channel):
                    continue
                if channel.newest is not None and channel.newest.terms is not None and not channel.newest.terms.keep_ms:
                    raise Violation(f"{node}: a channel that was closed is in the state")
                if known.owner not in room.state.users or room.state.heir(known.terms.terms.owner_key) is None:
                    raise Violation(f"{node}: the state has a channel whose owner has left, or lost the device")
            self._no_readers(node, room.state, b"".join(room.checkpoint()) if room.state.channels else b"")

    def _no_readers(self, node: SimNode, state: State, rows: bytes) -> None:
        for name, parts in folded.sections(state, 1 << 20):
            for part in parts:
                whole = len(part) == 5 if name == "channels" else len(part) == 2
                if not whole or (name == "posts" and len(part[1]) % _ROW):
                    raise Violation(f"{node}: the state keeps more of channels than terms and rows of posts")
        for name, places in self.places.items():
            for place in places.values():
                person = place.device.person
                only_reads = node.region not in person.homes and person.name not in self.ledger.owners.values()
                if only_reads and place.device.id in rows and self.honest(place.channel, person):
                    raise Violation(f"{node}: the state names {name}, who only reads there")


@contextmanager
def overseeing(book: Book) -> Iterator[None]:
    """The pages that real nodes make are held against the windows."""
    page, read = served.Channels.page, served.Channels.read

    async def seen_page(self: served.Channels, channel: bytes, after: int) -> bytes:
        began = self._state.index
        frame = await page(self, channel, after)
        found = wire.decode_server(payload(frame))
        assert isinstance(found, wire.Page)
        book.gave(self._state, channel, after, began, found)
        return frame

    async def seen_read(self: served.Channels, channel: bytes, after: int) -> wire.Page:
        began = self._state.index
        found = await read(self, channel, after)
        book.gave(self._state, channel, after, began, found)
        return found

    served.Channels.page, served.Channels.read = seen_page, seen_read  # type: ignore[method-assign]
    try:
        yield
    finally:
        served.Channels.page, served.Channels.read = page, read  # type: ignore[method-assign]
