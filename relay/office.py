"""The office: what the gateway asks for, done over directory, intake and delivery (relay.gateway.api.Office)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
import trio
from msgspec import structs

from relay.channeldesk import ChannelDesk
from relay.core import records, wire
from relay.core.codec import digest
from relay.core.envelope import Header, To, envelope_id, read_header
from relay.core.frames import server_frame
from relay.core.policy import Policies
from relay.core.route import route
from relay.core.trust import (
    HomeRecord, Root, check_current, check_stapled, read_home, same_home, verify_chain,
)  # fmt: skip
from relay.core.wire import Code, Fault
from relay.delivery import Delivery, send_receipt
from relay.errors import (
    AuthError, DeviceRevoked, MovedAway, NotPermitted, Overloaded, PeerError, ProtocolError, Refused, ResidencyError,
    RolledBack, TrustError,
)  # fmt: skip
from relay.farchannels import FarChannels, check_readable
from relay.gateway.api import Identity, Line, Started
from relay.intake import Intake
from relay.limits import PASS_S
from relay.observe.metrics import Metrics
from relay.ports import Abroad, Directory, Notary

_log = structlog.get_logger("relay.office")
_LOOKUPS_S = 8.0  # seconds that the recipients of one batch, or whoever else is asked for, may take to be found
_APPLY_S = 10.0  # seconds to wait for a record of ours to be applied: within the gateway's handshake deadline


class Office:
    """Admits devices, starts sessions, routes submits. Holds no state of its own."""

    def __init__(
        self, identity: Identity, root: Root, delivery: Delivery, intake: Intake, directory: Directory, abroad: Abroad,
        metrics: Metrics, notary: Notary,
    ) -> None:
        self.identity = identity
        self.root = root
        self._policies = Policies(root)
        self._delivery = delivery
        self._intake = intake
        self._directory = directory
        self._abroad = abroad
        self._metrics = metrics
        self._notary = notary
        self.halted: Callable[[str], None] = lambda cell: None  # raises Refused where nothing goes to that cell now
        intake.on_refused = delivery.look_again
        far = FarChannels(delivery.channels, abroad, self._check_readable)
        self.channels = ChannelDesk(identity, self._policies, delivery, intake, self._offer, self._receipt, far)

    def follow(self, root: Root) -> None:
        """Go by this root document from now on. Who is served is served on: devices were admitted by the old one."""
        self.root = root
        self._policies.follow(root)

    def _check_readable(self, cell: str) -> None:
        check_readable(self.root, self._policies, self.identity.cell, cell)
        self.halted(cell)

    # --- sessions --------------------------------------------------------------------------------
    async def admit(self, user: bytes, device: bytes, records_: Sequence[bytes]) -> None:
        """See relay.gateway.api.Office."""
        state = self._delivery.room.state
        record, chain = self._known(user)
        try:
            if records_:
                newest = verify_chain(records_, self.root, self._delivery.time_ms(), user, record)
                await self._enrol(newest, chain, records_)
                await self._restaple(record, records_)
                record = newest
            self._check_moved(user, device)
            if record is None:
                raise Refused(Fault.NOT_HOME, "this user is not at home here", "Send the home records with AUTH")
            check_current(record, self._delivery.time_ms())
        except TrustError as error:
            raise AuthError(f"the home records do not hold: {error.text}", error.remedy) from None
        enrolled = state.devices.peek(device)
        if enrolled is None or enrolled.user != user:
            if (stem := record.stem(device)) is not None:
                raise DeviceRevoked(rotated=any(one.stem == stem for one in record.devices))
            raise AuthError("this device is not enrolled", "Enrol it with a newer home record")

    def _known(self, user: bytes) -> tuple[HomeRecord | None, list[bytes]]:
        """The newest record of a user who is at home here, or was, and all of them."""
        state = self._delivery.room.state
        known = state.users.peek(user) or state.moved.get(user)
        return (known.record, known.chain) if known else (None, [])

    def _check_moved(self, user: bytes, device: bytes) -> None:
        """Raises MovedAway, with the records, where the device is one of a user who has left."""
        moved = self._delivery.room.state.moved.get(user)
        if moved is not None and device in [one.id for one in moved.record.devices]:
            raise MovedAway(Fault.NOT_HOME, f"this user is at home in {moved.record.cell}", tuple(moved.chain))

    def _check_enrolled(self, line: Line) -> None:
        """Raises MovedAway or DeviceRevoked where the device of a line is none of this cell any more."""
        if line.device not in self._delivery.room.state.devices:
            self._check_moved(line.user, line.device)
            raise DeviceRevoked

    async def _enrol(self, newest: HomeRecord, known: list[bytes], chain: Sequence[bytes]) -> None:
        """Append the versions that this cell does not have yet, and wait until they are applied: one by one, or, where
        the user comes from another cell or goes to one, all of them together."""
        whole = [*known, *(signed for signed in chain if read_home(signed).version > len(known))]
        own, cells = self.identity.cell, [read_home(signed).cell for signed in whole[max(0, len(known) - 1) :]]
        if newest.cell != own and not known and own not in cells:
            raise Refused(Fault.NOT_HOME, f"this user is at home in {newest.cell}", "Connect to a node of that cell")
        if newest.version <= len(known):
            return
        refused: list[ResidencyError] = []
        if set(cells) == {own}:
            fresh = [records.encode_record(records.Home(signed)) for signed in whole[len(known) :]]
        else:
            fresh = [records.encode_record(records.Move(tuple(whole)))]
        self._intake.offer(fresh, refused.append)
        await self._applied(lambda: bool(refused) or len(self._known(newest.user)[1]) >= newest.version)
        if refused:
            raise AuthError(f"the home records may not rest here: {refused[0].text}", "Ask the registrar")

    async def _restaple(self, known: HomeRecord | None, given: Sequence[bytes]) -> None:
        """A device brings the newest record with a staple that holds, where ours has none, or one that holds no more
        (the keys of the log or of witnesses were replaced): whoever looks the user up needs that."""
        if known is None or given[-1] == known.signed or not same_home(given[-1], known.signed):
            return
        newer = structs.replace(known, signed=given[-1])
        if known.cell == self.identity.cell and not self._holds(known) and self._holds(newer):
            self._intake.offer([records.encode_record(records.Home(newer.signed))])
            await self._applied(lambda: self._known(known.user)[0] != known)

    def _holds(self, record: HomeRecord) -> bool:
        try:
            check_stapled(record, self.root)
        except TrustError:
            return False
        return True

    async def _applied(self, true: Callable[[], bool]) -> None:
        with trio.move_on_after(_APPLY_S) as scope:
            await self._delivery.wait_for(true)
        if scope.cancelled_caught:
            raise Overloaded("the journal did not take a record in time")

    async def start(self, line: Line, hello: wire.Hello, nonce: bytes) -> Started:
        """See relay.gateway.api.Office."""
        room, log_id = self._delivery.room, self.identity.log_id
        device = room.state.devices.peek(line.device)
        if device is None:
            self._check_moved(line.user, line.device)
            raise DeviceRevoked
        known, _ = self._known(line.user)
        version = known.version if known else 0
        longest = self._policies.longest(self.identity.cell)
        if not hello.receive:
            self._delivery.attach(line)
            return Started(log_id, device.cursor, 0, version, self._delivery.time_ms(), longest)
        cursor = hello.cursor if hello.log_id == log_id else 0
        session = records.Session(line.device, self.identity.node, nonce, cursor)
        self._intake.offer([records.encode_record(session)])
        with trio.move_on_after(_APPLY_S) as scope:
            started = await self._delivery.session_started(nonce, lambda: self._check_enrolled(line))
        if scope.cancelled_caught:
            raise Overloaded("the journal did not take the session's start in time")
        if cursor > started.position:  # asked only now: this node may have been behind the others
            _log.error("rolled_back", device=line.device[:4].hex(), log=log_id.hex())
            raise RolledBack(
                "the device has acknowledged more than this log holds: acknowledged history is missing here",
                "Do not go on; tell the operator that an older copy of the log is being served",
            )
        device = room.state.devices.peek(line.device)
        if device is None or device.session != nonce:
            self._check_enrolled(line)
            line.end(Fault.FENCED, "the device started a newer session")  # the first reason counts
            raise Refused(Fault.FENCED, "the device started a newer session")
        self._delivery.attach(line)
        self._delivery.sit(line, started, started.cursor)
        time_ms, ack_ms = self._delivery.time_ms(), self._delivery.ack_ms()
        return Started(log_id, started.cursor, started.position, version, time_ms, longest, ack_ms)

    async def serve(self, line: Line) -> None:
        """See relay.gateway.api.Office."""
        seat = self._delivery.seat_of(line)
        if seat is not None:
            await self._delivery.serve(seat)

    def detach(self, line: Line) -> None:
        """See relay.gateway.api.Office."""
        self._delivery.detach(line)

    # --- requests --------------------------------------------------------------------------------
    async def submit(self, line: Line, items: Sequence[wire.SubmitItem]) -> None:
        """See relay.gateway.api.Office."""
        self._metrics.submitted.inc(len(items))
        taken: list[bytes] = []
        ids: list[bytes] = []
        refused: list[wire.ReceiptItem] = []
        passing: dict[str, list[bytes]] = {}  # by cell
        headers = [_header(item.envelope) for item in items]
        homes = await self._homes(items, headers)
        for item, header in zip(items, headers, strict=True):
            if header is None:
                refused.append(self._outcome(envelope_id(item.envelope), Code.BAD_ENVELOPE))
                continue
            try:
                home = homes.get(header.to)
                if isinstance(home, Refused):
                    raise home
                if home is not None and header.to_version > home.version:
                    raise Refused(Code.UNREACHABLE, "the recipient's home does not have that version yet")
                dest = route(header, self.identity.cell, home, self.root)
                self._check_policy(header, dest)
                if not self._policies.may_wait(self.identity.cell, dest):
                    passing.setdefault(dest, []).append(item.envelope)
                    continue
                taken.append(records.encode_record(records.Submit(line.device, dest, item.envelope)))
                ids.append(envelope_id(item.envelope))
            except Refused as error:
                refused.append(self._refusal(envelope_id(item.envelope), error))
        self._receipt(line, refused)
        if taken:
            self._offer(line, taken, ids)
        if passing:
            async with trio.open_nursery() as nursery:
                for cell, envelopes in passing.items():
                    nursery.start_soon(self._pass_on, line, cell, envelopes)

    async def _pass_on(self, line: Line, cell: str, envelopes: list[bytes]) -> None:
        """Nothing bound abroad may wait here: the other cell takes it now, or the sender tries again."""
        items: Sequence[wire.ReceiptItem] = [self._outcome(envelope_id(one), Code.UNREACHABLE) for one in envelopes]
        try:
            with trio.move_on_after(PASS_S):
                items = await self._abroad.pass_on(cell, envelopes)
        except (Refused, Overloaded):
            pass
        except PeerError as error:
            _log.error("pass_on_refused", cell=cell, text=error.text)
        self._receipt(line, items)

    def _check_policy(self, header: Header, dest: str) -> None:
        """The sender's node's own check of what the regions permit (section 5, rule 2). Raises Refused."""
        if header.kind is To.ROSTER:
            roster = self._delivery.room.state.rosters.get(header.to)
            late = roster is None or roster.version < header.to_version
            if late and not self._policies.may_wait(self.identity.cell, ""):
                raise Refused(Code.UNREACHABLE, "where its members are is not known here yet")
            self._policies.check_group_mail(header, self.identity.cell, roster.cells if roster else ())
        else:
            self.halted(dest)
            self._policies.check_mail(header, self.identity.cell, dest)

    async def _homes(
        self, items: Sequence[wire.SubmitItem], headers: Sequence[Header | None]
    ) -> dict[bytes, HomeRecord | Refused]:
        """Where the recipients of a batch are at home: all are asked for at once, under one deadline, so that a region
        that does not answer holds a connection up for a short while only."""
        users, homes = self._delivery.room.state.users, dict[bytes, HomeRecord | Refused]()
        foreign: dict[bytes, tuple[str, int]] = {}  # hint, and the version that is spoken of
        for item, header in zip(items, headers, strict=True):
            if header is None or header.kind is not To.MAILBOX:
                continue
            if (known := users.peek(header.to)) is not None:
                homes[header.to] = known.record
            else:
                _, spoken = foreign.get(header.to, ("", 0))
                foreign[header.to] = (item.hint, max(spoken, header.to_version))
        for user in foreign:
            homes[user] = Refused(Code.UNREACHABLE, "the recipient's region did not answer in time")
        if foreign:
            with trio.move_on_after(_LOOKUPS_S):
                async with trio.open_nursery() as nursery:
                    for user, (hint, version) in foreign.items():
                        nursery.start_soon(self._find_home, user, hint, version, homes)
        return homes

    async def _find_home(
        self, user: bytes, hint: str, version: int, homes: dict[bytes, HomeRecord | Refused]
    ) -> None:
        """Who seals for a newer version than is known here has heard of it elsewhere: its cell is asked again."""
        try:
            homes[user] = home = await self._directory.lookup(user, hint)
            if home.version < version:
                await self._directory.chain(user, hint, home.version)
                homes[user] = await self._directory.lookup(user, hint)
        except Refused as error:
            homes[user] = error
        except TrustError as error:
            _log.error("directory_answer_refused", text=error.text)

    def _offer(self, line: Line, taken: list[bytes], ids: list[bytes]) -> None:
        def refused(error: ResidencyError) -> None:
            at = error.ordinal  # whoever moves while this is under way can be written to again, at the new home
            code = Code.NOT_PERMITTED if isinstance(error, NotPermitted) else Code.UNREACHABLE
            self._receipt(line, [self._outcome(ids[at], code)])
            if len(taken) > 1:  # the others are none the worse for it
                self._offer(line, taken[:at] + taken[at + 1 :], ids[:at] + ids[at + 1 :])

        try:
            self._intake.offer(taken, refused)
        except Overloaded:
            self._receipt(line, [self._outcome(own, Code.OVERLOADED) for own in ids])

    def _outcome(self, own: bytes, code: int) -> wire.ReceiptItem:
        return wire.ReceiptItem(own, code, 0, 0, self.identity.cell)

    def _refusal(self, own: bytes, error: Refused) -> wire.ReceiptItem:
        return wire.ReceiptItem(own, error.code, 0, error.limit, error.cell or self.identity.cell)

    def _receipt(self, line: Line, items: Sequence[wire.ReceiptItem]) -> None:
        for item in items:
            if not Code(item.code).taken:
                self._metrics.refused.labels(Code(item.code).name.lower()).inc()
        if items:
            send_receipt(line, items)
            line.flush()

    def ack(self, line: Line, position: int) -> None:
        """See relay.gateway.api.Office. Counts up to what was sent on this line (rule 18)."""
        seat = self._delivery.seat_of(line)
        if seat is None:
            return
        position = min(position, seat.sent)
        seat.acked(position)
        try:
            self._intake.offer([records.encode_record(records.Ack(line.device, position))], lazily=True)
        except Overloaded:
            _log.warning("ack_dropped")  # the next one says it again

    async def lookup(self, line: Line, request: wire.Lookup) -> wire.Record:
        """See relay.gateway.api.Office."""
        try:
            with trio.move_on_after(_LOOKUPS_S):
                chain = await self._directory.chain(request.user, request.hint, request.after)
                return wire.Record(request.request, Code.STORED, tuple(chain))
            return wire.Record(request.request, Code.UNREACHABLE, ())
        except Refused as error:
            return wire.Record(request.request, error.code, ())
        except TrustError as error:
            _log.error("directory_answer_refused", text=error.text)
            return wire.Record(request.request, Code.UNREACHABLE, ())

    async def prove(self, line: Line, request: wire.Prove) -> wire.Proof:
        """See relay.gateway.api.Office. Whoever knows an envelope's id may ask: senders and recipients do."""
        blocks, missing = await self._notary.prove(request.cell, request.items)
        return wire.Proof(request.request, tuple(blocks), tuple(missing))

    async def roster(self, line: Line, roster: wire.Roster) -> None:
        """See relay.gateway.api.Office."""
        unknown = [cell for cell, _ in roster.parts if self.root.cell(cell) is None]
        if unknown:
            self._receipt(line, [self._outcome(digest(roster.head), Code.UNKNOWN_REGION)])
            return
        cell, why = self._policies.unshared(self.identity.cell, [cell for cell, _ in roster.parts])
        if cell:
            self._receipt(line, [self._refusal(digest(roster.head), Refused(Code.NOT_PERMITTED, why, cell=cell))])
            return
        record = records.Roster(line.device, roster.head, roster.parts)
        self._offer(line, [records.encode_record(record)], [digest(roster.head)])

    async def ephemeral(self, line: Line, message: wire.Ephemeral) -> None:
        """See relay.gateway.api.Office."""
        if message.user in self._delivery.room.state.users:
            await self.ephemeral_here(message.user, line.user, line.device, message.payload)
            return
        home: HomeRecord | None = None
        with suppress(Refused, TrustError), trio.move_on_after(_LOOKUPS_S):
            home = await self._directory.lookup(message.user, message.hint)
        if home is None or self._policies.forbidden(self.identity.cell, home.cell):
            return  # there is no receipt for what is off the log
        await self._abroad.ephemeral(home.cell, message.user, line.user, line.device, message.payload)

    async def ephemeral_here(self, user: bytes, from_user: bytes, from_device: bytes, payload: bytes) -> None:
        """To whoever of `user`'s devices is served by a node of this cell."""
        self.deliver_ephemeral(user, from_user, from_device, payload)
        await self._abroad.ephemeral(self.identity.cell, user, from_user, from_device, payload)

    def deliver_ephemeral(self, user: bytes, from_user: bytes, from_device: bytes, payload: bytes) -> None:
        """To whoever of `user`'s devices is served by this node; dropped where a line is full."""
        frame = server_frame(wire.encode_message(wire.EphemeralFrom(from_user, from_device, payload)))
        for line in self._delivery.lines_of(user):
            if line.push([frame]):
                line.flush()


def _header(envelope: bytes) -> Header | None:
    """None where the envelope or its header is not well formed."""
    try:
        return read_header(envelope)
    except ProtocolError:
        return None
