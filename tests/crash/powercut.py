"""A power cut for real processes: what a SIGKILLed process had not synced is taken back, in part.

SIGKILL keeps what the kernel had. So a process runs over powercut.c (LD_PRELOAD), which logs how to undo each write,
truncation and change of a name; `cut` applies that after the kill, with no process of the directory left:

    lib = build()
    process = subprocess.Popen(…, env={**os.environ, **environment(lib, watch, undo)})
    …; process.kill(); process.wait()
    print(cut(watch, undo, random.Random(seed)))

What survives, of what was not synced, is the random generator's choice:

* Data: each sector (512 bytes, or 4 KiB) of a file is one of the versions that it had since the last sync, by itself:
  writes get lost, torn and reordered. A file's size likewise; what it gained without data reads as zeros.
* Names: a journaled file system (ext4, XFS, btrfs) keeps a prefix of the changes, in their order. An fsync of a
  directory makes its changes durable and all before them; an fsync of a new file makes its creation so (POSIX does not
  say it, those file systems do). A rename always needs the directory's. `strict` is POSIX alone: the directory's
  fsync counts and nothing else, each directory keeps a prefix of its own, and what was made within a directory goes
  with it.

Not modelled: garbage in place of unwritten data, damage to what was synced, an fsync that failed, modes and times.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import struct
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from enum import IntEnum
from pathlib import Path
from random import Random

SOURCE = Path(__file__).with_name("powercut.c")
_HEADER = struct.Struct("=8Q")
_SECTORS = (512, 4096)
_SURVIVAL = (0.0, 0.1, 0.5, 0.9, 1.0)  # of a sector: a file loses all, nearly all, half, little or nothing
_TORN_SIZE = 0.25  # of sizes that are lost: one between the old and the new one is found


class PowercutError(Exception):
    """The tool cannot do what it was asked to."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What happened to unsynced writes and changes of names. Cuts can be added."""

    dropped: int = 0
    kept: int = 0
    torn: int = 0
    names_dropped: int = 0
    names_kept: int = 0

    def __add__(self, other: Cut) -> Cut:
        return Cut(*map(sum, zip(astuple(self), astuple(other), strict=True)))


# --- before: what the child runs over -------------------------------------------------------------
def build(directory: Path | None = None) -> Path:
    """The compiled shim, made where it is not there yet (by default in the tree's build/, which git ignores).

    Raises PowercutError where there is no compiler, or where it fails."""
    if platform.system() != "Linux":
        raise PowercutError(f"the power cut needs Linux (LD_PRELOAD, /proc), this is {platform.system()}")
    source = SOURCE.read_bytes()
    place = directory or SOURCE.parents[2] / "build"
    lib = place / f"powercut-{platform.machine()}-{hashlib.blake2b(source, digest_size=8).hexdigest()}.so"
    if lib.exists():
        return lib
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise PowercutError("no C compiler for the power cut's shim: install one (Debian, Ubuntu: apt install gcc)")
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = lib.with_suffix(f".{os.getpid()}")  # test processes run side by side
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared"]
    command = [compiler, *flags, "-o", str(draft), str(SOURCE), "-ldl", "-lpthread"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if made.returncode or made.stderr:
        raise PowercutError(f"{compiler} did not compile {SOURCE.name} as it should:\n{made.stderr}")
    draft.rename(lib)
    return lib


def environment(lib: Path, watch_dir: Path, undo_dir: Path, *, real_fsync: bool = True) -> dict[str, str]:
    """Variables to lay over a child's environment. Both directories are made where they are missing.

    `real_fsync=False` leaves the fsync out: quicker, and the undo log does not need it; but a commit then takes a
    fraction of its time, so that other moments are hit."""
    for directory in (watch_dir, undo_dir):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if undo_dir.resolve().is_relative_to(watch_dir.resolve()):
        raise PowercutError(f"{undo_dir} is within {watch_dir}: the undo log cannot watch itself")
    if undo_dir.stat().st_dev != watch_dir.stat().st_dev:
        raise PowercutError(f"{undo_dir} must be on the file system of {watch_dir}: files that are unlinked wait there")
    before = os.environ.get("LD_PRELOAD")
    return {
        "LD_PRELOAD": f"{lib}:{before}" if before else str(lib),
        "POWERCUT_WATCH": str(watch_dir),
        "POWERCUT_UNDO": str(undo_dir),
        "POWERCUT_FSYNC": "real" if real_fsync else "skip",
    }


# --- the log --------------------------------------------------------------------------------------
class Kind(IntEnum):
    WRITE, TRUNCATE, SYNCED, DIR_SYNCED, CREATE, LINK, MKDIR, RMDIR, UNLINK, RENAME = range(1, 11)


@dataclass(frozen=True, slots=True)
class Record:
    """struct record of powercut.c. `seq` is a time: one order over all processes."""

    kind: Kind
    seq: int
    file: tuple[int, int]  # device, inode
    offset: int
    length: int
    size: int  # of the file, before
    payload: bytes

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """The name, the new name, and where a file that loses its name is kept; Path() for none."""
        name, to, grave = map(os.fsdecode, self.payload.split(b"\0")[:3])
        return Path(name), Path(to), Path(grave)

    @property
    def directories(self) -> set[Path]:
        name, to, _ = self.paths
        return {name.parent, to.parent} if self.kind is Kind.RENAME else {name.parent}


def _parse(data: bytes) -> Iterable[Record]:
    at = 0
    while at + _HEADER.size <= len(data):
        kind, seq, device, inode, offset, length, size, payload = _HEADER.unpack_from(data, at)
        at += _HEADER.size + payload
        if at > len(data):
            return  # killed while it was written: what it announces did not happen
        yield Record(Kind(kind), seq, (device, inode), offset, length, size, data[at - payload : at])


def cut(watch_dir: Path, undo_dir: Path, rng: Random, *, strict: bool = False) -> Cut:
    """Take back what was not synced, as the module says, and empty `undo_dir`. Every process that ran over the shim
    in `watch_dir` must be dead. The same `rng` makes the same of the same log.

    Raises PowercutError where no process has run over the shim."""
    logs = list(undo_dir.glob("log.*"))
    if not logs:
        raise PowercutError(f"no log in {undo_dir}: no process ran with what environment() gives")
    records = sorted((record for log in logs for record in _parse(log.read_bytes())), key=lambda record: record.seq)
    names = _undo_names(records, rng, strict)
    found = {(stat.st_dev, stat.st_ino): path for path in _files(watch_dir) for stat in [path.stat()]}
    total = names
    for file, writes in _unsynced(records).items():
        if file in found:  # or its name is gone for good
            total += _undo_data(found[file], writes, rng)
    for path in undo_dir.iterdir():
        path.unlink()
    return total


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]


# --- names ----------------------------------------------------------------------------------------
def _undo_names(records: Sequence[Record], rng: Random, strict: bool) -> Cut:
    changes = [record for record in records if record.kind >= Kind.CREATE]
    synced = {record.file: record.seq for record in records if record.kind is Kind.SYNCED}  # the last one wins
    directories = {
        Path(os.fsdecode(record.payload.rstrip(b"\0"))): record.seq
        for record in records
        if record.kind is Kind.DIR_SYNCED
    }
    if strict:
        durable = [all(directories.get(d, 0) > change.seq for d in change.directories) for change in changes]
        pending = [change for change, is_durable in zip(changes, durable, strict=True) if not is_durable]
        lost = _any_by_directory(pending, rng)
    else:
        last = max((change.seq for change in changes if _makes_durable(change, synced, directories)), default=0)
        pending = [change for change in changes if change.seq > last]
        lost = pending[rng.randint(0, len(pending)) :]
    for change in reversed(lost):
        _undo_name(change)
    return Cut(names_dropped=len(lost), names_kept=len(pending) - len(lost))


def _makes_durable(change: Record, synced: dict[tuple[int, int], int], directories: dict[Path, int]) -> bool:
    """Whether a journaled file system wrote this change, and with it all before."""
    own = change.kind is Kind.CREATE and synced.get(change.file, 0) > change.seq
    return own or any(directories.get(directory, 0) > change.seq for directory in change.directories)


def _any_by_directory(pending: Sequence[Record], rng: Random) -> list[Record]:
    """What is lost where each directory keeps a prefix of its changes."""
    survival = rng.choice(_SURVIVAL)
    stopped: set[Path] = set()
    lost = []
    for change in pending:
        if change.directories & stopped or rng.random() >= survival:
            stopped |= change.directories
            lost.append(change)
    return lost


def _undo_name(change: Record) -> None:
    """The log may be ahead of what happened: whatever is not as the record says, is left."""
    name, to, grave = change.paths
    match change.kind:
        case Kind.CREATE | Kind.LINK if _is(name, change.file):
            name.unlink()
        case Kind.MKDIR if name.is_dir():
            shutil.rmtree(name)  # what was made in it is undone by now, or cannot be reached without it
        case Kind.RMDIR if not name.exists():
            name.mkdir()
        case Kind.UNLINK if not os.path.lexists(name):
            grave.rename(name)
        case Kind.RENAME if _is(to, change.file) and not os.path.lexists(name):
            to.rename(name)
            if grave != Path():
                grave.rename(to)
        case _:
            pass


def _is(path: Path, file: tuple[int, int]) -> bool:
    try:
        stat = path.lstat()
    except FileNotFoundError:
        return False
    return (stat.st_dev, stat.st_ino) == file


# --- data -----------------------------------------------------------------------------------------
def _unsynced(records: Iterable[Record]) -> dict[tuple[int, int], list[Record]]:
    """Writes and truncations of each file since its last sync, in order."""
    pending: dict[tuple[int, int], list[Record]] = {}
    # a sync counts for what came before it began, also if the log has it after later writes: hence by seq
    for record in records:
        if record.kind in (Kind.SYNCED, Kind.CREATE):
            pending.pop(record.file, None)
        elif record.kind in (Kind.WRITE, Kind.TRUNCATE):
            pending.setdefault(record.file, []).append(record)
    return pending


def _undo_data(path: Path, writes: Sequence[Record], rng: Random) -> Cut:
    """Go back in time, sector by sector, each as far as chance has it: to before the first unsynced write at most."""
    sector, survival = rng.choice(_SECTORS), rng.choice(_SURVIVAL)
    content = bytearray(path.read_bytes())
    end = len(content)
    content.extend(bytes(max(write.offset + write.length for write in writes)))
    kept = _surviving_truncations(writes, rng, survival)
    size = _undo_size(end, writes, kept, rng, sector, survival)
    settled: set[int] = set()  # sectors that go back no further
    fates = []
    for index, write in reversed(list(enumerate(writes))):
        touched = range(write.offset // sector, -(-(write.offset + write.length) // sector))
        # what is written over what a lost truncation cut off, is on blocks that the file never got
        floor = min((w.offset for w in writes[kept:index] if _shrinks(w)), default=1 << 63) // sector
        survived = 0
        for number in touched:
            if _shrinks(write):
                survives = index < kept
            else:
                survives = number < floor and (number in settled or rng.random() < survival)
            if survives:
                settled.add(number)
                survived += number * sector < size
            else:
                _restore(content, write, number * sector, (number + 1) * sector)
        if write.kind is Kind.WRITE and touched:
            fates.append((survived > 0) + (survived == len(touched)))
    with path.open("r+b") as file:
        file.write(content[:size])
        file.truncate(size)
    return Cut(dropped=fates.count(0), torn=fates.count(1), kept=fates.count(2))


def _restore(content: bytearray, write: Record, start: int, end: int) -> None:
    """Put back what bytes `start` … `end` were before the write, as far as it changed them."""
    start, end = max(start, write.offset), min(end, write.offset + write.length)
    old = write.payload[start - write.offset : end - write.offset]
    content[start:end] = old + bytes(end - start - len(old))


def _shrinks(write: Record) -> bool:
    return write.kind is Kind.TRUNCATE and write.length > 0


def _surviving_truncations(writes: Sequence[Record], rng: Random, survival: float) -> int:
    """The index of the first truncation that is lost; those before survive. Truncating is a change of the file
    system's own records, which it makes wholly and in order."""
    first = len(writes)
    for index in reversed(range(len(writes))):
        if _shrinks(writes[index]):
            if rng.random() < survival:
                break
            first = index
    return first


def _undo_size(size: int, writes: Sequence[Record], kept: int, rng: Random, sector: int, survival: float) -> int:
    """The size that is found; `kept` is where the first truncation was lost, from there on nothing makes it grow."""
    if kept < len(writes):
        size = writes[kept].size
    for write in reversed(writes[:kept]):
        if write.size != size:
            if _shrinks(write) or rng.random() < survival:
                break
            if rng.random() < _TORN_SIZE:
                return min(size, (rng.randint(write.size, size) // sector + 1) * sector)
            size = write.size
    return size
