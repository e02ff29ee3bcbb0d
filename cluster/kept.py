"""The root document that a node has trusted: beside its store, so that no older one is believed after a restart."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from relay.core.trust import verify_root
from relay.errors import OperatorError, ProtocolError, StoreLocked, TrustError

KEPT_ROOT: Final = "trusted-root.bin"  # in the data directory


@contextmanager
def hold_data(data: Path) -> Iterator[None]:
    """The data directory is this process's alone, made if missing: before anything in it is written. Raises
    StoreLocked, OperatorError."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OperatorError(f"cannot open {data}: {error.strerror}", "Give it to the user that runs the node") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            what = f"{data}: another process holds this store"
            raise StoreLocked(what, "Stop it first, or use another directory") from None
        yield
    finally:
        os.close(handle)


def kept_root(data: Path) -> bytes | None:
    """What was kept; None in a new data directory. Raises OperatorError where it cannot be read, or is damaged."""
    path = data / KEPT_ROOT
    try:
        signed = path.read_bytes()
        verify_root(signed, 0)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", "Let this user read it") from None
    except (ProtocolError, TrustError) as error:
        remedy = f"If the root document that you give is the newest that the keepers published, delete {path.name}"
        raise OperatorError(f"{path} is damaged: {error.text}", remedy) from None
    return signed


def keep_root(data: Path, signed: bytes) -> None:
    """Put a verified root document on the disk, and come back when it is there. Raises OperatorError."""
    if kept_root(data) != signed:
        write_kept(data / KEPT_ROOT, signed)


def write_kept(path: Path, data: bytes) -> None:
    """Put a file in the place of what is there, with mode 0600, and come back when it is on the disk. Raises
    OperatorError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        remedy = "Give the directory to the user that runs the node"
        raise OperatorError(f"cannot write {path}: {error.strerror}", remedy) from None
