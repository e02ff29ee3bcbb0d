"""Audit logs: what is changed, dropped, put in, moved or cut off is found, whoever did it; a crash costs nothing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster import trail as trails
from cluster.audit.trails import Log, hold_together, read_log
from cluster.core.auditlog import Entry, origin_of
from relay.core.tlog import ED25519, Checkpoint, SignerKey, Trust, open_checkpoint
from cluster.trail import DIRECTORY, Trail, acting, files_in, open_trail
from relay.errors import DiskFailed, OperatorError, StoreDamaged, StoreLocked
from tests.patience import PATIENCE_S

SEED = bytes(range(32))
WHOSE = "norden/1/n1"


def ticking() -> Callable[[], int]:
    return itertools.count(1_700_000_000_000, 1234).__next__


def opened(directory: Path, whose: str = WHOSE, seed: bytes = SEED) -> Trail:
    return open_trail(directory / DIRECTORY, whose, seed, b"", ticking())


def filled(directory: Path, count: int, whose: str = WHOSE, seed: bytes = SEED) -> list[Path]:
    """A log with `count` entries after the first, and its files."""
    log = opened(directory, whose, seed)
    for number in range(count):
        log.note("cell.remove", "operator", node=f"n{number}")
    log.close()
    return files_in(directory / DIRECTORY)


def verdict(directory: Path) -> Log:
    return read_log(files_in(directory / DIRECTORY))


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a disk does is not tested here, and it is slow."""
    monkeypatch.setattr(trails, "sync_handle", lambda handle: None)
    monkeypatch.setattr(trails, "sync_directory", lambda directory: None)
    monkeypatch.setattr(trails, "sync_names", lambda directory: None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few entries."""
    monkeypatch.setattr(trails, "AUDIT_FILE", 1000)
    monkeypatch.setattr(trails, "AUDIT_FILES", 3)


def test_what_is_noted_is_read_again(tmp_path: Path) -> None:
    log = opened(tmp_path)
    with acting(log.note, "cell.transfer", "operator", node="n2"):
        pass
    with pytest.raises(OperatorError), acting(log.note, "cell.remove", "operator", node="n3"):
        raise OperatorError("two voters would be left")
    log.close()
    said: list[Entry] = []
    read = read_log(files_in(tmp_path / DIRECTORY), said.append)
    assert not read.findings and read.whose == WHOSE and read.size == 5
    assert [(one.n, one.what, one.outcome) for one in said[1:]] == [
        (1, "cell.transfer", "begun"), (2, "cell.transfer", "done"),
        (3, "cell.remove", "begun"), (4, "cell.remove", "refused: two voters would be left"),
    ]
    assert said[1].at == "2023-11-14T22:13:21.234Z" and said[1].about == {"node": "n2"}


def test_every_line_has_a_checkpoint_of_c2sps_form(tmp_path: Path) -> None:
    """So any implementation of these formats can check it."""
    log = opened(tmp_path)
    log.note("node.start", "node")
    trust = Trust(SignerKey(log.origin, ED25519, SEED).verifier, (), 0)
    found = open_checkpoint(log.checkpoint(), trust).checkpoint
    assert (found.origin, found.size) == (log.origin, 2)
    log.close()
    assert found.root == verdict(tmp_path).roots[-1]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    directory = tmp_path_factory.getbasetemp() / "changed"
    if not directory.exists():
        filled(directory, 6)
    [file] = files_in(directory / DIRECTORY)
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    try:
        file.write_bytes(whole[:at] + bytes([other]) + whole[at + 1 :])
        found = verdict(directory)
    finally:
        file.write_bytes(whole)
    if at == len(whole) - 1:  # the very last byte: as if the last append had not come to its end
        assert found.torn and found.size == 6
        return
    line = whole[:at].count(b"\n") + 1
    assert found.findings and f"line {line}:" in found.findings[0], found.findings
    assert found.size == line - 1, "what was before it holds"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_lines_dropped_doubled_moved_or_put_in_are_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    base = tmp_path_factory.getbasetemp()
    if not (base / "lines").exists():
        filled(base / "lines", 8)
        filled(base / "others", 8)  # another log with the same key
    [file] = files_in(base / "lines" / DIRECTORY)
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    others = files_in(base / "others" / DIRECTORY)[0].read_bytes().splitlines(keepends=True)
    kind = data.draw(st.sampled_from(["drop", "double", "swap", "put in", "replace"]))
    at = data.draw(st.integers(0, len(lines) - 2))
    to = data.draw(st.integers(0, len(lines) - 1).filter(lambda to: to != at))
    changed = list(lines)
    if kind == "drop":
        del changed[at]
    elif kind == "double":
        changed.insert(to, changed[at])
        if changed[-1] == lines[-1] and changed == lines:
            return
    elif kind == "swap":
        changed[at], changed[to] = changed[to], changed[at]
    elif kind == "put in":
        changed.insert(at, others[to])
    else:
        changed[at] = others[at]
    try:
        file.write_bytes(b"".join(changed))
        found = verdict(base / "lines")
    finally:
        file.write_bytes(whole)
    assert found.findings and found.size < len(changed), kind


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 4000))
def test_a_tail_that_was_cut_off_is_found_by_whoever_keeps_a_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    directory = tmp_path_factory.getbasetemp() / "cut"
    if not directory.exists():
        filled(directory, 8)
    [file] = files_in(directory / DIRECTORY)
    whole = file.read_bytes()
    place = verdict(directory).place
    assert place is not None
    note = place.checkpoint().encode()
    cut = min(cut, len(whole))
    try:
        file.write_bytes(whole[:cut])
        found = verdict(directory)
    finally:
        file.write_bytes(whole)
    judged = hold_together([found], [("kept", note)], [])
    if cut == len(whole):
        assert judged.held == 1 and not found.findings and not judged.findings
    elif found.key is not None:
        assert "at the end were taken away" in found.findings[0] and not judged.held


def test_a_history_that_was_written_anew_with_the_key_is_found(tmp_path: Path) -> None:
    """Who has the key can sign what he likes, but not take back what others keep."""
    [file] = filled(tmp_path, 4)
    place = verdict(tmp_path).place
    assert place is not None
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]))
    log = opened(tmp_path)
    for _ in range(5):
        log.note("nothing.happened", "operator")
    log.close()
    found = verdict(tmp_path)
    assert not found.findings
    hold_together([found], [("n2", place.checkpoint().encode())], [])
    assert "another signed history" in found.findings[0]


def test_nodes_keep_each_others_checkpoints(tmp_path: Path) -> None:
    seeds = {"norden/1/n1": SEED, "norden/1/n2": SEED[::-1]}
    logs = {whose: opened(tmp_path / whose.replace("/", "-"), whose, seed) for whose, seed in seeds.items()}
    one, other = logs.values()
    one.note("cell.remove", "operator", node="n3")
    other.note_seen("norden/1/n1", one.checkpoint())
    for log in logs.values():
        log.close()
    first, second = (tmp_path / whose.replace("/", "-") for whose in seeds)
    read = [verdict(first), verdict(second)]
    assert hold_together(read, [], []).held == 1

    [file] = files_in(first / DIRECTORY)
    whole = file.read_bytes()
    file.write_bytes(whole[: whole[:-1].rfind(b"\n") + 1])
    read = [verdict(first), verdict(second)]
    hold_together(read, [], [])
    assert read[0].findings == [
        "it ends with entry 0, and norden/1/n2 (entry 1) keeps its signature under 2 entries: 1 at the end were "
        "taken away"
    ]

    file.unlink()  # all of it: a new log is begun, and the old one is missed
    filled(first, 5)
    judged = hold_together([verdict(first), verdict(second)], [], [])
    assert "was taken away, or lost" in judged.findings[0]
    number = judged.findings[0].split()[1]
    assert not hold_together([verdict(first), verdict(second)], [], [number]).findings
    alone = hold_together([verdict(second)], [], [])
    assert alone.elsewhere == {"norden/1/n1"} and not alone.findings


def test_a_checkpoint_that_the_log_did_not_sign_is_no_evidence(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    log = verdict(tmp_path)
    assert log.key is not None
    forged = Checkpoint(log.key.name, 9, bytes(32)).sign(SignerKey(log.key.name, ED25519, bytes(32)))
    judged = hold_together([log], [("somebody", forged.encode()), ("nobody", b"noise")], [])
    assert len(judged.findings) == 2 and not log.findings and not judged.held


# --- the file ------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 400))
def test_an_append_that_a_crash_cut_short_is_taken_away(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    directory = Path(tmp_path_factory.mktemp("torn"))
    [file] = filled(directory, 3)
    lines = file.read_bytes().splitlines(keepends=True)
    cut = min(cut, len(lines[-1]))
    os.truncate(file, file.stat().st_size - cut)
    found = verdict(directory)
    assert found.torn == (cut < len(lines[-1])) and not found.findings and found.size == 3
    filled(directory, 2)
    again = verdict(directory)
    assert not again.findings and not again.torn and again.size == 5 + found.torn, "that is noted, too"
    assert file.read_bytes().startswith(b"".join(lines[:-1])), "what was whole is as it was"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_power_cut_leaves_of_the_last_line_is_taken_away(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Each sector of a disk is written by itself, and what a file gained without data reads as zeros."""
    directory = Path(tmp_path_factory.mktemp("cut"))
    [file] = filled(directory, 3)
    *before, last = file.read_bytes().splitlines(keepends=True)
    begin = data.draw(st.integers(0, len(last) - 1))
    end = data.draw(st.integers(begin + 1, len(last)))
    file.write_bytes(b"".join(before) + last[:begin] + bytes(end - begin) + last[end:])
    log = opened(directory)
    log.close()
    again = verdict(directory)
    assert not again.findings and again.size == 4 and file.read_bytes().startswith(b"".join(before))
    assert b'"what":"log.torn"' in file.read_bytes().splitlines()[-1]


def test_a_crash_before_the_first_entry_of_a_file(tmp_path: Path, small: None) -> None:
    files = filled(tmp_path, 6)
    before = verdict(tmp_path).size
    (tmp_path / DIRECTORY / f"{before:012}.audit").write_bytes(b'{"n":')
    filled(tmp_path, 1)
    assert not verdict(tmp_path).findings and verdict(tmp_path).size > before
    assert files_in(tmp_path / DIRECTORY)[: len(files)] == files


def test_old_files_go_and_the_chain_is_kept(tmp_path: Path, small: None) -> None:
    log = opened(tmp_path)
    log.note_seen("norden/1/n2", b"a checkpoint\n")
    for number in range(40):
        log.note("cell.remove", "operator", node=f"n{number}")
    log.close()
    files = files_in(tmp_path / DIRECTORY)
    assert len(files) == 3
    read = verdict(tmp_path)
    assert not read.findings and read.first > 0 and read.size > 41
    assert ("a checkpoint\n") in [text for _, text in read.seen], "what was seen of others is said again"
    log = opened(tmp_path)
    assert set(log.seen) == {"norden/1/n2"}
    log.close()

    first, middle, last = (file.read_bytes() for file in files)
    files[0].unlink()
    assert "no entry says that they were let go" in verdict(tmp_path).findings[0]
    files[0].write_bytes(first)
    files[1].unlink()
    assert "missing" in verdict(tmp_path).findings[0]
    files[1].write_bytes(middle[: middle.rfind(b"\n", 0, -1) + 1])
    assert "missing" in verdict(tmp_path).findings[0]
    files[1].write_bytes(middle[:-1])
    assert verdict(tmp_path).findings
    files[1].write_bytes(middle)
    assert not verdict(tmp_path).findings
    assert not read_log([files[1]]).findings, "a file alone can be read, too"
    assert last


def test_a_log_that_does_not_hold_is_not_written_on(tmp_path: Path) -> None:
    [file] = filled(tmp_path, 3)
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"cell.remove", b"cell.rewove", 1))  # not in the last line
    with pytest.raises(StoreDamaged, match="audit log does not hold"):
        opened(tmp_path)
    file.write_bytes(whole)
    opened(tmp_path).close()


def test_one_process_one_key_one_node(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.note("node.start", "node")
    with pytest.raises(StoreLocked):
        opened(tmp_path)
    log.close()
    with pytest.raises(OperatorError, match="another key"):
        opened(tmp_path, seed=bytes(32))
    with pytest.raises(OperatorError, match="another node"):
        opened(tmp_path, whose="norden/1/n2")
    assert origin_of(WHOSE, b"") == "posthouse.audit/norden/1/n1/"


async def test_after_a_failed_write_nothing_is_noted_or_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(tmp_path)
    log.note("node.start", "node")
    done: list[str] = []

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trails, "sync_handle", full)
    with pytest.raises(DiskFailed, match="cannot be written: No space left"), acting(log.note, "cell.remove", "o"):
        done.append("removed")
    monkeypatch.setattr(trails, "sync_handle", lambda handle: None)
    with pytest.raises(DiskFailed):
        log.note("cell.remove", "operator")
    with pytest.raises(DiskFailed), trio.fail_after(PATIENCE_S):
        await log.failed()
    log.close()
    assert not done, "it must not be begun"
