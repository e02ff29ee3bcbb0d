"""Three registrars as processes: enrolled, witnessed, read by tools that we did not write, killed under load."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aics_tlog
import pytest
import trio

from cluster.audit.trails import check_key, read_log
from cluster.core.auditlog import Entry
from cluster.core.homelog import verify_stapled_home
from relay.core.tlog import TooFewWitnesses
from cluster.env import RealEnv
from cluster.local.home import read_root
from cluster.local.make import make_federation
from cluster.registrar.asking import Registrar
from cluster.registrar.config import load_config
from cluster.registrar.endpoints import caller
from cluster.trail import files_in
from relay.client import Card
from relay.core.codec import encode, pack
from relay.core.trust import StapledHome, read_home, same_home
from relay.errors import Overloaded, PeerError, PosthouseError
from tests.cluster.registrar.site import first, user_key
from tests.patience import PATIENCE_S
from tests.ports import free_ports

REGIONS = ("norden", "sauda", "vika")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def request(number: int, **more: object) -> bytes:
    data = encode(first(number, not_before=now_ms() - 60_000, expires=now_ms() + 86_400_000, **more))
    return pack([data, user_key(number).sign(b"posthouse.home\x00" + data).signature])


def posthouse(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation with a registrar for each region, all of which know each other; k = 2."""
    place = tmp_path_factory.mktemp("registrars") / "fed"
    make_federation(place, REGIONS, RealEnv())
    peers, inner = {}, free_ports(1)[0]
    for region, port in zip(REGIONS, free_ports(3), strict=True):
        made = posthouse(
            "registrar", "init", region, "--dir", place, "--host", "127.0.0.1", "--port", port, "--witnesses", 2,
            "--name", f"{region}.example",
        )  # fmt: skip
        peers[region] = made.stdout[made.stdout.index("[[peers]]") :]
    for region in REGIONS:
        config = place / f"registrar-{region}" / "registrar.toml"
        others = "\n".join(text for other, text in peers.items() if other != region)
        text = config.read_text().replace("0.0.0.0", "127.0.0.1")
        if region == "norden":  # by TCP, for tools that know no Unix sockets
            text = text.replace("unix:inner", f"http://127.0.0.1:{inner}")
        config.write_text(f"{text}\n{others}")
    return place


@contextmanager
def running(directory: Path, *regions: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for region in regions:
            processes[region] = start(directory, region)
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def start(directory: Path, region: str) -> subprocess.Popen[bytes]:
    log = (directory / f"{region}.log").open("ab")
    words = [sys.executable, "-m", "cluster.cli", "registrar", "run", str(directory / f"registrar-{region}")]
    return subprocess.Popen(words, stderr=log, stdout=log, stdin=subprocess.DEVNULL)


def actions(log: Path, root: Path) -> list[str]:
    """What the audit log of a registrar says that it signed; the log holds, by the root document."""
    said: list[Entry] = []
    read = read_log(files_in(log), said.append)
    check_key(read, read_root(root, now_ms()))
    assert not read.findings
    found = [one.about["actions"] for one in said if one.what in ("directory.log", "directory.sign")]
    return [action for some in found if isinstance(some, list) for action in some]


async def enrol_patiently(registrar: Registrar, asked: bytes) -> StapledHome:
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                return await registrar.enrol(asked)
            except (TooFewWitnesses, PeerError, Overloaded):
                await trio.sleep(0.2)


def registrar_of(directory: Path, region: str = "norden") -> Registrar:
    return Registrar.of(load_config(directory / f"registrar-{region}", now_ms()))


async def test_enrolled_by_the_command_and_read_by_foreign_tools(directory: Path, tmp_path: Path) -> None:
    registrar = registrar_of(directory)
    with running(directory, *REGIONS):
        await enrol_patiently(registrar, request(1))
        asked = tmp_path / "asked"
        asked.write_bytes(request(2))
        at = directory / "registrar-norden"
        done = await trio.to_thread.run_sync(lambda: posthouse("registrar", "enrol", asked, "--at", at))
        card = done.stdout.strip()
        assert re.fullmatch(r"posthouse:norden:[a-z2-7]{52}", card)
        assert (tmp_path / "asked.staple").read_text().startswith("c2sp.org/tlog-proof@v1\nindex ")
        files = [tmp_path / name for name in ("three", "wrong", "large", "huge", "missing", ".", "four")]
        contents = (request(3), b"nonsense", bytes(16_385), bytes(600_000))
        for file, content in zip(files, contents, strict=False):
            file.write_bytes(content)
        files[-1].write_bytes(request(4))
        words = ("registrar", "enrol", *files, "--at", at)
        for _ in range(2):  # and again: what was enrolled gets the same
            done = await trio.to_thread.run_sync(lambda: posthouse(*words, check=False))
            assert done.returncode == 1 and f"{files[1]}: OperatorError: no enrolment request" in done.stderr
            assert f"{files[2]}: 16385 bytes; a request has at most 16384. Is it a request?" in done.stderr
            assert f"{files[3]}: 600000 bytes" in done.stderr and f"{files[4]}: No such file" in done.stderr
            assert f"{files[5]}: Is a directory" in done.stderr and "5 of 7 requests were not enrolled" in done.stderr
            assert len(done.stdout.split()) == 2 and not (tmp_path / "wrong.records").exists()
        assert all((tmp_path / f"{name}.staple").exists() for name in ("three", "four"))
        shown = await trio.to_thread.run_sync(lambda: posthouse("registrar", "proof", card, "--at", at))
        assert "version 1, at home in norden/1" in shown.stdout
        assert "sauda.example/witness, vika.example/witness" in shown.stdout
        unknown = await trio.to_thread.run_sync(lambda: posthouse("registrar", "proof", "ab" * 32, "--at", at))
        assert "no such user" in unknown.stdout

        # a foreign implementation over what is served: checkpoint with both cosignatures, every tile and entry
        url = load_config(at, now_ms()).inner
        reader = aics_tlog.HttpTileReader(url, proxies={})
        note = await trio.to_thread.run_sync(reader.read_checkpoint)
        log, *witnesses = (
            aics_tlog.parse_vkey(str(key)) for key in (registrar.trust.log, *registrar.trust.witnesses)
        )  # fmt: skip
        verdict = aics_tlog.verify_checkpoint(aics_tlog.parse_note(note), log, witnesses, 2)
        assert verdict.ok, verdict.error
        report = await trio.to_thread.run_sync(aics_tlog.audit_tiles, reader, verdict.size, verdict.root)
        assert report.tiles >= 1 and report.bundles >= 1

        # and by our own auditor, twice
        words = ["registrar", "audit", url, "--region", "norden", "--root", directory / "root.bin"]
        words += ["--dir", tmp_path / "audit", "--log-key", registrar.trust.log, "--witnesses", 2]
        words += [word for key in registrar.trust.witnesses for word in ("--witness-key", key)]
        for new in (f"({verdict.size} new)", "(0 new)"):
            done = await trio.to_thread.run_sync(lambda: posthouse(*words))
            assert new in done.stdout and done.stdout.endswith("all of it holds\n")


async def test_a_device_is_revoked_and_a_key_rotated_by_the_command(directory: Path) -> None:
    def steps() -> list[str]:
        at = ("--at", directory / "registrar-norden", "--dir", directory)
        posthouse("user", "create", "alice", "--region", "norden", "--dir", directory)
        posthouse("user", "create", "laptop", "--device-of", "alice", "--dir", directory)
        refused = posthouse("registrar", "revoke", "alice", "--as", "alice", *at, check=False)
        assert refused.returncode == 3 and "a device cannot revoke itself" in refused.stderr
        said = [posthouse("registrar", "revoke", "alice+laptop", "--as", "alice", *at).stdout]
        said.append(posthouse("registrar", "rotate", "--as", "alice", *at).stdout)
        card = posthouse("card", "--as", "alice", "--dir", directory).stdout.strip()
        said.append(posthouse("registrar", "proof", card, *at[:2]).stdout)
        return said

    with running(directory, *REGIONS):
        await enrol_patiently(registrar_of(directory), request(1))
        revoked, rotated, proof = await trio.to_thread.run_sync(steps)
    user = Card.parse((directory / "clients/alice/card").read_text().strip()).user[:4].hex()
    by_hand = actions(directory / "registrar/norden/audit", directory / "root.bin")
    assert by_hand == [f"enrol {user} v1", f"add {user} v2"]
    logged = actions(directory / "registrar-norden/data/audit", directory / "root.bin")
    changed = [f"revoke+rotate-user {user} v3", f"rotate-user {user} v4"]
    assert [one for one in logged if user in one] == by_hand + changed
    assert "good  4 log(s)" in posthouse("audit", "verify", directory).stdout
    assert revoked == "Logged version 3: 1 device(s)\n" and rotated == "Logged version 4: 1 device(s)\n"
    assert "version 4, at home in norden/1, 1 device(s)" in proof


async def test_what_is_for_the_machine_only_is_not_on_the_outer_face(directory: Path) -> None:
    registrar, other = registrar_of(directory), load_config(directory / "registrar-sauda", now_ms())
    with running(directory, *REGIONS):
        await enrol_patiently(registrar, request(1))
        url = next(peer.url for peer in other.peers if peer.region == "norden")
        outer = caller("norden", url, other.root, "norden")
        assert (await outer.ask("GET", "/checkpoint"))[0] == 200
        assert (await outer.ask("GET", "/tile/0/000.p/1"))[0] == 200
        for path in ("/tile/entries/000.p/1", "/metrics", "/readyz", "/nothing"):
            assert (await outer.ask("GET", path))[0] == 404, path
        assert (await registrar.caller.ask("GET", "/tile/entries/000.p/1"))[0] == 200
        status, said = await outer.ask("POST", "/enrol", request(77))
        assert status == 400 and b"no new users" in said
        status, said = await outer.ask("POST", "/enrol", bytes(20_000))
        assert status == 413
        wrong = caller("vika", url, other.root, "vika")  # norden's certificate, where vika's is expected
        with pytest.raises(PeerError):
            await wrong.ask("GET", "/checkpoint")


@pytest.mark.parametrize("rounds", [3])
async def test_killed_under_load_nothing_answered_is_missing_and_no_witness_sees_a_fork(
    directory: Path, rounds: int
) -> None:
    registrar = registrar_of(directory)
    answered: list[StapledHome] = []
    numbers = iter(range(1_000, 100_000))

    async def load(until: trio.Event) -> None:
        mine = registrar_of(directory)
        while not until.is_set():
            asked = request(next(numbers))
            try:
                answered.append(await mine.enrol(asked))
            except PosthouseError:
                await trio.sleep(0.05)

    with running(directory, "sauda", "vika"):
        for _ in range(rounds):
            before = len(answered)
            with running(directory, "norden") as processes:
                await enrol_patiently(registrar, request(1))
                until = trio.Event()
                async with trio.open_nursery() as nursery:
                    for _ in range(8):
                        nursery.start_soon(load, until)
                    with trio.fail_after(PATIENCE_S):
                        while len(answered) < before + 30:  # noqa: ASYNC110
                            await trio.sleep(0.01)
                    os.kill(processes["norden"].pid, signal.SIGKILL)
                    until.set()
        with running(directory, "norden"):
            await enrol_patiently(registrar, request(1))
            for answer in answered:
                record, _ = verify_stapled_home(
                    answer.signed, answer.staple, registrar.root, registrar.trust, None, now_ms()
                )
                proof = await registrar.prove(record.user, now_ms())
                assert proof.record is not None and same_home(proof.record.signed, answer.signed)
    assert len(answered) >= 30 * rounds
    noted = set(actions(directory / "registrar-norden/data/audit", directory / "root.bin"))
    users = [read_home(answer.signed).user for answer in answered]
    assert {f"enrol {user[:4].hex()} v1" for user in users} <= noted, "what was answered was noted before"
    for region in ("sauda", "vika"):
        said = (directory / f"{region}.log").read_text()
        assert "log_forked" not in said
        assert not [*(directory / f"registrar-{region}" / "data" / "evidence").iterdir()]
