"""Power cuts under real SQLite, a mark file and our own journal: what was acknowledged is there; without syncs it
is not.

POWERCUT_ROUNDS multiplies the rounds (1 in the normal suite).
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from relay.errors import PosthouseError
from relay.journal.database import _PRAGMAS
from relay.journal.inspect import open_stopped
from relay.journal.seal import StorageRing
from tests.crash.child import SLOT, body, slot
from tests.crash.powercut import Cut, build, cut, environment

ROUNDS = int(os.environ.get("POWERCUT_ROUNDS", "1"))
HERE = Path(__file__).parent
CHILD = HERE / "child.py"
WRITER = HERE.parent / "relay" / "journal" / "writer_child.py"


def with_synchronous(value: str) -> list[str]:
    return [pragma.replace("synchronous = FULL", f"synchronous = {value}") for pragma in _PRAGMAS]


@dataclass
class Rig:
    """A directory whose power is cut again and again."""

    path: Path
    rng: Random
    strict: bool = False
    waits: bool = False  # for at least some acknowledgements, in every round
    total: Cut = field(default_factory=Cut)
    acked: int = 0  # by all children

    @property
    def watch(self) -> Path:
        return self.path / "watch"

    def round(self, *command: str, **variables: str) -> None:
        """Run a child, kill it at some time (now and then another one after it), cut the power."""
        while self.run_and_kill(*command, **variables) and self.rng.random() < 0.2:
            pass
        self.cut()

    def cut(self) -> None:
        self.total += cut(self.watch, self.path / "undo", self.rng, strict=self.strict)

    def run_and_kill(self, *command: str, **variables: str) -> bool:
        undo = self.path / "undo"
        over = environment(build(), self.watch, undo, real_fsync=self.rng.random() < 0.7)
        python_path = os.pathsep.join([str(WRITER.parent), str(HERE.parents[1])])
        env = {**os.environ, "PYTHONPATH": python_path, **over, **variables}
        with subprocess.Popen([sys.executable, *command], env=env, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            wanted = self.rng.randint(5, 60) if self.waits else self.rng.choice((0, 1, self.rng.randint(1, 60)))
            lines = [process.stdout.readline() for _ in range(wanted)]
            if not wanted:  # before the first acknowledgement, while it makes or takes up its files
                while not any(log.stat().st_size for log in undo.glob("log.*")) and process.poll() is None:
                    time.sleep(0.001)
            time.sleep(self.rng.random() * 0.005)  # about a commit: somewhere in the midst of it
            process.kill()
            lines += [line for line in process.stdout if line.endswith("\n")]
        if process.returncode != -9:
            raise RuntimeError(f"the child ended by itself: {process.returncode}, {lines[-3:]}")  # never a mere loss
        self.acked = max([self.acked, *(int(line.split()[1]) for line in lines if line.startswith("acked"))])
        return True

    def copy(self) -> Path:
        """What was left, to look at: SQLite writes when it reads, and the next child is to find what the cut left."""
        copy = self.path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        return shutil.copytree(self.watch, copy)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, Random(1))


def count_losses(path: Path, rounds: int, attempt: Callable[[Rig], None]) -> int:
    """In how many of `rounds`, each with a directory of its own, something was lost; printed."""
    lost, total = 0, Cut()
    for seed in range(rounds):
        rig = Rig(path / str(seed), Random(seed), waits=True)
        try:
            attempt(rig)
        except (AssertionError, sqlite3.DatabaseError, PosthouseError):
            lost += 1
        total += rig.total
    print(f"without syncs: something was lost in {lost} of {rounds} rounds; {total}")
    return lost


# --- SQLite ---------------------------------------------------------------------------------------
def rows_in(file: Path) -> int:
    """The last row; all before are there, each as it was written."""
    if not file.exists() or not file.stat().st_size:
        return 0
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        is_made = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        rows = db.execute("SELECT number, body FROM row ORDER BY number").fetchall() if is_made else []
    assert rows == [(number, body(number)) for number in range(1, len(rows) + 1)]
    return len(rows)


@pytest.mark.parametrize("strict", [False, True])
def test_sqlite_keeps_what_it_committed(rig: Rig, strict: bool) -> None:
    rig.strict = strict
    for _ in range(12 * ROUNDS):
        rig.round(str(CHILD), "rows", str(rig.watch / "rows.sqlite"), *_PRAGMAS)
        assert rows_in(rig.copy() / "rows.sqlite") >= rig.acked
    print(f"{rig.acked} rows acknowledged in {12 * ROUNDS} rounds; {rig.total}")


def test_sqlite_without_syncs_is_caught(tmp_path: Path) -> None:
    def attempt(rig: Rig) -> None:
        rig.round(str(CHILD), "rows", str(rig.watch / "rows.sqlite"), *with_synchronous("OFF"))
        assert rows_in(rig.copy() / "rows.sqlite") >= rig.acked

    rounds = 8 * ROUNDS
    assert count_losses(tmp_path, rounds, attempt) > rounds // 4


def test_sqlite_that_syncs_only_its_checkpoints_loses_rows_and_stays_whole(rig: Rig) -> None:
    """What SQLite promises for synchronous=NORMAL, to the letter: the model is neither too kind nor too harsh."""
    lost = 0
    for _ in range(12 * ROUNDS):
        rig.round(str(CHILD), "rows", str(rig.watch / "rows.sqlite"), *with_synchronous("NORMAL"))
        found = rows_in(rig.copy() / "rows.sqlite")
        lost += found < rig.acked
        rig.acked = found
    print(f"synchronous=NORMAL: rows lost in {lost} of {12 * ROUNDS} rounds; {rig.total}")
    assert lost


# --- a file with two slots ------------------------------------------------------------------------
def test_a_mark_file_keeps_its_newest_mark(rig: Rig) -> None:
    file = rig.watch / "mark"
    rig.waits = True
    lost = 0
    for _ in range(15 * ROUNDS):
        rig.run_and_kill(str(CHILD), "mark", str(file))
        killed = counter_in(file)
        rig.cut()
        data = file.read_bytes() if file.exists() else b""
        marks = {at: int.from_bytes(data[at : at + 8]) for at in (0, SLOT)}
        newest = max((mark for at, mark in marks.items() if data[at:].startswith(slot(mark))), default=0)
        assert newest >= rig.acked
        assert rig.acked - 1 <= counter_in(file) <= killed  # no sync of its own: that of the next mark is its
        lost += counter_in(file) < killed
    print(f"the counter beside it was lost in {lost} of {15 * ROUNDS} rounds; {rig.total}")
    assert lost


def counter_in(file: Path) -> int:
    return int.from_bytes(file.read_bytes()[2 * SLOT :]) if file.exists() else 0


# --- our own journal ------------------------------------------------------------------------------
RING = StorageRing([b"k" * 32])


def blocks_in(directory: Path) -> int:
    """The newest block; all that are kept follow each other and hold what was appended, and so does the checkpoint."""
    with open_stopped(directory, RING) as store:
        last = store.first - 1
        for block in store.blocks():
            last = block.index
            assert block.records[0] == b"%d" % last
        index, state = store.checkpoint() or (0, [])
    assert index <= last and state == [b"state %d" % index] * len(state)
    return last


def append_and_look(rig: Rig, **variables: str) -> None:
    """Before the first acknowledgement a store may be half made; the child of the next round must take it up."""
    rig.round(str(WRITER), str(rig.watch / "data"), **variables)
    if rig.acked:
        assert blocks_in(rig.copy() / "data") >= rig.acked


@pytest.mark.parametrize("strict", [False, True])
def test_the_journal_keeps_what_it_acknowledged(rig: Rig, strict: bool) -> None:
    rig.strict = strict
    for _ in range(3 * ROUNDS):
        append_and_look(rig)
    print(f"{rig.acked} blocks acknowledged in {3 * ROUNDS} rounds; {rig.total}")


def test_a_new_journal_is_there_from_its_first_acknowledgement(tmp_path: Path) -> None:
    """Where a directory's names are durable by its own fsync and nothing else, the store's own directory is too."""
    for seed in range(4 * ROUNDS):
        append_and_look(Rig(tmp_path / str(seed), Random(seed), strict=True, waits=True))


def test_the_journal_without_syncs_is_caught(tmp_path: Path) -> None:
    rounds = 3 * ROUNDS
    assert count_losses(tmp_path, rounds, lambda rig: append_and_look(rig, JOURNAL_SYNCHRONOUS="OFF")) > rounds // 4
