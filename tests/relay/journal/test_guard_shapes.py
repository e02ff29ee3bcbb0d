"""What a node of the own cell proposes and no fold can read is refused where a block is made: once it is committed, it
ends every node of the cell, at each start anew."""

from __future__ import annotations

import pytest

from relay.core import records
from relay.core.block import make_block
from relay.core.codec import Struct, pack
from relay.core.mailroom.fold import Mailroom
from relay.core.records import encode_record
from relay.errors import ProtocolError, ResidencyError
from relay.limits import KIB
from tests.relay.journal.test_guard import ABROAD, HERE, ROOT, ResidencyGuard, public

DEVICE = public("unknown")
GOOD: dict[str, Struct] = {
    "version": records.FoldVersion(2),
    "session": records.Session(DEVICE, "n1", bytes(16), 0),
    "ack": records.Ack(DEVICE, 5),
    "handed": records.Handed(ABROAD, 1, (records.HandedAnswer(1, 2, 3),), bytes(16), b""),
    "tick": records.Tick(),
    "members": records.Members(((bytes(16), "n1"),), ()),
}
BAD: dict[str, bytes] = {
    **{f"{name} cut short": encode_record(record)[:-1] for name, record in GOOD.items() if name != "tick"},
    **{f"{name} and more": encode_record(record) + b"\x00" for name, record in GOOD.items()},
    "ack of a short key": pack([5, DEVICE[:-1], 5]),
    "ack of a place before the log": pack([5, DEVICE, -1]),
    "ack of a place past all logs": pack([5, DEVICE, 2**63]),
    "ack of text": pack([5, "d" * 32, 5]),
    "ack of one field": pack([5, DEVICE]),
    "ack of a list": pack([5, DEVICE, [5]]),
    "large ack": pack([5, DEVICE, bytes(2 * KIB)]),
    "session of no node": pack([3, DEVICE, "", bytes(16), 0]),
    "handed to nowhere": pack([8, "", 1, [], bytes(16), b""]),
    "tick with a field": pack([10, 1]),
}


@pytest.mark.parametrize("made", [False, True], ids=["proposed", "made"])
@pytest.mark.parametrize("name", BAD)
def test_what_no_fold_reads_is_refused(name: str, made: bool) -> None:
    guard, good = ResidencyGuard("norden", HERE, ROOT), encode_record(GOOD["ack"])
    with pytest.raises(ResidencyError, match="does not verify") as refused:
        guard.check([good, BAD[name]], made=made)
    assert refused.value.ordinal == 1


@pytest.mark.parametrize("name", BAD)
def test_it_would_end_the_fold(name: str) -> None:
    room = Mailroom(HERE, bytes(16))
    with pytest.raises(ProtocolError):
        room.apply(make_block(bytes(16), 1, bytes(32), 1, [BAD[name]]))


@pytest.mark.parametrize("name", GOOD)
def test_what_it_reads_passes(name: str) -> None:
    assert ResidencyGuard("norden", HERE, ROOT).check([encode_record(GOOD[name])]) == []
