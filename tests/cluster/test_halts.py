"""A region's log forks: whoever finds it out, all nodes have nothing to do with that region any more, aloud."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog.testing
import trio
from msgspec import structs
from nacl.signing import SigningKey

from cluster.core import linkwire
from cluster.halts import Halts, registrars_of
from cluster.pki import make_authority
from cluster.registrar.gossip import Gossip
from cluster.switchboard import Switchboard
from relay.core.codec import pack
from relay.core.tlog import (
    ED25519, BadProof, Fork, Malformed, SignerKey, UnknownKey, contradiction_proof, encode_fork, verify_fork,
)  # fmt: skip
from relay.core.trust import EarlierKey, Root
from relay.core.wire import Code
from relay.errors import OperatorError, Overloaded, PeerError, RegionHalted, TrustError
from relay.limits import FORKS_PAUSE_S, FORKS_WAIT_S, GOSSIP_S, WITNESS_S
from relay.observe.metrics import Metrics
from tests.cluster.registrar.site import open_world
from tests.cluster.registrar.test_attacks import tiles_of
from tests.logged import log_key, logged_region
from tests.relay.core.tlog.logbook import Book, key
from tests.relay.core.mailroom.conftest import FAR
from tests.roots import verified_root

REGISTRAR = SigningKey(b"r" * 32)
LOG = log_key("norden")
ENTRIES = [bytes([number]) for number in range(40)]
ONE, OTHER = Book(ENTRIES, LOG), Book([b"other", *ENTRIES[1:]], LOG)


def make_root(log: str = "") -> Root:
    regions = [logged_region(name, REGISTRAR) for name in ("norden", "sauda", "vika")]
    return verified_root([structs.replace(regions[0], log_key=log or regions[0].log_key), *regions[1:]], FAR)


def proof_of(old: int, new: int, first: Book = ONE, second: Book = OTHER) -> bytes:
    way = contradiction_proof(old, new, second._at(new)) if old != new else ()
    return encode_fork(Fork("", "", first.note(old).encode(), second.note(new).encode(), way), LOG.verifier)


def halts_of(data: Path, root: Root | None = None, region: str = "sauda") -> tuple[Halts, Metrics]:
    metrics = Metrics()
    return Halts(root or make_root(), region, data, metrics), metrics


def halted(metrics: Metrics, region: str = "norden") -> float | None:
    return metrics.registry.get_sample_value("posthouse_region_halted", {"region": region})


@pytest.mark.parametrize(("old", "new"), [(30, 30), (1, 1), (30, 40), (8, 40), (32, 33), (1, 2)])
def test_two_histories_that_the_log_signed_prove_it_to_everybody(old: int, new: int) -> None:
    """Also where the older size is a power of two, of which a consistency proof alone says nothing."""
    found = verify_fork(proof_of(old, new), LOG.verifier)
    assert (found.first, found.second) == (ONE.note(old).encode(), OTHER.note(new).encode())


@pytest.mark.parametrize(
    ("proof", "error"),
    [
        (proof_of(30, 30, ONE, ONE), BadProof), (proof_of(20, 30, ONE, ONE), BadProof),
        (proof_of(16, 30, ONE, ONE), BadProof), (b"\x93", Malformed), (b"", Malformed),
        (encode_fork(Fork("", "", ONE.note(20).encode(), OTHER.note(30).encode()), LOG.verifier), BadProof),
    ],
)  # fmt: skip
def test_an_honest_log_is_not_halted(tmp_path: Path, proof: bytes, error: type[TrustError]) -> None:
    halts, metrics = halts_of(tmp_path)
    with pytest.raises(error):
        halts.take(proof)
    other = key("another/log")
    forged = Fork("", "", Book([b"1"], other).note(1).encode(), Book([b"2"], other).note(1).encode())
    with pytest.raises(TrustError, match="no region's log"):
        halts.take(encode_fork(forged, other.verifier))
    thief = SignerKey(LOG.name, ED25519, b"t" * 32)
    forged = Fork("", "", Book([b"1"], thief).note(1).encode(), Book([b"2"], thief).note(1).encode())
    with pytest.raises(UnknownKey):
        halts.take(encode_fork(forged, thief.verifier))
    with pytest.raises(UnknownKey):
        verify_fork(proof_of(30, 30), log_key("vika").verifier)
    assert halts.warning == "" and halts.why("norden/1") == "" and halted(metrics) == 0
    assert not (tmp_path / "forks").exists()


def test_it_is_kept_before_it_counts_and_over_when_the_region_has_a_new_log(tmp_path: Path) -> None:
    halts, metrics = halts_of(tmp_path)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            halts.take(proof_of(30, 40))
    assert [one["event"] for one in logs if one["log_level"] == "critical"] == ["region_halted"]
    assert halted(metrics) == 1 and halted(metrics, "vika") == 0
    assert len([*(tmp_path / "forks").glob("*.fork")]) == 1
    with pytest.raises(RegionHalted, match="federation with norden is halted"):
        halts.check("norden/1")
    halts.check("vika/1")
    again, metrics = halts_of(tmp_path)  # the next process
    assert "norden" in again.why("norden/2") and halted(metrics) == 1
    later, metrics = halts_of(tmp_path, make_root(str(key("norden.example/log2").verifier)))
    assert later.why("norden/1") == "" and halted(metrics) == 0


def test_what_cannot_be_kept_does_not_count(tmp_path: Path) -> None:
    halts, metrics = halts_of(tmp_path)
    (tmp_path / "forks").write_text("in the way")
    with pytest.raises(OperatorError, match="cannot write"):
        halts.take(proof_of(30, 40))
    assert halts.why("norden/1") == "" and halted(metrics) == 0


async def test_a_registrar_that_hangs_once_is_asked_again(tmp_path: Path, autojump_clock: object) -> None:
    halts, _ = halts_of(tmp_path)
    asked = 0

    async def tells() -> bytes:
        nonlocal asked
        asked += 1
        if asked == 1:
            await trio.sleep_forever()
        return pack([proof_of(30, 30)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(halts.watch, {"a": tells})
        await trio.sleep(FORKS_WAIT_S + WITNESS_S + 2 * FORKS_PAUSE_S)
        assert halts.why("norden/1") and asked >= 2
        nursery.cancel_scope.cancel()


def test_of_the_own_log_it_is_only_told(tmp_path: Path) -> None:
    halts, metrics = halts_of(tmp_path, region="norden")
    halts.take(proof_of(30, 30))
    halts.check("norden/1")
    assert "this region" in halts.warning and halted(metrics) == 1


async def test_every_registrar_is_asked_at_once_and_none_is_believed(tmp_path: Path, autojump_clock: object) -> None:
    halts, _ = halts_of(tmp_path)

    async def silent() -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def away() -> bytes:
        raise PeerError("nobody")

    async def lies() -> bytes:
        return pack([b"nonsense", proof_of(20, 30, ONE, ONE)])

    async def babbles() -> bytes:
        return bytes(100)

    async def tells() -> bytes:
        return pack([b"nonsense", proof_of(30, 30)] if trio.current_time() - began > GOSSIP_S else [])

    began = trio.current_time()
    asks = {"a": silent, "b": away, "c": lies, "d": babbles, "e": tells}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(halts.watch, asks)
        await trio.sleep(GOSSIP_S)
        assert halts.warning == ""
        await trio.sleep(2 * FORKS_PAUSE_S)
        assert halts.why("norden/1")
        nursery.cancel_scope.cancel()


async def test_a_split_view_halts_federation(tmp_path: Path) -> None:
    """The log shows sauda one history and vika another. Their registrars gossip; a node of a third region asks one."""
    async with open_world(tmp_path) as world:
        sauda, vika = world.witnesses["sauda"], world.witnesses["vika"]
        await sauda.add_checkpoint(ONE.request(0, 32).encode())
        await vika.add_checkpoint(OTHER.request(0, 40).encode())
        await Gossip(sauda, {"vika": world.door("vika")}, {LOG.name: tiles_of(OTHER)}).look()
        halts, _ = halts_of(tmp_path / "node")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(halts.watch, {"sauda": world.door("sauda").forks})
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert halts.why("norden/1")
        await Gossip(vika, {"sauda": world.door("sauda")}, {}).look()  # it hears of it, without a look at the tiles
        with pytest.raises(Fork):
            vika.check_whole(LOG.name)
        # and what such a node does with that region
        board = Switchboard(halts.check)
        with pytest.raises(RegionHalted) as refused:
            await board.answer(linkwire.Peer("norden", "norden/1", "n1"), linkwire.LookUp(bytes(32), 0))
        assert refused.value.code == Code.UNREACHABLE
        with pytest.raises(Overloaded):  # starting, for everybody else
            await board.answer(linkwire.Peer("vika", "vika/1", "n1"), linkwire.LookUp(bytes(32), 0))


def test_who_has_no_registrar_or_a_wrong_url_is_not_asked() -> None:
    assert registrars_of(make_root()) == {}
    odd = structs.replace(logged_region("norden", REGISTRAR), registrar_url="ftp://x")
    assert registrars_of(verified_root([odd], FAR)) == {}


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "\u0378"])
async def test_a_registrar_at_what_is_no_host_name_ends_no_node(
    tmp_path: Path, autojump_clock: object, host: str
) -> None:
    """A region says of itself where its registrar is, and every node of every other region asks there."""
    odd = structs.replace(logged_region("norden", REGISTRAR), registrar_url=f"https://{host}:1")
    regions = [structs.replace(odd, authority=make_authority("norden")[0])]
    asks = registrars_of(verified_root(regions, FAR))
    halts, _ = halts_of(tmp_path)
    with pytest.raises(PeerError, match=r"norden: .*no host name"):
        await asks["norden"]()
    with trio.move_on_after(3 * FORKS_PAUSE_S) as asking:
        await halts.watch(asks)
    assert asking.cancelled_caught


# --- another root document, and damaged evidence -----------------------------------------------------
def test_a_new_log_of_the_region_ends_it_at_once_and_the_old_one_named_again_begins_it(tmp_path: Path) -> None:
    halts, metrics = halts_of(tmp_path)
    halts.take(proof_of(30, 40))
    with structlog.testing.capture_logs() as logs:
        halts.follow(make_root())
        halts.follow(make_root(str(key("norden.example/log2").verifier)))
        assert halts.why("norden/1") == "" and halted(metrics) == 0 and not halts.warning
        halts.follow(make_root())
        assert "its log forked" in halts.why("norden/1") and halted(metrics) == 1
    assert [one["event"] for one in logs] == ["region_back", "region_halted"], "not said again while nothing changes"


def test_a_region_that_went_is_not_shown_as_halted_for_ever_and_is_again_when_it_comes_back(tmp_path: Path) -> None:
    halts, metrics = halts_of(tmp_path)
    halts.take(proof_of(30, 40))
    rest = [one for one in make_root().payload.regions if one.name != "norden"]
    halts.follow(verified_root(rest, FAR))
    assert halted(metrics) == 0 and not halts.warning
    halts.follow(make_root())
    assert halted(metrics) == 1 and "its log forked" in halts.why("norden/1")


def test_another_key_of_a_registrar_leaves_its_log_and_what_was_proven_of_it_as_they_were(tmp_path: Path) -> None:
    """Nobody sheds a fork by it, nor takes the log's name from the region that the document names first for it."""
    halts, metrics = halts_of(tmp_path)
    halts.take(proof_of(30, 40))
    norden, sauda, vika = make_root().payload.regions
    old = EarlierKey(norden.registrar_key, (("norden", 30),))
    rotated = structs.replace(norden, registrar_key=bytes(32), earlier=(old,))
    claims = structs.replace(vika, log_key=str(SignerKey(LOG.name, ED25519, bytes(32)).verifier))
    with structlog.testing.capture_logs() as logs:
        halts.follow(verified_root([rotated, sauda, claims], FAR))
    assert logs == [] and halts.why("norden/1") and halted(metrics) == 1 and not halts.why("vika/1")
    again, _ = halts_of(tmp_path / "later", verified_root([rotated, sauda, claims], FAR))
    again.take(proof_of(30, 30))  # before the key was replaced
    again.take(proof_of(20, 40))  # and across that
    assert again.why("norden/1") and not again.why("vika/1")


async def test_registrars_that_the_new_document_names_are_listened_to(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    halts, _ = halts_of(tmp_path)
    named: list[Root] = []

    async def nothing() -> bytes:
        await trio.sleep(1)
        return b"\x90"

    monkeypatch.setattr("cluster.halts.registrars_of", lambda root: named.append(root) or {"vika": nothing})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(halts.watch_all)
        await trio.sleep(10)
        halts.follow(other := make_root(str(key("norden.example/log2").verifier)))
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert len(named) == 2 and named[1] is other


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "another's"])
def test_damaged_evidence_halts_on_and_says_so(tmp_path: Path, damage: str) -> None:
    """What was proven once is not forgotten because of a disk, however it is damaged; good evidence mends it."""
    halts_of(tmp_path)[0].take(proof_of(30, 40))
    (file,) = (tmp_path / "forks").glob("*.fork")
    good = file.read_bytes()
    flipped, other = good.replace(b"norden", b"nordem"), proof_of(1, 2)
    made = {"empty": b"", "short": good[:-9], "flipped": flipped, "another's": other}
    file.write_bytes(made[damage])
    with structlog.testing.capture_logs() as logs:
        again, metrics = halts_of(tmp_path)
    (said,) = logs
    assert said["event"] == "fork_evidence_damaged" and said["log_level"] == "critical"
    assert str(file) in said["text"] and "Put it back" in said["remedy"]
    assert halted(metrics) == 1 and halted(metrics, "vika") == 0 and str(file) in again.warning
    with pytest.raises(RegionHalted, match="evidence that its log forked is damaged"):
        again.check("norden/1")
    with pytest.raises(TrustError):
        again.take(made[damage] if damage != "another's" else good[:-9])
    again.follow(make_root(str(key("norden.example/log2").verifier)))
    assert again.why("norden/1"), "nobody knows of which log it was"
    again.follow(make_root())
    for proof in (proof_of(30, 30), good):
        again.take(proof)  # the registrars tell of it again
    assert "its log forked" in again.why("norden/1") and "damaged" not in again.why("norden/1")
    assert file.with_suffix(".damaged").exists() and not file.exists()
    with structlog.testing.capture_logs() as logs:
        later, metrics = halts_of(tmp_path)
    assert [one["event"] for one in logs] == ["region_halted"] and later.why("norden/1") and halted(metrics) == 1


def test_the_same_evidence_told_again_is_written_over_what_is_damaged(tmp_path: Path) -> None:
    halts_of(tmp_path)[0].take(proof_of(30, 40))
    (file,) = (tmp_path / "forks").glob("*.fork")
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    halts_of(tmp_path)[0].take(good)
    assert file.read_bytes() == good and [*(tmp_path / "forks").iterdir()] == [file]


def test_what_cannot_be_read_or_is_nobodys_keeps_the_node_from_starting(tmp_path: Path) -> None:
    folder = tmp_path / "forks"
    folder.mkdir()
    (folder / "norden-0123456789abcdef.fork").mkdir()
    with pytest.raises(OperatorError, match=r"0123456789abcdef\.fork: "):
        halts_of(tmp_path)
    (folder / "norden-0123456789abcdef.fork").rmdir()
    (folder / "junk.fork").write_bytes(b"")
    with pytest.raises(OperatorError, match="no evidence that this node kept"):
        halts_of(tmp_path)
    (folder / "junk.fork").rename(folder / "gone-0123456789abcdef.fork")  # of a region that the root does not name
    halts, _ = halts_of(tmp_path)
    assert not halts.warning
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("in the way")
    with pytest.raises(OperatorError):
        halts_of(tmp_path)
