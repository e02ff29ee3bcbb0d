from __future__ import annotations

import pytest

from cluster.demo.ledger import Ledger, Yielded

ANNA, BEN, BEN_2, TALK = b"anna", b"ben", b"ben's second", b"anna and ben"


def got(device: bytes, content: bytes, counter: int, late: bool = False) -> Yielded:
    return Yielded(device, content, ANNA, TALK, counter, late)


def test_all_is_well() -> None:
    ledger = Ledger()
    for counter, content in enumerate([b"one", b"two"]):
        ledger.sent(content, [BEN, BEN_2])
        ledger.yielded(got(BEN, content, counter))
        ledger.yielded(got(BEN_2, content, counter))
    account = ledger.account()
    assert account.clean and ledger.open == 0
    assert (account.sent, account.expected, account.delivered) == (2, 4, 4)


def test_each_device_must_yield_it() -> None:
    ledger = Ledger()
    ledger.sent(b"one", [BEN, BEN_2])
    ledger.yielded(got(BEN, b"one", 0))
    assert ledger.open == 1 and ledger.awaited() == {BEN_2: 1}
    assert ledger.account().lost == 1 and not ledger.account().clean


def test_yielded_twice_is_a_duplicate_and_not_a_reorder() -> None:
    ledger = Ledger()
    ledger.sent(b"one", [BEN])
    ledger.yielded(got(BEN, b"one", 0))
    ledger.yielded(got(BEN, b"one", 0))
    assert (ledger.account().duplicated, ledger.account().reordered, ledger.open) == (1, 0, 0)


def test_the_counter_decides_the_order_and_late_ones_are_counted_apart() -> None:
    ledger = Ledger()
    for content in (b"one", b"two", b"three", b"four"):
        ledger.sent(content, [BEN])
    for content, counter, late in [(b"two", 2, False), (b"one", 1, False), (b"four", 4, False), (b"three", 3, True)]:
        ledger.yielded(got(BEN, content, counter, late))
    account = ledger.account()
    assert (account.reordered, account.late, account.lost) == (1, 1, 0)


def test_conversations_are_ordered_each_by_itself() -> None:
    ledger = Ledger()
    ledger.sent(b"one", [BEN])
    ledger.sent(b"two", [BEN])
    ledger.yielded(Yielded(BEN, b"one", ANNA, b"a group", 7, False))
    ledger.yielded(Yielded(BEN, b"two", ANNA, TALK, 0, False))
    assert ledger.account().clean


def test_what_nobody_sent_to_this_device_is_strange() -> None:
    ledger = Ledger()
    ledger.sent(b"one", [BEN])
    ledger.yielded(got(BEN, b"one", 0))
    ledger.yielded(got(BEN_2, b"one", 0))
    ledger.yielded(got(BEN, b"changed", 1))
    assert ledger.account().strange == 2 and not ledger.account().clean


def test_it_may_arrive_before_its_receipt() -> None:
    ledger = Ledger()
    ledger.yielded(got(BEN, b"one", 0))
    ledger.sent(b"one", [BEN])
    assert ledger.account().clean and ledger.open == 0


def test_one_content_twice_would_blind_the_ledger() -> None:
    ledger = Ledger()
    ledger.sent(b"one", [BEN])
    with pytest.raises(ValueError, match="told apart"):
        ledger.sent(b"one", [BEN])
