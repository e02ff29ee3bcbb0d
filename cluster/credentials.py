"""A running node's certificate: taken anew when its file is replaced, and spoken of before it ends."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

import structlog
import trio

from cluster.config_keys import NodeSection, PathsSection
from cluster.core.auditlog import REFUSED
from cluster.core.linkwire import Peer
from cluster.env import RealClock, RealEnv
from cluster.pki import Claim, NodeCredentials, load_key_pair, renewal_of, renewal_of_authority
from cluster.trail import DIRECTORY, Noting, Trail, open_trail, unnoted
from relay.core.receipts import Word
from relay.core.trust import Root
from relay.errors import OperatorError
from relay.limits import DAY

_log = structlog.get_logger("cluster.credentials")
_LOOK_S: Final = 2.0  # seconds between two looks at the files; a look is two stat(2)
_WARN_MS: Final = 30 * DAY  # before the end: time for a person who is on holiday
_WARN_AGAIN_S: Final = 86_400.0  # seconds between two warnings
_Stamp = tuple[int, int, int, int]  # of a file: inode, size, and the nanoseconds when content and status changed
_wall_ms: Final = RealClock().wall_ms


def open_node_trail(paths: PathsSection, node: NodeSection, now_ms: Callable[[], int] = _wall_ms) -> Trail:
    """The audit log of the node of a config, signed with the node's key. What is signed begins with "posthouse.audit/",
    as nothing else that this key signs does (ADR 23, ADR 26). Raises as `open_trail`; OperatorError without the key."""
    key, certificate = load_key_pair(paths.private_key, paths.certificate)
    seed, whose = key.private_bytes_raw(), f"{node.cell}/{node.name}"
    return open_trail(RealEnv().data_dir(paths.data) / DIRECTORY, whose, seed, certificate, now_ms)


class OwnCredentials:
    """What a node proves with, now (cluster.links.secure.Security; and TLS for its clients).

    A replaced certificate holds for connections that begin after it was taken. Those that are open go on: what they
    began with was good, and TLS looks at it only then."""

    def __init__(
        self, certificate: Path, private_key: Path, root: Root, now_ms: Callable[[], int] = _wall_ms,
        note: Noting = unnoted,
    ) -> None:
        """Raises OperatorError, as NodeCredentials.load. `now_ms`: Unix time, ms. `note`: of each certificate that is
        taken, before it is shown, or refused."""
        self._paths, self._root, self._now_ms, self._note = (certificate, private_key), root, now_ms, note
        self._seen = self._taken = self._refused = self._stamps()
        self._now = NodeCredentials.load(certificate, private_key, root, now_ms=now_ms())
        self._say_strangers()

    def follow(self, root: Root) -> None:
        """Believe the authorities of this root document from now on. Where it does not hold with the own certificate
        (any more), what was there is shown on, loudly, until another one lies there."""
        if root is self._root:
            return
        self._root = root
        try:
            self._now = NodeCredentials.load(*self._paths, root, now_ms=self._now_ms())
        except (OperatorError, ssl.SSLError, OSError) as error:
            self._taken = []  # looked at until something holds
            _log.error("certificate_not_taken", text=str(error), until=_day(self.expires_ms))
        else:
            self._say_strangers()

    def _say_strangers(self) -> None:
        for region in self._now.strangers:
            text = f"what the root document has as the authority of {region} cannot be used: no link to or from it is"
            _log.error("authority_unusable", region=region, text=text, remedy="Its operator signs another statement")

    @property
    def peer(self) -> Peer:
        """The node that they prove; it never changes."""
        return self._now.peer

    @property
    def expires_ms(self) -> int:
        """Unix ms from which on no other node believes them: the end of the certificate, or of its authority."""
        return min(self._now.until_ms, self._now.authority_until_ms)

    def clients_server(self) -> ssl.SSLContext:
        """For the next client's wss."""
        return self._now.clients_server

    def attest(self, statements: Sequence[bytes], store: bytes) -> Word:
        """As NodeCredentials.attest, with the certificate of now."""
        return self._now.attest(statements, store)

    async def secure_client(self, transport: trio.abc.Stream, region: str) -> tuple[trio.abc.Stream, Claim]:
        """As Security says."""
        return await self._now.secure_client(transport, region)

    async def secure_server(self, transport: trio.abc.Stream) -> tuple[trio.abc.Stream, Claim]:
        """As Security says."""
        return await self._now.secure_server(transport)

    async def watch(self) -> None:
        """Look at the files, and at the time that is left, until cancelled. Whatever lies there, the node goes on with
        what it has; raises DiskFailed where it cannot be noted."""
        warned = -_WARN_AGAIN_S
        while True:
            if trio.current_time() - warned >= _WARN_AGAIN_S:
                warned = trio.current_time()
                self._warn()
            await trio.sleep(_LOOK_S)
            self._look()

    def _look(self) -> None:
        """Take what was put there, unless it does not hold. What has changed since the last look waits for the next
        one: somebody may still be writing it, or about to replace the second file. What does not hold is tried again,
        since its time may come, and told once."""
        found = self._stamps()
        settled, self._seen = found == self._seen, found
        if not settled or found == self._taken:
            return
        try:
            fresh = NodeCredentials.load(*self._paths, self._root, now_ms=self._now_ms())
            if fresh.peer != self.peer:
                what = f"{self._paths[0]} is of {fresh.peer.cell}/{fresh.peer.node}, not of this node"
                raise OperatorError(what, renewal_of(self.peer.node))
        except (OperatorError, ssl.SSLError, OSError) as error:  # the latter two: replaced once more, this moment
            if found != self._refused:
                self._refused = found
                self._note("certificate.take", "node", f"{REFUSED}: {error}")
                _log.error("certificate_not_taken", text=str(error), until=_day(self.expires_ms))
            return
        digest = sha256(fresh.certificate).hexdigest()
        self._note("certificate.take", "node", until=_day(min(fresh.until_ms, fresh.authority_until_ms)), digest=digest)
        self._now, self._taken = fresh, found
        _log.info("certificate_renewed", until=_day(self.expires_ms))

    def _stamps(self) -> list[_Stamp | None]:
        return [_stamp(path) for path in self._paths]

    def _warn(self) -> None:
        left_ms = self.expires_ms - self._now_ms()
        if left_ms >= _WARN_MS:
            return
        own = self._now.until_ms < self._now.authority_until_ms
        whose = str(self._paths[0]) if own else f"the authority of {self.peer.region}"
        when = f"expires on {_day(self.expires_ms)}, in {left_ms // DAY} days"
        if left_ms <= 0:
            when = f"expired on {_day(self.expires_ms)}: no new link is opened with it"
        remedy = renewal_of(self.peer.node) if own else renewal_of_authority()
        log = _log.warning if left_ms > 0 else _log.error
        log("certificate_expires", text=f"{whose} {when}", remedy=remedy)


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}"
