"""The local store of one device: one SQLite file, mode 0600, and beside it two lock files.

Work runs in a worker thread, under a lock that processes share: a store may be open in several processes (one
receives, others submit), and SQLite 3.7.0–3.51.2 has a WAL-reset bug that needs two connections to write or checkpoint
at the same time; so they never do. `synchronous=FULL`: what was done is on disk when `run` returns. Whatever is asked
for while a commit is in flight shares the next one.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import trio
from nacl.signing import SigningKey

from relay.client.errors import ClientClosed
from relay.client.shapes import Own
from relay.core.trust import Root, follow_root, read_home, reopen_root
from relay.errors import OperatorError, StoreDamaged, StoreError, StoreForeign, StoreLocked, TrustError
from relay.limits import MIB

T = TypeVar("T")
Db = sqlite3.Connection
Work = Callable[[Db], Any]

FORMAT = 4
APPLICATION = 0x506F7374  # "Post", in the file's header
SHARED = 256  # pieces of work that share one commit at most
WAL_BYTES = 4 * MIB  # bytes of write-ahead log after which it is folded into the database


def store_path(path: Path) -> Path:
    """The store's file: `path` itself, or store.sqlite in it where it is a directory."""
    return path / "store.sqlite" if path.is_dir() else path


@dataclass(slots=True, eq=False)
class _Job:
    work: Work
    lazily: bool
    done: bool = False
    result: Any = None
    error: BaseException | None = None


class Store:
    """An open store. `run` is the only way in."""

    def __init__(self, path: Path, *, inline: bool = False) -> None:
        """Open an existing store; `inline` runs transactions in the caller's thread (tests with a mock clock).

        Raises OperatorError (no such file) and StoreError."""
        self.path = store_path(path)
        self._inline = inline
        self._turn = trio.Lock()
        self._jobs: list[_Job] = []
        self._using = threading.Lock()  # held by the thread that uses the connection: closing waits for it
        self._closed = False
        self._receive_lock: int | None = None
        if not self.path.is_file():
            raise OperatorError(f"there is no client store at {self.path}", "Make one with new_user or add_device")
        self._write_lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with self._alone():
                self._db = _connect(self.path)
        except BaseException:
            os.close(self._write_lock)
            raise

    def close(self) -> None:
        """Close the files, when a transaction under way has ended; the receive lock, if held, goes free."""
        with self._using:
            self._closed = True
            with self._alone():
                self._db.close()
        os.close(self._write_lock)
        if self._receive_lock is not None:
            os.close(self._receive_lock)
            self._receive_lock = None

    def take_receive_lock(self) -> bool:
        """Become the one who receives for this device; False while another open store does."""
        handle = os.open(f"{self.path}.receive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._receive_lock = handle
        return True

    async def run(self, work: Callable[[Db], T], *, lazily: bool = False) -> T:
        """Do `work(db)`, all or nothing; on disk when this returns, undone when it raises.

        `lazily`: survives the process, but a power cut may undo it. Once asked for it is done, cancelled or not.
        Raises what `work` raises; StoreDamaged, StoreError."""
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(work, lazily)
        self._jobs.append(job)
        with trio.CancelScope(shield=True):  # bounded by the disk; whoever asked learns what happened
            async with self._turn:
                while not job.done:
                    jobs, self._jobs = self._jobs[:SHARED], self._jobs[SHARED:]
                    if self._inline:
                        self._do(jobs)
                    else:
                        await trio.to_thread.run_sync(self._do, jobs)
        await trio.lowlevel.cancel_shielded_checkpoint()
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def transact(self, work: Callable[[Db], T], *, lazily: bool = False) -> T:
        """`run`, without trio."""
        job = _Job(work, lazily)
        self._do([job])
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def _do(self, jobs: Sequence[_Job]) -> None:
        """One transaction for all; one that raises is undone alone."""
        with self._using:
            self._do_alone(jobs)

    def _do_alone(self, jobs: Sequence[_Job]) -> None:
        try:
            self._check_open()
            with self._alone():
                lazily = all(job.lazily for job in jobs)
                self._db.execute(f"PRAGMA synchronous={'NORMAL' if lazily else 'FULL'}")
                self._db.execute("BEGIN IMMEDIATE")
                for job in jobs:
                    self._one(job)
                self._db.execute("COMMIT")
                self._fold()
        except BaseException as error:  # noqa: BLE001  passed on to everybody who asked
            if isinstance(error, sqlite3.DatabaseError):
                error = _translated(self.path, error)
            for job in jobs:
                job.error = job.error or error
        finally:
            if not self._closed and self._db.in_transaction:
                self._db.execute("ROLLBACK")
            for job in jobs:
                job.done = True

    def _one(self, job: _Job) -> None:
        self._db.execute("SAVEPOINT job")
        try:
            job.result = job.work(self._db)
        except sqlite3.DatabaseError:
            raise  # the disk, or a mistake of ours: nothing of this transaction holds
        except Exception as error:  # noqa: BLE001  raised again by who asked
            job.error = error
            self._db.execute("ROLLBACK TO job")
        self._db.execute("RELEASE job")

    async def changes(self) -> int:
        """A number that changes when another connection wrote."""

        def version() -> int:
            with self._using:
                self._check_open()
                return int(self._db.execute("PRAGMA data_version").fetchone()[0])

        async with self._turn:
            return version() if self._inline else await trio.to_thread.run_sync(version)

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosed("the client was closed", "What is not sent yet is sent when it is opened again")

    def _fold(self) -> None:
        with suppress(FileNotFoundError):
            if os.stat(f"{self.path}-wal").st_size > WAL_BYTES:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fcntl.flock(self._write_lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._write_lock, fcntl.LOCK_UN)


def create(path: Path, fill: Callable[[Db], None]) -> None:
    """Make a store, all or nothing, and fill it. Raises StoreLocked where there is one already."""
    path = store_path(path)
    if path.exists():
        raise StoreError(f"there is already a client store at {path}", "Choose another path")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        db = sqlite3.connect(draft, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous=OFF")  # nobody sees the draft before it is synced whole
            db.execute(f"PRAGMA application_id={APPLICATION}")
            db.execute(f"PRAGMA user_version={FORMAT}")
            db.executescript("BEGIN;" + files("relay.client").joinpath("schema.sql").read_text("utf-8"))
            fill(db)
            db.execute("COMMIT")
        finally:
            db.close()
        _sync(draft)
        os.link(draft, path)  # fails where somebody was faster
    except FileExistsError:
        raise StoreError(f"there is already a client store at {path}", "Choose another path") from None
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _connect(path: Path) -> Db:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise StoreError(f"{path} has mode {mode:04o}: others could read its keys", f"chmod 600 {path}")
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path} cannot be opened ({error})", "Check the path and who owns it") from None
    try:
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION:
            raise StoreForeign(f"{path} is not a Posthouse client store", "Name the right file")
        if version != FORMAT:
            remedy = "Update the software" if version > FORMAT else "Enrol the device anew: home records have changed"
            raise StoreForeign(f"{path} has format {version}, this software knows {FORMAT}", remedy)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute("PRAGMA trusted_schema=OFF")
        return db
    except sqlite3.DatabaseError as error:
        db.close()
        raise _translated(path, error) from None
    except BaseException:
        db.close()
        raise


def _translated(path: Path, error: sqlite3.DatabaseError) -> StoreError:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreLocked(f"{path} is locked by another program", "Close it")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreDamaged(f"{path} is damaged ({error})", "Enrol this device anew; do not restore an old copy")
    return StoreError(f"{path}: {error}", "Check the disk")


def process_gone(pid: int) -> bool:
    """No process of that id runs here."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


# --- the meta table ------------------------------------------------------------------------------
def get(db: Db, key: str) -> bytes:
    """A value; empty where there is none."""
    row = db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
    return bytes(row[0]) if row else b""


def put(db: Db, key: str, value: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (key, value))


def get_cursor(db: Db) -> tuple[bytes, int]:
    """(log id, position up to which everything is in this store); empty and 0 in a new one."""
    return get(db, "log_id"), int.from_bytes(get(db, "cursor"), "big")


def put_cursor(db: Db, log_id: bytes, cursor: int) -> None:
    put(db, "log_id", log_id)
    put(db, "cursor", cursor.to_bytes(8, "big"))


def keep_user_key(db: Db, key: SigningKey) -> None:
    """One of the user keys; which one counts, the newest record says."""
    db.execute("INSERT OR IGNORE INTO user_keys VALUES (?)", (bytes(key),))


def keep_device_key(db: Db, signing: SigningKey, private: bytes) -> None:
    """One of this device's key pairs; which one counts, the newest record says."""
    db.execute("INSERT INTO device_keys VALUES (?,?,?,0)", (bytes(signing.verify_key), bytes(signing), private))


def reopen(db: Db, now_ms: int) -> Root:
    """The root document that is kept. Raises TrustError where it does not hold (any more)."""
    return reopen_root(get(db, "root"), now_ms, pinned=get(db, "federation"))


def take_root(db: Db, signed: bytes, now_ms: int, cell: str = "") -> Root:
    """Keep a newer root document, or the same one again, verified against the one that is there. `cell`: it has to list
    a node of it, for that is where the next one comes from. Raises TrustError and its kinds; then the store is as it
    was."""
    root = follow_root(signed, get(db, "root"), now_ms, get(db, "federation"))
    home = root.cell(cell)
    if cell and not (home and any(node.clients for node in home.nodes)):
        what = f"version {root.payload.version} of the root document lists no node of {cell}, the user's home"
        raise TrustError(what, "It is not gone by, for the next one would be out of reach: ask the region's operator")
    put(db, "root", root.signed)
    return root


def load_own(db: Db, now_ms: int) -> Own:
    """Who this store is for, at home where the newest of its records says. Its keys are those that the newest record
    lists that lists any of them: if it is not the newest of all, the device was revoked. Raises TrustError where the
    root does not hold (any more)."""
    root = reopen(db, now_ms)
    db.execute("UPDATE device_keys SET private=x'' WHERE until>0 AND until<?", (now_ms,))
    rows = db.execute("SELECT id, seed, private FROM device_keys").fetchall()
    keys = {bytes(key): (bytes(seed), bytes(private)) for key, seed, private in rows}
    home = None
    for (signed,) in db.execute("SELECT signed FROM chain ORDER BY version DESC"):
        record = read_home(bytes(signed))
        home = home or record.payload
        device = next((one for one in record.devices if one.id in keys), None)
        if device is not None:
            break
    else:
        raise StoreDamaged("the store has no key that a home record lists", "Enrol this device anew")
    seed, private = keys.pop(device.id)
    return Own(
        user=get(db, "user"), device=device.id, stem=device.stem, signing=SigningKey(seed), private=private,
        older=tuple((key, old) for key, (_, old) in keys.items()), region=home.region, cell=home.cell, root=root,
    )  # fmt: skip
