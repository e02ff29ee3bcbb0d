"""What other cells hand over of users who move: verified here before it is appended (ADR 21).

An envelope that was sent on names the home version that it was sent on by. The receiver reaches that version first: the
signed records come along, and go into the log ahead of it.
"""

from __future__ import annotations

import msgspec
import structlog

from relay.core import records
from relay.core.codec import encode
from relay.core.envelope import To, read_header
from relay.core.trust import HomeRecord, Root, check_stapled, read_home, verify_move
from relay.core.wire import Code
from relay.delivery import Delivery
from relay.errors import NeverAtHome, ProtocolError, TrustError

_log = structlog.get_logger("cluster.movers")


class Movers:
    """For each batch that is handed over, a `Batch`."""

    def __init__(self, root: Root, delivery: Delivery) -> None:
        self.root = root
        self._delivery = delivery

    def begin(self) -> Batch:
        """For the next batch."""
        return Batch(self.root, self._delivery)


class Batch:
    """`moves` go into the log ahead of the batch's records. `lacks`: the last record needs home records that came
    neither with it nor with one before it that is new here."""

    def __init__(self, root: Root, delivery: Delivery) -> None:
        self._root = root
        self._state = delivery.room.state
        self._reached: dict[bytes, int] = {}  # user → version, when `moves` are applied
        self.moves: list[records.Move] = []
        self.lacks = False
        self._coming: dict[bytes, bytes] = {}  # device → user, of those whom this batch brings
        self._homes: dict[bytes, set[str]] = {}  # user → every cell that was home, by the records that came along

    def record(self, record: records.HandIn) -> records.HandIn:
        """The same as it goes into the log: without what must not rest here."""
        try:
            match record.what:
                case records.HANDIN_MOVE:
                    self._move(record)
                case records.HANDIN_FORWARD:
                    return self._forward(record)
                case records.HANDIN_NOTICE:
                    device = records.read_for_device(record.item).device
                    user = self._state.user_of(device) or self._coming.get(device)
                    if user is None:
                        return refused_number(record, Code.UNKNOWN_USER)
                    self._check_left(user, record.origin)
                case _:
                    records.read_told(record.item)
        except _NeverHere:
            return refused_number(record, Code.UNKNOWN_USER)
        except (ProtocolError, TrustError) as error:
            _log.error("hand_over_of_a_move_refused", cell=record.origin, number=record.number, text=error.text)
            return refused_number(record, Code.BAD_RECORD)
        return record if not record.part else refused_number(record, Code.BAD_RECORD)

    def _move(self, record: records.HandIn) -> None:
        newest = self._verify(records.read_chain(record.item).signed)
        self._reached[newest.user] = max(newest.version, self._reached.get(newest.user, 0))

    def _verify(self, chain: tuple[bytes, ...]) -> HomeRecord:
        """The newest of a chain that concerns this cell. Raises TrustError, ProtocolError, _NeverHere."""
        homes = verify_move(chain, self._root)
        known = self._known(homes[-1].user)
        if known is not None:
            verify_move(chain[: known.version], self._root, known)
        if known is None or known.version < homes[-1].version:
            check_stapled(homes[-1], self._root)
        if all(home.cell != self._state.cell for home in homes):
            raise _NeverHere
        self._coming |= {device.id: home.user for home in homes for device in home.devices}
        self._homes.setdefault(homes[-1].user, set()).update(home.cell for home in homes)
        return homes[-1]

    def _known(self, user: bytes) -> HomeRecord | None:
        here, moved = self._state.users.peek(user), self._state.moved.get(user)
        return here.record if here else moved.record if moved else None

    def _check_left(self, user: bytes, origin: str) -> None:
        """Only where the user was at home before is there anything to send on: whatever its age, past the mailbox's
        bound, and as often as it comes. Raises NeverAtHome."""
        known = self._state.users.peek(user) or self._state.moved.get(user)
        homes = (read_home(signed).cell for signed in (known.chain if known else ()))
        if origin not in self._homes.get(user, ()) and origin not in homes:
            raise NeverAtHome(
                f"{origin} sends on what is for user {user[:4].hex()}, who never was at home there",
                "That region lies: ask its operator",
            )

    def _forward(self, record: records.HandIn) -> records.HandIn:
        forward = records.read_forward(record.part)
        known = self._known(forward.user)
        reached = max(known.version if known else 0, self._reached.get(forward.user, 0))
        if reached < forward.version and forward.chain:
            newest = self._verify(forward.chain)
            if newest.user == forward.user and newest.version > reached:
                self.moves.append(records.Move(forward.chain))
                reached = self._reached[newest.user] = newest.version
        header = read_header(record.item)
        self.lacks = reached < forward.version and not forward.chain
        if reached < forward.version or (header.kind is To.MAILBOX and header.to != forward.user):
            return refused_number(record, Code.UNKNOWN_USER)
        self._check_left(forward.user, record.origin)
        return msgspec.structs.replace(record, part=encode(records.Forward(forward.user, forward.version)))


class _NeverHere(Exception):
    """The user never was at home in this cell."""


def refused_number(record: records.HandIn, code: Code) -> records.HandIn:
    """The same number without the bytes."""
    return msgspec.structs.replace(record, what=records.HANDIN_REFUSED, item=b"", part=b"", code=code)
