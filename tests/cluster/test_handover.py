"""What another cell hands over: in order, once, and never the bytes of somebody who is not at home here."""

from __future__ import annotations

import pytest
import structlog.testing
import trio
from trio.testing import wait_all_tasks_blocked

from cluster.core import linkwire
from cluster.handover import Reception
from relay.core import records
from relay.core.codec import encode
from relay.core.wire import Code
from relay.errors import Overloaded, ResidencyError
from relay.limits import LINK_DEADLINE_S
from tests.relay.conftest import ABROAD, CELL, Cell, FakeEnv, make_root
from tests.relay.core.mailroom.conftest import Group, User, device_id
from tests.relay.test_office import seal

PEER = linkwire.Peer("sauda", ABROAD, "n1")


def hand_over(first, *items, log=b"o" * 16, confirmed=0):
    listed = tuple(linkwire.HandItem(records.HANDIN_ENVELOPE, item, b"") for item in items)
    return linkwire.HandOver(log, confirmed, first, listed)


class Opened:
    """A cell with bob at home, and its reception."""

    async def __aenter__(self):
        self._manager = trio.open_nursery()
        self.nursery = await self._manager.__aenter__()
        self.cell = Cell(FakeEnv())
        self.nursery.start_soon(self.cell.delivery.run)
        self.nursery.start_soon(self.cell.intake.run)
        self.bob = User("bob", CELL)
        self.bob.record("b1")
        self.line = await self.cell.join(self.nursery, self.bob, "b1")
        cell = self.cell
        self.reception = Reception(make_root(), cell.delivery, cell.intake, cell.barrier, cell.office, None)
        return self

    async def __aexit__(self, *error):
        self.nursery.cancel_scope.cancel()
        return await self._manager.__aexit__(*error)

    def delivered(self):
        return [message.envelope for message in self.line.messages if hasattr(message, "envelope")]


async def test_in_order_and_once(autojump_clock):
    async with Opened() as world:
        sealed = [seal(world.cell, world.bob.id, body=bytes([n])) for n in range(6)]
        early = await world.reception(PEER, hand_over(3, *sealed[2:]))
        assert (early.log, early.vector, early.outcomes) == (world.cell.state.log_id, 0, ())
        first = await world.reception(PEER, hand_over(1, *sealed[:3]))
        assert first.vector == 3
        assert [(o.number, o.code) for o in first.outcomes] == [(n, Code.STORED) for n in (1, 2, 3)]
        repeated = await world.reception(PEER, hand_over(2, *sealed[1:], confirmed=1))
        assert repeated.vector == 6 and [o.number for o in repeated.outcomes] == [2, 3, 4, 5, 6]
        await wait_all_tasks_blocked()
        assert world.delivered() == sealed


async def test_bytes_for_somebody_else_are_refused_by_number_and_never_written(autojump_clock):
    async with Opened() as world:
        foreign, good = seal(world.cell, bytes(32), body=b"foreign bytes"), seal(world.cell, world.bob.id)
        answer = await world.reception(PEER, hand_over(1, foreign, b"not an envelope", good))
        assert [o.code for o in answer.outcomes] == [Code.UNKNOWN_USER, Code.BAD_ENVELOPE, Code.STORED]
        blocks = [await world.cell.journal.read(index) for index in range(1, world.cell.journal.tip + 1)]
        assert not any(b"foreign bytes" in record for block in blocks for record in block.records)


async def test_only_what_is_refused_is_logged_and_once(autojump_clock, monkeypatch):
    """A batch that is cut is tried again from there on, and what was cut off may be refused then, or not."""
    async with Opened() as world:
        sealed = [seal(world.cell, world.bob.id, body=bytes([n])) for n in range(2)]
        batch = [sealed[0], b"not an envelope", sealed[1], seal(world.cell, bytes(32), body=b"foreign")]
        monkeypatch.setattr("cluster.handover.MAX_HANDOVER", 2 * len(sealed[0]) - 1)
        seen = []
        for first, vector in ((1, 2), (3, 4), (3, 4)):
            with structlog.testing.capture_logs() as logs:
                answer = await world.reception(PEER, hand_over(first, *batch[first - 1 :]))
            assert answer.vector == vector
            seen.append([(log["number"], log["code"]) for log in logs if log["event"] == "not_at_home"])
        assert seen == [[(2, "bad_envelope")], [(4, "unknown_user")], []]


async def test_what_the_disk_writer_refuses_is_refused_by_number(autojump_clock, monkeypatch):
    async with Opened() as world:
        append = world.cell.journal.append

        async def strict(items, placed):
            for ordinal, item in enumerate(items):
                if b"forbidden" in item:
                    raise ResidencyError("not here", ordinal=ordinal)
            await append(items)

        monkeypatch.setattr(world.cell.journal, "append", strict)
        sealed = [seal(world.cell, world.bob.id, body=body) for body in (b"one", b"forbidden", b"three")]
        answer = await world.reception(PEER, hand_over(1, *sealed))
        assert answer.vector == 3
        assert [o.code for o in answer.outcomes] == [Code.STORED, Code.UNKNOWN_USER, Code.STORED]
        await wait_all_tasks_blocked()
        assert world.delivered() == [sealed[0], sealed[2]]


async def test_what_was_sent_on_is_not_refused_for_records_that_came_with_a_number_before_it(autojump_clock):
    """The answer to the first batch was lost, and dora moved on before the next: that begins with a number that is
    applied here already, with the records beside it (found by the simulator, seed 615)."""
    async with Opened() as world:
        dora = User("dora", ABROAD)
        dora.record("d1")
        sealed = [seal(world.cell, dora.id, body=bytes([n])) for n in range(3)]

        def sent_on(first, *items):
            """Items: (number of the envelope, with how many records)."""
            parts = [records.Forward(dora.id, len(dora.chain), tuple(dora.chain[:upto])) for _, upto in items]
            listed = [
                linkwire.HandItem(records.HANDIN_FORWARD, sealed[n], encode(part))
                for (n, _), part in zip(items, parts, strict=True)
            ]
            return linkwire.HandOver(b"o" * 16, 0, first, tuple(listed))

        dora.move(CELL)
        answer = await world.reception(PEER, sent_on(1, (0, 2), (1, 0)))
        assert [one.code for one in answer.outcomes] == [Code.STORED] * 2
        dora.move(ABROAD)
        answer = await world.reception(PEER, sent_on(2, (1, 3), (2, 0)))
        assert (answer.vector, [one.number for one in answer.outcomes]) == (2, [2])
        answer = await world.reception(PEER, sent_on(3, (2, 3)))
        assert [one.code for one in answer.outcomes] == [Code.ACCEPTED]
        dora.move(CELL)
        answer = await world.reception(PEER, sent_on(4, (0, 0)))
        assert [one.code for one in answer.outcomes] == [Code.UNKNOWN_USER]  # nothing came before it


async def _at_once(world, *requests):
    """Hand over side by side, as they came over the link; the answers in the same order."""
    answers = {}

    async def one(place, request):
        answers[place] = await world.reception(PEER, request)

    async with trio.open_nursery() as nursery:
        for place, request in enumerate(requests):
            nursery.start_soon(one, place, request)
    return [answers[place] for place in range(len(requests))]


async def test_a_batch_goes_into_the_log_right_behind_the_one_before(autojump_clock, monkeypatch):
    async with Opened() as world:
        sealed = [seal(world.cell, world.bob.id, body=bytes([n])) for n in range(6)]
        append, places = world.cell.journal.append, list[trio.Event]()

        async def slow(items, placed):
            before, mine = places[-1:], trio.Event()
            places.append(mine)
            placed()
            await trio.sleep(1)
            for one in before:  # two that wake at once do so in any order; the log keeps that of the places
                await one.wait()
            await append(items)
            mine.set()

        monkeypatch.setattr(world.cell.journal, "append", slow)
        start = trio.current_time()
        batches = [hand_over(5, *sealed[4:]), hand_over(3, *sealed[2:4]), hand_over(1, *sealed[:2])]
        answers = await _at_once(world, *batches)
        assert trio.current_time() - start < 2
        assert [max(one.number for one in answer.outcomes) for answer in answers] == [6, 4, 2]
        await wait_all_tasks_blocked()
        assert world.delivered() == sealed


async def test_what_was_passed_over_behind_a_batch_that_was_refused_is_written_again(autojump_clock, monkeypatch):
    """The disk writer has something against the first batch, so that the fold passes over those behind it."""
    async with Opened() as world:
        sealed = [seal(world.cell, world.bob.id, body=body) for body in (b"forbidden", b"two", b"three", b"four")]
        append = world.cell.journal.append

        async def strict(items, placed):
            placed()
            await trio.sleep(1)
            for ordinal, item in enumerate(items):
                if b"forbidden" in item:
                    await trio.sleep(1)
                    raise ResidencyError("not here", ordinal=ordinal)
            await append(items)

        monkeypatch.setattr(world.cell.journal, "append", strict)
        answers = await _at_once(world, *(hand_over(n, one) for n, one in enumerate(sealed, 1)))
        assert [one.outcomes[0].code for one in answers] == [Code.UNKNOWN_USER] + [Code.STORED] * 3
        await wait_all_tasks_blocked()
        assert world.delivered() == sealed[1:]


async def _slowly(world, monkeypatch):
    """Each batch takes the journal a second; several are under way."""
    append = world.cell.journal.append

    async def slow(items, placed):
        placed()
        await trio.sleep(1)
        await append(items)

    monkeypatch.setattr(world.cell.journal, "append", slow)


async def _written(world):
    blocks = [await world.cell.journal.read(index) for index in range(1, world.cell.journal.tip + 1)]
    found = [records.decode_record(record) for block in blocks for record in block.records]
    return [(record.origin_log[:1], record.number) for record in found if isinstance(record, records.HandIn)]


async def test_what_is_offered_already_is_not_offered_again(autojump_clock, monkeypatch):
    """The same batch over another link, while it is on its way into the log."""
    async with Opened() as world:
        sealed = [seal(world.cell, world.bob.id, body=bytes([n])) for n in range(4)]
        await _slowly(world, monkeypatch)
        batches = [hand_over(1, *sealed[:2]), hand_over(3, *sealed[2:]), hand_over(3, *sealed[2:])]
        answers = await _at_once(world, *batches)
        assert [answer.vector for answer in answers] == [4, 4, 4] or answers[0].vector == 2
        assert await _written(world) == [(b"o", number) for number in (1, 2, 3, 4)]


async def test_a_batch_follows_none_of_another_log(autojump_clock, monkeypatch):
    async with Opened() as world:
        sealed = [seal(world.cell, world.bob.id, body=bytes([n])) for n in range(4)]
        await _slowly(world, monkeypatch)
        await _at_once(world, hand_over(1, *sealed[:2]), hand_over(3, *sealed[2:], log=b"p" * 16))
        assert await _written(world) == [(b"o", 1), (b"o", 2)]


async def test_nobody_is_refused_for_what_the_batch_before_brings(autojump_clock, monkeypatch):
    """carol comes home with the first batch; the second, for her, is there before that is applied."""
    async with Opened() as world:
        carol = User("carol", ABROAD)
        carol.record("c1")
        carol.move(CELL)
        move = linkwire.HandItem(records.HANDIN_MOVE, encode(records.Chain(tuple(carol.chain))), b"")
        first = linkwire.HandOver(b"o" * 16, 0, 1, (move,))
        await _slowly(world, monkeypatch)
        mail = seal(world.cell, carol.id, body=b"welcome")
        answers = await _at_once(world, first, hand_over(2, mail))
        assert [one.code for one in answers[1].outcomes] == [Code.STORED]


async def test_two_logs_of_one_cell_are_counted_apart(autojump_clock):
    async with Opened() as world:
        for log in (b"o" * 16, b"p" * 16):
            answer = await world.reception(PEER, hand_over(1, seal(world.cell, world.bob.id, body=log), log=log))
            assert answer.vector == 1
        assert len(world.delivered()) == 2


async def test_a_node_that_is_behind_denies_nobody(autojump_clock):
    """carol has come to another node of the cell: this one has not applied that block yet."""
    async with Opened() as world:
        carol = User("carol", CELL)
        record = records.Home(carol.record("c1"))
        fresh, unknown = (seal(world.cell, one, body=b"first") for one in (carol.id, bytes(32)))
        await world.cell.journal.append([records.encode_record(record)])
        assert carol.id not in world.cell.state.users
        answer = await world.reception(PEER, hand_over(1, fresh, unknown))
        assert [o.code for o in answer.outcomes] == [Code.STORED, Code.UNKNOWN_USER]


async def test_a_node_that_is_behind_does_not_say_that_a_group_has_nobody_here(autojump_clock):
    async with Opened() as world:
        carol = User("carol", CELL)
        record = records.Home(carol.record("c1"))
        made = Group("a1").publish({CELL: [carol.id]})
        item = linkwire.HandItem(records.HANDIN_ROSTER, made.head, dict(made.parts)[CELL])
        await world.cell.journal.append([records.encode_record(record)])
        assert carol.id not in world.cell.state.users
        answer = await world.reception(PEER, linkwire.HandOver(b"o" * 16, 0, 1, (item,)))
        assert answer.vector == 1 and carol.id in world.cell.state.memberships


async def test_a_node_without_a_majority_refuses_nothing_for_good(autojump_clock, monkeypatch):
    async with Opened() as world:
        monkeypatch.setattr(world.cell.journal, "append", hang)
        with pytest.raises(Overloaded):
            await world.reception(PEER, hand_over(1, seal(world.cell, bytes(32))))


async def hang(items, placed):
    await trio.sleep_forever()


async def test_a_node_that_is_behind_does_not_say_so_little_that_it_proves_a_loss(autojump_clock):
    """The other cell had an answer from another node of this one. Only what stays away is missing (rule 13)."""
    async with Opened() as world:
        sealed = [seal(world.cell, world.bob.id, body=bytes([n])) for n in range(4)]
        await world.reception(PEER, hand_over(1, *sealed[:1]))
        answers = []

        async def ask():
            answers.append(await world.reception(PEER, hand_over(4, *sealed[3:], confirmed=3)))

        world.nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert not answers
        await world.reception(PEER, hand_over(2, *sealed[1:3]))  # what the other node had applied comes
        await trio.sleep(1)
        assert [answer.vector for answer in answers] == [4]
        began = trio.current_time()
        missing = await world.reception(PEER, hand_over(9, sealed[0], confirmed=8))
        assert (missing.log, missing.vector) == (world.cell.state.log_id, 4)
        assert trio.current_time() - began < LINK_DEADLINE_S


async def test_a_node_that_is_behind_takes_what_is_skipped_as_soon_as_it_may(autojump_clock):
    """What a renewed log lost is below what was confirmed: it is not waited for."""
    async with Opened() as world:
        sealed = [seal(world.cell, world.bob.id, body=bytes([n])) for n in range(2)]
        answers = []

        async def ask():
            void = linkwire.HandItem(records.HANDIN_VOID, b"", b"")
            answers.append(await world.reception(PEER, linkwire.HandOver(b"o" * 16, 8, 3, (void,) * 6)))

        world.nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert not answers
        await world.reception(PEER, hand_over(1, *sealed))
        await trio.sleep(1)
        assert [answer.vector for answer in answers] == [8]


async def test_what_became_of_a_letter_comes_in_one_batch_with_its_sender(autojump_clock):
    """Found by the simulator, seed 302: the notice was judged by who was at home before the batch."""
    async with Opened() as world:
        carol = User("carol", ABROAD)
        carol.record("c1")
        carol.move(CELL)
        told = records.ForDevice(device_id("c1"), b"i" * 32, Code.STORED, 1, ABROAD)
        items = (
            linkwire.HandItem(records.HANDIN_MOVE, encode(records.Chain(tuple(carol.chain))), b""),
            linkwire.HandItem(records.HANDIN_NOTICE, encode(told), b""),
        )
        answer = await world.reception(PEER, linkwire.HandOver(b"o" * 16, 0, 1, items))
        assert answer.vector == 2 and Code.UNKNOWN_USER not in [outcome.code for outcome in answer.outcomes]
        (notice,) = world.cell.state.devices[device_id("c1")].notices.values()
        assert (notice.id, notice.code) == (told.id, Code.STORED)


async def test_only_an_old_home_sends_on(autojump_clock):
    """Found by the simulator's liar: any region could give a user what it liked, past repeats and the bound."""
    async with Opened() as world:
        mail = seal(world.cell, world.bob.id)
        for chain in ((), tuple(world.bob.chain)):
            part = encode(records.Forward(world.bob.id, 1, chain))
            item = linkwire.HandItem(records.HANDIN_FORWARD, mail, part)
            vector = len(world.cell.state.origins)
            with structlog.testing.capture_logs() as said:
                answer = await world.reception(PEER, linkwire.HandOver(bytes([vector]) * 16, 0, 1, (item,)))
            assert [outcome.code for outcome in answer.outcomes] == [Code.BAD_RECORD]
            assert "never was at home there" in str(said)
        await wait_all_tasks_blocked()
        assert world.delivered() == []


async def test_only_an_old_home_says_what_became_of_a_letter(autojump_clock):
    """Found by the simulator's liar: any region could tell a device here that its letter was refused, or stored."""
    async with Opened() as world:
        told = records.ForDevice(device_id("b1"), b"i" * 32, Code.STORED, 1, "quito/1")
        item = linkwire.HandItem(records.HANDIN_NOTICE, encode(told), b"")
        with structlog.testing.capture_logs() as said:
            answer = await world.reception(PEER, linkwire.HandOver(b"o" * 16, 0, 1, (item,)))
        assert [outcome.code for outcome in answer.outcomes] == [Code.BAD_RECORD]
        assert "never was at home there" in str(said)
        assert not world.cell.state.devices[device_id("b1")].notices
