"""The disk writer's own residency check (section 5, rule 2): from records that it verifies itself it knows who is at
home in this cell, and refuses what must not rest on its disk. It trusts neither the gateway, nor routing, nor the fold.

It asks whose mail this is, not who may do what: a device or group that was ever at home here stays known, so that what
it left in the log can be carried. Whether it is still enrolled is the fold's business. A user who has moved away stays
known, too: this is the previous home, through which what comes late is sent on (section 5, rule 3).

What the policies of the signed root forbid it refuses as well, in blocks that are made here (ADR 25); and home records
without the proof that they are logged (ADR 27).
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Union

from msgpack import unpackb
from msgspec import structs

from relay.core.codec import Decoder, Struct, digest, encode, pack
from relay.core.envelope import Header, To, read_header
from relay.core.packing import KEY, PackedMap, Shelf
from relay.core.policy import MAIL, Policies
from relay.core.records import (
    HANDIN_ENVELOPE, HANDIN_FORWARD, HANDIN_MOVE, HANDIN_NOBODY, HANDIN_NOTICE, HANDIN_ROSTER, HANDIN_TOLD, Carry,
    Channel, HandIn, Home, Move, Passed, Post, Record, Roster, Submit, decode_record, read_chain, read_for_device,
    read_forward, read_told,
)
from relay.core.shapes import Hash, Key, UInt
from relay.core.trust import (
    Former, HomeRecord, Root, VerifiedHead, check_stapled, join_home, read_home, split_home, verify_home, verify_move,
    verify_part, verify_roster,
)
from relay.errors import NotPermitted, ProtocolError, ResidencyError, TrustError
from relay.journal.channelguard import ChannelFact, check_kept, check_post, check_terms
from relay.journal.layer import Layer
from relay.limits import DAY, MAX_LIFETIME, MIB

_HARMLESS = frozenset({1, 3, 5, 8, 10, 11})  # tags of records that hold no envelope and name nobody who is not known
_REMEDY = "Nothing of this batch was written"


class _UserFact(Struct, tag=1):
    """A user at home here: the newest home record, and every device that one of them enrolled."""

    signed: bytes
    devices: tuple[Key, ...]


class _GroupFact(Struct, tag=2):
    """A group, by its newest `version` seen: does that list somebody who is at home `here`, and did `ever` one?"""

    group: Hash
    version: UInt
    here: bool
    ever: bool


_Fact = Union[_UserFact, _GroupFact, ChannelFact]
_fact: Decoder[_Fact] = Decoder(_Fact, "residency fact", MIB)


class _User(Struct):
    home: HomeRecord
    devices: tuple[Key, ...]


def _with_former(home: HomeRecord, devices: tuple[bytes, ...]) -> HomeRecord:
    """The record as it was verified: with the devices that it does not list any more."""
    listed = {device.id for device in home.devices}
    return structs.replace(home, former=tuple(Former(one, one, 0) for one in devices if one not in listed))


class _Users(MutableMapping[bytes, _User]):
    """Packed: of each record what the next one is verified by, all but its signatures. Parsed when it is asked for."""

    def __init__(self, shelf: Shelf | None) -> None:
        self._packed = PackedMap(shelf)

    def __setitem__(self, user: bytes, known: _User) -> None:
        payload, *_ = unpackb(split_home(known.home.signed)[0])
        listed = {device.id for device in known.home.devices}
        self._packed[user] = pack([payload, b"".join(one for one in known.devices if one not in listed)])

    def __getitem__(self, user: bytes) -> _User:
        payload, ids = unpackb(self._packed[user])
        home = read_home(join_home(payload, bytes(64), bytes(64)))
        gone = tuple(ids[at : at + KEY] for at in range(0, len(ids), KEY))
        devices = (*gone, *(device.id for device in home.devices))
        return _User(_with_former(home, devices), devices)

    def __contains__(self, user: object) -> bool:
        return user in self._packed

    def __delitem__(self, user: bytes) -> None:
        del self._packed[user]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


class _Known:
    """Who is at home here. A batch looks at what is known through a layer of its own."""

    def __init__(self, below: _Known | None = None, shelf: Shelf | None = None) -> None:
        self.users: MutableMapping[bytes, _User] = Layer(below.users) if below else _Users(shelf)
        self.devices: MutableMapping[bytes, bytes]  # → user
        self.devices = Layer(below.devices) if below else PackedMap(shelf)
        self.groups: MutableMapping[bytes, _GroupFact] = Layer(below.groups) if below else {}
        self.channels: MutableMapping[bytes, ChannelFact] = Layer(below.channels) if below else {}
        self.facts: dict[bytes, bytes] = {}  # what this layer taught

    def add_user(self, home: HomeRecord, devices: tuple[bytes, ...]) -> None:
        self.users[home.user] = _User(home, devices)
        self.devices.update(dict.fromkeys(devices, home.user))
        self.facts[digest(home.user, b"posthouse.user")] = encode(_UserFact(home.signed, devices))

    def take(self, facts: Sequence[tuple[bytes, bytes]]) -> None:
        """Take in facts that a layer like this one taught."""
        for _, value in facts:
            fact = _fact(value)
            if isinstance(fact, _UserFact):
                self.add_user(_with_former(read_home(fact.signed), fact.devices), fact.devices)
            elif isinstance(fact, ChannelFact):
                self.add_channel(fact)
            else:
                self.add_group(fact)
        self.facts.clear()

    def add_group(self, fact: _GroupFact) -> None:
        self.groups[fact.group] = fact
        self.facts[digest(fact.group, b"posthouse.group")] = encode(fact)

    def add_channel(self, fact: ChannelFact) -> None:
        known = self.channels.get(fact.channel)
        if known is None or known.version < fact.version:
            self.channels[fact.channel] = fact
            self.facts[fact.key] = encode(fact)


class ResidencyGuard:
    """relay.ports.Residency for the cell `cell` of `region`, by the verified `root`. What it knows of users lies on the
    `shelf`; without one, in memory."""

    def __init__(self, region: str, cell: str, root: Root, shelf: Shelf | None = None) -> None:
        self._region = region
        self._cell = cell
        self._policies = Policies(root)
        self.follow(root)
        self._known = _Known(shelf=shelf)

    def follow(self, root: Root) -> None:
        """What is checked from now on is checked by this root document."""
        self._root, self._cells = root, frozenset(root.cells())
        self._policies.follow(root)

    def learn(self, facts: Sequence[tuple[bytes, bytes]]) -> None:
        """Take in facts that `check` once gave, in their order. Raises ProtocolError for bytes that are none."""
        self._known.take(facts)

    def check(
        self, records: Sequence[bytes], above: Sequence[tuple[bytes, bytes]] = (), *, made: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """See relay.ports.Residency. The guard itself changes only by `learn`."""
        below = self._known
        if above:
            below = _Known(below)
            below.take(above)
        known = _Known(below)
        for ordinal, record in enumerate(records):
            try:
                decoded = self._check(record, known)
                if decoded is not None and not made:
                    self._check_policy(decoded, known)
                    self._check_logged(decoded, below)
            except ResidencyError as error:
                raise type(error)(error.text, _REMEDY, ordinal) from None
            except (TrustError, ProtocolError) as error:
                raise ResidencyError(f"a record that does not verify: {error.text}", _REMEDY, ordinal) from None
        return list(known.facts.items())

    def _check(self, encoded: bytes, known: _Known) -> Record | None:
        if encoded[:1] and 0x90 <= encoded[0] <= 0x9F and encoded[1:2] and encoded[1] in _HARMLESS:
            decode_record(encoded)  # one that is none would end the fold of every node, at each start anew
            return None  # the hot path: a short msgpack array whose first element is that tag, acks above all
        record: Record = decode_record(encoded)
        match record:
            case Submit():
                self._check_submit(record, known)
            case Home(signed):
                self._check_home(signed, known)
            case Move(chain):
                self._check_move(chain, known)
            case Roster():
                self._check_roster(record, known)
            case HandIn():
                self._check_hand_in(record, known)
            case Passed(envelope=envelope):
                header = read_header(envelope)
                if header.kind != To.MAILBOX:
                    raise ResidencyError("an envelope for a group that another cell did not keep")
                self._check_mailbox(header, known)
            case Channel(terms=terms):
                self._check_device(record.device, known)
                known.add_channel(check_terms(terms, self._cell, known.devices))
            case Post(post=post):
                self._check_device(record.device, known)
                check_post(post, self._cell, known.channels)
            case Carry(items):
                for carried in items:
                    self._check_carried(carried.record, known)
        return record

    def _check_policy(self, record: Record, known: _Known) -> None:
        """What is carried is not asked about: it rests here already, and goes with its own expiry. Nor is which cells
        there are: nodes of a cell take a new root document one after the other (ADR 25)."""
        match record:
            case Submit(dest=dest):
                self._check_cell(dest)
                if why := self._policies.forbidden(self._cell, dest):
                    raise NotPermitted(f"an envelope for {dest}: {why}")
                if not self._policies.may_wait(self._cell, dest):
                    raise NotPermitted(f"an envelope for {dest}, and nothing bound abroad may wait in {self._region}")
                self._check_retention(record.envelope, dest)
            case HandIn(what=what) if what in MAIL:
                if why := self._policies.forbidden(record.origin, self._cell):
                    raise NotPermitted(f"mail from {record.origin}: {why}")
                if what == HANDIN_ENVELOPE:
                    self._check_retention(record.item, self._cell)
                if what in (HANDIN_ROSTER, HANDIN_NOBODY):
                    self._check_cells(record.item)
            case Channel() | Post():
                check_kept(record, self._policies.longest(self._cell), known.channels)
            case Passed():
                if why := self._policies.forbidden(record.origin, self._cell):
                    raise NotPermitted(f"mail from {record.origin}: {why}")
                self._check_retention(record.envelope, self._cell)
            case Roster(head=head):
                self._check_cells(head)
                cell, why = self._policies.unshared(self._cell, verify_roster(head).cell_names)
                if cell:
                    raise NotPermitted(f"a group with members in {cell}: {why}")

    def _check_logged(self, record: Record, known: _Known) -> None:
        """The newest home record of a user is in its region's log, if it is news."""
        match record:
            case Home(signed):
                newest = signed
            case Move(chain):
                newest = chain[-1]
            case HandIn(what=what, item=item) if what == HANDIN_MOVE:
                newest = read_chain(item).signed[-1]
            case _:
                return
        home = read_home(newest)
        user = known.users.get(home.user)
        if user is None or user.home.version < home.version:
            check_stapled(home, self._root)

    def _check_retention(self, envelope: bytes, dest: str) -> None:
        limit = self._policies.longest(self._cell, dest)
        if limit < MAX_LIFETIME and self._policies.rests_too_long(read_header(envelope), self._cell, dest):
            raise NotPermitted(f"an envelope that would rest for more than {limit // DAY} days")

    def _check_carried(self, encoded: bytes, known: _Known) -> None:
        record: Record = decode_record(encoded)
        if isinstance(record, Carry):
            raise ResidencyError("a carry within a carry")
        if isinstance(record, HandIn) and record.what == HANDIN_ENVELOPE:
            self._check_here_once(self._check_alone(record, known), known)
        else:
            self._check(encoded, known)

    def _check_home(self, signed: bytes, known: _Known) -> None:
        claimed = read_home(signed)
        if claimed.cell != self._cell:  # `verify_home` sees to it that the region is the cell's
            raise ResidencyError(f"a home record of cell {claimed.cell}, not of {self._cell}")
        user = known.users.get(claimed.user)
        if user is not None and claimed.version <= user.home.version:
            if claimed.version == user.home.version and claimed.digest != user.home.digest:
                raise ResidencyError("two different home records of one version")
            return  # seen before
        self._add(verify_home(signed, self._root, user.home if user else None), known)

    def _check_move(self, chain: Sequence[bytes], known: _Known) -> None:
        """A user who comes or goes: of all records one says that this was home, or is."""
        user = known.users.get(read_home(chain[-1]).user) if chain else None
        homes = verify_move(chain, self._root, user.home if user else None)
        if all(home.cell != self._cell for home in homes):
            raise ResidencyError(f"the records of a user who never was at home in {self._cell}")
        if user is None or homes[-1].version > user.home.version:
            self._add(homes[-1], known)

    def _add(self, home: HomeRecord, known: _Known) -> None:
        for device in home.devices:
            if known.devices.get(device.id, home.user) != home.user:
                raise ResidencyError(f"device {device.id[:4].hex()} is another user's already")
        ever = [device.id for device in home.devices] + [gone.id for gone in home.former]  # some of them elsewhere
        known.add_user(home, tuple(ever))

    def _check_device(self, device: bytes, known: _Known) -> None:
        if device not in known.devices:
            raise ResidencyError(f"a record of device {device[:4].hex()}, which is not at home in {self._cell}")

    def _check_cell(self, cell: str) -> None:
        if cell not in self._cells:
            raise ResidencyError(f"a record for cell {cell}, which the root does not list")

    def _check_cells(self, roster: bytes) -> None:
        for cell in verify_roster(roster).cell_names:
            self._check_cell(cell)

    def _check_submit(self, record: Submit, known: _Known) -> None:
        self._check_device(record.device, known)
        if record.dest == self._cell:  # one for a group may rest here whoever the others are: this is its sender's cell
            self._check_mailbox(read_header(record.envelope), known)

    def _check_mailbox(self, header: Header, known: _Known) -> None:
        if header.kind == To.MAILBOX and header.to not in known.users:
            raise ResidencyError(f"an envelope for user {header.to[:4].hex()}, who is not at home in {self._cell}")

    def _check_alone(self, record: HandIn, known: _Known) -> Header:
        """An envelope from another cell, and nothing beside it. Returns its header."""
        if record.part:
            raise ResidencyError("an envelope that was handed over with more bytes than its own")
        header = read_header(record.item)
        self._check_mailbox(header, known)
        return header

    def _check_handed(self, header: Header, known: _Known) -> None:
        """A group's envelope from another cell: somebody here must be known to be meant, not only may be (rule 3)."""
        group = known.groups.get(header.to)
        if header.kind == To.ROSTER and (group is None or not group.here or header.to_version > group.version):
            raise ResidencyError(f"an envelope for group {header.to[:4].hex()}, of which nobody is known to be here")

    def _check_here_once(self, header: Header, known: _Known) -> None:
        """The same when it is carried: the members may have left since it came."""
        group = known.groups.get(header.to)
        if header.kind == To.ROSTER and (group is None or not group.ever):
            raise ResidencyError(f"an envelope for group {header.to[:4].hex()}, which has no members in {self._cell}")

    def _check_hand_in(self, record: HandIn, known: _Known) -> None:
        if record.what == HANDIN_ENVELOPE:
            self._check_handed(self._check_alone(record, known), known)
        elif record.what == HANDIN_ROSTER:
            self._check_roster_version(verify_roster(record.item), record.part, known)
        elif record.what == HANDIN_NOBODY and not record.part:
            self._check_nobody(verify_roster(record.item), known)
        elif record.what == HANDIN_FORWARD:
            self._check_forward(record, known)
        elif record.what == HANDIN_MOVE and not record.part:
            self._check_move(read_chain(record.item).signed, known)
        elif record.what == HANDIN_NOTICE and not record.part:
            self._check_device(read_for_device(record.item).device, known)
        elif record.what == HANDIN_TOLD and not record.part:
            read_told(record.item)  # so small, and so shaped, that it is no envelope
        elif record.item or record.part:
            raise ResidencyError("a void or refused hand-over that holds bytes")

    def _check_forward(self, record: HandIn, known: _Known) -> None:
        """An envelope that was sent on to somebody's home: this is, or was, the home that it was sent on by."""
        forward, header = read_forward(record.part), read_header(record.item)
        user = known.users.get(forward.user)
        if user is None or user.home.version < forward.version or forward.chain:
            raise ResidencyError(f"an envelope for user {forward.user[:4].hex()}, who is not at home in {self._cell}")
        if header.kind == To.MAILBOX and header.to != forward.user:
            raise ResidencyError(f"an envelope for user {header.to[:4].hex()}, sent on for another")

    def _check_roster(self, record: Roster, known: _Known) -> None:
        self._check_device(record.device, known)
        head = verify_roster(record.head)
        self._learn(head, self._has_members(head, dict(record.parts).get(self._cell, b""), known), known)

    def _check_roster_version(self, head: VerifiedHead, part: bytes, known: _Known) -> None:
        """A version from another cell, with its list of members here."""
        if not self._has_members(head, part, known):
            raise ResidencyError(f"a version of group {head.group[:4].hex()}, which has no members in {self._cell}")
        self._learn(head, True, known)

    def _check_nobody(self, head: VerifiedHead, known: _Known) -> None:
        """A version from another cell that leaves nobody here: it names this cell, or the group is known."""
        if self._cell not in head.cell_names and head.group not in known.groups:
            raise ResidencyError(f"a version of group {head.group[:4].hex()}, which does not name {self._cell}")
        self._learn(head, False, known)

    def _has_members(self, head: VerifiedHead, part: bytes, known: _Known) -> bool:
        """Does it list somebody who is at home here? A list of others makes nothing resident."""
        if not part and all(named.cell != self._cell for named in head.head.cells):
            return False
        return any(member.user in known.users for member in verify_part(part, head, self._cell).members)

    def _learn(self, head: VerifiedHead, here: bool, known: _Known) -> None:
        group = known.groups.get(head.group)
        if group is None or group.version < head.head.version:
            ever = here or (group is not None and group.ever)
            known.add_group(_GroupFact(head.group, head.head.version, here, ever))
