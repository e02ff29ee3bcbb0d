"""Erasure receipts: who may sign one, when a node gives one, and what the disks say of one that is not true."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec import structs

from cluster import erasure
from cluster.audit import erased
from cluster.erasure import Erasure, Erasures, read_signed, sign_erasure, verify_erasure
from cluster.pki import issue_node, load_key_pair
from relay.core import records, wire
from relay.core.codec import encode
from relay.core.mailroom.state import MovedUser, State
from relay.core.trust import read_chain
from relay.errors import BadSignature, OperatorError, PeerError, TrustError
from relay.limits import ERASE_S
from tests.cluster.test_pki import NORDEN, NOW, SUEDEN, der, make_root, write
from tests.relay.conftest import ABROAD, Cell, FakeEnv
from tests.relay.core.mailroom.conftest import User
from tests.relay.test_office import people, seal, submit

SAID = Erasure(1, bytes(32), 2, "norden/1", b"l" * 16, 9, b"s" * 16, "n1", NOW)


def signed(said: Erasure, region: str = "norden", authority: tuple[bytes, bytes] = NORDEN) -> bytes:
    cert, key = issue_node(*authority, region=region, cell=f"{region}/1", node="n1", hosts=["127.0.0.1"], now_ms=NOW)
    return sign_erasure(said, load_pem_private_key(key, None), der(cert))


def test_a_receipt_is_the_word_of_the_node_that_it_names() -> None:
    root, good = make_root(), signed(SAID)
    assert verify_erasure(good, root) == SAID
    outer = read_signed(good)
    changed = encode(structs.replace(outer, payload=encode(structs.replace(SAID, below=10))))
    with pytest.raises(BadSignature):
        verify_erasure(changed, root)
    with pytest.raises(TrustError, match=r"norden/1/n1, signed by sueden/1/n1"):
        verify_erasure(signed(SAID, "sueden", SUEDEN), root)
    with pytest.raises(TrustError, match=r"norden/1/n2, signed by norden/1/n1"):  # each speaks for its own store
        verify_erasure(signed(structs.replace(SAID, node="n2")), root)
    with pytest.raises(PeerError):  # sueden's authority vouches for a node of norden
        verify_erasure(signed(SAID, "norden", SUEDEN), root)


def erasures_of(cell: Cell) -> Erasures:
    state, erased = lambda: cell.state, lambda: cell.steward.erased
    return Erasures(state, cell.journal, erased, "n1", Path(), Path(), lambda: NOW)


@pytest.mark.parametrize(
    ("changed", "clean"),
    [({}, True), ({"confirmed": False}, False), ({"items": 1}, False), ({"last": 9}, False), ({"last": 8}, True)],
)
def test_what_may_still_be_here_is_not_signed_away(monkeypatch, changed: dict[str, int], clean: bool) -> None:
    """All was handed over, the new home has said so, and the last block with something of it is gone: each counts."""
    monkeypatch.setattr(erasure, "_store_of", lambda journal: b"s" * 16)
    monkeypatch.setattr(erasure, "load_key_pair", lambda *_: (KEY, CERT))
    bob = User("bob", "norden/1")
    bob.record("b1")
    bob.move("sueden/1")
    moved = MovedUser(read_chain(bob.chain)[-1], bob.chain, (), **({"last": 3, "confirmed": True} | changed))
    state = State("norden/1", b"l" * 16, moved={bob.id: moved})
    given = Erasures(lambda: state, None, lambda: 9, "n1", Path(), Path(), lambda: NOW).receipts()
    assert [verify_erasure(one, make_root()).user for one in given] == [bob.id] * clean


async def test_no_receipt_before_the_write_ahead_log_is_cut(autojump_clock, monkeypatch):
    """The prefix goes for other reasons, too, some while before that, and what it held is still in that file."""
    monkeypatch.setattr(erasure, "_store_of", lambda journal: b"s" * 16)
    monkeypatch.setattr(erasure, "load_key_pair", lambda *_: (KEY, CERT))
    async with trio.open_nursery() as nursery:
        cell, cut = Cell(FakeEnv()), list[int]()
        may_cut = trio.Event()

        async def clean() -> None:
            await may_cut.wait()
            cut.append(cell.journal.first)

        cell.steward.cleaned = clean
        for task in (cell.delivery.run, cell.intake.run, cell.steward.run):
            nursery.start_soon(task)
        alice, bob = people()
        line = await cell.join(nursery, alice, "a1", receive=False)
        await cell.join(nursery, bob, "b1")
        await submit(cell, line, seal(cell, bob.id))
        await trio.sleep(1)
        cell.office.ack(next(seat.line for seat in cell.delivery._seats.values() if seat.line is not line), 2**62)
        await trio.sleep(1)
        bob.move(ABROAD)
        cell.intake.offer([records.encode_record(records.Move(tuple(bob.chain)))])
        await trio.sleep(0.1)
        box = cell.state.outboxes[ABROAD]
        answers = tuple(records.HandedAnswer(n, wire.Code.STORED, 2) for n in range(1, box.last + 1))
        cell.intake.offer([records.encode_record(records.Handed(ABROAD, box.last, answers, b"x" * 16, b""))])
        await trio.sleep(0.1)
        await cell.steward.save()
        erasures = erasures_of(cell)
        assert cell.journal.first > cell.state.moved[bob.id].last
        await trio.sleep(2)
        assert erasures.receipts() == []
        may_cut.set()
        await trio.sleep(2)  # not in five minutes: nothing is left to be carried
        (receipt,) = erasures.receipts()
        assert verify_erasure(receipt, make_root()).below == cut[-1] > cell.state.moved[bob.id].last
        await trio.sleep(10)
        assert len(cut) == 1
        nursery.cancel_scope.cancel()


async def test_what_who_left_has_left_behind_goes_within_a_bounded_time(autojump_clock, monkeypatch):
    """Also where others' mail lies between it, which is carried; and there is no receipt before."""
    monkeypatch.setattr(erasure, "_store_of", lambda journal: b"s" * 16)
    monkeypatch.setattr(erasure, "load_key_pair", lambda *_: (KEY, CERT))
    async with trio.open_nursery() as nursery:
        cell = Cell(FakeEnv())
        for task in (cell.delivery.run, cell.intake.run, cell.steward.run):
            nursery.start_soon(task)
        alice, bob = people()
        line = await cell.join(nursery, alice, "a1", receive=False)
        await cell.join(nursery, bob, "b1", receive=False)
        for number in range(6):
            await submit(cell, line, seal(cell, (alice, bob)[number % 2].id, body=bytes([number]) * 300))
        await trio.sleep(1)
        erasures = erasures_of(cell)
        bob.move(ABROAD)
        cell.intake.offer([records.encode_record(records.Move(tuple(bob.chain)))])
        await trio.sleep(ERASE_S + 10)
        assert erasures.receipts() == [] and cell.journal.first == 1  # what waits for bob was not handed over
        box = cell.state.outboxes[ABROAD]
        answers = tuple(records.HandedAnswer(n, wire.Code.STORED, 2) for n in range(1, box.last + 1))
        cell.intake.offer([records.encode_record(records.Handed(ABROAD, box.last, answers, b"x" * 16, b""))])
        await trio.sleep(1)
        assert cell.state.moved[bob.id].confirmed and erasures.receipts() == []
        waiting = [entry.position for entry in cell.state.users[alice.id].box.after(-1)]
        await trio.sleep(ERASE_S + 10)
        (receipt,) = erasures.receipts()
        said = verify_erasure(receipt, make_root())
        assert (said.user, said.version, said.below) == (bob.id, 2, cell.journal.first)
        assert said.below > cell.state.moved[bob.id].last
        assert [entry.position for entry in cell.state.users[alice.id].box.after(-1)] == waiting
        kept = [await cell.journal.read(index) for index in range(cell.journal.first, cell.journal.tip + 1)]
        assert not any(bob.id in record for block in kept for record in block.records)
        nursery.cancel_scope.cancel()


def test_a_key_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    cert, _ = issue_node(*NORDEN, region="norden", cell="norden/1", node="n1", hosts=["127.0.0.1"], now_ms=NOW)
    paths = write(tmp_path, cert, b"no key")
    with pytest.raises(OperatorError, match="own key is needed"):
        load_key_pair(paths[1], paths[0])


_CERT, _KEY = issue_node(*NORDEN, region="norden", cell="norden/1", node="n1", hosts=["127.0.0.1"], now_ms=NOW)
KEY, CERT = load_pem_private_key(_KEY, None), der(_CERT)


class _Store:
    """A stopped store with one block, number 5."""

    log_id, first = b"l" * 16, 5

    def __init__(self, *items: records.Record) -> None:
        self._block = type("Block", (), {"index": 5, "records": [records.encode_record(one) for one in items]})

    def blocks(self, told):
        return iter([self._block])

    def staged(self, told):
        return iter([])


async def test_a_receipt_that_is_not_true_is_found_out() -> None:
    cell, bob = Cell(FakeEnv()), User("bob", "norden/1")
    bob.record("b1")
    said = structs.replace(SAID, user=bob.id)
    mail = records.Submit(bytes(32), "norden/1", seal(cell, bob.id))
    group = records.HandIn("sueden/1", b"o" * 16, 1, 0, records.HANDIN_FORWARD, seal(cell, b"g" * 32, roster=True),
                           encode(records.Forward(bob.id, 2)))  # fmt: skip
    other = records.Submit(bytes(32), "norden/1", seal(cell, b"c" * 32))
    assert erased.left_in(_Store(other), said) == []
    assert erased.left_in(_Store(mail), said) == [f"block 5 holds an envelope for user {bob.id.hex()[:8]}"]
    assert len(erased.left_in(_Store(other, group, mail), said)) == 2
    above = structs.replace(said, below=5)  # it came later: the next receipt speaks of it
    assert erased.left_in(_Store(mail), above) == []
    assert len(erased.left_in(_Store(mail), structs.replace(above, log=b"m" * 16))) == 1  # of an older log of the cell
