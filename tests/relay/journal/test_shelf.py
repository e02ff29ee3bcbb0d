"""Leaves on a shelf come back as they were put there, or nothing comes back any more."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from relay.errors import DiskFailed, OperatorError
from relay.journal.scratch import ScratchFile, open_scratch, open_shelf
from relay.journal.shelf import PAGE, SealedShelf, _pages
from tests.scratch import MemoryScratch

KEY = bytes(range(32))
sizes = st.one_of(st.integers(0, 3 * PAGE), st.sampled_from([PAGE - 16, PAGE - 15, 2 * PAGE - 16, 2 * PAGE - 15]))


class Shelving(RuleBasedStateMachine):
    """Against a dict; nothing that lies in the file overlaps anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = MemoryScratch()
        self.shelf = SealedShelf(self.scratch, KEY, keep=2 * PAGE)
        self.known: dict[int, bytes] = {}
        self.step = 0

    def leaf(self, size: int) -> bytes:
        self.step += 1
        return self.step.to_bytes(4, "big") * (size // 4) + bytes(size % 4)

    @rule(size=sizes)
    def add(self, size: int) -> None:
        leaf = self.leaf(size)
        number = self.shelf.add(leaf)
        assert number not in self.known
        self.known[number] = leaf

    @rule(size=sizes, data=st.data())
    def put(self, size: int, data: st.DataObject) -> None:
        if self.known:
            number = data.draw(st.sampled_from(sorted(self.known)))
            self.known[number] = self.leaf(size)
            self.shelf.put(number, self.known[number])

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if self.known:
            number = data.draw(st.sampled_from(sorted(self.known)))
            self.shelf.drop(number)
            del self.known[number]

    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        if self.known:
            number = data.draw(st.sampled_from(sorted(self.known)))
            assert self.shelf.get(number) == self.known[number]

    @invariant()
    def extents_do_not_overlap(self) -> None:
        shelf = self.shelf
        extents = zip(shelf._pages, shelf._sizes, shelf._writes, strict=True)
        held = [(at, size) for at, size, write in extents if write]
        taken = [page for at, size in held for page in range(at, at + _pages(size))]
        free = [page for pages, some in shelf._free.items() for at in some for page in range(at, at + pages)]
        assert len(set(taken + free)) == len(taken + free) == shelf.file_bytes // PAGE
        assert len(self.scratch.bytes) <= shelf.file_bytes

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.shelf._kept_bytes == sum(len(leaf) + 256 for leaf in self.shelf._kept.values()) <= 2 * PAGE
        assert self.shelf._dirty <= set(self.shelf._kept)

    def teardown(self) -> None:
        for number, leaf in self.known.items():
            assert self.shelf.get(number) == leaf


Shelving.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestShelving = Shelving.TestCase


def filled(scratch: MemoryScratch, count: int = 4) -> SealedShelf:
    shelf = SealedShelf(scratch, KEY, keep=0)
    for number in range(count):
        assert shelf.add(b"leaf %d" % number * 100) == number
    return shelf


def test_a_small_map_never_reaches_the_file() -> None:
    scratch = MemoryScratch()
    shelf = SealedShelf(scratch, KEY)
    numbers = [shelf.add(bytes(1_000)) for _ in range(1_000)]
    for number in numbers:
        shelf.put(number, bytes(999))
        assert shelf.get(number) == bytes(999)
    assert not scratch.writes and not scratch.reads and not scratch.bytes


def test_a_leaf_that_did_not_change_is_not_written_again() -> None:
    scratch = MemoryScratch()
    shelf = filled(scratch)
    assert scratch.writes == 4
    for _ in range(3):
        assert [shelf.get(number) for number in range(4)] == [b"leaf %d" % number * 100 for number in range(4)]
    assert scratch.writes == 4


def test_extents_are_used_again() -> None:
    scratch = MemoryScratch()
    shelf = filled(scratch, 100)
    for _ in range(5):
        for number in range(100):
            shelf.drop(number)
        for _ in range(100):
            shelf.add(bytes(PAGE - 16))
    assert shelf.file_bytes == len(scratch.bytes) == 100 * PAGE


def test_nothing_rests_in_the_clear() -> None:
    scratch = MemoryScratch()
    filled(scratch)
    assert b"leaf" not in scratch.bytes


def swap(data: bytearray) -> None:
    data[:PAGE], data[PAGE : 2 * PAGE] = data[PAGE : 2 * PAGE], data[:PAGE]


def flip(data: bytearray) -> None:
    data[100] ^= 1


def cut(data: bytearray) -> None:
    del data[PAGE // 2 :]


@pytest.mark.parametrize("damage", [swap, flip, cut])
def test_what_is_not_what_was_written_stops_the_node(damage) -> None:
    scratch = MemoryScratch()
    shelf, told = filled(scratch), list[DiskFailed]()
    shelf.on_failure = told.append
    damage(scratch.bytes)
    with pytest.raises(DiskFailed, match="in memory: it gave back other bytes than were written there"):
        shelf.get(0)
    is_over(shelf, told)


def test_an_older_leaf_is_not_taken_for_the_newest() -> None:
    """A disk that loses a write, and says nothing."""
    scratch = MemoryScratch()
    shelf, told = filled(scratch), list[DiskFailed]()
    shelf.on_failure = told.append
    before = bytes(scratch.bytes)
    shelf.put(2, b"newer")
    scratch.bytes[:] = before
    with pytest.raises(DiskFailed, match="gave back other bytes"):
        shelf.get(2)
    is_over(shelf, told)


def is_over(shelf: SealedShelf, told: list[DiskFailed]) -> None:
    """Nothing more comes of it, and whoever asked to be told was told."""
    for call in (lambda: shelf.get(1), lambda: shelf.put(1, b""), lambda: shelf.add(b"")):
        with pytest.raises(DiskFailed):
            call()
    assert len(told) == 1


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_stops_the_node(error: int) -> None:
    scratch = MemoryScratch()
    shelf, told = filled(scratch), list[DiskFailed]()
    shelf.on_failure = told.append
    scratch.error = error
    with pytest.raises(DiskFailed, match=rf"file in memory: it cannot be .*: {os.strerror(error)}") as failed:
        shelf.put(3, b"more")
    assert "free space" in failed.value.remedy and "nothing is lost" in failed.value.remedy
    is_over(shelf, told)


# --- the file ------------------------------------------------------------------------------------
def test_the_file_has_no_name_and_goes_with_its_owner(tmp_path: Path) -> None:
    with open_shelf(tmp_path, KEY) as shelf:
        numbers = [shelf.add(bytes([number % 256]) * 4_000) for number in range(10_000)]
        assert shelf.file_bytes > 0 and not list(tmp_path.iterdir())
        assert all(shelf.get(number) == bytes([number % 256]) * 4_000 for number in numbers)
    with pytest.raises(DiskFailed, match="Bad file descriptor"):
        shelf.get(0)


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    scratch = ScratchFile(os.open("/dev/full", os.O_RDWR), tmp_path)
    with pytest.raises(OSError, match="No space left"):
        scratch.write(0, bytes(PAGE))
    scratch.close()


def test_a_directory_that_cannot_be_written_is_the_operators(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"cannot make a file in .*: No such file"):
        open_scratch(tmp_path / "missing")
