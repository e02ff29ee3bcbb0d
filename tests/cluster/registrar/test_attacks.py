"""Attacks on the directory, each against the real code: a region that lies, a witness that lies, a key alone."""

from __future__ import annotations

import threading
from http import HTTPStatus
from pathlib import Path

import aics_tlog
import pytest
import trio
from aics_witness.config import LogConfig
from aics_witness.service import Witness as ForeignWitness
from aics_witness.service import make_server
from aics_witness.store import WitnessStore
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cluster.core.homelog import (
    Freshness, check_fresh, verify_newest, verify_stapled_home, verify_unknown,
)  # fmt: skip
from relay.core.tlog import (
    BadProof, Checkpoint, Fork, OldEpoch, Proven, StaleCheckpoint, TooFewWitnesses, Trust, UnknownKey,
    parse_add_checkpoint, parse_note, parse_staple, verify_staple,
)  # fmt: skip
from cluster.registrar.choir import Choir
from cluster.registrar.endpoints import caller
from cluster.registrar.gossip import Gossip, HttpDoor
from cluster.registrar.http import Caller
from cluster.registrar.witness import open_witness
from relay.core.trust import home_entry, read_home, sign_home
from relay.errors import BadSignature, PeerError
from tests.relay.core.tlog import naive
from tests.relay.core.tlog.logbook import Book, key
from tests.cluster.registrar.site import (
    NOW, ROOT, World, ask, first, following, log_key, registrar_key, request, user_key, witness_key,
)  # fmt: skip

SECONDS = NOW // 1000
FRESH = Freshness(SECONDS, 600)
LOG = log_key("norden")
ONE = Book(naive.entries(40), LOG)
OTHER = Book((*ONE.entries[:20], *naive.entries(25, b"other ")), LOG)  # the same log up to 20, and then another


# --- one key alone -------------------------------------------------------------------------------
async def test_the_registrars_key_alone_enrols_nobody_and_moves_nobody(world: World) -> None:
    async with world.region() as region:
        answer = await region.log.enrol(request(1))
        record = read_home(answer.signed)
        with pytest.raises(BadSignature):
            await region.log.enrol(ask(following(record), user_key(2)))
        forged = sign_home(following(record), user_key(2), registrar_key("norden"))
        with pytest.raises(BadSignature, match="user's key"):
            verify_stapled_home(forged, answer.staple, ROOT, world.trust("norden", 2), record, NOW)


async def test_the_users_key_alone_enrols_nothing(world: World) -> None:
    async with world.region() as region:
        answer = await region.log.enrol(request(1))
        alone = sign_home(first(1), user_key(1), user_key(1))
        with pytest.raises(BadSignature, match="registrar's key"):
            verify_stapled_home(alone, answer.staple, ROOT, world.trust("norden", 2), None, NOW)


async def test_both_keys_without_the_log_are_not_enough(world: World) -> None:
    """A record that is signed by both and not logged: the staple of another one, or one of another log, is no proof."""
    trust = world.trust("norden", 2)
    async with world.region() as region:
        answer = await region.log.enrol(request(1))
        secret = sign_home(first(2), user_key(2), registrar_key("norden"))
        with pytest.raises(BadProof):
            verify_stapled_home(secret, answer.staple, ROOT, trust, None, NOW)
        with pytest.raises(UnknownKey):
            verify_stapled_home(answer.signed, answer.staple, ROOT, world.trust("sauda", 2), None, NOW)
        alone = Book([b"epoch", home_entry(secret)], LOG).staple(1, 2, witnesses=())
        with pytest.raises(TooFewWitnesses):  # the log's own key makes any tree, and no cosignature
            verify_stapled_home(secret, alone.encode(), ROOT, trust, None, NOW)


# --- old things, shown again ---------------------------------------------------------------------
async def test_an_old_record_is_not_the_newest_any_more(world: World) -> None:
    """Replay: of the record, of the evidence, of an old epoch under a new checkpoint."""
    trust = world.trust("norden", 2)
    async with world.region() as region:
        old = read_home((await region.log.enrol(request(1))).signed)
        before = (await region.log.standing(old.user)).evidence
        verify_newest(old, before, trust, FRESH)
        world.now_ms += 3_600_000
        await region.log.enrol(ask(following(old), user_key(1)))
        now = await region.log.standing(old.user)
        with pytest.raises(BadProof):
            verify_newest(old, now.evidence, trust, None)
        with pytest.raises(BadProof):
            verify_unknown(old.user, now.evidence, trust, None)
        late = Freshness(world.now_ms // 1000, 600)
        with pytest.raises(StaleCheckpoint):  # the frozen checkpoint
            verify_newest(old, before, trust, late)
        note = region.choir.note
        assert note is not None
        [staple] = await region.registry.staples([2], note)  # epoch 1 under the newest checkpoint
        verify_staple(staple, before.epoch, trust)
        with pytest.raises(OldEpoch):
            verify_newest(old, type(before)(before.epoch, staple, before.proof), trust, late)


async def test_a_user_who_is_there_cannot_be_denied_nor_one_invented(world: World) -> None:
    trust = world.trust("norden", 2)
    async with world.region() as region:
        one = read_home((await region.log.enrol(request(1))).signed)
        two = read_home((await region.log.enrol(request(2))).signed)
        for evidence in [(await region.log.standing(who)).evidence for who in (two.user, b"u" * 32)]:
            with pytest.raises(BadProof):
                verify_unknown(one.user, evidence, trust, FRESH)
            with pytest.raises(BadProof):
                verify_newest(one, evidence, trust, FRESH)
        verify_unknown(b"u" * 32, (await region.log.standing(b"u" * 32)).evidence, trust, FRESH)


def test_of_k_witnesses_all_have_to_be_fresh() -> None:
    """One that conspires with the log and signs it ever anew does not make the others' old word a new one."""
    trust = Trust(LOG.verifier, (witness_key("sauda").verifier, witness_key("vika").verifier), 2)
    for old, good in ((1_000, True), (999, False)):
        proven = Proven(0, Checkpoint(LOG.name, 1, bytes(32)), {"sauda": 1_600, "vika": old})
        if good:
            check_fresh(proven, trust, Freshness(1_600, 600))
            continue
        with pytest.raises(StaleCheckpoint, match="601 s ago"):
            check_fresh(proven, trust, Freshness(1_600, 600))


# --- a log that lies -----------------------------------------------------------------------------
async def test_a_fork_is_kept_as_evidence_told_and_never_cosigned_again(world: World) -> None:
    witness, told = world.witnesses["sauda"], []
    witness.on_fork = lambda origin, fork: told.append((origin, fork))
    assert (await witness.add_checkpoint(ONE.request(0, 30).encode())).status == HTTPStatus.OK
    verdict = await witness.add_checkpoint(OTHER.request(30, 30).encode())
    assert verdict.status == HTTPStatus.UNPROCESSABLE_ENTITY and verdict.body.startswith(b"Fork: ")
    [(origin, fork)] = told
    assert origin == LOG.name and (fork.first, fork.second) == (ONE.note(30).encode(), OTHER.note(30).encode())
    notes = sorted((world.directory / "sauda" / "evidence").iterdir())
    assert [path.read_bytes() for path in notes] == [fork.first, fork.second]
    verdict = await witness.add_checkpoint(ONE.request(30, 40).encode())  # an honest step: too late
    assert verdict.status == HTTPStatus.UNPROCESSABLE_ENTITY and len(told) == 1


async def test_a_fork_of_another_size_is_found_by_its_own_proof(world: World) -> None:
    witness, told = world.witnesses["sauda"], []
    witness.on_fork = lambda origin, fork: told.append(fork)
    await witness.add_checkpoint(ONE.request(0, 30).encode())
    verdict = await witness.add_checkpoint(OTHER.request(30, 40).encode())
    assert verdict.status == HTTPStatus.UNPROCESSABLE_ENTITY and verdict.body.startswith(b"Fork: ")
    assert told and told[0].proof


async def test_anybodys_wrong_proof_with_a_true_checkpoint_halts_nobody(world: World) -> None:
    witness = world.witnesses["sauda"]
    await witness.add_checkpoint(ONE.request(0, 30).encode())
    true = ONE.request(30, 40)
    wrong = type(true)(30, (bytes(32), *true.proof[1:]), true.note)
    refused = await witness.add_checkpoint(wrong.encode())
    assert refused.status == HTTPStatus.UNPROCESSABLE_ENTITY and refused.body.startswith(b"BadProof: ")
    assert (await witness.add_checkpoint(true.encode())).status == HTTPStatus.OK


async def test_what_a_witness_said_it_remembers_after_a_restart(world: World) -> None:
    """Durable before it is answered: a fork is also found by the next process."""
    place, logs = world.directory / "sauda", {LOG.name: LOG.verifier}
    for request_, status in (
        (ONE.request(0, 30), HTTPStatus.OK),
        (ONE.request(0, 29), HTTPStatus.CONFLICT),
        (OTHER.request(30, 30), HTTPStatus.UNPROCESSABLE_ENTITY),
        (ONE.request(30, 40), HTTPStatus.UNPROCESSABLE_ENTITY),
    ):
        async with open_witness(
            place / "again.sqlite", world.portal, witness_key("sauda"), logs, place / "evidence", world.clock
        ) as witness:
            verdict = await witness.add_checkpoint(request_.encode())
            assert verdict.status == status, verdict.body
            assert status != HTTPStatus.UNPROCESSABLE_ENTITY or verdict.body.startswith(b"Fork: ")
            if status == HTTPStatus.CONFLICT:
                assert verdict.body == b"30\n" and verdict.size


async def test_a_fork_is_told_where_its_copies_cannot_be_written_and_again_by_the_next_process(world: World) -> None:
    place, logs, told = world.directory / "sauda", {LOG.name: LOG.verifier}, []
    for again in (False, True):
        async with open_witness(
            place / "again.sqlite", world.portal, witness_key("sauda"), logs, place / "none", world.clock
        ) as witness:
            witness.on_fork = lambda origin, fork: told.append((origin, fork.first, fork.second))
            if again:
                witness.tell_again()
                break
            await witness.add_checkpoint(ONE.request(0, 30).encode())
            (place / "none").rmdir()
            verdict = await witness.add_checkpoint(OTHER.request(30, 30).encode())
            assert verdict.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert told == [(LOG.name, ONE.note(30).encode(), OTHER.note(30).encode())] * 2


async def test_a_split_view_is_found_by_gossip_within_one_round(world: World) -> None:
    """k = 1 of 2: sauda is shown one history, vika another, of one size or of two."""
    for theirs in (30, 40):
        sauda, vika = world.witnesses["sauda"], world.witnesses["vika"]
        if theirs == 40:
            await vika.add_checkpoint(OTHER.request(30, 40).encode())
            sauda._forks.clear()
        else:
            await sauda.add_checkpoint(ONE.request(0, 30).encode())
            await vika.add_checkpoint(OTHER.request(0, 30).encode())
        told: list[Fork] = []
        sauda.on_fork = lambda origin, fork, told=told: told.append(fork)  # type: ignore[misc]
        await Gossip(sauda, {"vika": world.door("vika")}, {LOG.name: tiles_of(OTHER)}).look()
        [fork] = told
        assert parse_note(fork.first) == ONE.note(30) and parse_note(fork.second) == OTHER.note(theirs)
        assert (await sauda.add_checkpoint(ONE.request(30, 40).encode())).status == HTTPStatus.UNPROCESSABLE_ENTITY


async def test_a_split_view_is_found_where_the_shorter_side_ends_at_a_power_of_two(world: World) -> None:
    """A consistency proof says nothing of the old root there (found by the simulator)."""
    sauda, vika = world.witnesses["sauda"], world.witnesses["vika"]
    await sauda.add_checkpoint(ONE.request(0, 32).encode())
    await vika.add_checkpoint(OTHER.request(0, 40).encode())
    told: list[Fork] = []
    sauda.on_fork = lambda origin, fork: told.append(fork)  # type: ignore[misc]
    await Gossip(sauda, {"vika": world.door("vika")}, {LOG.name: tiles_of(OTHER)}).look()
    assert [parse_note(fork.first) for fork in told] == [ONE.note(32)]


async def test_gossip_about_an_honest_log_finds_nothing(world: World) -> None:
    sauda, vika = world.witnesses["sauda"], world.witnesses["vika"]
    await sauda.add_checkpoint(ONE.request(0, 30).encode())
    gossip = Gossip(sauda, {"vika": world.door("vika")}, {LOG.name: tiles_of(ONE)})
    for old, new in ((0, 20), (20, 30), (30, 40)):
        await vika.add_checkpoint(ONE.request(old, new).encode())
        await gossip.look()
    assert (await sauda.add_checkpoint(ONE.request(30, 40).encode())).status == HTTPStatus.OK


def tiles_of(book: Book) -> HttpDoor:
    class Tiles(HttpDoor):
        async def tile(self, tile: object) -> bytes:
            await trio.lowlevel.checkpoint()
            stored = book._at(40)
            return next(data[: 32 * tile.width] for name, data in stored.items() if name[:2] == tile[:2])  # type: ignore

    async def dial() -> trio.abc.Stream:
        raise PeerError("nobody is dialled here")

    return Tiles(Caller("tiles", dial))


# --- a witness that lies -------------------------------------------------------------------------
async def test_a_witness_that_lies_makes_no_cosignature_and_stops_nobody(world: World) -> None:
    async def says_more(body: bytes) -> tuple[int, bytes]:
        return 409, b"1000000\n"

    async def signs_another(body: bytes) -> tuple[int, bytes]:
        return 200, str(ONE.note(3).sign(witness_key("vika"), 5).signatures[-1]).encode()

    async def uses_anothers_name(body: bytes) -> tuple[int, bytes]:
        note = parse_add_checkpoint(body).note.sign(key("vika.example/witness", 1))
        return 200, str(note.signatures[-1]).encode()

    async def babbles(body: bytes) -> tuple[int, bytes]:
        return 200, bytes(1000)

    async with world.region(k=1) as region:
        for lie in (says_more, signs_another, uses_anothers_name, babbles):
            region.doors["vika"].lie = lie
            answer = await region.log.enrol(request(len(lie.__name__)))
            note = parse_staple(answer.staple).note
            assert [line.name for line in note.signatures] == [LOG.name, "sauda.example/witness"]
        region.doors["sauda"].shut = True
        with pytest.raises(TooFewWitnesses):
            region.choir.wait_s = 0.1
            await region.log.enrol(request(99))


# --- a witness that others wrote -----------------------------------------------------------------
async def test_a_foreign_witness_cosigns_our_log_over_http(world: World, tmp_path: Path) -> None:
    signer = key("foreign.example/witness", 4)
    store = WitnessStore(tmp_path / "foreign.sqlite", create=True)
    logs = [LogConfig(LOG.name, (aics_tlog.parse_vkey(str(LOG.verifier)),))]
    foreign = ForeignWitness(signer.name, Ed25519PrivateKey.from_private_bytes(signer.seed), store, logs)
    server = make_server(foreign)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        async with world.region(k=2) as region:
            region.choir.trust = type(region.choir.trust)(LOG.verifier, (signer.verifier,), 1)
            http = HttpDoor(caller("foreign", server.url, None, ""))
            choir = Choir(region.choir.trust, [(signer.verifier, http)], region.registry.consistency)
            region.log.choir = choir
            async with trio.open_nursery() as nursery:
                nursery.start_soon(choir.run)
                choir.present(region.registry.head.note)
                for number in range(1, 4):
                    answer = await region.log.enrol(request(number))
                    _, proven = verify_stapled_home(answer.signed, answer.staple, ROOT, choir.trust, None, NOW)
                    assert list(proven.times) == [signer.name]
                nursery.cancel_scope.cancel()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        store.close()
