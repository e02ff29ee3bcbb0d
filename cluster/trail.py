"""The audit log of this process on disk: DATA/audit/<number of its first entry>.audit, only ever appended to.

An entry is durable when `note` returns; what it is about is reported, or done, only then. The first failure to write
one ends that: every later `note` raises, and whoever runs on this log ends (`failed`). A write takes about a
millisecond on the loop that calls; what is noted is rare.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import trio
from nacl.signing import SigningKey

from cluster.core.auditlog import (
    BEGUN, CONTRADICTION, DONE, FAILED, LET_GO, OPENING, REFUSED, REGISTRAR, SEEN, About, AuditBroken, Entry, Place,
    contradiction, follow, lines_of, opening, origin_of, read_opening, write_line,
)  # fmt: skip
from relay.core.tlog import ED25519, Checkpoint, Frontier, SignerKey, parse_checkpoint, parse_note
from relay.errors import BadSignature, DiskFailed, OperatorError, PosthouseError, StoreDamaged, StoreLocked
from relay.journal.files import sync_directory, sync_names
from relay.journal.mark import sync_handle
from relay.limits import AUDIT_FILE, AUDIT_FILES

DIRECTORY: Final = "audit"
SUFFIX: Final = ".audit"
_DIGITS: Final = 12
_REMEDY: Final = "Look at the disk; nothing is done that cannot be noted"
_BROKEN: Final = (
    "`posthouse audit verify` says more. Keep it, and look at the disk; when it is moved away a new log is begun, and "
    "who keeps checkpoints of this one names it as missing"
)


class Noting(Protocol):
    """How whoever does something notes it."""

    def __call__(self, what: str, who: str, outcome: str = DONE, **about: str | int | list[str]) -> None:
        """Durable on return. Raises DiskFailed: then it must not be done, or reported."""


def unnoted(what: str, who: str, outcome: str = DONE, **about: str | int | list[str]) -> None:
    """For parts that are used without a log: tests, and the simulator, which has no files."""


@contextmanager
def acting(note: Noting, what: str, who: str, **about: str | int | list[str]) -> Iterator[None]:
    """What happens in the body is noted as begun before, and with its outcome after it. Raises DiskFailed."""
    note(what, who, BEGUN, **about)
    try:
        yield
    except PosthouseError as error:
        note(what, who, f"{REFUSED}: {error.text}", **about)
        raise
    except BaseException as error:  # whatever it is: what was begun did not come to its end
        note(what, who, f"{FAILED}: {type(error).__name__}", **about)
        raise
    note(what, who, DONE, **about)


def files_in(directory: Path) -> list[Path]:
    """The files of a log, oldest first."""
    return sorted(path for path in directory.glob(f"*{SUFFIX}") if path.stem.isdigit())


class Trail:
    """An open log. Made by `open_trail`; one process at a time."""

    def __init__(
        self, directory: Path, lock: int, key: SignerKey, certificate: bytes, place: Place, file: Path | None,
        seen: dict[str, Entry], now_ms: Callable[[], int],
    ) -> None:
        self.on_note: Callable[[], None] = lambda: None
        self.told = place.tree.size  # entries, up to the newest that is not about others' logs: what they are told of
        self.seen = seen  # by whose log it is: the newest checkpoint that this log has of another one
        self._directory, self._lock, self._key, self._certificate = directory, lock, key, certificate
        self._place, self._now_ms = place, now_ms
        self._handle: int | None = None
        self._file, self._size = file, 0
        self._failure: DiskFailed | None = None
        self._failed = trio.Event()
        with self._writing():
            if file is not None:
                self._handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                self._size = os.fstat(self._handle).st_size

    @property
    def origin(self) -> str:
        """The log's name."""
        return self._key.name

    @property
    def certificate(self) -> bytes:
        """Who vouches for the key: of a node, DER."""
        return self._certificate

    @property
    def size(self) -> int:
        """Entries so far."""
        return self._place.tree.size

    def checkpoint(self) -> bytes:
        """The newest signed checkpoint: a C2SP note."""
        return self._place.checkpoint().encode()

    def note(self, what: str, who: str, outcome: str = DONE, **about: str | int | list[str]) -> None:
        """As Noting says."""
        if self._handle is None or self._size >= AUDIT_FILE:
            self._begin_file()
        self._append(what, who, outcome, about)
        if what != SEEN:
            self.told = self.size
            self.on_note()

    def note_seen(self, whose: str, checkpoint: bytes) -> None:
        """Another log's newest checkpoint, verified. Raises DiskFailed."""
        self.note(SEEN, whose, checkpoint=checkpoint.decode("utf-8"))

    def keep(self, whose: str, theirs: Checkpoint, note: bytes) -> str:
        """Note the newest checkpoint of another log, verified, unless it is known. What is wrong with it after the one
        before is noted, too, and returned; else empty. Raises DiskFailed."""
        known, text = self.seen.get(whose), ""
        before = parse_checkpoint(parse_note(str(known.about["checkpoint"]).encode()).text) if known else None
        if before == theirs:
            return text
        if before is not None and (text := contradiction(before, theirs)):
            self.note(CONTRADICTION, whose, text=text)
            if before.origin == theirs.origin:
                return text  # the older word is the one to keep
        self.note_seen(whose, note)
        return text

    async def failed(self) -> None:
        """Returns never; raises DiskFailed when an entry could not be written."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure.with_traceback(None)

    def close(self) -> None:
        """Another process may open the log then."""
        for handle in (self._handle, self._lock):
            if handle is not None:
                os.close(handle)
        self._handle = None

    # --- writing ---------------------------------------------------------------------------------
    def _append(self, what: str, who: str, outcome: str, about: About) -> None:
        at = datetime.fromtimestamp(self._now_ms() / 1000, UTC).isoformat(timespec="milliseconds")
        entry = Entry(n=self.size, at=at.replace("+00:00", "Z"), what=what, who=who, outcome=outcome, about=about)
        _, line = write_line(self._place.tree, entry, self._key)
        with self._writing():
            assert self._handle is not None
            if os.write(self._handle, line) != len(line):
                raise OSError(None, "not all of an entry was written")
            sync_handle(self._handle)
        self._place, _ = follow(self._place, line, verify=False)
        self._size += len(line)
        if what == SEEN:
            self.seen[who] = entry

    def _begin_file(self) -> None:
        """The next file; past AUDIT_FILES the oldest goes, which is noted first. What others' logs were seen to be is
        said again: it must outlive the file in which it was."""
        file = self._directory / f"{self.size:0{_DIGITS}}{SUFFIX}"
        with self._writing():
            if self._handle is not None:
                os.close(self._handle)
            self._handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            sync_directory(self._directory)
        self._file, self._size = file, 0
        self._append(OPENING, "posthouse", DONE, opening(self._place.tree, self._key.verifier, self._certificate))
        for entry in list(self.seen.values()):
            self._append(SEEN, entry.who, DONE, entry.about)
        files = files_in(self._directory)
        if gone := files[:-AUDIT_FILES]:
            self._append(LET_GO, "posthouse", DONE, {"below": int(files[-AUDIT_FILES].stem)})
            with self._writing():
                for old in gone:
                    old.unlink()
                sync_directory(self._directory)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """After an error nothing is written any more: nobody knows what the disk has (rule 7)."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        try:
            yield
        except OSError as error:
            what = f"{self._file or self._directory}: the audit log cannot be written: {error.strerror}"
            self._failure = DiskFailed(what, _REMEDY)
            self._failed.set()
            raise self._failure from error


def open_trail(
    directory: Path, whose: str, seed: bytes, certificate: bytes, now_ms: Callable[[], int], *, wait: bool = False
) -> Trail:
    """Open the audit log in `directory`, or begin one. `whose` and `certificate`: as in auditlog; `seed`: the Ed25519
    key that signs it. What a crash left of a line, of which nothing was reported, is taken away, and that is noted.
    `wait`: for whoever has it open; else that raises StoreLocked.

    Raises StoreLocked, OperatorError (the key is another one), StoreDamaged (its newest file is not what was written),
    DiskFailed."""
    lock = _lock(directory, wait)
    try:
        return _open(directory, lock, whose, seed, certificate, now_ms)
    except OSError as error:
        os.close(lock)
        raise DiskFailed(f"{directory}: {error.strerror}", "Check the directory and its permissions") from error
    except BaseException:
        os.close(lock)
        raise


def _open(
    directory: Path, lock: int, whose: str, seed: bytes, certificate: bytes, now_ms: Callable[[], int]
) -> Trail:
    sync_names(directory)
    files = files_in(directory)
    if files and not _begun(files[-1].read_bytes()):  # a crash came in the middle of its first entry
        files.pop().unlink()
    if not files:
        key = SignerKey(origin_of(whose, os.urandom(4)), ED25519, seed)
        return Trail(directory, lock, key, certificate, Place(key.verifier, Frontier()), None, {}, now_ms)
    place, seen, torn = _take_up(files[-1])
    key = SignerKey(place.log.name, ED25519, seed)
    if key.verifier != place.log or not key.name.startswith(origin_of(whose, b"")):
        what = f"{directory} is the audit log of another key than this node's, or of another node: {place.log.name}"
        raise OperatorError(what, "Move it away, and keep it: a new log is begun")
    trail = Trail(directory, lock, key, certificate, place, files[-1], seen, now_ms)
    if torn:
        trail.note("log.torn", "posthouse", bytes=torn)
    return trail


def open_registrar_trail(
    directory: Path, region: str, registrar: SigningKey, now_ms: Callable[[], int], *, wait: bool = False
) -> Trail:
    """As `open_trail`: of the registrar of `region`, signed with its key, which the root document names."""
    return open_trail(directory, f"{region}/{REGISTRAR}", bytes(registrar), b"", now_ms, wait=wait)


def _lock(directory: Path, wait: bool) -> int:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OperatorError(f"cannot write {directory}: {error.strerror}", "Check its permissions") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(lock)
        raise StoreLocked(f"{directory} is in use by another process", "A node or registrar runs on it") from None
    return lock


def _begun(data: bytes) -> bool:
    """Is there a first entry, or more than that? One line that does not hold is what a crash left of one."""
    lines = list(lines_of(data))
    try:
        place, _ = read_opening(lines[0] if lines else b"")
        follow(place, lines[0])
        return True
    except AuditBroken:
        return len(lines) > 1


def _take_up(file: Path) -> tuple[Place, dict[str, Entry], int]:
    """Where the newest file ends, and what it has of others' logs. Of its last line a crash may have left a part, or
    (each sector of a disk by itself) anything: then it is taken away. How many bytes those were."""
    data = file.read_bytes()
    *lines, last = lines_of(data)
    seen: dict[str, Entry] = {}
    try:
        place, _ = read_opening(lines[0] if lines else last)
        for line in lines:
            place, entry = follow(place, line, verify=False)
            if entry.what == SEEN:
                seen[entry.who] = entry
        if lines:
            place.check()  # which answers for all of them
    except (AuditBroken, BadSignature) as error:
        raise StoreDamaged(f"{file}: the audit log does not hold: {error.text}", _BROKEN) from None
    try:
        place, entry = follow(place, last)
        if entry.what == SEEN:
            seen[entry.who] = entry
        return place, seen, 0
    except AuditBroken:
        _truncate(file, len(data) - len(last))
        return place, seen, len(last)


def _truncate(file: Path, size: int) -> None:
    handle = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(handle, size)
        sync_handle(handle)
    finally:
        os.close(handle)
