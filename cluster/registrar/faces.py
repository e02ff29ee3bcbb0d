"""What a registrar answers, page by page. Two faces: one for everybody, one for who is on its machine.

    GET  /checkpoint                       the newest checkpoint, with its cosignatures           tlog-tiles
    GET  /tile/L/N[.p/W]                   tiles of hashes                                        tlog-tiles
    GET  /tile/entries/N[.p/W]             the entries: users' records, so on the inner face only tlog-tiles
    POST /add-checkpoint                   stand by another region's log                          tlog-witness
    GET  /SHA256-OF-ORIGIN/checkpoint      what we stand by                                       tlog-witness
    GET  /forks                            proofs of the forks of other regions' logs that we know of
    GET  /forks?but=TAG                    the same, once they are others than those of that tag; or 304 after a while
    POST /enrol                            check, sign and log a request: [record, staple]
    POST /arrive                           the same of a user who comes from elsewhere: [request, records so far, staple
                                           of the release]
    POST /release                          let a user go who moves: [released request, staple]
    GET  /user/USER/release                the newest such release of a user's
    POST /enrol-many                       the same for many requests: [[record, staple, refusal] …]; inner face only
    GET  /user/USER[?after=VERSION]        a user's records, and the proof that they are all: a Standing
    GET  /audit                            the newest checkpoint of the registrar's own audit log
    GET  /metrics, /readyz                 on the inner face only
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from cluster.core.homelog import MAX_ARRIVAL, read_arrival, read_requests
from relay.core.tlog import Bundle, Malformed, Tile, TooFewWitnesses, parse_path
from cluster.registrar.http import BYTES, TEXT, Reply
from cluster.registrar.log import RegionLog
from cluster.registrar.metrics import RegistrarMetrics
from cluster.registrar.witness import SIZE_TYPE, Witness, origin_hash, tag_of
from relay.core.codec import encode, pack
from relay.core.trust import StapledHome
from relay.errors import DiskFailed, OperatorError, Overloaded, PosthouseError, StoreError, TrustError
from relay.limits import KIB, MAX_CHAIN, MAX_REQUEST, MAX_REQUESTS, MAX_SIGNED_NOTE
from relay.observe.metrics import CONTENT_TYPE

_RELEASE: Final = re.compile(r"/user/([0-9a-f]{64})/release")
_HOME: Final = re.compile(r"/user/([0-9a-f]{64})(?:\?after=([0-9]{1,4}))?")
_NEWS: Final = re.compile(r"/forks\?but=([0-9a-f]{32})")
_SEEN: Final = re.compile(r"/([0-9a-f]{64})/checkpoint")
_RETRY_S: Final = 5
_NO_NEWS: Final = Reply(HTTPStatus.NOT_MODIFIED, b"")
_NO_PAGE: Final = Reply(HTTPStatus.NOT_FOUND, b"No such page\n")


@dataclass
class Face:
    """One face. `inner`: for who is on the machine. `founds`: takes in new users, too."""

    log: RegionLog
    witness: Witness
    metrics: RegistrarMetrics
    inner: bool
    founds: bool
    ready: Callable[[], str | None]
    audit: Callable[[], bytes] = bytes

    def takes(self, method: str, path: str) -> int | None:
        if method == "POST":
            most = {
                "/enrol": MAX_REQUEST, "/release": MAX_REQUEST, "/arrive": MAX_ARRIVAL,
                "/add-checkpoint": MAX_SIGNED_NOTE + 8 * KIB,
            }  # fmt: skip
            return (most | {"/enrol-many": MAX_REQUESTS} if self.inner else most).get(path)
        return 0 if method == "GET" else None

    async def reply(self, method: str, path: str, body: bytes) -> Reply:
        try:
            if method == "POST" and path == "/enrol":
                return Reply(HTTPStatus.OK, encode(await self.log.enrol(body, self.founds)), BYTES)
            if method == "POST" and path == "/arrive":
                asked = read_arrival(body)
                answer = await self.log.enrol(asked.request, self.founds, asked.before, asked.release)
                return Reply(HTTPStatus.OK, encode(answer), BYTES)
            if method == "POST" and path == "/release":
                return Reply(HTTPStatus.OK, encode(await self.log.release(body, self.founds)), BYTES)
            if method == "POST" and path == "/enrol-many":
                answers = await self.log.enrol_many(read_requests(body), self.founds)
                return Reply(HTTPStatus.OK, pack([_answer(answer) for answer in answers]), BYTES)
            if method == "POST":
                verdict = await self.witness.add_checkpoint(body)
                return Reply(verdict.status, verdict.body, SIZE_TYPE if verdict.size else TEXT)
            return await self._get(path)
        except PosthouseError as error:
            return refusal(error)

    async def _get(self, path: str) -> Reply:
        if path == "/checkpoint":
            note = self.log.choir.note
            return Reply(HTTPStatus.OK, note.encode() if note else self.log.registry.head.note)
        if path == "/forks":
            return Reply(HTTPStatus.OK, self.witness.forks(), BYTES)
        if match := _NEWS.fullmatch(path):
            forks = await self.witness.forks_but(match[1])
            return Reply(HTTPStatus.OK, forks, BYTES) if tag_of(forks) != match[1] else _NO_NEWS
        if path.startswith("/tile/"):
            return await self._tile(path)
        if match := _HOME.fullmatch(path):
            after = min(int(match[2] or 0), MAX_CHAIN)
            return Reply(HTTPStatus.OK, encode(await self.log.standing(bytes.fromhex(match[1]), after)), BYTES)
        if match := _RELEASE.fullmatch(path):
            released = await self.log.released(bytes.fromhex(match[1]))
            return _NO_PAGE if released is None else Reply(HTTPStatus.OK, encode(released), BYTES)
        if match := _SEEN.fullmatch(path):
            note_seen = next((self.witness.seen(o) for o in self.witness.logs if origin_hash(o) == match[1]), b"")
            return Reply(HTTPStatus.OK, note_seen) if note_seen else _NO_PAGE
        if path == "/audit":
            return Reply(HTTPStatus.OK, self.audit())
        if path == "/metrics" and self.inner:
            return Reply(HTTPStatus.OK, self.metrics.render(), CONTENT_TYPE)
        if path == "/readyz" and self.inner:
            reason = self.ready()
            status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
            return Reply(status, f"not ready: {reason}\n".encode() if reason else b"ready\n")
        return _NO_PAGE

    async def _tile(self, path: str) -> Reply:
        try:
            name = parse_path(path[1:])
        except Malformed as error:
            return Reply(HTTPStatus.NOT_FOUND, f"{error}\n".encode())
        data: bytes | None = None
        if isinstance(name, Tile):
            data = await self.log.registry.tile(name)
        elif isinstance(name, Bundle) and self.inner:
            data = await self.log.registry.bundle(name.number, name.width)
        return _NO_PAGE if data is None else Reply(HTTPStatus.OK, data, BYTES)


def _answer(answer: StapledHome | PosthouseError) -> list[bytes]:
    if isinstance(answer, PosthouseError):
        return [b"", b"", refusal(answer).body]
    return [answer.signed, answer.staple, b""]


def refusal(error: PosthouseError) -> Reply:
    """An error as an answer: its name, its text, and what to do."""
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    if isinstance(error, TooFewWitnesses | Overloaded):
        status = HTTPStatus.SERVICE_UNAVAILABLE
    elif isinstance(error, TrustError):
        status = HTTPStatus.UNPROCESSABLE_ENTITY
    elif isinstance(error, OperatorError) and not isinstance(error, StoreError):
        status = HTTPStatus.BAD_REQUEST
    elif isinstance(error, StoreError | DiskFailed):
        error = type(error)("the registrar's store has failed", "Its log says more")
    body = f"{type(error).__name__}\n{error.text}\n{error.remedy}\n".encode()
    return Reply(status, body, retry_s=_RETRY_S if status == HTTPStatus.SERVICE_UNAVAILABLE else 0)
