"""A cell whose root names logs: no home record gets in without its proof, by whichever way it comes."""

from __future__ import annotations

import copy
from contextlib import asynccontextmanager

import pytest
import structlog.testing
import trio
from nacl.signing import SigningKey
from trio.testing import wait_all_tasks_blocked

from cluster.core import linkwire
from cluster.handover import Reception
from cluster.movers import Movers
from relay.core import records, wire
from relay.core.codec import digest, encode, pack
from relay.core.trust import Root, read_home
from relay.core.wire import Code
from relay.errors import AuthError, RegionHalted, ResidencyError
from relay.journal.guard import ResidencyGuard
from tests.logged import logged_region, stapled
from tests.relay.conftest import ABROAD, CELL, Cell, FakeEnv
from tests.relay.core.mailroom.conftest import FAR, User, device_id
from tests.relay.test_office import seal
from tests.roots import verified_root

REGISTRAR = SigningKey(digest(b"registrar"))


def make_root(quorum: int = 1, *names: str) -> Root:
    return verified_root([logged_region(name, REGISTRAR, quorum) for name in names or ("norden", "sauda")], FAR)


ROOT = make_root()


@asynccontextmanager
async def opened(root: Root = ROOT):
    cell = Cell(FakeEnv(), residency=ResidencyGuard("norden", CELL, root), root=root)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cell.delivery.run)
        nursery.start_soon(cell.intake.run)
        yield cell
        nursery.cancel_scope.cancel()


def person(name: str = "alice", cell: str = CELL) -> User:
    user = User(name, cell)
    user.record(f"{name}1")
    return user


def logged(user: User) -> list[bytes]:
    return [*user.chain[:-1], stapled(user.chain[-1], *({"norden", "sauda"} - {user.cell.split("/")[0]}))]


async def admit(cell: Cell, user: User, chain: list[bytes]) -> None:
    await cell.office.admit(user.id, device_id(f"{user.name}1"), chain)


async def test_a_device_brings_the_proof_and_whoever_looks_the_user_up_gets_it(autojump_clock):
    alice = person()
    async with opened() as cell:
        with pytest.raises(AuthError, match="without the proof"):
            await admit(cell, alice, alice.chain)
        with pytest.raises(AuthError, match="0 of 1 witnesses"):
            await admit(cell, alice, [stapled(alice.chain[0])])
        assert not cell.state.users
        await admit(cell, alice, logged(alice))
        assert cell.state.users[alice.id].chain == logged(alice)
        await admit(cell, alice, alice.chain)  # what is known here is not asked about again
        alice.record("alice1", "alice2")
        with pytest.raises(AuthError, match="without the proof"):
            await admit(cell, alice, alice.chain)
        await admit(cell, alice, logged(alice))
        assert cell.state.users[alice.id].record.version == 2


async def test_another_proof_takes_the_place_of_one_that_does_not_hold_any_more(autojump_clock):
    """The root asks for two witnesses now; what is in the log was signed when one was enough."""
    alice = person()
    before, after = make_root(1, "norden", "sauda", "vika"), make_root(2, "norden", "sauda", "vika")
    async with opened(before) as cell:
        old, new = ([stapled(alice.chain[0], *names)] for names in (("vika",), ("sauda", "vika")))
        await admit(cell, alice, old)
        await admit(cell, alice, new)
        assert cell.state.users[alice.id].chain == old  # ours holds
        cell.office.root = after
        await admit(cell, alice, [stapled(alice.chain[0], "sauda")])  # neither holds: nothing is changed for it
        assert cell.state.users[alice.id].chain == old
        await admit(cell, alice, new)
        assert cell.state.users[alice.id].chain == new and cell.state.users[alice.id].record.signed == new[0]
        count = cell.journal.tip
        await admit(cell, alice, new)
        assert cell.journal.tip == count and cell.state.devices[device_id("alice1")].since == 1


@pytest.mark.parametrize("form", ["home", "move", "handed"])
def test_the_disk_writer_alone_refuses_what_is_not_logged(form: str) -> None:
    guard, alice = ResidencyGuard("norden", CELL, ROOT), person()

    def block(chain: list[bytes]) -> list[bytes]:
        made = {"home": records.Home(chain[-1]), "move": records.Move(tuple(chain)), "handed": moved_here(chain)}
        return [records.encode_record(made[form])]

    if form != "home":
        alice = person("alice", ABROAD)
        alice.move(CELL)
    with pytest.raises(ResidencyError, match="without the proof"):
        guard.check(block(alice.chain))
    guard.check(block(alice.chain), made=True)  # under another root, perhaps: whose mail it is counts
    guard.learn(guard.check(block(logged(alice))))
    guard.check(block(alice.chain))  # known already
    alice.record("alice1", "alice2")
    with pytest.raises(ResidencyError, match="without the proof"):
        guard.check(block(alice.chain))
    guard.learn(guard.check(block(logged(alice))))
    guard.check(block(alice.chain))


def moved_here(chain: list[bytes]) -> records.HandIn:
    return records.HandIn(ABROAD, bytes(16), 1, 0, records.HANDIN_MOVE, pack([list(chain)]), b"")


async def test_a_move_that_the_region_that_is_entered_did_not_log_brings_nobody(autojump_clock):
    alice = person("alice", ABROAD)
    alice.move(CELL)
    async with opened() as cell:
        movers, reception = Movers(ROOT, cell.delivery), Reception(
            ROOT, cell.delivery, cell.intake, cell.barrier, cell.office, None
        )
        assert movers.begin().record(moved_here(alice.chain)).what == records.HANDIN_REFUSED
        assert movers.begin().record(moved_here(logged(alice))).what == records.HANDIN_MOVE
        for number, (chain, code) in enumerate(((alice.chain, Code.BAD_RECORD), (logged(alice), Code.STORED)), 1):
            item = linkwire.HandItem(records.HANDIN_MOVE, encode(records.Chain(tuple(chain))), b"")
            with structlog.testing.capture_logs() as logs:
                answer = await reception(
                    linkwire.Peer("sauda", ABROAD, "n1"), linkwire.HandOver(b"o" * 16, 0, number, (item,))
                )
            assert [one.code for one in answer.outcomes] == [code]
            assert (code == Code.STORED) == (alice.id in cell.state.users)
            assert code == Code.STORED or "without the proof" in str(logs)
        assert read_home(cell.state.users[alice.id].chain[-1]).cell == CELL


async def test_mail_for_a_region_that_is_halted_is_refused_for_now(autojump_clock):
    """By whom and why: tests/cluster/test_halts.py. Known recipients there make no difference."""
    alice, bob = person(), person("bob", ABROAD)

    def halted(dest: str) -> None:
        if dest == ABROAD:
            raise RegionHalted(Code.UNREACHABLE, "federation with sauda is halted: its log forked", dest)

    async with opened() as cell, trio.open_nursery() as nursery:
        cell.directory.known[bob.id] = read_home(logged(bob)[0])
        alice.chain[:] = logged(alice)
        line = await cell.join(nursery, alice, "alice1")
        await cell.office.submit(line, [wire.SubmitItem("sauda", seal(cell, bob.id))])
        cell.office.halted = halted
        await cell.office.submit(line, [wire.SubmitItem("sauda", seal(cell, bob.id, body=b"y"))])
        await wait_all_tasks_blocked()
        assert sorted(line.codes()) == [Code.ACCEPTED, Code.UNREACHABLE]
        nursery.cancel_scope.cancel()


async def test_the_receiving_node_alone_refuses_a_move_that_forks_what_is_known_here(autojump_clock):
    alice = person()
    async with opened() as cell:
        await admit(cell, alice, logged(alice))
        twin = copy.deepcopy(alice)
        alice.record("alice1", "alice2")
        await admit(cell, alice, logged(alice))
        twin.move(ABROAD)
        movers = Movers(ROOT, cell.delivery)
        with structlog.testing.capture_logs() as logs:
            assert movers.begin().record(moved_here(logged(twin))).what == records.HANDIN_REFUSED
        assert "a fork" in str(logs)
        alice.move(ABROAD)
        assert movers.begin().record(moved_here(logged(alice))).what == records.HANDIN_MOVE
