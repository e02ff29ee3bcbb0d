"""Lookups in a federation whose regions have logs: an answer counts with its proof only, and is kept with it."""

from __future__ import annotations

from typing import Any

import pytest
import structlog.testing

from cluster.core.linkwire import LookUp, Records
from relay.core.tlog import BadProof, LogError, NotLogged, TooFewWitnesses
from relay.core.trust import staple_home
from relay.core.wire import Code
from relay.limits import DIRECTORY_FRESH
from tests.cluster.directory.conftest import DAY, NOW, REGISTRARS
from tests.logged import logged_region, staple_of, stapled
from tests.roots import verified_root


@pytest.fixture
def logged(world: Any) -> Any:
    regions = [logged_region(name, registrar) for name, registrar in REGISTRARS.items()]
    world.root = verified_root(regions, NOW + 400 * DAY)
    return world


def proven(user: Any) -> list[bytes]:
    return [*user.chain[:-1], stapled(user.chain[-1], "norden")]


async def test_a_proven_record_is_taken_kept_and_given_on_with_its_proof(logged: Any) -> None:
    bob = logged.user(2)
    logged.cells.answers["sueden/1"] = lambda ask: Records(Code.STORED, tuple(proven(bob)[ask.after :]))
    async with logged.open() as directory:
        assert (await directory.lookup(bob.id, "sueden")).signed == proven(bob)[0]
        assert await directory.chain(bob.id, "sueden", 0) == proven(bob)
        one = proven(bob)[0]
        bob.grow()
        logged.env.settable.now += DIRECTORY_FRESH
        assert await directory.chain(bob.id, "sueden", 0) == [one, proven(bob)[1]]
        assert logged.cells.asked[1:] == [("sueden/1", LookUp(bob.id, 1))]


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize(
    ("forge", "error"),
    [
        (lambda signed, other: signed, NotLogged),
        (lambda signed, other: stapled(signed), TooFewWitnesses),
        (lambda signed, other: staple_home(signed, staple_of(other, "norden")), BadProof),
    ],
)
async def test_a_region_that_shows_what_its_log_does_not_have(
    logged: Any, forge: Any, error: type[LogError], newer: bool
) -> None:
    """User and registrar signed it both, and the registrar has a record of its own for whom it chooses."""
    bob, other = logged.user(2), logged.user(3)
    async with logged.open() as directory:
        if newer:
            logged.cells.say(*proven(bob))
            known = await directory.lookup(bob.id, "sueden")
            bob.grow()
            logged.env.settable.now += DIRECTORY_FRESH
        logged.cells.say(*bob.chain[:-1], forge(bob.chain[-1], other.chain[0]))
        with structlog.testing.capture_logs() as logs, pytest.raises(error):
            await directory.lookup(bob.id, "sueden")
        assert [one["log_level"] for one in logs if one["event"] == "home_record_refused"] == ["critical"]
        logged.cells.say(*proven(bob))
        logged.env.settable.now += DIRECTORY_FRESH
        record = await directory.lookup(bob.id, "sueden")  # nothing of it was kept
        assert record.version == len(bob.chain) and (not newer or record.user == known.user)
