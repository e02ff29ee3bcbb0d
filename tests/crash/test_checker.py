"""The judge of histories finds what it is there to find."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.crash.checker import Checker, Verdict
from tests.crash.history import (
    GROUP, Answered, AnyEvent, Connected, Delivered, Dropped, Reader, Submitted, Writer,
)

DEVICES = [[0], [1, 2]]  # user 0 has one device, user 1 two
ACCEPTED, STORED, STALE, OVERLOADED = 1, 2, 16, 66


def sent(number: int, *, to: int = 1, code: int = STORED, counter: int | None = None) -> list[AnyEvent]:
    key = b"%d" % number
    return [Submitted(1, 0, key, to, counter or number), Answered(2, 0, key, code)]


def came(device: int, *numbers: int, position: int = 0) -> list[AnyEvent]:
    return [Delivered(3, device, position or number, b"%d" % number) for number in numbers]


START: list[AnyEvent] = [Connected(0, device, 0, 0) for device in range(3)]


def verdict(*events: Sequence[AnyEvent]) -> Verdict:
    checker = Checker(DEVICES)
    for some in (START, *events):
        checker.take(some)
    checker.settle()
    checker.settle()  # counts nothing twice
    assert checker.verdict.clean or checker.findings
    return checker.verdict


def test_all_is_well() -> None:
    found = verdict(sent(1), sent(2), sent(3, to=GROUP), came(0, 3), came(1, 1, 2, 3), came(2, 1, 2, 3))
    assert found.clean
    assert (found.acknowledged, found.delivered) == (3, 7)


def test_what_was_acknowledged_and_did_not_come_everywhere_is_lost() -> None:
    assert verdict(sent(1), came(1, 1)).lost == 1
    assert verdict(sent(1, code=ACCEPTED)).lost == 2
    assert verdict(sent(1, to=GROUP)).lost == 3
    assert verdict(sent(1, code=OVERLOADED)).clean  # no acknowledgement yet
    assert verdict(sent(1, code=STALE)).clean
    assert verdict([Submitted(1, 0, b"1", 1, 1)]).clean


def test_one_envelope_at_two_positions_is_a_duplicate() -> None:
    assert verdict(sent(1), came(2, 1), came(1, 1), came(1, 1, position=9)).duplicated == 1
    again = verdict(sent(1), came(2, 1), came(1, 1), [Connected(4, 1, 1, 0)], came(1, 1))
    assert again.clean and (again.wire_duplicates, again.reconnects) == (1, 1)


def test_one_counter_in_two_envelopes_is_a_duplicate() -> None:
    assert verdict(sent(1), sent(2, counter=1), came(1, 1, 2), came(2, 1, 2)).duplicated == 2


def test_against_the_counter_is_reordered() -> None:
    both = [*sent(1, counter=2), *sent(2, counter=1)]
    assert verdict(both, came(1, 1, 2), came(2, 1, 2)).reordered == 2
    other = [*sent(1, counter=2), *sent(2, to=GROUP, counter=1)]
    assert verdict(other, came(0, 2), came(1, 1, 2), came(2, 1, 2)).clean  # another conversation
    told = [Submitted(1, 0, b"2", 1, 1), Answered(1, 0, b"2", OVERLOADED)]
    assert verdict(told, sent(1, counter=2), [Answered(2, 0, b"2", 1)], came(1, 1, 2), came(2, 1, 2)).late == 2


def test_positions_rise_on_one_connection() -> None:
    assert verdict(sent(1), sent(2), came(1, 1, position=5), came(1, 2, position=5), came(2, 1, 2)).reordered == 1
    assert verdict([Connected(1, 1, 0, 7)], sent(1), came(1, 1), came(2, 1)).reordered == 1
    notices: list[AnyEvent] = [Delivered(1, 0, 4, b""), Delivered(1, 0, 3, b"")]
    assert verdict(notices).reordered == 1


def test_what_must_not_be_at_all_is_wrong() -> None:
    assert verdict(came(1, 1)).wrong == 1
    assert verdict(sent(1), came(0, 1), came(1, 1), came(2, 1)).wrong == 1
    assert verdict(sent(1), came(1, 1), came(2, 1), [Answered(3, 0, b"1", STALE)]).wrong == 1
    assert verdict([Answered(3, 0, b"1", STORED)]).wrong == 1
    assert verdict([Dropped(1, 0, 5, "rolled back")]).wrong == 1


def test_rates_and_pauses() -> None:
    checker = Checker(DEVICES)
    checker.acked_at = [0, 10, 20, 500, 510]
    assert checker.rate(0, 500) == 6.0
    assert checker.pause(0, 600) == 480
    assert checker.pause(505, 1_005) == 495


def test_a_history_is_read_while_it_is_written(tmp_path: Path) -> None:
    reader, writer = Reader(tmp_path / "history"), Writer(tmp_path / "history")
    events = [*START, *sent(1), *came(1, 1), Dropped(1, 2, 0, "é" * 100)]
    for event in events:
        writer.add(event)
    assert reader.read() == []
    writer.flush()
    assert reader.read() == events
    data = (tmp_path / "history").read_bytes()
    (tmp_path / "cut").write_bytes(data[:-5])  # killed in the midst of it
    cut = Reader(tmp_path / "cut")
    assert cut.read() == events[:-1]
    with (tmp_path / "cut").open("ab") as file:
        file.write(data[-5:])
    assert cut.read() == events[-1:]
    for one in (reader, cut):
        one.close()
