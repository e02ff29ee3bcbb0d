"""A registrar that runs lets users go: it is logged before it is told, and nothing else is signed in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from msgspec.msgpack import decode

from cluster.core.homelog import ReleaseEntry, read_arrival, read_entry, read_enrolled, release_entry
from cluster.enrolment import check_released, read_request, split_release, verify_release
from cluster.registrar.asking import Registrar
from cluster.registrar.audit import Audit
from cluster.registrar.faces import Face
from cluster.registrar.metrics import RegistrarMetrics
from cluster.registrar.notebook import open_notebook
from relay.core.codec import encode, pack
from relay.core.tlog import (
    BadProof, NotLogged, TooFewWitnesses, UnknownKey, decode_bundle, parse_path, parse_staple, verify_staple,
)  # fmt: skip
from relay.core.tlog.tiles import Tile
from relay.core.trust import (
    HomeRecord, Policy, Root, RootCell, RootRegion, StapledHome, read_home, release_home, sign_home, staple_home,
)  # fmt: skip
from relay.errors import (
    AlreadyReleased, BadSignature, BrokenChain, NotReleased, OperatorError, PeerError, RolledBack, TrustError,
    VersionTaken,
)  # fmt: skip
from relay.limits import DAY
from tests.cluster.registrar.site import (
    NOW, REGIONS, ROOT, Region, World, ask, first, following, log_key, registrar_key, request, user_key, witness_key,
)  # fmt: skip
from tests.roots import verified_root

NAMED = verified_root(
    [
        RootRegion(
            name, b"", bytes(registrar_key(name).verify_key), (RootCell(f"{name}/1", ()), RootCell(f"{name}/2", ())),
            str(log_key(name).verifier), str(witness_key(name).verifier), policy=Policy(quorum=2),
        )
        for name in REGIONS
    ],
    NOW + 900 * DAY,
)  # fmt: skip


def moving(record: HomeRecord, number: int, cell: str, **more: object) -> bytes:
    """A request to move."""
    epoch = record.payload.move_epoch + 1
    payload = following(record, region=cell.partition("/")[0], cell=cell, move_epoch=epoch, **more)
    return ask(payload, user_key(number))


async def enrolled(region: Region, number: int) -> HomeRecord:
    return read_home((await region.log.enrol(request(number))).signed)


async def findings(world: World, region: Region, directory: Path, root: Root = ROOT) -> list[str]:
    async def get(path: str, most: int) -> bytes | None:
        if path == "checkpoint":
            note = region.choir.note
            return note.encode() if note else None
        name = parse_path(path)
        if isinstance(name, Tile):
            return await region.registry.tile(name)
        return await region.registry.bundle(name.number, name.width)

    directory.mkdir(exist_ok=True)
    async with open_notebook(directory, world.portal, str(log_key(region.name).verifier)) as notebook:
        one = Audit(region.name, root, world.trust(region.name, 2), get, notebook)
        await one.run()
        return one.findings


async def test_after_a_release_the_old_region_signs_on_for_nobody(world: World, tmp_path: Path) -> None:
    """Not in place of the move, in no batch, after no restart; and another move is not released either."""
    actions = list[str]()
    async with world.region() as norden:
        norden.log.on_logged = lambda head, some: actions.extend(some)
        one = await enrolled(norden, 1)
        away = moving(one, 1, "sauda/1")
        stay = ask(following(one), user_key(1))
        others = [stay, moving(one, 1, "sauda/1", expires=NOW + DAY), moving(one, 1, "vika/1")]
        async with trio.open_nursery() as nursery:  # in the batch of the release itself
            answers = list[StapledHome]()

            async def release() -> None:
                answers.append(await norden.log.release(away))

            async def sign() -> None:
                with pytest.raises(AlreadyReleased, match=r"version 2 of this user was released, .* to sauda/1"):
                    await norden.log.enrol(stay)

            nursery.start_soon(release)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(sign)
        released, staple = answers[0].signed, answers[0].staple
        assert verify_release(released, ROOT, one).cell == "sauda/1"
        verify_staple(staple, release_entry(released), world.trust("norden", 2))
        assert actions == [f"enrol {one.user[:4].hex()} v1", f"release {one.user[:4].hex()} v2"]
        size = norden.registry.head.size
    async with world.region() as norden:  # what is told is durable
        for asked in others[:1]:
            with pytest.raises(AlreadyReleased):
                await norden.log.enrol(asked)
        for asked in others[1:]:
            with pytest.raises(AlreadyReleased):
                await norden.log.release(asked)
        again = await norden.log.release(away)
        assert again.signed == released and norden.registry.head.size == size, "it is given again, and logged once"
        stored = await norden.log.released(one.user)
        assert stored is not None and stored.signed == released and await norden.log.released(b"u" * 32) is None
        assert [read_home(signed).version for signed in (await norden.log.standing(one.user)).records] == [1]
        assert await findings(world, norden, tmp_path / "audit") == []


async def test_who_comes_back_by_a_move_is_signed_for_again_and_may_leave_again(world: World, tmp_path: Path) -> None:
    async with world.region("norden") as norden, world.region("sauda") as sauda:
        one = await enrolled(norden, 1)
        released = (await norden.log.release(moving(one, 1, "sauda/1"))).signed
        two = read_home((await sauda.log.enrol(released, before=[one.signed])).signed, one)
        forged = await sauda.log.release(moving(two, 1, "norden/1"))
        three = read_home((await norden.log.enrol(forged.signed, before=[one.signed, two.signed])).signed, two)
        four = read_home((await norden.log.enrol(ask(following(three), user_key(1)))).signed, three)
        assert (await norden.log.release(moving(four, 1, "vika/1"))).signed
        with pytest.raises(AlreadyReleased, match=r"version 5 .* vika/1"):
            await norden.log.enrol(ask(following(four), user_key(1)))
        for region in (norden, sauda):
            assert await findings(world, region, tmp_path / region.name) == []


async def test_records_that_come_back_are_those_that_were_released(world: World) -> None:
    """Norden's key released version 2 twice, once past its log. The other one is not taken for the history."""
    async with world.region("norden") as norden, world.region("vika") as vika:
        one = await enrolled(norden, 1)
        await norden.log.release(moving(one, 1, "sauda/1"))
        data, signature = decode(moving(one, 1, "vika/1"))
        past = pack([data, signature, release_home(data, registrar_key("norden"))])
        two = read_home((await vika.log.enrol(past, before=[one.signed])).signed, one)
        back = await vika.log.release(moving(two, 1, "norden/1"))
        with pytest.raises(AlreadyReleased):
            await norden.log.enrol(back.signed, before=[one.signed, two.signed])


async def test_who_is_not_let_go(world: World) -> None:
    async with world.region("norden") as norden, world.region("sauda") as sauda:
        one, other = await enrolled(norden, 1), await enrolled(norden, 2)
        size = norden.registry.head.size
        for asked, error, what in (
            (moving(one, 2, "sauda/1"), BadSignature, "user's key"),
            (ask(following(one), user_key(1)), OperatorError, "Only a move"),
            (moving(one, 1, "sauda/9"), Exception, "sauda/9"),
            (b"nonsense", OperatorError, "no enrolment request"),
            (ask(first(1), user_key(1)), VersionTaken, "signed already"),
        ):
            with pytest.raises(error, match=what):
                await norden.log.release(asked)
        with pytest.raises(OperatorError, match="lets no users go"):
            await norden.log.release(moving(one, 1, "sauda/1"), founds=False)
        with pytest.raises(OperatorError, match="the log of sauda has no such user"):
            await sauda.log.release(moving(one, 1, "sauda/1"))
        await norden.log.enrol(ask(following(other), user_key(2)))
        with pytest.raises(VersionTaken):  # the version went to something else
            await norden.log.release(moving(other, 2, "sauda/1"))
        assert norden.registry.head.size == size + 2


async def test_a_registry_from_before_the_release_is_not_opened(world: World) -> None:
    """It would sign on, in good faith."""
    place = world.directory / "norden"
    async with world.region() as norden:
        one = await enrolled(norden, 1)
    old = {path: path.read_bytes() for path in place.glob("registry.sqlite*") if not path.name.endswith(".mark")}
    async with world.region() as norden:
        await norden.log.release(moving(one, 1, "sauda/1"))
    for path in place.glob("registry.sqlite-*"):
        path.unlink()
    for path, data in old.items():
        path.write_bytes(data)
    with pytest.raises(RolledBack):
        async with world.region():
            pass


async def test_a_release_that_too_few_witnesses_saw_is_given_later(world: World) -> None:
    async with world.region() as norden:
        one = await enrolled(norden, 1)
        norden.doors["sauda"].shut, norden.choir.wait_s = True, 0.1
        asked = moving(one, 1, "sauda/1")
        with pytest.raises(TooFewWitnesses, match="logged, and not cosigned"):
            await norden.log.release(asked)
        with pytest.raises(TooFewWitnesses):
            await norden.log.released(one.user)
        norden.doors["sauda"].shut, norden.choir.wait_s = False, 60.0
        with trio.fail_after(60):
            while True:
                try:
                    answer = await norden.log.release(asked)
                    break
                except TooFewWitnesses:
                    await trio.sleep(0.05)
        assert len(parse_staple(answer.staple).note.signatures) == 3


# --- where the root names the logs ---------------------------------------------------------------
async def test_a_release_that_is_not_in_the_log_of_the_region_that_is_left_moves_nobody(world: World) -> None:
    """Whoever has norden's key, and does not ask its log: sauda's registrar does not take the user in."""
    async with world.region("norden") as norden, world.region("sauda") as sauda:
        norden.log.root = sauda.log.root = NAMED
        stapled = await norden.log.enrol(request(1))
        before, one = [staple_home(stapled.signed, stapled.staple)], read_home(stapled.signed)
        data, signature = decode(moving(one, 1, "sauda/1"))
        secret = pack([data, signature, release_home(data, registrar_key("norden"))])
        with pytest.raises(NotLogged, match="the release of a user by norden"):
            await sauda.log.enrol(secret, before=before)
        with pytest.raises(BadProof):  # the staple of something else in that log
            await sauda.log.enrol(secret, before=before, release=stapled.staple)
        with pytest.raises(UnknownKey):  # of another log
            other = await sauda.log.enrol(request(9, region="sauda", cell="sauda/1"))
            await sauda.log.enrol(secret, before=before, release=other.staple)
        let_go = await norden.log.release(pack([data, signature]))
        assert let_go.signed == secret, "Ed25519 is deterministic: only the log is new"
        with pytest.raises(NotLogged):  # nor by a history that norden's log does not have
            await sauda.log.enrol(secret, before=[one.signed], release=let_go.staple)
        moved = await sauda.log.enrol(secret, before=before, release=let_go.staple)
        assert read_home(moved.signed).cell == "sauda/1"


async def test_a_move_within_the_region_is_released_in_its_log_too(world: World) -> None:
    async with world.region() as norden:
        norden.log.root = NAMED
        one = await enrolled(norden, 1)
        data, signature = decode(moving(one, 1, "norden/2"))
        secret = pack([data, signature, release_home(data, registrar_key("norden"))])
        with pytest.raises(NotLogged):
            await norden.log.enrol(secret)
        assert (await norden.log.release(pack([data, signature]))).signed == secret
        assert read_home((await norden.log.enrol(secret)).signed).cell == "norden/2"


# --- asking for it -------------------------------------------------------------------------------
class Straight:
    """A caller without a network; `spoil` changes what is answered."""

    name = "the registrar of norden"

    def __init__(self, face: Face) -> None:
        self.face, self.spoil, self.away = face, dict[str, bytes](), False

    async def ask(self, method: str, path: str, body: bytes = b"", most: int = 0) -> tuple[int, bytes]:
        if self.away:
            raise PeerError(f"{self.name}: away")
        assert self.face.takes(method, path) is not None
        if path in self.spoil:
            return 200, self.spoil[path]
        reply = await self.face.reply(method, path, body)
        return reply.status, reply.body


def straight(world: World, region: Region) -> tuple[Registrar, Straight]:
    face = Face(region.log, world.witnesses[region.name], RegistrarMetrics(), True, True, lambda: None)
    line = Straight(face)
    return Registrar(region.name, NAMED, world.trust(region.name, 2), line), line  # type: ignore[arg-type]


async def test_a_move_by_two_registrars_and_again_from_wherever_it_stopped(world: World) -> None:
    async with world.region("norden") as norden, world.region("sauda") as sauda:
        norden.log.root = sauda.log.root = NAMED
        leave, enter = (straight(world, region)[0] for region in (norden, sauda))
        one = await enrolled(norden, 1)
        asked = moving(one, 1, "sauda/1")
        assert await leave.released(one.user, NOW) is None
        record, file = await leave.release(asked, NOW)
        assert record.cell == "sauda/1" and await leave.released(one.user, NOW) == (record, file)
        before = (await leave.prove(one.user, NOW)).records
        for _ in range(2):  # the second time as if the answer had been lost
            proof, _ = await enter.sign(file, before, NOW)
            assert [read_home(signed).cell for signed in proof.records] == ["norden/1", "sauda/1"]
            assert (await leave.release(asked, NOW))[1].startswith(b"\x92"), "norden gives its part again, too"
        sizes = norden.registry.head.size, sauda.registry.head.size
        assert sizes == (5, 4), "each thing is logged once: an epoch, a record, an epoch, the release, an epoch"
        entry = read_entry(decode_bundle(await norden.registry.bundle(0, 5) or b"")[3])
        assert isinstance(entry, ReleaseEntry) and entry.released == split_release(file)[0]


async def test_a_registrar_that_answers_with_anything_else_is_not_believed(world: World) -> None:
    async with world.region("norden") as norden:
        norden.log.root = NAMED
        leave, line = straight(world, norden)
        one, other = await enrolled(norden, 1), await enrolled(norden, 2)
        asked = moving(one, 1, "sauda/1")
        _, file = await leave.release(asked, NOW)
        foreign, staple = (await norden.log.release(moving(other, 2, "sauda/1"))).signed, split_release(file)[1]
        data, signature = decode(asked)
        for answer, error in (
            (StapledHome(asked, staple), NotReleased),
            (StapledHome(pack([data, signature, bytes(64)]), staple), BadSignature),
            (StapledHome(foreign, staple), BrokenChain),
            (StapledHome(split_release(file)[0], (await norden.log.enrol(request(3))).staple), BadProof),
        ):
            line.spoil["/release"] = encode(answer)
            with pytest.raises(error):
                await leave.release(asked, NOW)
        three = moving(read_home(sign_home(following(one), user_key(1), registrar_key("norden")), one), 1, "sauda/1")
        data, signature = decode(three)
        beyond = pack([data, signature, release_home(data, registrar_key("norden"))])
        line.spoil["/release"] = encode(StapledHome(beyond, staple))
        with pytest.raises(BrokenChain, match="follows none of its own"):
            await leave.release(three, NOW)
        line.away = True
        with pytest.raises(PeerError):
            await leave.release(asked, NOW)


async def test_what_was_released_for_an_earlier_move_is_not_given_for_the_next(world: World) -> None:
    async with world.region("norden") as norden, world.region("sauda") as sauda:
        norden.log.root = sauda.log.root = NAMED
        (leave, _), (enter, _) = straight(world, norden), straight(world, sauda)
        one = await enrolled(norden, 1)
        _, file = await leave.release(moving(one, 1, "sauda/1"), NOW)
        proof, _ = await enter.sign(file, (await leave.prove(one.user, NOW)).records, NOW)
        two = proof.record
        assert two is not None
        _, file = await enter.release(moving(two, 1, "norden/1"), NOW)
        await leave.sign(file, proof.records, NOW)
        assert await leave.released(one.user, NOW) is None and await enter.released(one.user, NOW) is not None


async def test_an_answer_that_is_not_among_the_records_is_not_believed(world: World) -> None:
    async with world.region("norden") as norden:
        norden.log.root = NAMED
        registrar, line = straight(world, norden)
        one = await enrolled(norden, 1)
        asked = ask(following(one), user_key(1))
        staple = (await norden.log.enrol(asked)).staple
        fork = sign_home(following(one, expires=NOW + DAY), user_key(1), registrar_key("norden"))
        line.spoil["/enrol"] = encode(StapledHome(fork, staple))
        with pytest.raises(TrustError, match="contradict each other"):
            await registrar.sign(asked, (), NOW)


async def test_the_pages(world: World) -> None:
    async with world.region() as region:
        one = await enrolled(region, 1)
        outer = Face(region.log, world.witnesses["norden"], RegistrarMetrics(), False, False, lambda: None)
        asked, page = moving(one, 1, "sauda/1"), f"/user/{one.user.hex()}/release"
        refused = await outer.reply("POST", "/release", asked)
        assert refused.status == 400 and b"lets no users go here" in refused.body
        assert (await outer.reply("GET", page, b"")).status == 404
        outer.founds = True
        assert outer.takes("POST", "/release")
        answer = read_enrolled((await outer.reply("POST", "/release", asked)).body)
        assert read_enrolled((await outer.reply("GET", page, b"")).body).signed == answer.signed
        refused = await outer.reply("POST", "/enrol", ask(following(one), user_key(1)))
        assert refused.status == 400 and refused.body.startswith(b"AlreadyReleased\n")


def test_an_arrival_without_a_staple_is_one_of_two_elements_too() -> None:
    assert read_arrival(pack([b"request", [b"record"]])).release == b""


def test_requests_that_carry_a_staple_and_those_that_do_not() -> None:
    plain = ask(first(1), user_key(1))
    released = pack([*decode(plain), bytes(64)])
    assert split_release(plain) == (plain, b"") and split_release(released) == (released, b"")
    staple = b"c2sp.org/tlog-proof@v1\n" + bytes(100)
    assert split_release(staple_home(released, staple)) == (released, staple)
    assert split_release(b"\x92nonsense") == (b"\x92nonsense", b"")
    check_released(None, 1, b"")
    check_released(read_request(plain), 1, read_request(plain).digest)


