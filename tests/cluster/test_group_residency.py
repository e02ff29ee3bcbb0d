"""A group across two cells, each with its own disk writer's check: envelopes rest only where a member is at home."""

from __future__ import annotations

from contextlib import asynccontextmanager

import structlog.testing
import trio

from cluster.core.linkwire import HandItem, HandOver, Peer
from cluster.forwarder import Forwarders
from cluster.handover import Reception
from relay.core import records, wire
from relay.core.codec import digest
from relay.core.wire import Code
from relay.errors import Refused
from relay.journal.guard import ResidencyGuard
from tests.relay.conftest import ABROAD, CELL, Cell, FakeEnv, make_root
from tests.relay.core.mailroom.conftest import Group, User
from tests.relay.test_office import seal

CANARY = b"canary of the group"


class Link:
    """To the other cell, while it is up."""

    def __init__(self, reception) -> None:
        self.reception, self.up, self.batches = reception, True, []

    async def request(self, cell, message, deadline_s):
        await trio.lowlevel.checkpoint()
        if not self.up:
            raise Refused(Code.UNREACHABLE, "cut")
        assert isinstance(message, HandOver)
        self.batches.append([item.what for item in message.items])
        return await self.reception(Peer("norden", CELL, "n1"), message)


class World:
    """alice (the owner) and bob at home here, carol there."""

    def __init__(self, nursery: trio.Nursery) -> None:
        env = FakeEnv()
        self.nursery = nursery
        self.here, self.there = (
            Cell(env, name, ResidencyGuard(name.split("/")[0], name, make_root())) for name in (CELL, ABROAD)
        )
        for cell in (self.here, self.there):
            for task in (cell.delivery.run, cell.intake.run, cell.steward.run):
                nursery.start_soon(task)
        there = self.there
        self.link = Link(Reception(make_root(), there.delivery, there.intake, there.barrier, there.office, None))
        here = self.here
        nursery.start_soon(
            Forwarders(make_root(), here.journal, here.delivery, here.intake, self.link, here.metrics, env).run
        )
        self.group = Group("a1")

    async def open(self) -> None:
        self.alice, self.bob, self.carol = User("alice", CELL), User("bob", CELL), User("carol", ABROAD)
        for user, name in ((self.alice, "a1"), (self.bob, "b1"), (self.carol, "c1")):
            user.record(name)
        self.owner = await self.here.join(self.nursery, self.alice, "a1")
        self.sender = await self.here.join(self.nursery, self.bob, "b1")
        self.reader = await self.there.join(self.nursery, self.carol, "c1")

    async def publish(self, *abroad: bytes) -> None:
        members = {CELL: sorted([self.alice.id, self.bob.id])} | ({ABROAD: sorted(abroad)} if abroad else {})
        made = self.group.publish(members)
        self.head = made.head
        await self.here.office.roster(self.owner, wire.Roster(made.head, made.parts))

    async def send(self, version: int = 1, body: bytes = CANARY) -> None:
        sealed = seal(self.here, self.group.id, version, roster=True, body=body)
        await self.here.office.submit(self.sender, [wire.SubmitItem("", sealed)])

    async def rests_abroad(self) -> bool:
        journal = self.there.journal
        blocks = [await journal.read(index) for index in range(journal.first, journal.tip + 1)]
        return any(CANARY in record for block in blocks for record in block.records)

    def told(self, line) -> list[int]:
        return [notice.code for notice in line.of(wire.Notice)]


@asynccontextmanager
async def world():
    async with trio.open_nursery() as nursery:
        made = World(nursery)
        await made.open()
        yield made
        nursery.cancel_scope.cancel()


def not_at_home(logs) -> list[tuple[int, str]]:
    return [(entry["number"], entry["code"]) for entry in logs if entry["event"] == "not_at_home"]


async def test_a_roster_and_the_first_envelope_in_one_batch(autojump_clock):
    async with world() as all_of_it:
        all_of_it.link.up = False
        await all_of_it.publish(all_of_it.carol.id)
        await all_of_it.send()
        await trio.sleep(1)
        all_of_it.link.up = True
        with structlog.testing.capture_logs() as logs:
            await trio.sleep(1)  # the forwarder's pause; no parked try is due so soon after it
        assert len(all_of_it.reader.of(wire.Deliver)) == 1
        assert all_of_it.link.batches == [[2, 1], [1]]  # together; the first answer was for the roster alone
        assert (all_of_it.told(all_of_it.owner), all_of_it.told(all_of_it.sender)) == ([Code.STORED], [Code.STORED])
        assert not_at_home(logs) == [], "what the cut left for later was not refused"


async def test_an_owner_who_lists_a_cell_where_nobody_lives_gets_no_byte_onto_its_disk(autojump_clock):
    """Rule 3 of section 5, and rule 19: nothing rests there, and nobody is told STORED."""
    async with world() as all_of_it:
        await all_of_it.publish(all_of_it.bob.id)  # bob is at home here, not there
        await all_of_it.send()
        await trio.sleep(5)
        assert not await all_of_it.rests_abroad()
        assert all_of_it.told(all_of_it.owner) == all_of_it.told(all_of_it.sender) == [Code.UNKNOWN_USER]
        await all_of_it.publish(all_of_it.carol.id)  # the owner mends it
        await all_of_it.send(2)
        await trio.sleep(5)
        assert await all_of_it.rests_abroad() and len(all_of_it.reader.of(wire.Deliver)) == 1
        await all_of_it.publish(all_of_it.bob.id)  # and again lists somebody else
        await all_of_it.send(3, b"second " + CANARY)
        await trio.sleep(5)
        assert all_of_it.told(all_of_it.sender)[-1] == Code.UNKNOWN_USER


async def test_what_lists_nobody_is_learned_before_what_follows_it_in_the_batch(autojump_clock):
    async with world() as all_of_it:
        all_of_it.link.up = False
        await all_of_it.publish(all_of_it.bob.id)
        await all_of_it.send()
        await trio.sleep(1)
        all_of_it.link.up = True
        with structlog.testing.capture_logs() as logs:
            await trio.sleep(3)  # the other cell makes sure once a second that it is not behind
        assert all_of_it.link.batches == [[2, 1], [1]]
        assert all_of_it.told(all_of_it.sender) == [Code.UNKNOWN_USER]
        assert not_at_home(logs) == [(2, "unknown_user")]


async def test_a_group_that_the_other_cell_never_heard_of_waits_here(autojump_clock):
    """Its roster goes another way and does not come: the sender's cell keeps the envelope, and gets it in later."""
    async with world() as all_of_it:
        await all_of_it.publish(all_of_it.carol.id)
        await trio.sleep(1)
        known = all_of_it.there.state.rosters.pop(all_of_it.group.id)  # as if the version were still under way
        await all_of_it.send()
        await trio.sleep(30)
        assert not await all_of_it.rests_abroad() and all_of_it.told(all_of_it.sender) == []
        all_of_it.there.state.rosters[all_of_it.group.id] = known
        await trio.sleep(60)
        assert len(all_of_it.reader.of(wire.Deliver)) == 1 and all_of_it.told(all_of_it.sender) == [Code.STORED]
        assert digest(all_of_it.head) not in all_of_it.here.state.pending


async def test_two_links_at_once_tell_no_wrong_end(autojump_clock, monkeypatch):
    """The version that takes carol out comes by one link while an envelope comes by another: the disk writer knows it
    before the fold does. The envelope may come again, and then nobody misses it."""
    async with world() as all_of_it:
        await all_of_it.publish(all_of_it.carol.id)
        await trio.sleep(1)
        second = all_of_it.group.publish({CELL: sorted([all_of_it.alice.id, all_of_it.bob.id])})
        sealed = seal(all_of_it.there, all_of_it.group.id, 1, roster=True, body=CANARY)
        out = records.HandIn(CELL, b"a" * 16, 1, 0, records.HANDIN_NOBODY, second.head, b"")
        all_of_it.there.intake.offer([records.encode_record(out)])
        request = HandOver(b"b" * 16, 0, 1, (HandItem(records.HANDIN_ENVELOPE, sealed, b""),))
        answer = await all_of_it.link.reception(Peer("norden", CELL, "n1"), request)
        assert [outcome.code for outcome in answer.outcomes] == [Code.UNKNOWN_ROSTER]
        again = HandOver(b"b" * 16, 1, 2, request.items)
        answer = await all_of_it.link.reception(Peer("norden", CELL, "n1"), again)
        assert [outcome.code for outcome in answer.outcomes] == [Code.STORED]
        assert not await all_of_it.rests_abroad()
