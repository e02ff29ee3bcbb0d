"""Who is at home where, by what is signed: home records and rosters as they were found on disks, each verified.

It does not matter on which disk a record was found, nor who put it there: it is signed by the user and the registrar,
or by the owner of the group, or of the channel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from relay.core import records
from relay.core.codec import digest
from relay.core.mailroom.state import RosterState, State
from relay.core.trust import (
    HomeRecord, Member, Root, VerifiedHead, check_stapled, key_before, make_part, read_home, verify_home, verify_part,
    verify_roster,
)  # fmt: skip
from relay.core.trust.channels import verify_terms
from relay.errors import ProtocolError, TrustError


@dataclass(frozen=True, slots=True)
class Home:
    """The newest home record of a user that verified. `digests` and `cells`: of every version, oldest first."""

    user: bytes
    region: str
    cell: str
    digests: tuple[bytes, ...]
    cells: tuple[str, ...]
    record: HomeRecord  # read through its chain: what was revoked does not come back

    @property
    def version(self) -> int:
        return len(self.digests)

    def __str__(self) -> str:
        return f"home record {self.version} ({self.digests[-1].hex()[:8]})"


class Register:
    """Learns records in any order. What does not verify goes to `findings`, and proves nothing."""

    def __init__(self, root: Root) -> None:
        self.homes: dict[bytes, Home] = {}
        self._users: dict[bytes, tuple[bytes, ...]] = {}  # every device that a version enrolled → whose it is
        self.findings: dict[str, None] = {}  # in order, each once
        self._root = root
        self._later: dict[tuple[bytes, int], bytes] = {}  # (user, version) whose predecessor has not been seen
        self._before: dict[bytes, set[bytes]] = {}  # user → forms of the newest record, by a key that was replaced
        self._members: dict[bytes, dict[tuple[bytes, str], str]] = defaultdict(dict)  # group → (user, cell) → by what
        self._channels: dict[tuple[bytes, str], bytes] = {}  # (channel, cell) → the owner's device, by signed terms
        self._known: dict[tuple[bytes, str], str] = {}  # (group, region) → what `member` said

    # --- learning --------------------------------------------------------------------------------
    def record(self, record: records.Record, where: str) -> None:
        """A record of a log; `where` it lies, for findings."""
        match record:
            case records.Home(signed=signed):
                self.home(signed, where)
            case records.Move(chain=chain):
                self.move(chain, where)
            case records.HandIn(what=records.HANDIN_MOVE, item=chained):
                self._chain(chained, where)
            case records.Roster(head=head, parts=parts):
                self._roster(head, parts, where)
            case records.HandIn(what=records.HANDIN_ROSTER, item=head, part=part):
                self._roster(head, None, where, part)
            case records.HandIn(what=records.HANDIN_NOBODY, item=head):
                self._roster(head, (), where)
            case records.Channel(terms=terms):
                self.channel(terms, where)
            case records.Carry(items=items):
                for item in items:
                    self.record(records.decode_record(item.record), where)

    def checkpoint(self, state: State, where: str) -> None:
        """The state of the fold: it has every home record of those at home here, and the newest head of each group."""
        for user in state.users.values():
            self.move(user.chain, where)
        for moved in state.moved.values():
            self.move(moved.chain, where)
        for group, roster in state.rosters.items():
            self._stays(group, roster, state.cell)
        for channel in state.channels.values():
            self.channel(channel.terms.signed, where)

    def move(self, chain: Iterable[bytes], where: str) -> None:
        """The home records of a user, oldest first."""
        for signed in chain:
            self.home(signed, where)

    def _chain(self, item: bytes, where: str) -> None:
        try:
            self.move(records.read_chain(item).signed, where)
        except ProtocolError as error:
            self.findings[f"{where}: home records that were handed over, and are none: {error.text}"] = None

    def home(self, signed: bytes, where: str) -> None:
        """A home record, which may have been seen before."""
        try:
            self._home(signed)
        except (TrustError, ProtocolError) as error:
            self.findings[f"{where}: a home record that does not verify: {error.text}"] = None

    def _home(self, signed: bytes) -> None:
        claimed = read_home(signed)
        known = self.homes.get(claimed.user)
        version = known.version if known else 0
        if known is not None and 1 <= claimed.version <= version:
            if known.digests[claimed.version - 1] != claimed.digest:
                raise TrustError(f"user {short(claimed.user)} has two of version {claimed.version}: a fork")
            if claimed.version == version and claimed.user in self._before:
                self._before[claimed.user].add(signed)
            return
        if claimed.version > version + 1:
            self._later[claimed.user, claimed.version] = signed
            return
        home = verify_home(signed, self._root, known.record if known else None)
        digests = (*(known.digests if known else ()), home.digest)
        cells = (*(known.cells if known else ()), home.cell)
        self._before.pop(home.user, None)
        if key_before(home, self._root) is not None:
            self._before[home.user] = {signed}
        self.homes[home.user] = Home(home.user, home.payload.region, home.cell, digests, cells, home)
        for device in home.devices:
            users = self._users.get(device.id, ())
            self._users[device.id] = users if home.user in users else (*users, home.user)
        if (following := self._later.pop((home.user, version + 2), None)) is not None:
            self._home(following)

    def channel(self, signed: bytes, where: str) -> None:
        """The terms of a broadcast channel."""
        try:
            verified = verify_terms(signed)
        except (TrustError, ProtocolError) as error:
            self.findings[f"{where}: terms of a channel that do not verify: {error.text}"] = None
        else:
            self._channels[verified.channel, verified.terms.cell] = verified.terms.owner_key

    def _roster(
        self, signed: bytes, parts: Iterable[tuple[str, bytes]] | None, where: str, own: bytes = b""
    ) -> None:
        """A signed roster head with the member lists of cells; None: with one of them, `own`."""
        try:
            head = verify_roster(signed)
            named = {digest(own): own} if parts is None else {digest(part): part for _, part in parts}
            for cell in head.head.cells:
                if cell.part in named:
                    members = verify_part(named[cell.part], head, cell.cell).members
                    self._add(head, cell.cell, (member.user for member in members))
        except (TrustError, ProtocolError) as error:
            self.findings[f"{where}: a roster that does not verify: {error.text}"] = None

    def _stays(self, group: bytes, roster: RosterState, cell: str) -> None:
        """What the fold keeps of a roster: the head is signed, and the list that it names can be made again of those
        who are members now. Of those who have left there is the fold's word only."""
        stays = roster.members.items()
        now = [Member(user, each[-1].since) for user, each in stays if not each[-1].until]
        if roster.head is not None:
            made = digest(make_part(roster.version, now))
            if any(named.cell == cell and named.part == made for named in roster.head.head.cells):
                self._add(roster.head, cell, (member.user for member in now))
        for user, each in stays:
            if until := each[-1].until:
                self._members[group].setdefault((user, cell), f"until version {until}, by the checkpoint alone")

    def _add(self, head: VerifiedHead, cell: str, users: Iterable[bytes]) -> None:
        members = self._members[head.group]
        for user in users:
            if not members.get((user, cell), "").startswith("by"):
                members[user, cell] = f"by roster version {head.head.version} ({head.digest.hex()[:8]})"

    # --- asking ----------------------------------------------------------------------------------
    def unproven(self) -> list[str]:
        """Home records whose predecessor was not found on any disk, and newest ones with a registrar's key of before
        and no proof that they are: they prove nothing."""
        nowhere = [
            f"home record {version} of user {short(user)}: the one before it is nowhere"
            for user, version in sorted(self._later)
        ]
        late = sorted(user for user, forms in self._before.items() if not any(map(self._stands, forms)))
        what = "by a key that its registrar has no more, and not proven to be from before"
        return nowhere + [f"home record {self.homes[user].version} of user {short(user)}: {what}" for user in late]

    def _stands(self, signed: bytes) -> bool:
        try:
            check_stapled(read_home(signed), self._root)
        except TrustError:
            return False
        return True

    def resident(self, user: bytes, region: str) -> Home | None:
        """The user's home record, where it is of that region."""
        home = self.homes.get(user)
        return home if home is not None and home.region == region else None

    def left(self, user: bytes, region: str) -> Home | None:
        """The home record of a user who was at home in the region, and is so elsewhere now."""
        home = self.homes.get(user)
        here = home is not None and any(cell.partition("/")[0] == region for cell in home.cells)
        return home if here and home is not None and home.region != region else None

    def sender(self, device: bytes, region: str) -> Home | None:
        """The home record of a user whose device that is, or was, and who is, or was, at home in the region."""
        users = self._users.get(device, ())
        return next((home for user in users if (home := self.resident(user, region) or self.left(user, region))), None)

    def owner(self, channel: bytes, cell: str) -> bytes:
        """The device that owns a channel which rests in that cell by its terms; empty where none say so."""
        return self._channels.get((channel, cell), b"")

    def left_member(self, group: bytes, region: str) -> Home | None:
        """The home record of a member whom the group lists in a cell of the region, and who has left it."""
        members = sorted(self._members.get(group, {}))
        left = (home for user, cell in members if (home := self.left(user, region)) and cell in home.cells)
        return next(left, None)

    def member(self, group: bytes, region: str) -> str:
        """By what somebody who is at home in the region is a member of the group; empty where nobody is known to be.
        Who is on the list of another cell than the own does not count."""
        if (group, region) not in self._known:
            members = sorted((by, user, cell) for (user, cell), by in self._members.get(group, {}).items())
            said = (
                f"user {short(user)} is a member {by}, and at home here by {home}"
                for by, user, cell in members
                if (home := self.resident(user, region)) is not None and home.cell == cell
            )
            self._known[group, region] = next(said, "")
        return self._known[group, region]


def short(identity: bytes) -> str:
    """A user, group or envelope as people see it."""
    return identity.hex()[:8]
