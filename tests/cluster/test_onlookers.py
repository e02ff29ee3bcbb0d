"""The nodes of a cell keep each other's word for their audit logs; and an order that cannot be noted is not given."""

from __future__ import annotations

import itertools
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from structlog.testing import capture_logs

from cluster import trail as trails
from cluster.audit.trails import hold_together, read_log
from cluster.control import cell_pages
from cluster.core.linkwire import AuditHead, Done, Peer
from relay.core.tlog import ED25519, Checkpoint, SignerKey
from cluster.onlookers import Onlookers
from cluster.trail import DIRECTORY, Trail, files_in, open_trail
from relay.core.receipts import Certified
from relay.core.trust import Root
from relay.errors import NotCertified, OperatorError, Overloaded, PeerError, Refused
from relay.limits import AUDIT_TELL_S

SEEDS = {"n1": bytes(range(32)), "n2": bytes(range(1, 33)), "n3": bytes(range(2, 34))}
KEYS = {node: SignerKey("k", ED25519, seed).verifier.public for node, seed in SEEDS.items()}


def certify(certificate: bytes, root: Root) -> Certified:
    """A certificate is a node's name."""
    node = certificate.decode()
    if node not in KEYS:
        raise NotCertified("nobody's certificate")
    return Certified("norden", "norden/1", node, KEYS[node], 0, 2**60)


def peer(node: str) -> Peer:
    return Peer("norden", "norden/1", node)


def opened(directory: Path, node: str) -> Trail:
    clock = itertools.count(1_700_000_000_000, 1000).__next__
    return open_trail(directory / node / DIRECTORY, f"norden/1/{node}", SEEDS[node], node.encode(), clock)


class Links:
    """The links of a node of a cell of two, to the onlookers of the other one."""

    def __init__(self, own: str, other: str) -> None:
        self.own, self.other = own, other
        self.up, self.there = True, trio.Event()
        self.answers: Onlookers | None = None

    def peers(self) -> tuple[str, ...]:
        return (self.other,)

    def reaches(self, node: str) -> bool:
        return self.up

    async def ask(self, node: str, message: AuditHead, deadline_s: float) -> Done:
        assert self.answers is not None
        try:
            return await self.answers.answer(peer(self.own), message)  # type: ignore[return-value]
        except (PeerError, Overloaded) as error:
            raise Refused(0, error.text) from None


def onlookers(trail: Trail, links: Links) -> Onlookers:
    return Onlookers(trail, SimpleNamespace(), certify, links)  # type: ignore[arg-type]


def head(trail: Trail, node: str = "") -> AuditHead:
    return AuditHead(trail.checkpoint(), node.encode() or trail.certificate)


async def test_what_a_node_notes_the_others_keep(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    one, other = opened(tmp_path, "n1"), opened(tmp_path, "n2")
    there, back = Links("n1", "n2"), Links("n2", "n1")
    tells, listens = onlookers(one, there), onlookers(other, back)
    there.answers, back.answers = listens, tells
    one.note("node.start", "node")
    other.note("node.start", "node")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tells.run)
        nursery.start_soon(listens.run)
        await trio.sleep(3 * AUDIT_TELL_S)
        at_rest = one.size, other.size
        await trio.sleep(100 * AUDIT_TELL_S)
        assert (one.size, other.size) == at_rest == (3, 3), "what was seen of others is not told on and on"
        there.up = False
        one.note("cell.remove-node", "operator", node="n3")
        await trio.sleep(100 * AUDIT_TELL_S)
        assert other.size == 3
        there.up = True
        await trio.sleep(3 * AUDIT_TELL_S)
        assert other.size == 4
        nursery.cancel_scope.cancel()
    one.close()
    other.close()
    logs = [read_log(files_in(tmp_path / node / DIRECTORY)) for node in ("n1", "n2")]
    judged = hold_together(logs, [], [])
    assert judged.held == 3 and not judged.findings and not any(log.findings for log in logs)


async def test_a_log_that_was_cut_back_is_told_at_once(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    kept = opened(tmp_path, "n2")
    listens = onlookers(kept, Links("n2", "n1"))
    log = opened(tmp_path, "n1")
    for what in ("node.start", "cell.remove-node"):
        log.note(what, "node")
    assert isinstance(await listens.answer(peer("n1"), head(log)), Done)
    log.close()
    [file] = files_in(tmp_path / "n1" / DIRECTORY)
    whole = file.read_bytes()
    file.write_bytes(whole[: whole[:-1].rfind(b"\n") + 1])
    short = opened(tmp_path, "n1")
    with capture_logs() as said:
        with pytest.raises(Overloaded):
            await listens.answer(peer("n1"), head(short))  # not more often than it is told
        await trio.sleep(AUDIT_TELL_S)
        await listens.answer(peer("n1"), head(short))
        short.note("nothing.happened", "node")  # as long as it was, and another one
        await trio.sleep(AUDIT_TELL_S)
        await listens.answer(peer("n1"), head(short))
        short.close()
        file.unlink()
        fresh = opened(tmp_path, "n1")
        fresh.note("node.start", "node")
        await trio.sleep(AUDIT_TELL_S)
        await listens.answer(peer("n1"), head(fresh))
        fresh.close()
    texts = [one["text"] for one in said if one["event"] == "audit_log_contradicts_itself"]
    assert [text.split(":")[0] for text in texts] == [
        "2 entries where there were 3", "two histories of 3 entries",
        "another log, of 2 entries, in the place of one of 3",
    ]
    kept.close()


async def test_nobody_speaks_for_another_nodes_log(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    kept, log, other = opened(tmp_path, "n2"), opened(tmp_path, "n1"), opened(tmp_path, "n3")
    listens = onlookers(kept, Links("n2", "n1"))
    log.note("node.start", "node")
    other.note("node.start", "node")
    forged = Checkpoint(log.origin, 9, bytes(32)).sign(SignerKey(log.origin, ED25519, bytes(32))).encode()
    for who, message in (
        ("n1", head(other)),  # n3's word, brought by n1
        ("n1", head(log, "n3")),  # under n3's certificate
        ("n1", head(log, "nobody")),
        ("n3", AuditHead(log.checkpoint(), b"n3")),  # n1's word, brought by n3
        ("n1", AuditHead(forged, b"n1")),
        ("n1", AuditHead(b"noise", b"n1")),
    ):
        with pytest.raises(PeerError, match="not its own"):
            await listens.answer(peer(who), message)
    assert not kept.seen
    assert isinstance(await listens.answer(peer("n1"), head(log)), Done)
    for one in (kept, log, other):
        one.close()


def test_an_order_that_cannot_be_noted_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    class Cell:
        def remove(self, node: str) -> None:
            given.append(node)
            if node == "n9":
                raise OperatorError("two voters would be left")

    log = opened(tmp_path, "n1")
    pages = cell_pages(Cell, orders=True, note=log.note)  # type: ignore[arg-type]
    remove = pages["/cell/remove"].post
    assert remove is not None
    assert remove(b'{"node":"n2"}').status == HTTPStatus.ACCEPTED
    assert remove(b'{"node":"n9"}').status == HTTPStatus.CONFLICT

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trails, "sync_handle", full)
    refused = remove(b'{"node":"n3"}')
    assert refused.status == HTTPStatus.CONFLICT and b"No space left on device" in refused.body
    assert given == ["n2", "n9"]
    log.close()
