"""What a registrar signed, user by user: so that no version is ever signed twice, and nobody's records are lost.

    <directory>/<user id in hex>             the user's records, oldest first, as AUTH takes them
    <directory>/<user id in hex>.released    the newest request of the user's to move that was released: that version is
                                             given away, to that cell, and to no other request any more
    <directory>/audit/                       what was signed and released, when (cluster.trail)
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nacl.signing import SigningKey

from cluster.enrolment import (
    Asked, change_of, check_released, left_region, noted, read_records, read_request, release_enrolment, sign_enrolment,
)  # fmt: skip
from cluster.trail import DIRECTORY as AUDIT
from cluster.trail import open_registrar_trail
from relay.core.trust import HomeRecord, Root, read_home
from relay.errors import BrokenChain, OperatorError


class Book:
    """One region's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def records(self, user: bytes) -> tuple[bytes, ...]:
        """Everything that was signed for `user`, oldest first. Raises OperatorError."""
        data = _read(self._path(user))
        return read_records(data) if data is not None else ()

    def sign(
        self, request: bytes, before: Sequence[bytes], root: Root, registrar: SigningKey, now_ms: int
    ) -> tuple[HomeRecord, bytes]:
        """`sign_enrolment` after all that is known, in the book or in `before`; noted, and on disk here, before it is
        given out.

        Raises like that; BrokenChain where `before` is not what was signed."""
        asked = read_request(request)
        with self._alone():
            known = _longer(self.records(asked.user), tuple(before))
            self._check_released(asked, known)
            record, records = sign_enrolment(request, known, root, registrar, now_ms)
            if record.version > len(known):
                last = read_home(known[-1]) if known else None
                action = noted(change_of(record, last), record.user, record.version)
                self._note(record.payload.region, action, registrar, now_ms)
                self._write(self._path(asked.user), records)
        return record, records

    def release(
        self, request: bytes, before: Sequence[bytes], root: Root, registrar: SigningKey, now_ms: int
    ) -> tuple[HomeRecord, bytes]:
        """`release_enrolment` after all that is known; noted, and on disk here, before it is given out. The same
        request gives the same again: whoever has it may come late.

        Raises like that; VersionTaken where the version was signed, AlreadyReleased where it was released for another
        request; BrokenChain where `before` is not what was signed; OperatorError where the region has a log: what a
        registrar that runs does not know of, it would sign in the place of."""
        asked = read_request(request)
        with self._alone():
            known = _longer(self.records(asked.user), tuple(before))
            left = left_region(known, root)
            if root.region(left).log_key:
                what = f"{left} has a log: who leaves is released by its registrar that runs"
                raise OperatorError(what, "posthouse registrar release REQUEST --at DIR")
            self._check_released(asked, known)
            record, released = release_enrolment(request, known, root, registrar, now_ms)
            action = noted("release", record.user, record.version)
            self._note(left, action, registrar, now_ms, to=record.cell)
            self._write(self._released(asked.user), released)
        return record, released

    def released(self, user: bytes, version: int, cell: str) -> bytes | None:
        """The released request for this version and this move, if there is one: it may not have arrived."""
        data = _read(self._released(user))
        asked = read_request(data).payload if data is not None else None
        return data if asked is not None and (asked.version, asked.cell) == (version, cell) else None

    def _check_released(self, asked: Asked, known: Sequence[bytes]) -> None:
        """What was released is what follows, or has followed. Raises AlreadyReleased, BrokenChain."""
        data = _read(self._released(asked.user))
        if data is None:
            return
        gone = read_request(data)
        version, cell = gone.payload.version, gone.payload.cell
        if version <= len(known) and read_home(known[version - 1]).digest != gone.digest:
            raise BrokenChain(
                f"version {version} of this user is not the one that was released to {cell}: a fork",
                "Two registrars with the same key signed: keep both, and ask whoever has it",
            )
        if len(known) < version <= asked.payload.version:
            check_released(gone, version, asked.digest)

    def _note(self, region: str, action: str, registrar: SigningKey, now_ms: int, **about: str) -> None:
        """Durable before anything is given out. Raises DiskFailed, StoreDamaged, OperatorError."""
        trail = open_registrar_trail(self._directory / AUDIT, region, registrar, lambda: now_ms, wait=True)
        try:
            trail.note("directory.sign", "operator", actions=[action], **about)
        finally:
            trail.close()

    def _path(self, user: bytes) -> Path:
        return self._directory / user.hex()

    def _released(self, user: bytes) -> Path:
        return self._directory / f"{user.hex()}.released"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OperatorError(f"cannot write {self._directory}: {error.strerror}", "Check its permissions") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _write(self, path: Path, data: bytes) -> None:
        draft = path.with_name(f".{path.name}.new")
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(path)
            handle = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise OperatorError(f"cannot write {path}: {error.strerror}", "Nothing was signed") from None


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", "Check the directory's permissions") from None


def _longer(one: tuple[bytes, ...], other: tuple[bytes, ...]) -> tuple[bytes, ...]:
    for number, (mine, theirs) in enumerate(zip(one, other, strict=False), 1):
        if read_home(mine).digest != read_home(theirs).digest:
            raise BrokenChain(
                f"the records before: version {number} is not the one that was signed here: a fork",
                "Two registrars with the same key signed, or the file is another user's",
            )
    return max(one, other, key=len)
