"""A running node takes a renewed certificate, refuses a wrong one, and warns before its own ends."""

from __future__ import annotations

import base64
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from nacl.signing import SigningKey

from cluster import credentials
from cluster.core.linkwire import Peer
from cluster.credentials import OwnCredentials
from cluster.pki import Claim, NodeCredentials, issue_node, make_authority, renew_authority, renew_node
from relay.core.trust import Root, RootCell, RootNode, RootRegion
from relay.limits import DAY
from tests.roots import verified_root

NOW = int(time.time()) * 1000 - 100 * DAY  # Unix ms: TLS itself asks this machine's clock
YEAR = 365 * DAY
AUTHORITY = make_authority("norden", now_ms=NOW)
N1, N2 = (Peer("norden", "norden/1", name) for name in ("n1", "n2"))
PAIRS = {peer: issue_node(*AUTHORITY, "norden", "norden/1", peer.node, ["127.0.0.1"], now_ms=NOW) for peer in (N1, N2)}


def of_version_4() -> bytes:
    """What the parser has an error of its own for."""
    der = x509.load_pem_x509_certificate(PAIRS[N1][0]).public_bytes(Encoding.DER)
    return ssl.DER_cert_to_PEM_cert(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x03", 1)).encode()


def with_a_key_of_an_unknown_kind() -> bytes:
    """And another one, when it is asked for the key. (So it has for all but a few elliptic curves.)"""
    der = x509.load_pem_x509_certificate(PAIRS[N1][0]).public_bytes(Encoding.DER)
    ed25519, unknown = b"\x06\x03\x2b\x65\x70\x03\x21", b"\x06\x03\x2b\x65\x01\x03\x21"
    assert der.count(ed25519) == 1
    return ssl.DER_cert_to_PEM_cert(der.replace(ed25519, unknown)).encode()


def make_root(authority: bytes = AUTHORITY[0]) -> Root:
    public = bytes(SigningKey(bytes(32)).verify_key)
    cell = RootCell("norden/1", (RootNode("n1", "127.0.0.1:1", ()), RootNode("n2", "127.0.0.1:2", ())))
    region = RootRegion("norden", authority, public, (cell,))
    return verified_root([region], NOW + 20 * YEAR)


class Desk:
    """A node with its two files, and a clock of its own."""

    def __init__(self, folder: Path, peer: Peer = N1, root: Root | None = None) -> None:
        self.paths = folder / f"{peer.node}.pem", folder / f"{peer.node}.key"
        self.peer, self.now_ms = peer, NOW
        for path, data in zip(self.paths, PAIRS[peer], strict=True):
            path.write_bytes(data)
            path.chmod(0o600)
        self.own = OwnCredentials(*self.paths, root or make_root(), lambda: self.now_ms)

    def renewed(self) -> bytes:
        return renew_node(PAIRS[self.peer][0], *AUTHORITY, self.peer, now_ms=self.now_ms)

    def put(self, data: bytes) -> None:
        """As `posthouse init` and `cp` and `mv` do: another file under the old name."""
        fresh = self.paths[0].with_suffix(".new")
        fresh.write_bytes(data)
        fresh.replace(self.paths[0])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


async def shake(dialer: Any, listener: Any) -> tuple[Any, Any]:
    """TLS between two nodes; both ends."""
    near, far = map(trio.SocketStream, trio.socket.socketpair())
    ends: list[tuple[Any, Claim]] = []

    async def listen() -> None:
        ends.append(await listener.secure_server(far))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        stream, claim = await dialer.secure_client(near, "norden")
        await stream.send_all(b"x")
    assert claim.peer == listener.peer and ends[0][1].peer == dialer.peer
    assert await ends[0][0].receive_some(1) == b"x"
    return stream, ends[0][0]


def shown(stream: Any) -> int:
    """The serial number of the certificate that the other side showed."""
    return x509.load_der_x509_certificate(stream.peer_certificate()).serial_number


async def test_new_connections_show_the_renewed_certificate_and_old_ones_go_on(
    tmp_path: Path, desk: Desk, logs: list[Any], autojump_clock: Any
) -> None:
    other = Desk(tmp_path, N2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.own.watch)
        dialed, taken = await shake(desk.own, other.own), await shake(other.own, desk.own)
        assert shown(dialed[1]) == shown(taken[0]) == serial(PAIRS[N1][0])
        desk.now_ms = NOW + 99 * DAY
        new = desk.renewed()
        desk.put(new)
        clients = desk.own.clients_server()
        await trio.sleep(10)
        assert [entry["event"] for entry in logs] == ["certificate_renewed"]
        assert desk.own.expires_ms == NOW + 99 * DAY + YEAR and desk.own.clients_server() is not clients
        assert shown((await shake(desk.own, other.own))[1]) == serial(new)
        assert shown((await shake(other.own, desk.own))[0]) == serial(new)
        await dialed[0].send_all(b"still here")
        assert await dialed[1].receive_some(20) == b"still here"
        await trio.sleep(1000)
        assert len(logs) == 1
        nursery.cancel_scope.cancel()


async def test_what_is_still_being_written_is_not_taken(desk: Desk, logs: list[Any], autojump_clock: Any) -> None:
    new, path = desk.renewed(), desk.paths[0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.own.watch)
        await trio.sleep(0.5)
        for end in range(0, len(new), 60):  # slower than the looks
            path.write_bytes(new[:end])
            await trio.sleep(1.9)
        path.write_bytes(new)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert [entry["event"] for entry in logs] == ["certificate_renewed"]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: b"", "is not a PEM certificate"),
        (of_version_4, "is not a PEM certificate"),
        (with_a_key_of_an_unknown_kind, "is not a PEM certificate"),
        (lambda: PAIRS[N2][0], "is not the key of"),
        (lambda: issue_node(*AUTHORITY, "norden", "norden/1", "n1", [], now_ms=NOW)[0], "is not the key of"),
        (lambda: renew_node(PAIRS[N1][0], *AUTHORITY, N1, now_ms=NOW - 2 * YEAR), "expired on"),
        (lambda: renew_node(PAIRS[N1][0], *AUTHORITY, N1, now_ms=NOW + DAY), "Set this machine's clock"),
    ],
)
async def test_what_does_not_hold_is_told_once_and_the_node_goes_on(
    desk: Desk, logs: list[Any], autojump_clock: Any, make: Any, why: str
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.own.watch)
        desk.put(make())
        await trio.sleep(100)
        (entry,) = logs
        assert entry["event"] == "certificate_not_taken" and why in entry["text"] and entry["log_level"] == "error"
        assert desk.own.expires_ms == NOW + YEAR
        new = desk.renewed()
        desk.put(new)
        await trio.sleep(100)
        assert [entry["event"] for entry in logs[1:]] == ["certificate_renewed"]
        desk.paths[0].unlink()
        await trio.sleep(100)
        assert "No such file" in logs[2]["text"] and len(logs) == 3
        nursery.cancel_scope.cancel()


async def test_a_key_of_an_unknown_kind_is_not_taken(desk: Desk, logs: list[Any], autojump_clock: Any) -> None:
    der = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x01\x04\x22\x04\x20" + bytes(32)
    pem = base64.encodebytes(der)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.own.watch)
        desk.paths[1].write_bytes(b"-----BEGIN PRIVATE KEY-----\n" + pem + b"-----END PRIVATE KEY-----\n")
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert [entry["event"] for entry in logs] == ["certificate_not_taken"]


async def test_a_certificate_that_does_not_hold_yet_is_taken_when_it_does(
    desk: Desk, logs: list[Any], autojump_clock: Any
) -> None:
    """The clock of the node was wrong, and is set right; or a file could not be opened for a moment."""
    desk.put(renew_node(PAIRS[N1][0], *AUTHORITY, N1, now_ms=NOW + DAY))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.own.watch)
        await trio.sleep(100)
        desk.now_ms = NOW + DAY
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert [entry["event"] for entry in logs] == ["certificate_not_taken", "certificate_renewed"]


async def test_another_nodes_pair_is_not_taken(desk: Desk, logs: list[Any], autojump_clock: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.own.watch)
        for path, data in zip(desk.paths, PAIRS[N2], strict=True):
            path.write_bytes(data)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert "is of norden/1/n2, not of this node" in logs[0]["text"] and desk.own.peer == N1


async def test_files_that_change_once_more_while_they_are_read_harm_nothing(
    desk: Desk, logs: list[Any], autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The context reads them once more after they were checked."""
    check = credentials.NodeCredentials.load

    def races(cert: Path, key: Path, root: Root, **more: Any) -> NodeCredentials:
        key.write_bytes(PAIRS[N2][1])
        with monkeypatch.context() as patched:
            patched.setattr("cluster.pki._raw", lambda _: b"")  # the pair fitted when it was looked at
            return check(cert, key, root, **more)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.own.watch)
        monkeypatch.setattr(credentials.NodeCredentials, "load", races)
        desk.put(desk.renewed())
        await trio.sleep(10)
        assert "MISMATCH" in logs[0]["text"].upper() and logs[0]["event"] == "certificate_not_taken"
        monkeypatch.setattr(credentials.NodeCredentials, "load", check)
        desk.paths[1].write_bytes(PAIRS[N1][1])
        await trio.sleep(10)
        assert logs[-1]["event"] == "certificate_renewed"
        nursery.cancel_scope.cancel()


async def test_a_node_warns_every_day_of_its_last_thirty(
    desk: Desk, logs: list[Any], autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "_LOOK_S", 3600.0)  # a million looks would take a minute
    began = trio.current_time()
    desk.own._now_ms = lambda: NOW + 334 * DAY + int((trio.current_time() - began) * 1000) + 1000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.own.watch)
        await trio.sleep(86_400 * 32.5)
        nursery.cancel_scope.cancel()
    until = f"{datetime.fromtimestamp((NOW + YEAR) / 1000, UTC):%Y-%m-%d}"
    assert {entry["event"] for entry in logs} == {"certificate_expires"} and len(logs) == 32
    assert logs[0]["text"] == f"{desk.paths[0]} expires on {until}, in 29 days" and logs[0]["log_level"] == "warning"
    assert "posthouse init certificate n1" in logs[0]["remedy"]
    assert f"expired on {until}: no new link" in logs[-1]["text"] and logs[-1]["log_level"] == "error"


async def test_it_warns_of_its_authority_too_and_lives_through_its_renewal(
    tmp_path: Path, logs: list[Any], autojump_clock: Any
) -> None:
    """Nodes of a region are restarted with the new root one by one; those that have it and those that do not agree."""
    end = x509.load_der_x509_certificate(AUTHORITY[0]).not_valid_after_utc
    when = int(end.timestamp() * 1000) - 3 * DAY
    desks = []
    for peer, authority in ((N1, AUTHORITY[0]), (N2, renew_authority(*AUTHORITY, now_ms=when))):
        desk = Desk(tmp_path, peer)
        desk.now_ms = when
        desk.put(desk.renewed())
        desk.own = OwnCredentials(*desk.paths, make_root(authority), lambda: when)
        desks.append(desk)
    for desk in desks:
        with trio.move_on_after(1):
            await desk.own.watch()
    before, after = logs
    assert before["text"] == f"the authority of norden expires on {end:%Y-%m-%d}, in 3 days"
    assert "posthouse init authority" in before["remedy"]
    assert str(desks[1].paths[0]) in after["text"] and "posthouse init certificate n2" in after["remedy"]
    assert desks[0].own.expires_ms == desks[1].own.expires_ms == when + 3 * DAY


async def test_nodes_with_the_old_and_the_new_certificate_of_their_authority_meet(tmp_path: Path) -> None:
    renewed = renew_authority(*AUTHORITY, now_ms=NOW + 99 * DAY)
    old, new = Desk(tmp_path, N1), Desk(tmp_path, N2, make_root(renewed))
    await shake(old.own, new.own)
    await shake(new.own, old.own)
    new.put(renew_node(PAIRS[N2][0], renewed, AUTHORITY[1], N2, now_ms=NOW + 99 * DAY))
    new.own = OwnCredentials(*new.paths, make_root(renewed), lambda: NOW + 99 * DAY)
    await shake(old.own, new.own)
    await shake(new.own, old.own)


async def test_by_another_root_document_its_authorities_are_believed_at_once(tmp_path: Path, desk: Desk) -> None:
    other = make_authority("sueden", now_ms=NOW)
    pair = issue_node(*other, "sueden", "sueden/1", "n1", ["127.0.0.1"], now_ms=NOW)
    public = bytes(SigningKey(bytes(32)).verify_key)
    sueden = RootRegion("sueden", other[0], public, (RootCell("sueden/1", (RootNode("n1", "127.0.0.1:3", ()),)),))
    both = verified_root([make_root().region("norden"), sueden], NOW + 20 * YEAR)
    (tmp_path / "abroad").mkdir()
    for name, data in zip(("n1.pem", "n1.key"), pair, strict=True):
        (tmp_path / "abroad" / name).write_bytes(data)
        (tmp_path / "abroad" / name).chmod(0o600)
    abroad = OwnCredentials(tmp_path / "abroad/n1.pem", tmp_path / "abroad/n1.key", both, lambda: NOW)
    with pytest.raises((trio.BrokenResourceError, BaseExceptionGroup)):
        await shake(abroad, desk.own)
    desk.own.follow(both)
    await shake(abroad, desk.own)


async def test_a_root_document_that_the_own_certificate_does_not_fit_is_loud_until_it_does(
    desk: Desk, logs: list[Any], autojump_clock: Any
) -> None:
    authority = make_authority("norden", now_ms=NOW)
    desk.own.follow(make_root(authority[0]))
    assert [entry["event"] for entry in logs] == ["certificate_not_taken"] and desk.own.peer == N1
    pair = issue_node(*authority, "norden", "norden/1", "n1", ["::1"], now_ms=NOW)
    for path, data in zip(desk.paths, pair, strict=True):
        path.write_bytes(data)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.own.watch)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert [entry["event"] for entry in logs] == ["certificate_not_taken", "certificate_renewed"]


def namesake(mark: x509.SubjectKeyIdentifier | None) -> bytes:
    """An authority that has the name of norden's, and that mark."""
    old, key = x509.load_der_x509_certificate(AUTHORITY[0]), Ed25519PrivateKey.generate()
    until = old.not_valid_after_utc + timedelta(days=1)
    builder = x509.CertificateBuilder(
        old.subject, old.subject, key.public_key(), x509.random_serial_number(), old.not_valid_before_utc, until
    )
    for extension in old.extensions:
        value = mark if isinstance(extension.value, x509.SubjectKeyIdentifier) else extension.value
        if value is not None and not isinstance(value, x509.AuthorityKeyIdentifier):
            builder = builder.add_extension(value, extension.critical)
    return builder.sign(key, None).public_bytes(Encoding.DER)


@pytest.mark.parametrize("marked", [True, False])
async def test_an_authority_under_anothers_name_keeps_nobodys_nodes_out(
    tmp_path: Path, logs: list[Any], marked: bool
) -> None:
    """TLS finds who issued a certificate by name and mark: vika's would be asked about norden's nodes."""
    theirs = x509.load_der_x509_certificate(AUTHORITY[0]).extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    vika = RootRegion("vika", namesake(theirs.value if marked else None), b"r" * 32, ())
    root = verified_root([vika, make_root().region("norden")], NOW + 20 * YEAR)
    one, other = Desk(tmp_path, N1, root), Desk(tmp_path, N2, root)
    await shake(one.own, other.own)
    await shake(other.own, one.own)
    assert [(entry["event"], entry["region"]) for entry in logs] == [("authority_unusable", "vika")] * 2


@pytest.mark.parametrize("authority", [b"", b"junk"])
async def test_a_running_node_takes_a_root_document_in_which_another_region_has_no_authority(
    desk: Desk, logs: list[Any], authority: bytes
) -> None:
    """vika says it of itself, and signs it alone. Whatever else the document says of authorities counts."""
    vika = RootRegion("vika", authority, b"r" * 32, ())
    renewed = make_root(renew_authority(*AUTHORITY, now_ms=NOW + DAY)).region("norden")
    before = desk.own.expires_ms
    desk.own.follow(verified_root([vika, renewed], NOW + 20 * YEAR))
    assert [entry["event"] for entry in logs] == ["authority_unusable"] and "vika" in logs[0]["text"]
    assert desk.own.expires_ms == before and desk.own._now.authority_until_ms > NOW + 3_653 * DAY
