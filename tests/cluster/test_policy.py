"""Policies of the root, enforced three times over: by the sender's node, the receiving node and the disk writer, each
alone, with the others switched off. And what changed while something waited."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from cluster.core.linkwire import HandOver, Peer
from cluster.forwarder import Forwarders
from cluster.handover import Reception
from relay.core import envelope, records, wire
from relay.core.codec import encode
from relay.core.policy import Policies
from relay.core.trust import Policy, Root, read_home
from relay.core.wire import Code
from relay.errors import NotPermitted, Refused, ResidencyError
from relay.journal.guard import ResidencyGuard
from relay.limits import DAY
from tests.policies import root_with
from tests.relay.conftest import ABROAD, CELL, Cell, FakeEnv, make_root
from tests.relay.core.mailroom.conftest import Group, User, device_id
from tests.relay.test_office import seal

CANARY = b"canary of the border"
LAX = make_root()
FORBIDDEN = [
    root_with(norden=Policy(send_to=())),
    root_with(sauda=Policy(receive_from=())),
    root_with(norden=Policy(send_to=("west",)), sauda=Policy(receive_from=("west",))),
]
SHORT = [root_with(norden=Policy(retention_days=3)), root_with(sauda=Policy(retention_days=3))]


class Border:
    """What goes over it, while it is open."""

    def __init__(self, reception: Reception) -> None:
        self.reception, self.up, self.crossed = reception, True, list[bytes]()

    async def request(self, cell, message, deadline_s):
        await trio.lowlevel.checkpoint()
        if not self.up:
            raise Refused(Code.UNREACHABLE, "cut")
        if isinstance(message, HandOver):
            self.crossed += [item.item for item in message.items]
        else:
            self.crossed += message.envelopes
        return await self.reception(Peer("norden", CELL, "n1"), message)


class World:
    """alice at home here, carol there; each of the three checks has a root document of its own."""

    def __init__(self, nursery: trio.Nursery, sender: Root, writer: Root, receiver: Root, forwarder: Root) -> None:
        env = FakeEnv()
        self.nursery = nursery
        self.here = Cell(env, CELL, ResidencyGuard("norden", CELL, writer))
        self.there = Cell(env, ABROAD, ResidencyGuard("sauda", ABROAD, writer))
        self.here.office._policies = Policies(sender)
        for cell in (self.here, self.there):
            for task in (cell.delivery.run, cell.intake.run, cell.steward.run):
                nursery.start_soon(task)
        there = self.there
        self.link = Border(
            Reception(receiver, there.delivery, there.intake, there.barrier, there.office, None)
        )
        here = self.here
        self.forwarders = Forwarders(forwarder, here.journal, here.delivery, here.intake, self.link, here.metrics, env)
        nursery.start_soon(self.forwarders.run)

    async def open(self) -> None:
        self.alice, self.carol = User("alice", CELL), User("carol", ABROAD)
        self.alice.record("a1")
        self.carol.record("c1")
        self.here.directory.known[self.carol.id] = read_home(self.carol.chain[0])
        self.sender = await self.here.join(self.nursery, self.alice, "a1")
        self.reader = await self.there.join(self.nursery, self.carol, "c1")

    async def send(self, days: float = 1, body: bytes = CANARY) -> None:
        sealed = seal(self.here, self.carol.id, body=body, life=int(days * DAY))
        await self.here.office.submit(self.sender, [wire.SubmitItem("sauda", sealed)])

    async def publish(self) -> Group:
        group = Group("a1")
        made = group.publish({CELL: [self.alice.id], ABROAD: [self.carol.id]})
        await self.here.office.roster(self.sender, wire.Roster(made.head, made.parts))
        return group

    async def rests(self, cell: Cell) -> bool:
        blocks = [await cell.journal.read(index) for index in range(cell.journal.first, cell.journal.tip + 1)]
        return any(CANARY in record for block in blocks for record in block.records)

    @property
    def crossed(self) -> bool:
        return any(CANARY in item for item in self.link.crossed)

    def told(self) -> list[tuple[int, str]]:
        receipts = [item for receipt in self.sender.of(wire.Receipt) for item in receipt.items]
        return [(one.code, one.cell) for one in [*receipts, *self.sender.of(wire.Notice)]]


@asynccontextmanager
async def world(
    sender: Root = LAX, writer: Root = LAX, receiver: Root = LAX, forwarder: Root = LAX
) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        made = World(nursery, sender, writer, receiver, forwarder)
        await made.open()
        yield made
        nursery.cancel_scope.cancel()


async def test_with_all_three_off_it_arrives(autojump_clock):
    async with world() as all_of_it:
        await all_of_it.send(30)
        await trio.sleep(2)
        assert all_of_it.crossed and await all_of_it.rests(all_of_it.there)


@pytest.mark.parametrize("root", FORBIDDEN)
async def test_the_senders_node_alone_stops_it(autojump_clock, root):
    async with world(sender=root) as all_of_it:
        await all_of_it.send()
        await all_of_it.publish()
        await trio.sleep(2)
        assert all_of_it.told() == [(Code.NOT_PERMITTED, ABROAD)] * 2
        assert not all_of_it.crossed and not await all_of_it.rests(all_of_it.here)
        assert not all_of_it.here.state.outboxes
        await all_of_it.here.office.ephemeral(all_of_it.sender, wire.Ephemeral(all_of_it.carol.id, "sauda", b"typing"))
        assert not all_of_it.here.abroad.sent


@pytest.mark.parametrize("root", FORBIDDEN)
async def test_the_disk_writer_alone_stops_it(autojump_clock, root):
    async with world(writer=root) as all_of_it:
        await all_of_it.send()
        await all_of_it.publish()
        await trio.sleep(2)
        assert [code for code, _ in all_of_it.told()] == [Code.NOT_PERMITTED] * 2
        assert not all_of_it.crossed and not await all_of_it.rests(all_of_it.here)


@pytest.mark.parametrize("root", FORBIDDEN)
async def test_the_receiving_node_alone_stops_it(autojump_clock, root):
    async with world(receiver=root) as all_of_it:
        await all_of_it.send()
        await all_of_it.publish()
        await trio.sleep(2)
        assert sorted(all_of_it.told()) == [
            (Code.ACCEPTED, CELL), (Code.ACCEPTED, CELL), (Code.NOT_PERMITTED, ABROAD), (Code.NOT_PERMITTED, ABROAD),
        ]
        assert not await all_of_it.rests(all_of_it.there) and not all_of_it.there.state.rosters
        assert not all_of_it.reader.of(wire.Deliver)


async def test_the_receiving_disk_writer_alone_stops_it_by_its_name(autojump_clock):
    async with world() as all_of_it:
        all_of_it.there.journal._residency._policies = Policies(FORBIDDEN[1])
        await all_of_it.send()
        await trio.sleep(2)
        assert all_of_it.told()[-1] == (Code.NOT_PERMITTED, ABROAD)
        assert not await all_of_it.rests(all_of_it.there)


async def test_what_waits_is_withheld_once_it_is_forbidden(autojump_clock):
    async with world() as all_of_it:
        all_of_it.link.up = False
        group = await all_of_it.publish()
        await all_of_it.send()
        sealed = seal(all_of_it.here, group.id, 1, roster=True, body=CANARY)
        await all_of_it.here.office.submit(all_of_it.sender, [wire.SubmitItem("", sealed)])
        await trio.sleep(2)
        assert [code for code, _ in all_of_it.told()] == [Code.ACCEPTED] * 3
        all_of_it.forwarders._policies = Policies(FORBIDDEN[0])
        all_of_it.link.up = True
        await trio.sleep(2)
        assert all_of_it.told()[3:] == [(Code.NOT_PERMITTED, ABROAD)] * 3
        assert not all_of_it.crossed and not await all_of_it.rests(all_of_it.there)
        outbox = all_of_it.here.state.outboxes[ABROAD]
        assert outbox.done == outbox.last == 3 and not outbox.items and not outbox.bytes
        all_of_it.forwarders._policies = Policies(LAX)
        await all_of_it.send(body=b"later " + CANARY)
        await trio.sleep(2)
        assert all_of_it.told()[-1] == (Code.STORED, ABROAD) and len(all_of_it.reader.of(wire.Deliver)) == 1


async def test_what_went_before_it_was_forbidden_is_not_called_refused(autojump_clock):
    """The answer was lost, and the next forwarder has another root document: the outcome of the other cell counts."""
    async with world() as all_of_it:
        reception, lost = all_of_it.link.reception, []

        async def loses(peer, message):
            answer = await reception(peer, message)
            if not lost:
                lost.append(answer)
                all_of_it.forwarders._policies = Policies(FORBIDDEN[0])
                raise Refused(Code.UNREACHABLE, "the answer was lost")
            return answer

        all_of_it.link.reception = loses
        await all_of_it.send()
        await trio.sleep(5)
        assert lost and all_of_it.told() == [(Code.ACCEPTED, CELL), (Code.STORED, ABROAD)]


@pytest.mark.parametrize("root", SHORT)
@pytest.mark.parametrize("who", ["sender", "writer", "receiver"])
async def test_each_alone_refuses_what_would_rest_too_long(autojump_clock, root, who):
    async with world(**{who: root}) as all_of_it:
        await all_of_it.send(3)
        await trio.sleep(2)
        assert await all_of_it.rests(all_of_it.there), "as long as is permitted"
        await all_of_it.send(3.01, b"second")
        await trio.sleep(2)
        told = all_of_it.told()
        if who == "sender":
            (item,) = all_of_it.sender.of(wire.Receipt)[-1].items
            assert (item.code, item.newest) == (Code.LIFETIME, 3 * DAY)
            assert not all_of_it.here.state.outboxes[ABROAD].items
        elif who == "writer":
            assert Code.NOT_PERMITTED in [code for code, _ in told]
        elif root is SHORT[1]:
            assert told[-1] == (Code.LIFETIME, ABROAD)
        assert len(all_of_it.reader.of(wire.Deliver)) == (2 if who == "receiver" and root is SHORT[0] else 1)


async def test_one_of_a_batch_that_the_disk_writer_refuses_spoils_no_other(autojump_clock):
    async with world(writer=FORBIDDEN[0]) as all_of_it:
        near, far = (seal(all_of_it.here, to, body=CANARY) for to in (all_of_it.alice.id, all_of_it.carol.id))
        items = [wire.SubmitItem("", one) for one in (near, far, seal(all_of_it.here, all_of_it.alice.id, body=b"2"))]
        await all_of_it.here.office.submit(all_of_it.sender, items)
        await trio.sleep(1)
        assert sorted(code for code, _ in all_of_it.told()) == [Code.STORED, Code.STORED, Code.NOT_PERMITTED]


def test_what_was_made_under_another_policy_is_taken_and_carried():
    """Nodes of a cell hold different root documents while they are restarted one by one: what the one that leads has
    made is not judged again by the next. A carry moves what rests here already."""
    alice, carol = User("alice", CELL), User("carol", ABROAD)
    alice.record("a1")
    carol.record("c1")
    guard = ResidencyGuard("norden", CELL, FORBIDDEN[0])
    guard.learn(guard.check([records.encode_record(records.Home(alice.chain[0]))]))
    sealed = envelope.join(encode(envelope.Header(1, envelope.To.MAILBOX, carol.id, 1, 0, DAY, 1)), b"x")
    mail = records.encode_record(records.Submit(device_id("a1"), ABROAD, sealed))
    with pytest.raises(NotPermitted, match="norden does not send to sauda"):
        guard.check([mail])
    guard.check([mail], made=True)
    guard.check([records.encode_record(records.Carry((records.Carried(1, 0, mail),)))])
    stray = records.encode_record(records.Submit(device_id("c1"), ABROAD, sealed))
    with pytest.raises(ResidencyError, match="not at home"):
        guard.check([stray], made=True)  # whose mail it is, is asked always
