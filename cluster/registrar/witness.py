"""Our word for other regions' logs: what we stand by is on disk before we say so. (c2sp.org/tlog-witness.)

A log that contradicts itself is forked: both checkpoints are kept, in the database and as files, and we never stand by
that log again; `on_fork` tells whoever federates with that region.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple

import structlog
import trio

from relay.core.tlog import (
    AddCheckpoint, BadProof, Fork, Malformed, Note, Seen, SignerKey, StaleProof, Trust, UnknownKey, VerifierKey,
    consider, encode_fork, origin_of_fork, parse_add_checkpoint, parse_checkpoint, parse_note, read_forks,
    verify_checkpoint, verify_fork,
)  # fmt: skip
from relay.core.tlog.checkpoint import check_same_log
from relay.core.codec import pack
from relay.errors import BadSignature, Rollback, StoreDamaged, TrustError
from relay.journal.database import DAMAGED, Database, Kind, open_database
from relay.journal.portal import Portal
from relay.limits import FORKS_WAIT_S, MAX_FORKS_WAITING

_log = structlog.get_logger("cluster.registrar.witness")
_KIND: Final = Kind("witness", 0x50687769, 2)  # "Phwi"
_TABLES: Final = (
    """CREATE TABLE seen (origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, note BLOB NOT NULL,
       time INTEGER NOT NULL) WITHOUT ROWID""",
    "CREATE TABLE forks (origin TEXT PRIMARY KEY, proof BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), key TEXT NOT NULL)",
)
_SEEN: Final = "REPLACE INTO seen VALUES (?, ?, ?, ?, ?)"
_FORK: Final = "INSERT OR IGNORE INTO forks VALUES (?, ?)"
SIZE_TYPE: Final = "text/x.tlog.size"
_STATUS: Final = {  # as tlog-witness gives them
    Malformed: HTTPStatus.BAD_REQUEST,
    BadSignature: HTTPStatus.FORBIDDEN,
    UnknownKey: HTTPStatus.FORBIDDEN,
    Rollback: HTTPStatus.CONFLICT,
    StaleProof: HTTPStatus.CONFLICT,
    BadProof: HTTPStatus.UNPROCESSABLE_ENTITY,
    Fork: HTTPStatus.UNPROCESSABLE_ENTITY,
}


class Verdict(NamedTuple):
    """What a witness answers: an HTTP status and a body. (`size`: the body is that of text/x.tlog.size.)"""

    status: HTTPStatus
    body: bytes
    size: bool = False


def origin_hash(origin: str) -> str:
    """How tlog-witness names a log in a path."""
    return sha256(origin.encode("utf-8")).hexdigest()


def tag_of(forks: bytes) -> str:
    """How who asks for news says what it has heard: of the proofs as `Witness.forks` showed them."""
    return sha256(forks).hexdigest()[:32]


class Witness:
    """An open witness. Made by `open_witness`. Methods raise DiskFailed from the first I/O error on."""

    def __init__(
        self, db: Database, key: SignerKey, logs: Mapping[str, VerifierKey], evidence: Path, now: Callable[[], int]
    ) -> None:
        self.on_fork: Callable[[str, Fork], None] = lambda origin, fork: None
        self.on_verdict: Callable[[str, int], None] = lambda origin, status: None
        self.logs = logs
        self._db, self._key, self._evidence, self._now = db, key, evidence, now
        self._seen: dict[str, Seen] = {}
        self._forks: dict[str, Fork] = {}
        self._locks = {origin: trio.Lock() for origin in logs}
        self._news = trio.Event()  # another fork
        self._waiting = 0  # who waits for that

    async def add_checkpoint(self, request: bytes) -> Verdict:
        """Stand by a checkpoint, or say why not. One request of a log at a time."""
        try:
            asked = parse_add_checkpoint(request)
            origin = parse_checkpoint(asked.note.text).origin
        except Malformed as error:
            return Verdict(HTTPStatus.BAD_REQUEST, f"{error}\n".encode())
        log = self.logs.get(origin)
        if log is None:
            return Verdict(HTTPStatus.NOT_FOUND, b"We do not watch this log\n")
        async with self._locks[origin]:
            verdict = await self._consider(origin, asked, log)
        self.on_verdict(origin, verdict.status)
        return verdict

    async def _consider(self, origin: str, asked: AddCheckpoint, log: VerifierKey) -> Verdict:
        seen = self._seen.get(origin)
        try:
            self.check_whole(origin)
            if asked.old > parse_checkpoint(asked.note.text).size:
                raise Malformed(f"log {origin}: an old size beyond the checkpoint's", "Ask with the size that we saw")
            after, line = consider(seen, asked, log, self._key, self._now())
        except TrustError as error:
            if isinstance(error, Fork) and origin not in self._forks:
                await self.halt(origin, error)
            if isinstance(error, StaleProof | Rollback):
                return Verdict(HTTPStatus.CONFLICT, b"%d\n" % (seen.size if seen else 0), size=True)
            status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), HTTPStatus.FORBIDDEN)
            return Verdict(status, f"{type(error).__name__}: {error}\n".encode())
        await self._db.commit(len(after.note), (_SEEN, [(origin, after.size, after.root, after.note, after.time)]))
        await self._db.fold_wal()
        self._seen[origin] = after
        return Verdict(HTTPStatus.OK, str(line).encode())

    def seen(self, origin: str) -> bytes:
        """The newest checkpoint of a log that we stand by, with the log's own signature; empty when there is none."""
        seen = self._seen.get(origin)
        return seen.note if seen else b""

    def check_whole(self, origin: str) -> None:
        """Raises Fork, with the evidence, when the log was seen to contradict itself."""
        if origin in self._forks:
            raise self._forks[origin].with_traceback(None)

    async def compare(self, origin: str, note: bytes) -> Note | None:
        """Hold what somebody else saw of a log against what we saw. Two roots of one size halt it, and are raised as
        Fork. Returns the other checkpoint where its size is another, so that only a proof tells; None where nothing is
        to be told, or the log is not watched. Raises TrustError for what the log did not sign."""
        log, seen = self.logs.get(origin), self._seen.get(origin)
        if log is None or seen is None or origin in self._forks:
            return None
        theirs = parse_note(note)
        checkpoint = verify_checkpoint(theirs, Trust(log, (), 0)).checkpoint
        try:
            check_same_log(parse_note(seen.note), theirs, log)
        except Fork as error:
            await self.halt(origin, error)
            raise
        return theirs if checkpoint.size != seen.size else None

    async def halt(self, origin: str, fork: Fork) -> None:
        """Never stand by that log again; durable, and told to everybody, on return."""
        proof = encode_fork(fork, self.logs[origin])
        await self._db.commit(len(proof), (_FORK, [(origin, proof)]))
        if origin in self._forks:  # somebody else told of it meanwhile
            return
        self._forks[origin] = fork
        self._news.set()
        self._news = trio.Event()
        self._tell(origin, fork)
        name = origin_hash(origin)[:16]
        try:
            for number, note in enumerate((fork.first, fork.second), 1):
                await trio.Path(self._evidence / f"{name}.{number}.note").write_bytes(note)
        except OSError as error:  # the database has both
            _log.error("evidence_not_copied", origin=origin, text=f"{self._evidence}: {error.strerror}")

    def forks(self) -> bytes:
        """The proofs of all forks, for `tlog.read_forks`: anybody can verify them."""
        return pack([encode_fork(fork, self.logs[origin]) for origin, fork in self._forks.items()])

    async def forks_but(self, tag: str) -> bytes:
        """`forks`, as soon as these are others than those of that tag (`tag_of`); as they are after FORKS_WAIT_S, and
        at once for who comes when MAX_FORKS_WAITING wait already."""
        if self._waiting < MAX_FORKS_WAITING:
            self._waiting += 1
            try:
                with trio.move_on_after(FORKS_WAIT_S):
                    while tag_of(self.forks()) == tag:
                        await self._news.wait()
            finally:
                self._waiting -= 1
        return self.forks()

    async def hear(self, proofs: bytes) -> None:
        """Somebody shows proofs of forks: those that hold halt their logs here, too. Raises Malformed."""
        for proof in read_forks(proofs):
            try:
                await self.hear_of(proof)
            except TrustError as error:  # one that does not hold, by our root document, takes nothing from the others
                _log.warning("no_fork", text=error.text)

    async def hear_of(self, proof: bytes) -> None:
        """The same of one proof. Raises TrustError where it does not hold."""
        log = self.logs.get(origin_of_fork(proof))
        if log is not None and log.name not in self._forks:
            await self.halt(log.name, verify_fork(proof, log))

    def tell_again(self) -> None:
        """Say which logs had forked before this process began."""
        for origin, fork in self._forks.items():
            self._tell(origin, fork)

    def _tell(self, origin: str, fork: Fork) -> None:
        _log.critical("log_forked", origin=origin, text=fork.text, remedy=fork.remedy, evidence=str(self._evidence))
        self.on_fork(origin, fork)

    def load(self, seen: list[tuple[str, int, bytes, bytes, int]], forks: list[tuple[str, bytes]]) -> None:
        """What was on disk. Of a log that has another key by now, or is not watched any more, a fork is history."""
        self._seen = {origin: Seen(size, root, note, time) for origin, size, root, note, time in seen}
        for origin, proof in forks:
            with suppress(TrustError):
                if origin in self.logs:
                    self._forks[origin] = verify_fork(proof, self.logs[origin])


@asynccontextmanager
async def open_witness(
    file: Path, portal: Portal, key: SignerKey, logs: Mapping[str, VerifierKey], evidence: Path, now: Callable[[], int]
) -> AsyncIterator[Witness]:
    """Open the witness's memory, or make it. `logs`: by origin, those that are watched. `evidence`: a directory for
    what forks leave. `now`: Unix seconds.

    Raises StoreLocked, StoreForeign, StoreDamaged (also another key's memory: a witness that forgot is a new one, under
    a new key), DiskFailed."""
    first = [("INSERT INTO meta VALUES (1, ?)", [(str(key.verifier),)])]
    db, keys = await open_database(portal, file, _KIND, tables=_TABLES, first=first, whose="SELECT key FROM meta")
    try:
        if [row[0] for row in keys] != [str(key.verifier)]:
            raise StoreDamaged(f"{file}: the memory of another witness than {key.name} with its key", DAMAGED)
        await trio.Path(evidence).mkdir(mode=0o700, parents=True, exist_ok=True)
        witness = Witness(db, key, logs, evidence, now)
        witness.load(
            await db.run(lambda connection: connection.execute("SELECT * FROM seen").fetchall()),
            await db.run(lambda connection: connection.execute("SELECT * FROM forks").fetchall()),
        )
        yield witness
    finally:
        await db.close()
