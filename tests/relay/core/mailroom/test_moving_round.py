"""Users who moved from home to home, where mail may not go from the first to the last: it goes by the one between."""

from __future__ import annotations

import pytest
from msgspec import structs

from relay.core import records
from relay.core.envelope import envelope_id
from relay.core.mailroom.moving import home_before
from relay.core.policy import MAIL
from relay.core.wire import Code
from tests.relay.core.mailroom.conftest import User
from tests.relay.core.mailroom.test_moving import A, B, C, World, enrolled


class Borders(World):
    """What may not cross from cell to cell goes out void, as forwarders have it."""

    def __init__(self, *closed: tuple[str, str]) -> None:
        super().__init__()
        self.closed = set(closed)
        self.withheld: dict[tuple[str, str], set[int]] = {}

    def items(self, origin, to, count=1_000):
        moves, hands = super().items(origin, to, count)
        if (origin, to) not in self.closed:
            return moves, hands
        void = [
            structs.replace(one, what=records.HANDIN_VOID, item=b"", part=b"")
            if one.what in MAIL else one for one in hands
        ]
        self.withheld.setdefault((origin, to), set()).update(one.number for one in hands if one.what in MAIL)
        return [], void

    def answer(self, origin, to):
        known, outbox = self.state(to).origins[origin, self.state(origin).log_id], self.state(origin).outboxes[to]
        withheld = self.withheld.get((origin, to), set())
        given = [
            records.HandedAnswer(number, *known.outcomes.get(number, (Code.NOT_PERMITTED, 0)))
            for number in range(outbox.done + 1, known.vector + 1) if number in known.outcomes or number in withheld
        ]
        log = self.state(to).log_id
        self.logs[origin].apply(records.Handed(to, known.vector, tuple(given), log, outbox.log))

    def nothing_is_left(self, user: User) -> None:
        for cell in self.logs:
            state = self.state(cell)
            moved = state.moved.get(user.id)
            assert moved is None or (moved.items, moved.bytes) == (0, 0), cell
            assert not state.pending and all(box.bytes == 0 and not box.items for box in state.outboxes.values()), cell


@pytest.mark.parametrize("known", [True, False], ids=["A knows of B", "A hears of B and C at once"])
def test_what_waits_in_the_first_home_goes_by_the_second(known: bool) -> None:
    world = Borders((A, C))
    _alice, bob = enrolled(world, "alice", A), enrolled(world, "bob", A)
    here = world.logs[A]
    before = here.seal(bob.id, body=b"before")
    assert here.answers(here.submit("a1", before)) == [Code.STORED]
    world.move(bob, B, tell=A if known else B)
    world.move(bob, C, tell=C)
    world.hand(C, A)  # the first home hears of the third before anything has gone to the second
    world.settle()
    assert world.logs[C].ids("b1") == [envelope_id(before)]
    world.nothing_is_left(bob)
    assert not world.state(A).sources and not world.state(B).sources


def test_what_comes_there_later_too_and_its_sender_hears_that_it_is_stored() -> None:
    """The sender's cell knows nothing of the moves; from there to the third home everything may go."""
    world = Borders((A, C))
    _dora, bob = enrolled(world, "dora", B), enrolled(world, "bob", A)
    world.move(bob, B, tell=B)
    world.move(bob, C, tell=C)
    world.settle()
    late = world.logs[B].seal(bob.id, body=b"late")
    assert world.logs[B].answers(world.logs[B].submit("d1", late, dest=A)) == [Code.ACCEPTED]
    world.settle()
    assert world.logs[C].ids("b1") == [envelope_id(late)]
    assert world.logs[B].ids("d1") == [bytes([Code.STORED]) + envelope_id(late)]
    world.nothing_is_left(bob)


def test_who_is_back_gets_what_was_on_its_way_to_a_home_that_it_may_not_reach() -> None:
    world = Borders((A, C))
    _alice, bob = enrolled(world, "alice", A), enrolled(world, "bob", A)
    here = world.logs[A]
    before = here.seal(bob.id, body=b"before")
    assert here.answers(here.submit("a1", before)) == [Code.STORED]
    world.move(bob, B, tell=B)
    world.move(bob, C, tell=A)
    world.move(bob, A, tell=A)
    world.settle()
    assert envelope_id(before) in here.ids("b1")
    world.nothing_is_left(bob)


def test_where_no_way_is_open_the_sender_is_told() -> None:
    world = Borders((A, C), (A, B))
    _dora, bob = enrolled(world, "dora", C), enrolled(world, "bob", A)
    world.move(bob, B, tell=B)
    world.move(bob, C, tell=A)
    late = world.logs[C].seal(bob.id, body=b"late")
    assert world.logs[C].answers(world.logs[C].submit("d1", late, dest=A)) == [Code.ACCEPTED]
    world.settle()
    assert world.logs[C].ids("d1") == [bytes([Code.NOT_PERMITTED]) + envelope_id(late)]
    world.nothing_is_left(bob)


def test_each_refusal_leads_further_back() -> None:
    assert home_before("c", ["a", "b", "c"]) == "b" and home_before("a", ["a", "b"]) == ""
    assert home_before("d", ["a", "b", "c", "b", "d"]) == "b" and home_before("b", ["a", "b", "c", "b", "d"]) == "c"
    assert home_before("c", ["a", "b", "c", "b", "d"]) == "a"
    assert home_before("c", ["a", "b", "c", "a"]) == "b" and home_before("x", ["a"]) == ""
