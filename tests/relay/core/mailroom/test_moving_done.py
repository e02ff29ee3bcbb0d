"""Users who move: when a move is done, and what is not taken for one who did."""

from __future__ import annotations

from relay.core import records
from relay.core.codec import encode
from relay.core.wire import Code
from tests.relay.core.mailroom.test_moving import A, B, World, enrolled, world

__all__ = ["world"]  # the fixture


def test_it_is_confirmed_only_once_all_that_waited_is_there(world: World) -> None:
    """The new home is told, gets what waits, and is told again: the answer to that is the one that counts."""
    enrolled(world, "alice", A)
    bob, here = enrolled(world, "bob", A), world.logs[A]
    for body in (b"one", b"two"):
        here.apply(here.submit("a1", here.seal(bob.id, body=body)))
    world.move(bob, B, tell=A)
    moved, confirmed = here.room.state.moved[bob.id], list[bool]()
    while world.hand(A, B, 1):
        confirmed.append(moved.confirmed)
    assert confirmed == [False, False, False, True] and len(world.logs[B].ids("b1")) == 2


def test_the_new_homes_own_word_confirms_nothing_as_long_as_mail_waits(world: World) -> None:
    enrolled(world, "alice", A)
    bob, here = enrolled(world, "bob", A), world.logs[A]
    here.apply(here.submit("a1", here.seal(bob.id)))
    world.move(bob, B, tell=B)
    assert bob.id in here.room.state.users
    world.hand(B, A)
    moved = here.room.state.moved[bob.id]
    assert not moved.confirmed and moved.items
    world.settle()
    assert moved.confirmed and not moved.items and len(world.logs[B].ids("b1")) == 1


def test_who_left_is_not_forgotten_while_something_waits_for_the_new_home(world: World) -> None:
    enrolled(world, "alice", A)
    bob, here = enrolled(world, "bob", A), world.logs[A]
    here.apply(here.submit("a1", here.seal(bob.id, life=4 * here.time)))
    world.move(bob, B, tell=A)
    here.apply(records.Tick(), after_ms=here.time)  # FAR
    assert here.room.state.moved[bob.id].items
    world.settle()
    here.apply(records.Tick(), after_ms=86_400_000)
    assert not here.room.state.moved


def test_what_was_sent_on_by_a_version_that_is_not_known_here_is_not_taken(world: World) -> None:
    alice, bob, here = enrolled(world, "alice", B), enrolled(world, "bob", A), world.logs[B]
    mail = here.seal(alice.id)

    def code(number: int, user: bytes, version: int) -> int:
        part = encode(records.Forward(user, version, ()))
        here.apply(records.HandIn(A, b"f" * 16, number, 0, records.HANDIN_FORWARD, mail, part))
        return here.room.state.origins[A, b"f" * 16].outcomes[number][0]

    assert code(1, alice.id, 2) == Code.UNKNOWN_USER and code(2, bob.id, 1) == Code.UNKNOWN_USER
    world.move(bob, B, tell=B)
    assert code(3, bob.id, 2) == Code.BAD_ENVELOPE, "somebody else's letter"
    assert here.ids("a1") == [] and here.ids("b1") == []
    assert code(4, alice.id, 1) == Code.STORED and len(here.ids("a1")) == 1
