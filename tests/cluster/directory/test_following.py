"""The directory by another root document, while it runs: who is asked, and what is believed of before."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from msgspec import structs
from nacl.signing import SigningKey
from trio.testing import wait_all_tasks_blocked

from cluster.directory.federation import _holds_on
from relay.core.trust import EarlierKey, Policy, RootCell
from relay.core.wire import Code
from relay.errors import BadSignature, Refused
from relay.limits import DIRECTORY_FRESH
from tests.logged import log_key, logged_region
from tests.roots import verified_root

FAR = 4_000_000_000_000  # Unix ms


async def test_by_another_root_document_the_region_that_came_is_asked_at_once(world: Any) -> None:
    bob = world.user(2)
    world.cells.serve(bob)
    async with world.open() as directory:
        directory.follow(verified_root(world.root.payload.regions[:1], FAR))
        for _ in range(2):
            with pytest.raises(Refused) as refused:
                await directory.lookup(bob.id, "sueden")
            assert refused.value.code == Code.UNKNOWN_REGION
        directory.follow(world.root)
        assert await directory.lookup(bob.id, "sueden") == bob.newest


async def test_what_was_verified_by_keys_of_before_is_asked_for_again_and_nothing_else(world: Any) -> None:
    bob = world.user(2)
    world.cells.serve(bob)
    sueden = world.root.region("sueden")
    other = structs.replace(sueden, registrar_key=bytes(SigningKey(b"o" * 32).verify_key))
    async with world.open() as directory:
        await directory.lookup(bob.id, "sueden")
        cells = (*sueden.cells, RootCell("sueden/3", ()))
        harmless = structs.replace(sueden, policy=Policy(retention_days=3), cells=cells)
        directory.follow(verified_root([world.root.region("norden"), harmless], FAR))
        assert await directory.lookup(bob.id, "sueden") == bob.newest and len(world.cells.asked) == 1
        directory.follow(verified_root([world.root.region("norden"), other], FAR))
        with pytest.raises(BadSignature, match="registrar's key"):
            await directory.lookup(bob.id, "sueden")
        assert len(world.cells.asked) == 2 and directory._bytes == 0
        directory.follow(world.root)
        assert await directory.lookup(bob.id, "sueden") == bob.newest


async def test_an_answer_that_was_verified_by_the_document_before_is_not_kept(world: Any) -> None:
    """The new one comes while the version that was seen is being written."""
    bob = world.user(2)
    world.cells.serve(bob)
    other = structs.replace(world.root.region("sueden"), registrar_key=bytes(SigningKey(b"o" * 32).verify_key))
    async with world.open() as directory:
        highest = directory._seen.highest

        async def slowly(user: bytes) -> Any:
            found = await highest(user)
            directory.follow(verified_root([world.root.region("norden"), other], FAR))
            return found

        directory._seen.highest = slowly
        with pytest.raises(BadSignature, match="registrar's key"):
            await directory.lookup(bob.id, "sueden")
        assert not directory._known


@pytest.mark.parametrize("answers", [False, True])
async def test_a_record_of_before_does_not_come_back_by_a_question_that_was_under_way(
    world: Any, answers: bool
) -> None:
    """The cell is asked what is new of bob when a document with another key of his registrar comes: the link ends, or
    it answers that there is nothing."""
    bob = world.user(2)
    world.cells.serve(bob)
    other = structs.replace(world.root.region("sueden"), registrar_key=bytes(SigningKey(b"o" * 32).verify_key))
    async with world.open() as directory, trio.open_nursery() as nursery:
        await directory.lookup(bob.id, "sueden")
        directory.stale(bob.id)
        world.env.settable.now += DIRECTORY_FRESH
        world.cells.gate = trio.Event()

        async def ask() -> None:
            with pytest.raises(Refused) as refused:
                await directory.lookup(bob.id, "sueden")
            assert refused.value.code == Code.UNREACHABLE

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        directory.follow(verified_root([world.root.region("norden"), other], FAR))
        if not answers:
            world.cells.answers.clear()
        world.cells.gate.set()
        await wait_all_tasks_blocked()
        assert not directory._known and directory._bytes == 0


def logged(**changes: Any) -> Any:
    regions = {name: logged_region(name, SigningKey(b"r" * 32)) for name in ("norden", "sueden", "vika", "west")}
    regions |= {name: structs.replace(regions[name], **change) for name, change in changes.items()}
    return verified_root([one for one in regions.values() if one.name != "west" or "west" in changes], FAR)


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True), ({"west": {}}, True), ({"norden": {"policy": Policy(quorum=2)}}, False),
        ({"norden": {"policy": Policy(quorum=0)}}, True), ({"vika": {"witness_key": ""}}, False),
        ({"norden": {"log_key": ""}}, False), ({"norden": {"log_key": str(log_key("other").verifier)}}, False),
        ({"vika": {"policy": Policy(quorum=2)}}, True), ({"norden": {"registrar_key": b"x" * 32}}, False),
        ({"norden": {"earlier": (EarlierKey(b"x" * 32, (("norden", 7),)),)}}, False),
    ],
)  # fmt: skip
def test_whether_what_verified_still_does(change: Any, holds: bool) -> None:
    assert _holds_on("norden", logged(), logged(**change)) is holds
