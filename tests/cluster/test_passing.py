"""`hold = "deny"`: what is bound abroad is passed on at once, or not taken; nothing of it touches a disk at home."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

from cluster.core.linkwire import PassedOn, PassOn, Peer
from cluster.passing import pass_on
from relay.core import records, wire
from relay.core.envelope import envelope_id
from relay.core.policy import Policies
from relay.core.trust import Policy
from relay.core.wire import Code, ReceiptItem
from relay.errors import Overloaded, PeerError, Refused
from relay.limits import DAY, MINUTE
from tests.cluster.test_policy import CANARY, LAX, World, world
from tests.policies import root_with
from tests.relay.conftest import ABROAD, CELL
from tests.relay.core.mailroom.conftest import Group, User
from tests.relay.test_office import seal

DENY = root_with(norden=Policy(hold="deny"))


class Abroad:
    """relay.ports.Abroad over the border of a world; `lose`: so many answers are lost on their way back."""

    def __init__(self, made: World) -> None:
        self.made, self.lose = made, 0

    async def pass_on(self, cell, envelopes):
        items = await pass_on(self.made.link, cell, envelopes)
        if self.lose:
            self.lose -= 1
            raise Refused(Code.UNREACHABLE, "the answer was lost")
        return items

    async def ephemeral(self, *what):
        raise AssertionError


async def hang(*what):
    await trio.sleep_forever()


@asynccontextmanager
async def denying(**roots):
    async with world(**({"sender": DENY, "writer": DENY, "receiver": DENY, "forwarder": DENY} | roots)) as made:
        made.here.office._abroad = Abroad(made)
        yield made


async def test_it_is_stored_abroad_and_rests_nowhere_else(autojump_clock):
    async with denying() as made:
        await made.send()
        await made.send(body=b"second")
        assert made.told() == [(Code.STORED, ABROAD)] * 2
        assert [b"second" in one.envelope for one in made.reader.of(wire.Deliver)] == [False, True]
        assert not await made.rests(made.here) and await made.rests(made.there)
        assert not made.here.state.outboxes and not made.here.state.sources


async def test_what_cannot_go_now_is_not_taken_and_goes_later(autojump_clock):
    async with denying() as made:
        made.link.up = False
        sealed = seal(made.here, made.carol.id, body=CANARY)
        near = seal(made.here, made.alice.id, body=b"near")
        items = [wire.SubmitItem("sauda", sealed), wire.SubmitItem("", near)]
        await made.here.office.submit(made.sender, items)
        await trio.sleep(1)
        assert sorted(made.told()) == [(Code.STORED, CELL), (Code.UNREACHABLE, CELL)]
        assert not await made.rests(made.here)
        made.link.up = True
        await made.here.office.submit(made.sender, items[:1])
        assert made.told()[-1] == (Code.STORED, ABROAD) and len(made.reader.of(wire.Deliver)) == 1


async def test_a_cell_that_hangs_holds_the_connection_up_for_a_short_while(autojump_clock):
    async with denying() as made:
        made.link.request = hang
        began = trio.current_time()
        await made.send()
        assert trio.current_time() - began < 10 and made.told() == [(Code.UNREACHABLE, CELL)]


async def test_the_same_again_has_the_first_outcome_and_is_delivered_once(autojump_clock):
    async with denying() as made:
        made.here.office._abroad.lose = 2
        sealed = seal(made.here, made.carol.id, body=CANARY)
        for _ in range(4):
            await made.here.office.submit(made.sender, [wire.SubmitItem("sauda", sealed)])
        receipts = [item for receipt in made.sender.of(wire.Receipt) for item in receipt.items]
        assert [item.code for item in receipts] == [Code.UNREACHABLE] * 2 + [Code.STORED] * 2
        assert receipts[-1] == receipts[-2] and receipts[-1].position > 0
        assert [one.envelope for one in made.reader.of(wire.Deliver)] == [sealed]


async def test_two_who_ask_at_once_and_one_batch_with_repeats_and_refusals(autojump_clock):
    async with denying() as made:
        good = seal(made.here, made.carol.id, body=CANARY)
        late = seal(made.here, made.carol.id, body=b"late")
        long = seal(made.here, made.carol.id, life=31 * DAY)
        foreign, group = seal(made.here, bytes(32)), seal(made.here, bytes(32), roster=True)
        peer, answers = Peer("norden", CELL, "n1"), []
        await trio.sleep(11 * MINUTE / 1000)

        async def ask(*envelopes):
            answers.append(await made.link.reception(peer, PassOn(envelopes)))

        fresh = seal(made.here, made.carol.id, body=b"fresh")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, fresh, b"junk", late, fresh, long, foreign, group, good)
            nursery.start_soon(ask, fresh)
        long_one, short_one = sorted(answers, key=lambda one: -len(one.items))
        assert [item.code for item in long_one.items] == [
            Code.STORED, Code.BAD_ENVELOPE, Code.STALE, Code.STORED, Code.LIFETIME, Code.UNKNOWN_USER,
            Code.NOT_PERMITTED, Code.STALE,
        ]  # fmt: skip
        assert short_one.items[0] == long_one.items[0]
        assert len(made.reader.of(wire.Deliver)) == 1 and not made.there.delivery.room.state.origins


@pytest.mark.parametrize("root", [root_with(sauda=Policy(receive_from=())), root_with(sauda=Policy(retention_days=1))])
async def test_the_receiving_node_and_its_disk_writer_each_judge_what_is_passed_on(autojump_clock, root):
    for roots in ({"receiver": root}, {}):
        async with denying(**roots) as made:
            if not roots:
                made.there.journal._residency._policies = Policies(root)
            await made.send(2)
            code, cell = made.told()[-1]
            assert cell == ABROAD and code in (Code.NOT_PERMITTED, Code.LIFETIME)
            assert not await made.rests(made.there) and not await made.rests(made.here)


async def test_the_disk_writer_at_home_alone_refuses_what_would_wait(autojump_clock):
    async with world(writer=DENY) as made:
        await made.send()
        await trio.sleep(1)
        assert made.told() == [(Code.NOT_PERMITTED, CELL)] and not await made.rests(made.here)


async def test_groups_abroad_are_not_had_where_nothing_may_wait(autojump_clock):
    async with denying() as made:
        await made.publish()
        assert made.told() == [(Code.NOT_PERMITTED, ABROAD)] and not made.here.state.rosters
        unknown = seal(made.here, Group("a1").id, 1, roster=True, body=CANARY)
        await made.here.office.submit(made.sender, [wire.SubmitItem("", unknown)])
        assert made.told()[-1] == (Code.UNREACHABLE, CELL)
        made.here.office._policies, made.here.journal._residency._policies = Policies(LAX), Policies(LAX)
        group = await made.publish()  # one from before the policy
        await trio.sleep(1)
        made.here.office._policies = Policies(DENY)
        sealed = seal(made.here, group.id, 1, roster=True, body=CANARY)
        await made.here.office.submit(made.sender, [wire.SubmitItem("", sealed)])
        assert made.told()[-1][0] != Code.ACCEPTED and not await made.rests(made.here)


async def test_an_answer_for_something_else_is_no_answer():
    class Liar:
        def __init__(self, *items):
            self.items = items

        async def request(self, cell, message, deadline_s):
            await trio.lowlevel.checkpoint()
            return PassedOn(self.items)

    own = envelope_id(b"x")
    for items in ((), (ReceiptItem(bytes(32), Code.STORED, 1, 1, ABROAD),), (ReceiptItem(own, 1, 1, 1, ABROAD),),
                  (ReceiptItem(own, Code.STORED, 1, 1, CELL),)):  # fmt: skip
        with pytest.raises(PeerError):
            await pass_on(Liar(*items), ABROAD, [b"x"])
    (newer,) = await pass_on(Liar(ReceiptItem(own, 55, 1, 1, ABROAD)), ABROAD, [b"x"])
    assert newer.code == Code.NOT_PERMITTED


async def test_a_journal_that_takes_nothing_is_said_to_be_overloaded(autojump_clock):
    async with denying() as made:
        made.there.intake.offer = lambda *what: None
        with pytest.raises(Overloaded):
            await made.link.reception(Peer("norden", CELL, "n1"), PassOn((seal(made.here, made.carol.id),)))


async def test_a_node_that_is_behind_denies_nobody(autojump_clock):
    """dave has come to another node of the cell: this one has not applied that block yet."""
    async with denying() as made:
        dave = User("dave", ABROAD)
        record = records.Home(dave.record("d1"))
        sealed = seal(made.here, dave.id)
        await made.there.journal.append([records.encode_record(record)])
        assert dave.id not in made.there.state.users
        assert [item.code for item in await pass_on(made.link, ABROAD, [sealed])] == [Code.STORED]
        assert [item.code for item in await pass_on(made.link, ABROAD, [seal(made.here, bytes(32))])] == [
            Code.UNKNOWN_USER
        ]


async def test_nobody_is_denied_who_has_just_left(autojump_clock):
    """The sender's node goes by the home that it knows; the letter is for the new one, when it is tried again."""
    async with denying() as made:
        made.carol.move(CELL)
        made.there.intake.offer([records.encode_record(records.Move(tuple(made.carol.chain)))])
        await made.there.delivery.wait_for(lambda: made.carol.id in made.there.state.moved)
        items = await pass_on(made.link, ABROAD, [seal(made.here, made.carol.id, body=CANARY)])
        assert [item.code for item in items] == [Code.UNREACHABLE]
        assert not await made.rests(made.there)
