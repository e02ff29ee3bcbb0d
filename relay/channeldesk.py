"""The office's desk for broadcast channels: tickets, pages, terms and posts (ADR 36)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from relay.barrier import Barrier
from relay.core import records, wire
from relay.core.codec import digest
from relay.core.farposts import Question, Reply, Shown, refusal
from relay.core.frames import server_frame
from relay.core.mailroom import channels
from relay.core.policy import Policies
from relay.core.posts import post_id
from relay.core.trust.channels import verify_terms, verify_ticket
from relay.core.wire import Code
from relay.delivery import Delivery
from relay.errors import Overloaded, ProtocolError, TrustError
from relay.farchannels import FarChannels
from relay.gateway.api import Identity, Line
from relay.intake import Intake

_ASKER = "channels"  # whoever asks for what is not known here causes one block a second, all together


class ChannelDesk:
    """Judges what a connection wants of channels; what is refused here costs no record. `offer` hands records to the
    intake, with the ids that a receipt would name; `receipt` sends outcomes; `far`: channels of other cells."""

    def __init__(
        self, identity: Identity, policies: Policies, delivery: Delivery, intake: Intake,
        offer: Callable[[Line, list[bytes], list[bytes]], None],
        receipt: Callable[[Line, Sequence[wire.ReceiptItem]], None],
        far: FarChannels,
    ) -> None:  # fmt: skip
        self.far = far
        self._identity = identity
        self._policies = policies
        self._state = delivery.room.state
        self._channels = delivery.channels
        self._barrier = Barrier(delivery.channels.journal, intake, delivery)
        self._offer = offer
        self._receipt = receipt

    # --- readers ---------------------------------------------------------------------------------
    def crosses(self, message: wire.ChannelMessage) -> bool:
        """See relay.gateway.api.ChannelOffice."""
        if isinstance(message, wire.SubscribeFar):
            return message.cell != self._identity.cell
        return isinstance(message, wire.Read) and self.far.has(message.channel)

    async def subscribe(self, line: Line, request: wire.Subscribe | wire.SubscribeFar, nonce: bytes) -> None:
        """See relay.gateway.api.ChannelOffice."""
        code = await self._subscribe(line, request, nonce)
        if code is Code.NOT_SUBSCRIBER:
            self._channels.unsubscribe(line, request.channel)
        news = self._channels.news(request.channel, code, request.request)
        await line.send(server_frame(wire.encode_message(news)))

    async def _subscribe(self, line: Line, request: wire.Subscribe | wire.SubscribeFar, nonce: bytes) -> Code:
        if isinstance(request, wire.SubscribeFar) and request.cell != self._identity.cell:
            return await self.far.subscribe(line, request, nonce)
        code = await self._judge(request.channel, Shown(line.device, nonce, request.ticket), _ASKER)
        if code is not Code.STORED:
            return code
        terms = self._state.channels[request.channel].terms
        return code if self._channels.subscribe(line, terms, live=request.live) else Code.OVERLOADED

    async def _judge(self, channel: bytes, shown: Shown, asker: str) -> Code:
        """Of a ticket for a channel of this cell, by the newest terms there are."""
        code = self._judge_here(channel, shown)
        if code is not Code.STORED:
            try:
                await self._barrier.reach(asker)  # there may be newer terms
            except Overloaded:
                return Code.OVERLOADED
            code = self._judge_here(channel, shown)
        return code

    def _judge_here(self, channel: bytes, shown: Shown) -> Code:
        known = self._state.channels.get(channel)
        if known is None:
            return Code.UNKNOWN_CHANNEL
        try:
            verify_ticket(known.terms.terms.reader_key, channel, shown.nonce, shown.device, shown.ticket)
        except TrustError:
            return Code.NOT_SUBSCRIBER
        return Code.STORED

    async def read_there(self, cell: str, question: Question) -> Reply:
        """What a node of another cell is given of a channel of ours, for a reader whose ticket it shows."""
        if self._policies.forbidden(self._identity.cell, cell):
            return refusal(Code.NOT_PERMITTED)
        code = await self._judge(question.channel, question.shown, cell)
        if code is not Code.STORED:
            return refusal(code)
        page = await self._channels.read(question.channel, question.after)
        known = self._channels.known(question.channel)
        if known is None or page.code != Code.STORED:
            return refusal(Code(page.code) if known else Code.UNKNOWN_CHANNEL)
        return Reply(Code.STORED, known.terms.signed, page.after, page.first, page.last, page.posts)

    def unsubscribe(self, line: Line, channel: bytes) -> None:
        """See relay.gateway.api.ChannelOffice."""
        self._channels.unsubscribe(line, channel)

    async def read(self, line: Line, request: wire.Read) -> None:
        """See relay.gateway.api.ChannelOffice."""
        may_read = partial(self._channels.may_read, line, request.channel)
        pages = self.far if self.far.has(request.channel) else self._channels
        frame = await pages.page(request.channel, request.after) if may_read() else b""
        if not may_read():  # or not any more
            page = wire.Page(request.channel, request.after, Code.NOT_SUBSCRIBER, 0, 0, ())
            frame = server_frame(wire.encode_message(page))
        await line.send(frame)

    # --- the owner -------------------------------------------------------------------------------
    async def publish(self, line: Line, terms: bytes) -> None:
        """See relay.gateway.api.ChannelOffice."""
        own = digest(terms)
        try:
            verified = verify_terms(terms)
            if verified.channel not in self._state.channels and verified.terms.owner_key != line.device:
                await self._barrier.reach(_ASKER)  # a node that is behind denies nobody (ADR 29)
        except (TrustError, ProtocolError):
            self._refuse(line, own, Code.BAD_RECORD)
            return
        except Overloaded:
            self._refuse(line, own, Code.OVERLOADED)
            return
        known = self._state.channels.get(verified.channel)
        if verified.terms.cell != self._identity.cell:
            self._refuse(line, own, Code.BAD_RECORD)
        elif known.owner != line.user if known else verified.terms.owner_key != line.device:
            self._refuse(line, own, Code.NOT_OWNER)
        elif verified.terms.keep_ms > (longest := self._policies.longest(self._identity.cell)):
            self._refuse(line, own, Code.LIFETIME, longest)
        else:
            self._offer(line, [records.encode_record(records.Channel(line.device, terms))], [own])

    async def post(self, line: Line, posts: Sequence[bytes]) -> None:
        """See relay.gateway.api.ChannelOffice. The fold judges once more: what is taken here may be old by then."""
        taken: list[bytes] = []
        ids: list[bytes] = []
        for post in posts:
            own = post_id(post)
            code, newest = channels.refusal(self._state, post, own, line.user)
            if code is Code.UNKNOWN_CHANNEL or (code is Code.BAD_ENVELOPE and newest):  # by terms that are not here
                try:
                    await self._barrier.reach(_ASKER)
                    code, newest = channels.refusal(self._state, post, own, line.user)
                except Overloaded:
                    code, newest = Code.OVERLOADED, 0
            if code is None or code is Code.STORED:  # the fold says where it is, or was
                taken.append(records.encode_record(records.Post(line.device, post)))
                ids.append(own)
            else:
                self._refuse(line, own, code, newest)
        if taken:
            self._offer(line, taken, ids)

    def _refuse(self, line: Line, own: bytes, code: Code, newest: int = 0) -> None:
        self._receipt(line, [wire.ReceiptItem(own, code, 0, newest, self._identity.cell)])
