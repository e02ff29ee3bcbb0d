"""Outcomes that are remembered: a dict by id that forgets whole minutes, packed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.codec import digest
from relay.core.mailroom.outcomes import Outcomes, _Sheet
from relay.core.wire import ReceiptItem

CELLS = ("norden/1", "sauda/1", "quito/2")


def made(number: int, code: int = 2, cell: str = CELLS[0], position: int | None = None) -> ReceiptItem:
    own = digest(b"%d" % number)
    return ReceiptItem(own, code, number << 20 if position is None else position, 1, cell)


def again(outcomes: Outcomes, size: int = 200) -> Outcomes:
    loaded = Outcomes()
    for part in outcomes.dump(size):
        loaded.load(*part)
    return loaded


DOINGS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 40), st.sampled_from(CELLS)),
        st.tuples(st.just("replace"), st.integers(0, 40), st.sampled_from(CELLS)),
        st.tuples(st.just("forget"), st.integers(0, 6), st.none()),
        st.tuples(st.just("reload"), st.none(), st.none()),
    ),
    max_size=60,
)  # fmt: skip


@given(DOINGS)
def test_it_is_a_dict_that_forgets_by_minutes(doings) -> None:
    outcomes, model = Outcomes(), dict[bytes, tuple[int, ReceiptItem]]()
    for what, number, cell in doings:
        if what == "add":
            item, minute = made(number, 1, cell), number % 7  # an id says which minute it is of
            outcomes.add(minute, item)
            model.setdefault(item.id, (minute, item))
        elif what == "replace":
            item = made(number, 17, cell, position=0)
            outcomes.replace(item)
            if item.id in model:
                minute, before = model[item.id]
                model[item.id] = minute, ReceiptItem(item.id, 17, before.position, 1, cell)
        elif what == "forget":
            outcomes.forget(number)
            model = {own: known for own, known in model.items() if known[0] >= number}
        else:
            outcomes = again(outcomes)
        assert len(outcomes) == len(model)
    for own, (minute, item) in model.items():
        assert own in outcomes and outcomes.get(own) == outcomes.get(own, minute) == item
        assert outcomes.get(own, minute + 1) is None
    assert all((digest(b"%d" % n) in outcomes) == (digest(b"%d" % n) in model) for n in range(45))


@given(DOINGS)
def test_a_checkpoint_of_what_was_loaded_is_the_same(doings) -> None:
    outcomes = Outcomes()
    for what, number, cell in doings:
        if what in ("add", "replace"):
            outcomes.add(number % 7, made(number, 1, CELLS[0]))
            outcomes.replace(made(number, 2, cell))
    assert list(again(outcomes).dump(200)) == list(outcomes.dump(200))


def test_thousands_are_found_and_take_little_room() -> None:
    outcomes = Outcomes()
    for number in range(5_000):
        outcomes.add(number % 3, made(number))
    assert all(outcomes.get(digest(b"%d" % n), n % 3) == made(n) for n in range(0, 5_000, 7))
    assert sum(len(part) for *_, part in outcomes.dump(4_096)) == 5_000 * 60
    loaded = again(outcomes, 4_096)
    assert len(loaded) == 5_000 and all(digest(b"%d" % n) in loaded for n in range(0, 5_000, 13))


def test_ids_that_begin_and_end_alike_do_not_crowd() -> None:
    """Whoever sends can choose ids, at the price of some hashing. Where one lies, a secret of the process decides."""
    outcomes, count = Outcomes(), 4_000
    for number in range(count):
        own = b"alike-12" + number.to_bytes(16, "big") + b"alike-34"
        outcomes.add(0, ReceiptItem(own, 2, number, 1, CELLS[0]))
    (sheet,) = outcomes._sheets.values()
    taken = bytes(map(bool, sheet.index))
    assert sum(taken) == count
    assert max(map(len, taken.split(b"\x00"))) < 128, "the longest run of places that a look-up may have to go through"


@pytest.mark.parametrize("form", ["short", "a cell that is not there"])
def test_what_is_no_dump_is_not_loaded(form: str) -> None:
    outcomes = Outcomes()
    outcomes.add(1, made(1))
    ((minute, cells, part),) = outcomes.dump(200)
    cells, part = (cells, part[:-1]) if form == "short" else ([], part)
    with pytest.raises(ValueError, match="outcomes"):
        Outcomes().load(minute, cells, part)


def test_an_index_that_is_full_gives_way_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No outcome has to wait for more than a few others, and all are found while that lasts."""
    entered: list[int] = []
    enter = _Sheet._enter

    def counted(sheet: _Sheet, first: int, last: int) -> None:
        entered.append(last - first)
        enter(sheet, first, last)

    monkeypatch.setattr(_Sheet, "_enter", counted)
    outcomes = Outcomes()
    for number in range(9_500):
        assert outcomes.get(made(number).id, 0) is None
        outcomes.add(0, made(number))
        outcomes.add(0, made(number, 17))  # known: nothing
        for known in (0, number // 3, number // 2, number):
            assert outcomes.get(made(known).id, 0) == made(known)
    (sheet,) = outcomes._sheets.values()
    assert max(entered) <= 8 and sheet.before is None and len(outcomes) == 9_500
    assert sum(map(bool, sheet.index)) == 9_500
    growing = Outcomes()
    for number in range(2_100):  # in the middle of it
        growing.add(0, made(number))
    assert growing._sheets[0].before is not None
    growing.load(0, [], b"".join(part for *_, part in outcomes.dump(60))[60 * 2_100 :])
    assert all(growing.get(made(number).id, 0) == made(number) for number in range(9_500))
