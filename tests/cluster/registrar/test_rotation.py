"""A registrar has another key: what it signed before holds, and nothing that is signed with the old one now."""

from __future__ import annotations

from typing import cast

import pytest
from msgspec import structs
from msgspec.msgpack import decode
from nacl.signing import SigningKey

from cluster.audit.register import Register
from cluster.enrolment import sign_enrolment
from cluster.registrar.asking import Registrar
from cluster.registrar.http import Caller
from relay.core.codec import encode
from relay.core.tlog import BadProof, NotLogged
from relay.core.trust import (
    EarlierKey, HomeRecord, Root, StapledHome, check_stapled, endorse_home, join_home, read_home, release_home,
    sign_home, split_home, staple_home, verify_chain, verify_home, verify_move,
)  # fmt: skip
from relay.errors import AlreadyReleased, BadSignature, OperatorError, RetiredKey
from relay.limits import DAY
from tests.cluster.registrar.site import (
    NOW, Region, World, ask, first, following, registrar_key, request, user_key,
)  # fmt: skip
from tests.cluster.registrar.test_releases import NAMED, findings, moving
from tests.roots import verified_root

OLD, NEW = registrar_key("norden"), SigningKey(b"another".ljust(32))


def rotated(**ends: int) -> Root:
    """Norden's registrar has the key NEW; what OLD signed ends there in these logs."""
    old = EarlierKey(bytes(OLD.verify_key), tuple(ends.items()))
    norden, *others = NAMED.payload.regions
    changed = structs.replace(norden, registrar_key=bytes(NEW.verify_key), earlier=(old,))
    return verified_root([changed, *others], NOW + 900 * DAY)


def stapled(answer: StapledHome) -> bytes:
    return staple_home(answer.signed, answer.staple)


async def enrolled(region: Region, number: int) -> bytes:
    return stapled(await region.log.enrol(request(number)))


async def shown(region: Region, record: HomeRecord) -> bytes:
    """The record as its registrar shows it now."""
    [*_, newest] = (await region.log.standing(record.user)).records
    return newest


async def slipped_in(region: Region, record: HomeRecord, *brought: HomeRecord) -> bytes:
    """The record in the log, past its registrar: what a registrar that lies would do; k witnesses stand by it."""
    bare = [structs.replace(one, signed=split_home(one.signed)[0]) for one in (*brought, record)]
    head = await region.registry.append(bare, NOW)
    region.choir.present(head.note)
    note = await region.choir.cosigned()
    assert note is not None
    [staple] = await region.registry.staples([head.size - 2], note)
    return staple_home(record.signed, staple)


async def test_what_was_signed_before_holds_and_the_user_goes_on_with_the_new_key(world: World) -> None:
    async with world.region(root=NAMED) as norden:
        before = await enrolled(norden, 1)
        size = norden.registry.head.size
    root, one = rotated(norden=size), read_home(before)
    assert verify_chain([before], root, NOW, one.user) == read_home(before)
    with pytest.raises(OperatorError, match="names another registrar"):  # its key of before signs nothing
        async with world.region(root=root):
            pass
    async with world.region(root=root, registrar=NEW) as norden:
        await enrolled(norden, 2)
        again = await shown(norden, one)  # another staple, under a checkpoint that is newer than the key
        assert again != before and verify_chain([again], root, NOW, one.user).digest == one.digest
        assert (await norden.log.enrol(request(1))).signed == split_home(before)[0]
        two = stapled(await norden.log.enrol(ask(following(one), user_key(1))))
        verify_home(two, root, one)
        with pytest.raises(BadSignature):
            verify_home(two, NAMED, one)
        for chain in ([before, two], [split_home(before)[0], two]):  # who follows says it for those before
            assert verify_chain(chain, root, NOW, one.user).version == 2
        three = stapled(await norden.log.enrol(ask(following(read_home(two)), user_key(1))))
        assert verify_chain([before, two, three], root, NOW, one.user).version == 3


async def test_who_stole_the_old_key_signs_nothing_that_counts(world: World) -> None:
    """With the user's key, too; whatever is shown beside it."""
    async with world.region(root=NAMED) as norden:
        before = await enrolled(norden, 1)
        other = await enrolled(norden, 2)
        size = norden.registry.head.size
    root, one = rotated(norden=size, sauda=9), verify_home(before, NAMED, None)
    newer = sign_home(following(one), user_key(1), OLD)
    founded = sign_home(first(7), user_key(7), OLD)
    for forged, chain in ((newer, [before]), (founded, [])):
        with pytest.raises(NotLogged):
            verify_chain([*chain, forged], root, NOW, read_home(forged).user)
        for staple in (split_home(before)[1], split_home(other)[1]):  # mix and match
            with pytest.raises(BadProof):
                verify_chain([*chain, staple_home(forged, staple)], root, NOW, read_home(forged).user)
    async with world.region(root=root, registrar=NEW) as norden:
        for forged, chain in ((newer, [before]), (founded, [])):  # and has the log's key, or its registrar's ear
            record = verify_home(forged, root, read_home(before) if chain else None)
            logged = await slipped_in(norden, record)
            with pytest.raises(RetiredKey, match=rf"replaced at entry {size} of the log of norden, in entry \d+"):
                verify_chain([*chain, logged], root, NOW, record.user)
            with pytest.raises(RetiredKey):
                check_stapled(read_home(logged), root)
            with pytest.raises(RetiredKey):
                asked = Registrar("norden", root, world.trust("norden", 2), cast(Caller, _Line(norden)))
                await asked.prove(record.user, NOW)
            wide = rotated(norden=norden.registry.head.size)
            assert verify_chain([*chain, logged], wide, NOW, record.user), "nothing else is wrong with it"
        assert len(await findings(world, norden, world.directory / "audit-norden", root)) == 2
    with pytest.raises(BadSignature):  # a key that was never the registrar's
        verify_home(sign_home(following(one), user_key(1), SigningKey(b"x" * 32)), root, one)


async def test_on_a_stopped_disk_the_old_key_proves_nobody_at_home(world: World) -> None:
    """`posthouse audit residency`: whatever was planted there."""
    async with world.region(root=NAMED) as norden:
        before = await enrolled(norden, 1)
        size = norden.registry.head.size
    root, forged = rotated(norden=size), sign_home(first(7), user_key(7), OLD)
    register = Register(root)
    for signed in (before, forged, split_home(before)[0], staple_home(forged, split_home(before)[1])):
        register.home(signed, "a disk")
    assert not register.findings
    [said] = register.unproven()
    assert read_home(forged).user.hex()[:8] in said and "not proven to be from before" in said
    register = Register(root)
    register.home(split_home(before)[0], "a disk")
    assert len(register.unproven()) == 1
    register.home(before, "another disk, where it has its proof")
    assert register.unproven() == []
    bare = Register(root)
    bare.home(split_home(before)[0], "a disk")
    one = read_home(before)
    bare.home(sign_home(following(one), user_key(1), NEW), "and what follows it")
    assert bare.unproven() == []


class _Line:
    """Norden's registrar, asked as by HTTP."""

    name = "norden"

    def __init__(self, region: Region) -> None:
        self._region = region

    async def ask(self, method: str, path: str, body: bytes = b"", most: int = 0) -> tuple[int, bytes]:
        return 200, encode(await self._region.log.standing(bytes.fromhex(path.rpartition("/")[2])))


async def test_a_release_by_the_old_key_that_has_not_arrived_is_given_anew(world: World) -> None:
    async with world.region(root=NAMED) as norden, world.region("sauda", root=NAMED) as sauda:
        before = await enrolled(norden, 1)
        one = read_home(before)
        asked = moving(one, 1, "sauda/1")
        late = await norden.log.release(asked)
        root = rotated(norden=norden.registry.head.size, sauda=sauda.registry.head.size + 1000)
    async with (
        world.region(root=root, registrar=NEW) as norden, world.region("sauda", root=root) as sauda,
    ):  # fmt: skip
        size = sauda.registry.head.size
        with pytest.raises(RetiredKey):  # whatever room there is in the log that it comes to
            await sauda.log.enrol(late.signed, before=[before], release=late.staple)
        assert sauda.registry.head.size == size and await norden.log.released(one.user) is None
        with pytest.raises(AlreadyReleased):
            await norden.log.release(moving(one, 1, "vika/1"))
        anew = await norden.log.release(asked)
        assert anew.signed != late.signed and anew == await norden.log.release(asked), "once more, and only once"
        moved = await sauda.log.enrol(anew.signed, before=[before], release=anew.staple)
        assert verify_chain([before, stapled(moved)], root, NOW, one.user).cell == "sauda/1"
        for region in (norden, sauda):
            assert await findings(world, region, world.directory / f"audit-{region.name}", root) == []


async def test_who_moved_before_moves_on_and_comes_back(world: World) -> None:
    """By two more registrars, which log the old release behind its end, and show where it was before."""
    async with world.region(root=NAMED) as norden, world.region("sauda", root=NAMED) as sauda:
        one = await enrolled(norden, 1)
        away = await norden.log.release(moving(read_home(one), 1, "sauda/1"))
        two = stapled(await sauda.log.enrol(away.signed, before=[one], release=away.staple))
        root = rotated(norden=norden.registry.head.size, sauda=sauda.registry.head.size)
        user = read_home(one).user
    async with (
        world.region(root=root, registrar=NEW) as norden, world.region("sauda", root=root) as sauda,
        world.region("vika", root=root) as vika,
    ):  # fmt: skip
        chain = [one, two]
        assert verify_chain(chain, root, NOW, user).cell == "sauda/1"
        for left, entered, cell in ((sauda, vika, "vika/1"), (vika, norden, "norden/1")):
            let_go = await left.log.release(moving(read_home(chain[-1]), 1, cell))
            moved = await entered.log.enrol(let_go.signed, before=chain, release=let_go.staple)
            assert verify_chain([*chain, stapled(moved)], root, NOW, user).cell == cell
            chain = [*(await entered.log.standing(user)).records]  # as their device takes them
            assert verify_chain(chain, root, NOW, user).cell == cell
        for region in (norden, sauda, vika):
            assert await findings(world, region, world.directory / f"audit-{region.name}", root) == []
        bare = [chain[0], split_home(chain[1])[0], *chain[2:]]
        with pytest.raises(RetiredKey, match="release by norden"):
            verify_move(bare, root)


async def test_a_region_that_lies_lets_nobody_go_with_another_regions_old_key(world: World) -> None:
    """Sauda's registrar has norden's old key, and the user's: norden never let the user go."""
    async with world.region(root=NAMED) as norden, world.region("sauda", root=NAMED) as sauda:
        one = await enrolled(norden, 1)
        root = rotated(norden=norden.registry.head.size, sauda=sauda.registry.head.size)
    async with world.region("sauda", root=root) as sauda:
        data, signature = decode(moving(read_home(one), 1, "sauda/1"))
        signed = join_home(data, signature, endorse_home(data, registrar_key("sauda")), release_home(data, OLD))
        two = await slipped_in(sauda, read_home(signed, read_home(one)), read_home(one))
        mixed = staple_home(signed, split_home(one)[1])
        for record, error in ((signed, RetiredKey), (two, RetiredKey), (mixed, BadProof)):
            with pytest.raises(error):
                verify_home(record, root, read_home(one))
        three = await slipped_in(sauda, read_home(
            sign_home(following(read_home(two)), user_key(1), registrar_key("sauda")), read_home(two)
        ))  # fmt: skip
        for chain in ([one, two, three], [one, signed, three]):  # a later record does not say it for a move
            with pytest.raises(RetiredKey, match="release by norden"):
                verify_chain(chain, root, NOW, read_home(one).user)
        found = await findings(world, sauda, world.directory / "audit-sauda", root)
        assert len(found) == 1 and "RetiredKey" in found[0]


async def test_where_a_key_has_no_end_it_says_nothing(world: World) -> None:
    """In a log that the statement does not name, and in a region without a log, where nobody could tell."""
    async with world.region(root=NAMED) as norden:
        one = await enrolled(norden, 1)
    for root in (rotated(sauda=1000), rotated()):
        with pytest.raises(RetiredKey):
            verify_chain([one], root, NOW, read_home(one).user)
    root = rotated(norden=1000)
    norden_alone = structs.replace(root.region("norden"), log_key="")
    exempt = verified_root([norden_alone, *root.payload.regions[1:]], NOW + 900 * DAY)
    for signed in (one, split_home(one)[0]):
        with pytest.raises(RetiredKey):
            verify_chain([signed], exempt, NOW, read_home(one).user)
        with pytest.raises(RetiredKey):
            sign_enrolment(ask(following(read_home(one)), user_key(1)), [signed], exempt, NEW, NOW)
