"""A region that lies. Its nodes are real, and what they say to nodes of other regions is changed on its way into the
link, where otherwise TLS would begin: answers to what they are asked, and what they ask. It has its registrar's key,
those of users who collude with it (whoever ever was at home there), and whatever signed records there are in the world.

What it must not be able to do: harm what people of other regions say among themselves, or take a node of theirs down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

import trio
from msgspec import structs

from cluster.core import linkwire
from cluster.core.framereader import FrameReader
from cluster.core.linkwire import HandItem, HandOver, HandOverAnswer, LookUp, Peer, Records, Request
from relay.core import records
from relay.core.codec import encode
from relay.core.envelope import To, envelope_id, read_header
from relay.core.records import HandedAnswer
from relay.core.trust import make_part, read_home, sign_home
from relay.core.wire import Code, ReceiptItem
from relay.limits import MAX_LINK_FRAME
from tests.simulation.keys import key, public
from tests.simulation.ledger import Ledger
from tests.simulation.people import Person
from tests.simulation.world import World

OWN: Final = 2**40  # request ids from here on are the liar's own: its node never hears of them
KEPT: Final = 64  # of what went over its links, to be said again
NEVER: Final = Code.BAD_ENVELOPE  # a refusal that no honest cell gives in a simulated world
Answer = Any  # a link message, or bytes that are none


class Liar:
    """What `region` lies. `share`: of the messages that it could lie about."""

    def __init__(self, world: World, ledger: Ledger, region: str, share: float) -> None:
        self.region, self.cell, self.share = region, f"{region}/1", share
        self.people: Sequence[Person] = ()
        self.world, self.ledger = world, ledger
        self.random: Random = world.random("liar")
        self.numbers = OWN
        self._answers = [name for name in dir(self) if name.startswith("record_")]
        self._took = [name for name in dir(self) if name.startswith("took_")]
        self._hands = [name for name in dir(self) if name.startswith("hands_")]
        self._passed = [name for name in dir(self) if name.startswith("passed_")]
        self._sent: deque[tuple[str, HandOver]] = deque(maxlen=KEPT)  # what its nodes handed over, and to which cell
        self._came: deque[bytes] = deque(maxlen=KEPT)  # envelopes that were handed over to it

    def _lies(self) -> bool:
        return self.random.random() < self.share

    def _told(self, name: str, other: Peer) -> None:
        kind = name.replace("_", " ")
        self.world.counts[f"lie: {kind}"] += 1
        self.world.trace("lie", kind, other.cell)

    def _try(self, names: Sequence[str], other: Peer, *given: Any) -> Any:
        """One of these lies, where there is something to it; None else."""
        name = self.random.choice(names)
        lie = getattr(self, name)(other, *given)
        if lie is not None:
            self._told(name, other)
        return lie

    # --- at the link -------------------------------------------------------------------------------
    def answer(self, other: Peer, request: Request, true: Answer) -> Answer:
        """What it says instead of a true answer."""
        lie = None
        if isinstance(request, LookUp) and isinstance(true, Records) and self._lies():
            lie = self._try(self._answers, other, request, true)
        elif isinstance(request, HandOver) and isinstance(true, HandOverAnswer) and self._lies():
            lie = self._try(self._took, other, request, true)
        elif isinstance(request, linkwire.PassOn) and isinstance(true, linkwire.PassedOn) and self._lies():
            lie = self._try(self._passed, other, request, true)
        return true if lie is None else lie

    def swallow(self, other: Peer, request: Request) -> Answer | None:
        """An answer that it gives without asking its node."""
        if not isinstance(request, HandOver):
            return None
        self._came.extend(item.item for item in request.items if item.what == records.HANDIN_ENVELOPE)
        if self.random.random() < self.share / 10:
            self._told("says that it took what it did not", other)
            upto = request.first + len(request.items) - 1
            outcomes = [HandedAnswer(number, Code.STORED, 0) for number in range(request.first, upto + 1)]
            return HandOverAnswer(self._log, upto, tuple(outcomes))
        return None

    def ask(self, other: Peer, request: Request) -> tuple[Request, Sequence[Answer]]:
        """What it asks instead, and what besides."""
        if not isinstance(request, HandOver):
            return request, ()
        self._sent.append((other.cell, request))
        if not self._lies():
            return request, ()
        lie = self._try(self._hands, other, request)
        return request, () if lie is None else (lie,)

    _log = bytes(16)  # under which its cell answers

    # --- home records ------------------------------------------------------------------------------
    def _person(self, user: bytes) -> Person | None:
        return next((one for one in self.people if one.id == user), None)

    def record_rolled_back(self, other: Peer, request: LookUp, true: Records) -> Records | None:
        person = self._person(request.user)
        if person is None or request.after or person.version < 2:
            return None
        return Records(Code.STORED, tuple(person.chain[: self.random.randrange(1, person.version)]))

    def record_held_back(self, other: Peer, request: LookUp, true: Records) -> Records | None:
        return Records(true.code, true.chain[:-1]) if len(true.chain) > (request.after == 0) else None

    def record_forked(self, other: Peer, request: LookUp, true: Records) -> Records | None:
        """Another record of the newest number, signed by its user and its registrar: whom it tells which is chance."""
        person = self._person(request.user)
        fork = person and self._fork(person)
        return Records(Code.STORED, tuple(fork[request.after :])) if fork else None

    def record_of_somebody_else(self, other: Peer, request: LookUp, true: Records) -> Records:
        return Records(Code.STORED, tuple(self.random.choice([p for p in self.people if p.id != request.user]).chain))

    def record_denied(self, other: Peer, request: LookUp, true: Records) -> Records | None:
        return Records(Code.UNKNOWN_USER, ()) if true.code == Code.STORED else None

    def record_forged(self, other: Peer, request: LookUp, true: Records) -> Records | None:
        person = self._person(request.user)
        return Records(Code.STORED, tuple(self._stolen(person, person.region)[request.after :])) if person else None

    def record_that_is_none(self, other: Peer, request: LookUp, true: Records) -> Answer:
        return self.random.choice([
            linkwire.Done(), HandOverAnswer(bytes(16), 1, ()), Records(Code.STORED, (self._noise(),)),
            Records(self.random.randrange(2**63), (b"",)), linkwire.LinkFault(self.random.randrange(40), "", 2**62),
        ])  # fmt: skip

    def _fork(self, person: Person) -> list[bytes] | None:
        """The chain with another newest record. Its own registrar signs it, and nobody else's: the user is at home
        there, or stays there instead of moving."""
        records_, payload = [read_home(one) for one in person.chain], read_home(person.chain[-1]).payload
        if payload.version == 1:
            return None
        before = records_[-2].payload
        if payload.region != self.region and before.region == self.region:
            payload = structs.replace(before, user=payload.user, version=payload.version, prev=payload.prev)
        elif payload.region != self.region or before.region != self.region:
            return None
        forked = structs.replace(payload, expires=payload.expires - 1)
        return [*person.chain[:-1], sign_home(forked, key(person.name), key(f"{self.region}/registrar"))]

    def _stolen(self, person: Person, home: str) -> list[bytes]:
        """The chain with a record that its user never signed, by which the user is at home with `home` or with it."""
        payload, region = read_home(person.chain[-1]).payload, self.region
        moves = payload.region != region
        forged = structs.replace(
            payload, user=person.id, version=payload.version + 1, prev=read_home(person.chain[-1]).digest,
            region=region, cell=self.cell, move_epoch=payload.move_epoch + moves,
        )  # fmt: skip
        own = key(f"{region}/registrar")
        user = self.random.choice([own, key(person.name)]) if moves else own  # one who colluded lacks the release
        return [*person.chain, sign_home(forged, user, own, own if moves else None)]

    # --- answers to hand-overs -----------------------------------------------------------------------
    def took_more(self, other: Peer, request: HandOver, true: HandOverAnswer) -> HandOverAnswer:
        return structs.replace(true, vector=true.vector + self.random.choice([1, 1000, 2**62]))

    def took_less(self, other: Peer, request: HandOver, true: HandOverAnswer) -> HandOverAnswer | None:
        return structs.replace(true, vector=self.random.randrange(request.first - 1)) if request.first > 1 else None

    def took_it_into_another_log(self, other: Peer, request: HandOver, true: HandOverAnswer) -> HandOverAnswer:
        return structs.replace(true, log=self.random.randbytes(16))

    def took_it_with_odd_outcomes(self, other: Peer, request: HandOver, true: HandOverAnswer) -> HandOverAnswer:
        upto = request.first + len(request.items) + 2
        codes = [Code.ACCEPTED, Code.STALE, Code.EXPIRED, Code.MAILBOX_FULL, 99, 2**62]
        odd = [
            HandedAnswer(number, self.random.choice(codes), self.random.choice([0, 2**62]))
            for number in range(max(0, request.first - 2), upto)
        ]
        return structs.replace(true, vector=max(true.vector, request.first), outcomes=tuple(odd + odd[:2]))

    def took_nothing(self, other: Peer, request: HandOver, true: HandOverAnswer) -> Answer:
        return self.random.choice([linkwire.Done(), linkwire.LinkFault(self.random.randrange(40), "no", 0)])

    # --- what it hands over ----------------------------------------------------------------------------
    def hands_over_with_skipped_numbers(self, other: Peer, request: HandOver) -> HandOver:
        return structs.replace(request, first=request.first + self.random.choice([1, 3, 2**40]))

    def hands_over_again(self, other: Peer, request: HandOver) -> HandOver:
        return self.random.choice([one for cell, one in self._sent if cell == other.cell])

    def hands_over_from_another_log(self, other: Peer, request: HandOver) -> HandOver:
        old = self.random.choice([one for cell, one in self._sent if cell == other.cell])
        return structs.replace(old, origin_log=self.random.randbytes(16), first=1, confirmed=0)

    def hands_over_and_confirms_too_much(self, other: Peer, request: HandOver) -> HandOver:
        return structs.replace(request, confirmed=2**62)

    def hands_over_what_only_others_may_say(self, other: Peer, request: HandOver) -> HandOver:
        return self._hand(request, HandItem(self.random.choice([3, 4]), b"", b""))

    def hands_over_noise(self, other: Peer, request: HandOver) -> HandOver:
        return self._hand(request, HandItem(self.random.randrange(9), self._noise(), self._noise()))

    def hands_over_mail_of_another_region(self, other: Peer, request: HandOver) -> HandOver | None:
        """Somebody else's mail, to whom it is none of their business."""
        here = {one.id for one in self.people if other.region in one.homes}
        mail = [one for one in self._envelopes() if read_header(one).to not in here]
        mail = [one for one in mail if read_header(one).kind is To.MAILBOX]
        return self._hand(request, HandItem(1, self.random.choice(mail), b"")) if mail else None

    def hands_over_a_stolen_user(self, other: Peer, request: HandOver) -> HandOver | None:
        """A record by which somebody who is at home there has moved to the liar's region."""
        there = [one for one in self.people if one.region == other.region]
        if not there:
            return None
        person = self.random.choice(there)
        chain = encode(records.Chain(tuple(self._stolen(person, self.region))))
        return self._hand(request, HandItem(records.HANDIN_MOVE, chain, b""))

    def hands_over_a_forked_user(self, other: Peer, request: HandOver) -> HandOver | None:
        """Another record than the one by which somebody has come there."""
        forks = [fork for one in self.people if other.region in one.homes and (fork := self._fork(one))]
        if not forks:
            return None
        chain = encode(records.Chain(tuple(self.random.choice(forks))))
        return self._hand(request, HandItem(records.HANDIN_MOVE, chain, b""))

    def hands_over_mail_as_sent_on(self, other: Peer, request: HandOver) -> HandOver | None:
        """What it knows, once more, as sent on to somebody who never was at home with it: past age, bound and repeats
        (ADR 21)."""
        people = [one for one in self.people if one.region == other.region and self.region not in one.homes]
        mail = self._envelopes()
        if not people or not mail:
            return None
        sealed = self.random.choice(mail)
        header = read_header(sealed)
        mine = [one for one in people if one.id == header.to or header.kind is To.ROSTER]
        person = self.random.choice(mine or people)
        chain = tuple(person.chain) if self.random.random() < 0.5 else ()
        part = encode(records.Forward(person.id, person.version, chain))
        return self._hand(request, HandItem(records.HANDIN_FORWARD, sealed, part))

    def hands_over_a_forged_notice(self, other: Peer, request: HandOver) -> HandOver | None:
        """To somebody who never was at home with it: what a cell has done with a letter between others."""
        letters = [
            one for one in self.ledger.letters[-KEPT:] if one.envelopes and not one.settled
            and (author := self._named(one.author)).region == other.region and self.region not in author.homes
        ]  # fmt: skip
        if not letters:
            return None
        letter = self.random.choice(letters)
        device = public(self._named(letter.author).keys.get(letter.sender, letter.sender))
        said = records.ForDevice(device, letter.envelopes[-1], NEVER, 0, self.random.choice([other.cell, self.cell]))
        return self._hand(request, HandItem(records.HANDIN_NOTICE, encode(said), b""))

    def hands_over_what_became_of_nothing(self, other: Peer, request: HandOver) -> HandOver:
        number = self.random.randrange(1, 200)
        said = records.Told(self.random.randbytes(16), number, Code.MAILBOX_FULL, 2**62, other.cell)
        return self._hand(request, HandItem(records.HANDIN_TOLD, encode(said), b""))

    def hands_over_members_of_its_own_making(self, other: Peer, request: HandOver) -> HandOver | None:
        heads = [item for _, one in self._sent for item in one.items if item.what == records.HANDIN_ROSTER]
        if not heads:
            return None
        return self._hand(request, HandItem(2, self.random.choice(heads).item, make_part(1, [])))

    def hands_over_nothing_that_can_be_read(self, other: Peer, request: HandOver) -> bytes:
        """Bytes instead of a frame: that link is over."""
        size = self.random.choice([3, 2**31])
        return size.to_bytes(4, "big") + self._noise()

    def _named(self, name: str) -> Person:
        return next(one for one in self.people if one.name == name)

    def _hand(self, request: HandOver, item: HandItem) -> HandOver:
        """Under the number that is next, or under one of a log that there is not."""
        if self.random.random() < 0.5:
            return structs.replace(request, items=(item,))
        return HandOver(self.random.randbytes(16), 0, 1, (item,))

    def _envelopes(self) -> list[bytes]:
        sent = [item.item for _, one in self._sent for item in one.items if item.what == records.HANDIN_ENVELOPE]
        return [*sent, *self._came]

    def _noise(self) -> bytes:
        return self.random.randbytes(self.random.choice([0, 1, 40]))

    # --- what is passed on to it -----------------------------------------------------------------------
    def passed_with_odd_outcomes(self, other: Peer, request: linkwire.PassOn, true: linkwire.PassedOn) -> Answer:
        own = [envelope_id(one) for one in request.envelopes]
        code, cell = self.random.choice([0, 1, 99, Code.STORED]), self.random.choice([self.cell, other.cell])
        return linkwire.PassedOn(tuple(ReceiptItem(one, code, 2**62, 2**62, cell) for one in own))


class LyingStream(trio.abc.Stream):
    """What a node of the liar says to a node of another region goes through here."""

    def __init__(self, transport: trio.abc.Stream, liar: Liar, other: Peer) -> None:
        self._transport, self._liar, self._other = transport, liar, other
        self._out, self._in = FrameReader(), FrameReader()
        self._asked: dict[int, Request] = {}  # that the other one asked, and was not answered
        self._answers: list[bytes] = []  # that it gives without asking its node
        self._sending = trio.Lock()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._out.feed(bytes(data))
        frames = b"".join(_each(self._out, self._says))
        if frames:
            async with self._sending:
                await self._transport.send_all(frames)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while True:
            data = await self._transport.receive_some()
            if not data:
                return b""
            self._in.feed(data)
            heard = b"".join(_each(self._in, self._hears))
            if self._answers:
                answers, self._answers = b"".join(self._answers), []
                async with self._sending:
                    await self._transport.send_all(answers)
            if heard:
                return heard

    async def wait_send_all_might_not_block(self) -> None:
        await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._transport.aclose()

    def _says(self, body: bytes) -> bytes:
        frame = linkwire.decode_frame(body)
        if frame.id in self._asked:
            answer = self._liar.answer(self._other, self._asked.pop(frame.id), frame.message)
            if isinstance(frame.message, HandOverAnswer):
                self._liar._log = frame.message.log
            return _frame(frame.id, answer)
        main, besides = self._liar.ask(self._other, frame.message)  # type: ignore[arg-type]
        frames = []
        for one in besides:
            self._liar.numbers += 1
            frames.append(one if isinstance(one, bytes) else _frame(self._liar.numbers, one))
        return b"".join([*frames, _frame(frame.id, main)])

    def _hears(self, body: bytes) -> bytes:
        frame = linkwire.decode_frame(body)
        if frame.id > OWN:
            return b""
        if isinstance(frame.message, (LookUp, HandOver, linkwire.PassOn)):
            if (lie := self._liar.swallow(self._other, frame.message)) is not None:
                self._answers.append(_frame(frame.id, lie))
                return b""
            self._asked[frame.id] = frame.message
        return len(body).to_bytes(4, "big") + body


def _frame(request: int, message: Any) -> bytes:
    return linkwire.encode_frame(request, linkwire.encode_message(message))


def _each(reader: FrameReader, change: Callable[[bytes], bytes]) -> list[bytes]:
    changed = []
    while (body := reader.take(MAX_LINK_FRAME)) is not None:
        changed.append(change(body))
    return changed
