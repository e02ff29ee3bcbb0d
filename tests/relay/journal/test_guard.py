"""The disk writer's own residency check: what it refuses, what it learns, and what it still knows after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
from nacl.signing import SigningKey

from relay.core import records
from relay.core.codec import Struct, digest, encode
from relay.core.envelope import Header, To, join
from relay.core.records import encode_record
from relay.core.trust import (
    Device, HomePayload, Member, Root, RootCell, RootRegion, RosterCell, RosterHead, group_id, make_part, sign_home,
    sign_roster,
)
from relay.limits import MAX_FORMER
from relay.errors import DiskFailed, ProtocolError, ResidencyError
from relay.journal.guard import ResidencyGuard
from relay.journal.shelf import SealedShelf
from tests.proofs import proven
from tests.roots import verified_root
from tests.scratch import MemoryScratch

HERE, ABROAD, NOWHERE = "norden/1", "sud/1", "west/1"
FAR = 10**14


def key(name: str) -> SigningKey:
    return SigningKey(digest(name.encode()))


def public(name: str) -> bytes:
    return bytes(key(name).verify_key)


def make_root() -> Root:
    regions = tuple(
        RootRegion(cell.split("/")[0], b"", public("registrar of " + cell), (RootCell(cell, ()),))
        for cell in (HERE, ABROAD)
    )
    return verified_root(regions, FAR)


ROOT = make_root()


class Person:
    """A user whose home records chain."""

    def __init__(self, name: str, cell: str = HERE) -> None:
        self.name, self.cell, self.version, self.id, self.last = name, cell, 0, b"", b""
        self.since: dict[str, int] = {}
        self.devices: tuple[Device, ...] = ()

    def home(self, *devices: str, registrar: str = "") -> records.Home:
        self.version += 1
        self.since = {device: self.since.get(device, self.version) for device in devices}
        listed = tuple(Device(public(device), bytes(32), since, b"", b"") for device, since in self.since.items())
        region = self.cell.split("/")[0]
        payload = HomePayload(
            1, self.id, self.version, self.last, region, self.cell, public(self.name), listed, 0, 0, FAR, b""
        )
        payload = proven(payload, map(key, devices), self.devices)
        self.devices = payload.devices
        self.last = digest(encode(payload))
        self.id = self.id or self.last
        return records.Home(sign_home(payload, key(self.name), key(registrar or "registrar of " + self.cell)))


class Group:
    """A group whose versions one device signs."""

    def __init__(self, owner: str) -> None:
        self.owner, self.version, self.last, self.seed = owner, 0, b"", b"s" * 32
        self.id = group_id(public(owner), self.seed)

    def publish(self, members: dict[str, list[Person]]) -> records.Roster:
        self.version += 1
        parts = {
            cell: make_part(self.version, [Member(person.id, self.version) for person in people])
            for cell, people in members.items()
        }
        cells = tuple(RosterCell(cell, len(members[cell]), digest(part)) for cell, part in sorted(parts.items()))
        head = RosterHead(1, self.seed, self.version, self.last, public(self.owner), cells)
        self.last = digest(encode(head))
        return records.Roster(public(self.owner), sign_roster(head, key(self.owner)), tuple(parts.items()))


def sealed(to: bytes, kind: To = To.MAILBOX, version: int = 1) -> bytes:
    return join(encode(Header(1, kind, to, version, 1, 2, 1)), b"body")


def submit(device: str, to: bytes, dest: str = HERE, kind: To = To.MAILBOX) -> records.Submit:
    return records.Submit(public(device), dest, sealed(to, kind))


def handed(what: int, item: bytes, part: bytes = b"") -> records.HandIn:
    return records.HandIn(ABROAD, bytes(16), 1, 0, what, item, part)


def handed_roster(roster: records.Roster) -> records.HandIn:
    return handed(records.HANDIN_ROSTER, roster.head, dict(roster.parts).get(HERE, b""))


class Desk:
    """A guard whose batches are committed at once, as a journal does it."""

    def __init__(self, root: Root = ROOT) -> None:
        self.root = root
        self.guard = ResidencyGuard("norden", HERE, root)
        self.kept: dict[bytes, bytes] = {}

    def write(self, *batch: Struct) -> None:
        facts = self.guard.check([encode_record(record) for record in batch])
        self.guard.learn(facts)
        self.kept.update(facts)

    def refuses(self, *batch: Struct, text: str, ordinal: int = 0) -> None:
        with pytest.raises(ResidencyError, match=text) as refused:
            self.guard.check([encode_record(record) for record in batch])
        assert refused.value.ordinal == ordinal

    def restart(self) -> None:
        self.guard = ResidencyGuard("norden", HERE, self.root)
        self.guard.learn(sorted(self.kept.items()))


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def anna(desk: Desk) -> Person:
    person = Person("anna")
    desk.write(person.home("anna's phone"))
    return person


STRANGER = digest(b"somebody")


# --- envelopes -----------------------------------------------------------------------------------
def test_envelopes_of_and_for_residents_rest_here(desk: Desk, anna: Person) -> None:
    desk.write(
        submit("anna's phone", anna.id),
        submit("anna's phone", STRANGER, ABROAD),  # waits in the outbox
        submit("anna's phone", STRANGER, HERE, To.ROSTER),  # the fold says whether there is such a group
        handed(records.HANDIN_ENVELOPE, sealed(anna.id)),
    )


def test_envelopes_of_and_for_strangers_do_not(desk: Desk, anna: Person) -> None:
    desk.refuses(submit("x", anna.id), text="not at home in norden/1")
    desk.refuses(submit("anna's phone", STRANGER), text="who is not at home in norden/1")
    desk.refuses(submit("anna's phone", STRANGER, NOWHERE), text="root does not list")
    desk.refuses(handed(records.HANDIN_ENVELOPE, sealed(STRANGER)), text="who is not at home in norden/1")


def test_what_cannot_be_read_does_not_rest(desk: Desk, anna: Person) -> None:
    desk.refuses(handed(records.HANDIN_ENVELOPE, b"\x01"), text="does not verify")
    desk.refuses(handed(records.HANDIN_VOID, sealed(anna.id)), text="holds bytes")
    desk.refuses(handed(records.HANDIN_VOID, b"", b"x"), text="holds bytes")
    desk.refuses(handed(9, sealed(anna.id)), text="holds bytes")
    desk.write(handed(records.HANDIN_VOID, b""))
    for garbage in (b"", b"\x00", b"\x91", b"\x91\x63", b"\xdc\x00\x01\x05", encode_record(submit("x", anna.id))[:-1]):
        with pytest.raises(ResidencyError, match="does not verify"):
            desk.guard.check([garbage])


def test_a_removed_device_leaves_mail_that_may_be_carried(desk: Desk, anna: Person) -> None:
    letter = submit("anna's phone", anna.id)
    desk.write(anna.home("anna's laptop"))
    desk.write(records.Carry((records.Carried(1, 0, encode_record(letter)),)), submit("anna's laptop", anna.id))


def test_carried_records_are_checked_like_others(desk: Desk, anna: Person) -> None:
    for bad in (submit("anna's phone", STRANGER), handed(records.HANDIN_ENVELOPE, sealed(STRANGER))):
        carried = records.Carried(1, 0, encode_record(bad))
        desk.refuses(records.Tick(), records.Carry((carried,)), text="not at home", ordinal=1)
        nested = records.Carry((records.Carried(1, 0, encode_record(records.Carry((carried,)))),))
        desk.refuses(nested, text="a carry within a carry")


# --- home records --------------------------------------------------------------------------------
def test_home_records_of_other_cells_do_not_rest_here(desk: Desk) -> None:
    desk.refuses(Person("lucia", ABROAD).home("phone"), text="home record of cell sud/1, not of norden/1")


def test_home_records_are_verified(desk: Desk, anna: Person) -> None:
    desk.refuses(Person("mallory").home("m", registrar="registrar of sud/1"), text="registrar's key")
    late = Person("bo")
    first = late.home("bo's phone")
    second = late.home("bo's phone", "bo's laptop")
    desk.refuses(second, text="does not follow")
    desk.write(first, second)
    desk.write(second, first)  # seen before
    fork = Person("bo")
    fork.home("bo's phone")
    desk.refuses(fork.home("mallory's phone"), text="two different home records")
    desk.refuses(records.Tick(), records.Home(b"junk"), text="does not verify", ordinal=1)


def test_records_of_a_batch_build_on_each_other(desk: Desk) -> None:
    bo = Person("bo")
    desk.write(bo.home("bo's phone"), submit("bo's phone", bo.id), bo.home("bo's phone", "pad"), submit("pad", bo.id))


def test_a_refused_batch_teaches_nothing(desk: Desk) -> None:
    bo = Person("bo")
    group = Group("bo's phone")
    home = bo.home("bo's phone")
    roster = group.publish({HERE: [bo]})
    desk.refuses(home, roster, submit("bo's phone", STRANGER), text="not at home", ordinal=2)
    desk.refuses(submit("bo's phone", STRANGER, ABROAD), text="not at home")
    desk.refuses(handed(records.HANDIN_ENVELOPE, sealed(bo.id)), text="not at home")
    assert not desk.kept


def test_what_is_written_and_not_committed_counts_above_what_is_known(desk: Desk, anna: Person) -> None:
    bo, batch = Person("bo"), encode_record
    first = desk.guard.check([batch(bo.home("bo's phone"))])
    desk.refuses(submit("bo's phone", bo.id), text="not at home")
    assert not desk.guard.check([batch(submit("bo's phone", bo.id)), batch(submit("anna's phone", anna.id))], first)
    second = desk.guard.check([batch(bo.home("bo's phone", "pad"))], first)
    assert [fact for fact, _ in second] == [fact for fact, _ in first]
    above = [*first, *second]
    assert not desk.guard.check([batch(submit("pad", bo.id))], above)
    third = desk.guard.check([batch(Group("pad").publish({HERE: [bo]}))], above)
    assert len(third) == 1 and third[0] not in above  # nothing is taught twice
    desk.refuses(submit("bo's phone", bo.id), text="not at home")  # the blocks were truncated


def test_what_is_learned_is_kept_once(desk: Desk, anna: Person) -> None:
    """The packed map has it: what a layer taught is for the store, not for memory."""
    assert desk.kept and not desk.guard._known.facts


def test_a_check_alone_teaches_nothing(desk: Desk) -> None:
    bo = Person("bo")
    assert desk.guard.check([encode_record(bo.home("bo's phone"))])
    desk.refuses(submit("bo's phone", bo.id), text="not at home")


# --- rosters -------------------------------------------------------------------------------------
def test_rosters_with_members_here(desk: Desk, anna: Person) -> None:
    lucia = Person("lucia", ABROAD)
    lucia.home("lucia's phone")
    abroad = Group("lucia's phone")
    desk.write(handed_roster(abroad.publish({HERE: [anna], ABROAD: [lucia]})))
    desk.write(handed(records.HANDIN_ENVELOPE, sealed(abroad.id, To.ROSTER)))
    desk.refuses(handed(records.HANDIN_ENVELOPE, sealed(abroad.id, To.ROSTER, 2)), text="nobody is known to be here")
    came = handed(records.HANDIN_ENVELOPE, sealed(abroad.id, To.ROSTER))
    without = abroad.publish({ABROAD: [lucia]})
    desk.refuses(handed_roster(without), text="no members")
    desk.write(handed(records.HANDIN_NOBODY, without.head))  # anna was removed: we must learn that
    desk.refuses(came, text="nobody is known to be here")
    desk.write(records.Carry((records.Carried(3, 0, encode_record(came)),)))  # it may still wait for anna


def test_no_envelope_of_a_group_before_it_is_known_to_have_members_here(desk: Desk, anna: Person) -> None:
    """Also one that lists this cell: whoever says so may lie (section 5, rule 3)."""
    elsewhere = Person("carol", ABROAD)
    elsewhere.home("carol's phone")
    for group, members in ((Group("owner"), [elsewhere]), (Group("other"), None)):
        envelope = handed(records.HANDIN_ENVELOPE, sealed(group.id, To.ROSTER))
        carried = records.Carry((records.Carried(1, 0, encode_record(envelope)),))
        desk.refuses(envelope, text="nobody is known to be here")
        desk.refuses(carried, text="no members")
        if members is None:
            continue
        roster = group.publish({HERE: members})
        desk.write(handed(records.HANDIN_NOBODY, roster.head))
        desk.refuses(envelope, text="nobody is known to be here")
        desk.refuses(carried, text="no members")
    desk.refuses(handed(records.HANDIN_NOBODY, Group("else").publish({ABROAD: [elsewhere]}).head), text="does not name")


def test_a_resident_may_write_to_a_group_before_the_version_that_lists_her_is_here(desk: Desk, anna: Person) -> None:
    """It waits in her own region, and may be carried meanwhile: otherwise the prefix of the log could not go."""
    group, elsewhere = Group("owner"), Person("carol", ABROAD)
    elsewhere.home("carol's phone")
    early = records.Submit(public("anna's phone"), HERE, sealed(group.id, To.ROSTER, 2))
    desk.write(early)
    desk.write(handed(records.HANDIN_NOBODY, group.publish({HERE: [elsewhere]}).head))
    desk.write(records.Carry((records.Carried(1, 0, encode_record(early)),)), early)


def test_nothing_rides_beside_an_envelope(desk: Desk, anna: Person) -> None:
    desk.refuses(handed(records.HANDIN_ENVELOPE, sealed(anna.id), b"somebody else's"), text="more bytes than its own")


def test_rosters_without_members_here(desk: Desk, anna: Person) -> None:
    lucia = Person("lucia", ABROAD)
    lucia.home("lucia's phone")
    desk.refuses(handed_roster(Group("lucia's phone").publish({ABROAD: [lucia]})), text="has no members in norden/1")
    desk.refuses(handed_roster(Group("lucia's phone").publish({HERE: [], ABROAD: [lucia]})), text="no members")
    roster = Group("lucia's phone").publish({HERE: [anna]})
    forged = handed(records.HANDIN_ROSTER, roster.head, make_part(1, [Member(STRANGER, 1)]))
    desk.refuses(forged, text="not the one the head names")
    desk.refuses(handed(records.HANDIN_ROSTER, b"junk"), text="does not verify")


def test_rosters_of_our_devices(desk: Desk, anna: Person) -> None:
    lucia = Person("lucia", ABROAD)
    lucia.home("lucia's phone")
    group = Group("anna's phone")
    desk.write(group.publish({ABROAD: [lucia]}))
    desk.refuses(handed(records.HANDIN_ENVELOPE, sealed(group.id, To.ROSTER)), text="nobody is known to be here")
    desk.write(group.publish({ABROAD: [lucia], HERE: [anna]}))
    desk.write(handed(records.HANDIN_ENVELOPE, sealed(group.id, To.ROSTER)))
    desk.refuses(Group("lucia's phone").publish({HERE: [anna]}), text="not at home")
    desk.refuses(Group("anna's phone").publish({NOWHERE: [lucia]}), text="root does not list")


# --- memory --------------------------------------------------------------------------------------
def test_what_was_learned_survives_a_restart(desk: Desk, anna: Person) -> None:
    group = Group("anna's phone")
    desk.write(group.publish({ABROAD: [anna]}))
    desk.write(anna.home("anna's laptop"))
    desk.restart()
    desk.write(submit("anna's phone", anna.id), submit("anna's laptop", anna.id), anna.home("third"))
    desk.refuses(handed(records.HANDIN_ENVELOPE, sealed(group.id, To.ROSTER)), text="nobody is known to be here")
    with pytest.raises(ProtocolError):
        desk.guard.learn([(bytes(32), b"junk")])


async def test_the_store_keeps_what_the_guard_knows(tmp_path: Path, solo) -> None:
    bo = Person("bo")
    home = encode_record(bo.home("bo's phone"))
    async with solo(tmp_path, residency=ResidencyGuard("norden", HERE, ROOT)) as journal:
        await journal.append([home])
        await journal.save_checkpoint(1, [b"s"])
        await journal.release(2)
    assert bo.id not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    async with solo(tmp_path, residency=ResidencyGuard("norden", HERE, ROOT)) as journal:
        await journal.append([encode_record(submit("bo's phone", bo.id))])
        with pytest.raises(ResidencyError):
            await journal.append([encode_record(submit("bo's phone", STRANGER))])
        assert journal.tip == 2


async def test_a_full_disk_under_what_the_guard_knows_stops_the_journal_and_loses_nothing(
    tmp_path: Path, solo
) -> None:
    shelf, acknowledged = SealedShelf(MemoryScratch(room=4), bytes(32), keep=0), 0
    people = [Person(f"bo {number}") for number in range(100)]
    async with solo(tmp_path, residency=ResidencyGuard("norden", HERE, ROOT, shelf)) as journal:
        shelf.on_failure = journal.disk.tail.end
        with pytest.raises(DiskFailed, match="cannot be written: No space left"):
            for number, person in enumerate(people):
                await journal.append([encode_record(person.home(f"phone {number}"))])
                acknowledged = number + 1
        with pytest.raises(DiskFailed, match="No space left"):
            await journal.append([encode_record(records.Tick())])
        with pytest.raises(DiskFailed, match="No space left"):
            await anext(journal.follow(journal.tip))
    assert 3 < acknowledged < 100
    async with solo(tmp_path, residency=ResidencyGuard("norden", HERE, ROOT)) as journal:
        assert journal.tip >= acknowledged
        for number, person in enumerate(people[:acknowledged]):
            await journal.append([encode_record(submit(f"phone {number}", person.id))])


def test_records_without_envelopes_pass(desk: Desk) -> None:
    device = public("unknown")
    desk.write(
        records.FoldVersion(2), records.Session(device, "n1", bytes(16), 0), records.Ack(device, 5), records.Tick(),
        records.Handed(ABROAD, 1, (records.HandedAnswer(1, 2, 3),), bytes(16), b""),
    )  # fmt: skip


def test_a_list_of_people_from_elsewhere_makes_no_group_resident(desk: Desk, anna: Person) -> None:
    owner, elsewhere = Group("owner"), Person("carol", ABROAD)
    elsewhere.home("carol's phone")
    desk.refuses(handed_roster(owner.publish({HERE: [elsewhere]})), text="has no members in norden/1")
    desk.write(handed_roster(Group("owner").publish({HERE: [anna], ABROAD: [elsewhere]})))


def test_a_roster_names_only_cells_of_the_root(desk: Desk, anna: Person) -> None:
    made = Group("anna's phone").publish({HERE: [anna], "atlantis/1": [Person("nobody")]})
    desk.refuses(made, text="which the root does not list")


def test_a_device_belongs_to_one_user(desk: Desk, anna: Person) -> None:
    desk.refuses(Person("mallory").home("mallory's phone", "anna's phone"), text="another user's already")


def test_many_versions_of_a_user_are_kept_over_restarts(desk: Desk, anna: Person) -> None:
    for turn in range(MAX_FORMER // 32):
        desk.write(anna.home(*(f"{turn}.{n}" for n in range(32))))
    desk.restart()
    desk.write(submit("anna's phone", anna.id))
    desk.refuses(anna.home("anna's phone"), text="which was revoked")  # an id never comes back, whatever was restarted
