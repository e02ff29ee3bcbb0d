"""The real world: clock, randomness, network and disk of a process (NodeEnv, of which relay.ports.Env is a part).

System errors are translated here, once: what an operator can mend becomes an OperatorError that says how.
"""

from __future__ import annotations

import errno
import os
import resource
import secrets
import stat
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from pathlib import Path
from random import SystemRandom
from typing import Protocol

import trio

from cluster.directory.seen import Seen, open_seen
from relay.dialing import dial_tcp
from relay.errors import OperatorError
from relay.journal import files
from relay.journal.api import LogStore, Meta, StoreEnv
from relay.journal.portal import Portal
from relay.journal.scratch import open_shelf
from relay.journal.shelf import SealedShelf
from relay.journal.store import open_store

_REASONS = {
    errno.EADDRINUSE: ("the port is in use", "Stop what listens there, or choose another port under [listen]"),
    errno.EACCES: ("permission denied", "Choose a port above 1023, or give the process CAP_NET_BIND_SERVICE"),
    errno.EADDRNOTAVAIL: ("this machine has no such address", "Choose an address of this machine under [listen]"),
    errno.EAFNOSUPPORT: ("this machine does not speak that address family", "Choose another address under [listen]"),
}
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # of Linux; macOS counts sleep in the other
_OTHER_FILES = 256  # open files beside clients: links, the admin face, refusals, the store
_UNIX_PATH = 107  # bytes that Linux takes for the path of a Unix socket (unix(7)), less the closing zero


class NodeEnv(StoreEnv, Protocol):
    """Everything around a node that is not deterministic."""

    def open_seen(self, file: Path) -> AbstractAsyncContextManager[Seen]:
        """The directory's memory in `file`, made if missing. Raises StoreLocked, StoreForeign, StoreDamaged,
        DiskFailed."""

    def open_shelf(self, directory: Path) -> AbstractContextManager[SealedShelf]:
        """Where what a node computes lies beside its memory, in a file of the directory's disk that ends with the
        process. Raises OperatorError."""


class RealClock:
    """The clocks of this process."""

    def wall_ms(self) -> int:
        """Unix time, ms."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """A clock that never goes back, ms. It goes on while the machine sleeps: after a night the wall clock has not
        jumped against it (rule 14)."""
        return time.clock_gettime_ns(_STEADY) // 1_000_000


class RealEnv:
    """NodeEnv on the machine it runs on. trio sets TCP_NODELAY on every stream that it makes. Only what opens stores
    needs a portal."""

    def __init__(self, portal: Portal | None = None) -> None:
        self._portal = portal
        self._clock = RealClock()
        self._random = SystemRandom()

    @property
    def clock(self) -> RealClock:
        return self._clock

    def random_bytes(self, count: int) -> bytes:
        """Cryptographic randomness."""
        return secrets.token_bytes(count)

    def random_float(self) -> float:
        """Uniform in [0, 1): jitter only."""
        return self._random.random()

    async def dial(self, host: str, port: int) -> trio.SocketStream:
        """A TCP connection. Raises OSError; the caller sets the deadline."""
        return await dial_tcp(host, port)

    async def listen(self, host: str, port: int) -> Sequence[trio.SocketListener]:
        """TCP listeners, one an address of `host`. Raises OperatorError."""
        try:
            return await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            reason, remedy = _REASONS.get(error.errno or 0, (str(error), "Check the address under [listen]"))
            raise OperatorError(f"cannot listen on {host}:{port}: {reason}", remedy) from error

    async def listen_unix(self, path: Path) -> Sequence[trio.SocketListener]:
        """A Unix-socket listener, mode 0600; a stale socket file is replaced. Raises OperatorError."""
        if not socket_fits(path):
            raise OperatorError(f"cannot listen on {path}: the path is too long", "Choose a shorter one")
        await _check_free(path)
        return [await _bind_unix(path)]

    def data_dir(self, path: Path) -> Path:
        """The directory for a store, made with mode 0700 if missing. Raises OperatorError."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError as error:
            raise OperatorError(f"{path} is not a directory", "Move it away, or set [paths] data") from error
        except OSError as error:
            raise OperatorError(f"cannot make {path}: {error.strerror}", "Make it, mode 0700, for this user") from error
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise OperatorError(f"{path} may not be read and written", "Give it to the user that runs the node")
        return path

    async def open_store(self, directory: Path, fresh: Meta) -> LogStore:
        """As relay.journal.api.StoreEnv says."""
        assert self._portal is not None, "stores are opened in a portal"
        return await open_store(self._portal, self.data_dir(directory) / files.STORE_FILE, fresh)

    def open_seen(self, file: Path) -> AbstractAsyncContextManager[Seen]:
        """As NodeEnv says."""
        assert self._portal is not None, "stores are opened in a portal"
        return open_seen(file, self._portal, self.random_bytes(32))

    def open_shelf(self, directory: Path) -> AbstractContextManager[SealedShelf]:
        """As NodeEnv says."""
        return open_shelf(self.data_dir(directory), self.random_bytes(32))

    def store_exists(self, directory: Path) -> bool:
        """Was a store ever made here?"""
        return files.store_exists(directory)

    def set_aside(self, directory: Path, store: bytes) -> None:
        """Move a closed store that must not be used again to `quarantine`. Raises DiskFailed."""
        files.set_aside(directory, store, self._clock.wall_ms())

    def bootstrap(self, directory: Path) -> bool:
        """Is this the node that starts its cell's log?"""
        return files.bootstrap(directory)

    def was_removed(self, directory: Path) -> bool:
        """As StoreEnv says."""
        return files.was_removed(directory)

    def keep_out(self, directory: Path) -> None:
        """As StoreEnv says."""
        files.keep_out(directory)

    def bootstrapped(self, directory: Path) -> None:
        """The log was started. Raises DiskFailed."""
        files.bootstrapped(directory)


def socket_fits(path: Path) -> bool:
    """Whether the path of a Unix socket is short enough, with what it is called while it is made."""
    return len(os.fsencode(path)) + len(_unique("")) <= _UNIX_PATH


def clients_that_fit(wanted: int) -> int:
    """How many of `wanted` client connections this process has files for, once its soft limit is as high as it may be:
    who fills the node with connections must not take the last file from its links and its store."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        target = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(ValueError, OSError):  # macOS has a lower limit that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _OTHER_FILES))


def _unique(name: str) -> str:
    return f"{name}.{secrets.token_hex(4)}"


def _check_socket(path: Path) -> None:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise OperatorError(f"{path} exists and is not a socket", "Move it away, or choose another path")


async def _check_free(path: Path) -> None:
    """Whoever answers on the socket is alive; whatever is no socket is not ours to replace."""
    try:
        _check_socket(path)
        stream = await trio.open_unix_socket(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return
    except OSError as error:
        raise OperatorError(f"cannot look at {path}: {error.strerror}", "Check its permissions") from error
    await stream.aclose()
    raise OperatorError(f"{path} is in use by a running process", "Stop it, or choose another path")


async def _bind_unix(path: Path) -> trio.SocketListener:
    """Bind under another name and rename: nobody can connect before the mode is right, and the swap is atomic."""
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    fresh = path.with_name(_unique(path.name))
    try:
        await sock.bind(str(fresh))
        fresh.chmod(0o600)
        sock.listen(1024)
        fresh.replace(path)
        return trio.SocketListener(sock)
    except BaseException as error:
        sock.close()
        fresh.unlink(missing_ok=True)
        if isinstance(error, OSError):
            what = f"cannot listen on {path}: {error.strerror}"
            raise OperatorError(what, "Check that the directory exists and may be written") from error
        raise
