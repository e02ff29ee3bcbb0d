"""Registrars keep each other's word for their audit logs: a tail that was cut off is told, and found."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
from msgspec import structs
from nacl.signing import SigningKey
from structlog.testing import capture_logs

from cluster.audit.trails import check_key, hold_together, read_log
from cluster.registrar.onlookers import Onlookers
from cluster.trail import DIRECTORY, Trail, files_in, open_registrar_trail
from relay.core.tlog import ED25519, Checkpoint, SignerKey
from relay.core.trust import EarlierKey
from relay.errors import PeerError
from relay.limits import LOOKUP_S
from tests.cluster.registrar.site import ROOT, registrar_key
from tests.roots import verified_root

CLOCK = itertools.count(1_700_000_000_000, 1000)


def opened(directory: Path, region: str) -> Trail:
    trail = open_registrar_trail(directory / region / DIRECTORY, region, registrar_key(region), CLOCK.__next__)
    trail.note("registrar.run", "registrar", "begun")
    return trail


class Line:
    """A way to another registrar: its page, or what `says`; or nothing, for ever."""

    def __init__(self) -> None:
        self.to: Onlookers | None = None
        self.says: bytes | None = None
        self.status, self.hangs, self.asked = 200, False, 0

    async def ask(self, method: str, path: str, body: bytes = b"", most: int = 0) -> tuple[int, bytes]:
        assert (method, path) == ("GET", "/audit")
        self.asked += 1
        if self.hangs:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if self.says is None and self.to is None:
            raise PeerError("nobody answers")
        data = self.says if self.to is None or self.says is not None else self.to.checkpoint()
        assert data is not None and len(data) <= most
        return self.status, data


def pair(directory: Path) -> tuple[Mapping[str, Trail], Mapping[str, Onlookers], Mapping[str, Line]]:
    """Norden and sauda, and the lines by which each asks the other."""
    trails = {region: opened(directory, region) for region in ("norden", "sauda")}
    lines = {"norden": Line(), "sauda": Line()}
    looking = {
        region: Onlookers(trails[region], ROOT, {other: lines[region]})  # type: ignore[dict-item]
        for region, other in (("norden", "sauda"), ("sauda", "norden"))
    }
    lines["norden"].to, lines["sauda"].to = looking["sauda"], looking["norden"]
    return trails, looking, lines


async def test_each_keeps_the_others_word_and_says_it_once(tmp_path: Path) -> None:
    trails, looking, _ = pair(tmp_path)
    for _ in range(5):
        for one in looking.values():
            await one.look()
    assert [trail.size for trail in trails.values()] == [3, 3], "what is noted of the other is no news for it"
    trails["sauda"].note("directory.log", "registrar", actions=["enrol 01020304 v1"])
    for _ in range(3):
        for one in looking.values():
            await one.look()
    assert [trail.size for trail in trails.values()] == [4, 4]
    logs = []
    for region, trail in trails.items():
        trail.close()
        logs.append(read_log(files_in(tmp_path / region / DIRECTORY)))
        check_key(logs[-1], ROOT)
    judged = hold_together(logs, [], [])
    assert not judged.findings and not any(log.findings for log in logs) and judged.held == 3


@pytest.mark.parametrize("all_of_it", [False, True])
async def test_a_registrar_whose_newest_entries_were_taken_away_is_told_of_at_once(
    tmp_path: Path, all_of_it: bool
) -> None:
    """By who may write the file, or by an old copy put back."""
    trails, looking, lines = pair(tmp_path)
    trails["sauda"].note("directory.log", "registrar", actions=["move 01020304 v2"])
    await looking["norden"].look()
    trails["sauda"].close()
    [file] = files_in(tmp_path / "sauda" / DIRECTORY)
    if all_of_it:
        file.unlink()
    else:
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:1]))
    again = Onlookers(opened(tmp_path, "sauda"), ROOT, {})
    lines["norden"].to = again
    with capture_logs() as said:
        await looking["norden"].look()
    [event] = [one for one in said if one["event"] == "audit_log_contradicts_itself"]
    assert event["region"] == "sauda"
    assert ("another log" if all_of_it else "the newest were taken away") in event["text"]
    trails["norden"].close()
    again._trail.close()
    logs = [read_log(files_in(tmp_path / region / DIRECTORY)) for region in ("norden", "sauda")]
    judged = hold_together(logs, [], [])
    findings = [*judged.findings, *logs[1].findings]
    assert any("it was taken away, or lost" in text or "were taken away" in text for text in findings), findings


async def test_what_is_not_its_own_word_is_not_kept(tmp_path: Path) -> None:
    trails, looking, lines = pair(tmp_path)
    origin = "posthouse.audit/sauda/registrar/00"
    foreign = SignerKey(origin, ED25519, bytes(registrar_key("norden")))
    own = SignerKey("posthouse.audit/vika/registrar/00", ED25519, bytes(registrar_key("sauda")))
    logs = SignerKey("sauda.example/log", ED25519, bytes(registrar_key("sauda")))
    for signer in (foreign, own, logs):
        lines["norden"].says = Checkpoint(signer.name, 7, bytes(32)).sign(signer).encode()
        with capture_logs() as said:
            await looking["norden"].look()
        assert [one["event"] for one in said] == ["audit_not_kept"], signer.name
    lines["norden"].says = b"noise"
    with capture_logs() as said:
        await looking["norden"].look()
    assert [one["event"] for one in said] == ["audit_not_kept"]
    assert trails["norden"].seen == {} and trails["norden"].size == 2


async def test_an_audit_log_is_begun_anew_with_another_key_and_not_gone_on_with(tmp_path: Path) -> None:
    """Who stole the old one shows what he likes by it."""
    trails, looking, lines = pair(tmp_path)
    await looking["norden"].look()
    new = SigningKey(b"n" * 32)
    sauda = ROOT.region("sauda")
    old = EarlierKey(sauda.registrar_key, (("sauda", 1),))
    changed = structs.replace(sauda, registrar_key=bytes(new.verify_key), earlier=(old,))
    regions = [changed if one.name == "sauda" else one for one in ROOT.payload.regions]
    root = verified_root(regions, ROOT.payload.expires)
    looking["norden"] = Onlookers(trails["norden"], root, {"sauda": lines["norden"]})  # type: ignore[dict-item]
    trails["sauda"].note("directory.log", "registrar", actions=["enrol 01020304 v1"])
    size = trails["norden"].size
    with capture_logs() as said:
        await looking["norden"].look()
    assert "a key that was replaced" in said[0]["text"] and trails["norden"].size == size
    trails["sauda"].close()
    (tmp_path / "sauda" / DIRECTORY).rename(tmp_path / "sauda" / "audit-before")
    trail = open_registrar_trail(tmp_path / "sauda" / DIRECTORY, "sauda", new, CLOCK.__next__)
    trail.note("registrar.run", "registrar", "begun")
    lines["norden"].to = Onlookers(trail, root, {})
    with capture_logs() as said:
        await looking["norden"].look()
    assert said == [] and trails["norden"].size == size + 1, "one log after the other is no contradiction here"
    trail.close()
    logs = [read_log(files_in(tmp_path / "sauda" / name)) for name in (DIRECTORY, "audit-before")]
    for log in logs:
        check_key(log, root)
    trails["norden"].close()
    judged = hold_together([*logs, read_log(files_in(tmp_path / "norden" / DIRECTORY))], [], [])
    assert not judged.findings and not any(log.findings for log in logs) and judged.held == 2


async def test_who_is_away_silent_or_of_an_older_release_costs_a_round(tmp_path: Path, autojump_clock: object) -> None:
    trails, looking, lines = pair(tmp_path)
    line = lines["norden"]
    line.to = None
    await looking["norden"].look()
    line.says, line.status = b"No such page\n", 404
    await looking["norden"].look()
    line.hangs = True
    with trio.fail_after(LOOKUP_S + 1):
        await looking["norden"].look()
    assert trails["norden"].seen == {} and line.asked == 3


async def test_they_go_on_asking(tmp_path: Path, autojump_clock: object) -> None:
    trails, looking, lines = pair(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(looking["norden"].run)
        await trio.sleep(200)
        nursery.cancel_scope.cancel()
    assert lines["norden"].asked == 4 and [*trails["norden"].seen] == ["sauda/registrar"]


def test_what_was_signed_by_hand_is_another_log_that_nobody_keeps(tmp_path: Path) -> None:
    """A registrar's log that is kept, and lies elsewhere, is not missed because the book of the same key is here."""
    service, book = opened(tmp_path / "service", "sauda"), tmp_path / "book"
    by_hand = open_registrar_trail(book / DIRECTORY, "sauda", registrar_key("sauda"), CLOCK.__next__)
    by_hand.note("directory.sign", "operator", actions=["enrol 01020304 v1"])
    kept = [("norden/registrar (entry 1)", service.checkpoint())]
    for trail in (service, by_hand):
        trail.close()
    judged = hold_together([read_log(files_in(book / DIRECTORY))], kept, [])
    assert not judged.findings and judged.elsewhere == {"sauda/registrar"}
