"""Asking a registrar on this machine, and believing nothing that does not verify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

import msgspec
import trio

from cluster.core.homelog import (
    MAX_ANSWERS, MAX_STANDING, Arrival, EpochEntry, Freshness, Standing, read_answers, read_enrolled, read_standing,
    release_entry, verify_newest, verify_stapled_home, verify_unknown,
)  # fmt: skip
from relay.core.tlog import Proven, Trust, parse_staple, verify_checkpoint, verify_staple
from cluster.enrolment import read_request, split_release, verify_release
from cluster.registrar.config import RegistrarConfig, load_config
from cluster.registrar.endpoints import caller
from cluster.registrar.http import Caller
from relay.client.identity import Registrar as Signer
from relay.core.codec import encode, pack
from relay.core.trust import (
    HomeRecord, Root, Spot, StapledHome, check_endorsed, home_entry, read_chain, read_home, same_home, split_home,
    staple_home, trust_of, verify_home,
)  # fmt: skip
from relay.errors import (
    BrokenChain, OperatorError, Overloaded, PeerError, PosthouseError, TrustError, VersionTaken,
)  # fmt: skip
from relay.limits import CHECKPOINT_FRESH_S, KIB, MAX_CHAIN, MAX_REQUESTS, REGISTRAR_BATCH


def _with_kinds(kind: type[PosthouseError]) -> Iterator[type[PosthouseError]]:
    """An error and all its kinds, as far as they are made of text and remedy."""
    if "__init__" not in vars(kind):
        yield kind
        for one in kind.__subclasses__():
            yield from _with_kinds(one)


# What a registrar refuses with, by name: whatever does not verify, in all its kinds, and what its operator is told.
_KINDS: Final[dict[str, type[PosthouseError]]] = {
    kind.__name__: kind for kind in (*_with_kinds(TrustError), OperatorError, *_with_kinds(VersionTaken))
}


@dataclass(frozen=True)
class Proof:
    """What a registrar said of a user, verified; `records` with their staples. `record` None: there is no such user."""

    record: HomeRecord | None
    records: tuple[bytes, ...]
    epoch: EpochEntry
    standing: Standing
    times: dict[str, int]


@dataclass(frozen=True)
class Registrar:
    """A region's registrar. `trust`: whom to believe about its log."""

    region: str
    root: Root
    trust: Trust
    caller: Caller

    @classmethod
    def of(cls, config: RegistrarConfig) -> Registrar:
        """The one of a config, at its inner face."""
        return cls._at(config.inner, config.root, config.region, config.trust)

    @classmethod
    def named(cls, root: Root, region: str) -> Registrar:
        """The one that the root names, at its outer face. Raises OperatorError, TrustError."""
        if not (url := root.region(region).registrar_url):
            raise OperatorError(f"the root document names no registrar of {region}", "Give its directory")
        return cls._at(url, root, region, trust_of(root, region))

    @classmethod
    def _at(cls, url: str, root: Root, region: str, trust: Trust) -> Registrar:
        return cls(region, root, trust, caller(f"the registrar of {region}", url, root, region))

    async def enrol(self, request: bytes) -> StapledHome:
        """Have a request signed and logged. Raises what it refuses with; PeerError where it does not answer."""
        return read_enrolled(await self._ask("POST", "/enrol", request, 32 * KIB))

    async def enrol_many(self, requests: Sequence[bytes]) -> list[StapledHome | PosthouseError]:
        """The same for many, as many at a time as the registrar takes: to each the answer, or what it is refused with.
        Raises PeerError where the registrar does not answer."""
        answers: list[StapledHome | PosthouseError] = []
        for some in portions(requests):
            found = read_answers(await self._ask("POST", "/enrol-many", pack(some), MAX_ANSWERS))
            if len(found) != len(some):
                raise PeerError(f"{self.caller.name} answered {len(found)} of {len(some)} requests")
            why = f"{self.caller.name} refused"
            answers += [
                _refused(one.refusal, why) if one.refusal else StapledHome(one.signed, one.staple) for one in found
            ]
        return answers

    async def sign(self, request: bytes, before: Sequence[bytes], now_ms: int) -> tuple[Proof, bytes]:
        """Have a request signed and logged that follows the user's records `before`, which are logged, too, where they
        are not yet. `request`: as a file has it, with the staple of the release where there is one. The user's records
        with their staples, and the proof that they are all; the staple of the record that was asked for. Raises as
        `enrol` and `prove`; BrokenChain where the log has others of these versions."""
        request, release = split_release(request)
        arrives = bool(before) and read_home(before[-1]).payload.region != self.region
        if before and not arrives:
            known = (await self.prove(read_home(before[0]).user, now_ms)).records
            for signed in before[len(known) :]:
                known = (*known, (await self.enrol(request_of(signed))).signed)
            if not all(map(same_home, known, before)):
                raise BrokenChain("the registrar's log has another record of this version", "Audit the log")
        answer = await (self.arrive(request, before, release) if arrives else self.enrol(request))
        return await self.proven(answer, now_ms)

    async def proven(self, answer: StapledHome, now_ms: int) -> tuple[Proof, bytes]:
        """An answer, verified: all of the user's records with the proof, and the staple of the one answered."""
        made = read_home(answer.signed)
        proof = await self.prove(made.user, now_ms)
        if made.version > len(proof.records) or not same_home(proof.records[made.version - 1], answer.signed):
            raise TrustError("the registrar's answers contradict each other", "Ask again, and audit its log")
        prev = read_chain(proof.records[: made.version - 1])
        self.verify(answer, prev[-1] if prev else None, now_ms)
        return proof, answer.staple

    async def arrive(self, request: bytes, before: Sequence[bytes], release: bytes = b"") -> StapledHome:
        """`enrol` for a user who comes from another region with these records, and the staple of the release there."""
        body = encode(Arrival(request, tuple(before), release))
        return read_enrolled(await self._ask("POST", "/arrive", body, 32 * KIB))

    async def release(self, request: bytes, now_ms: int) -> tuple[HomeRecord, bytes]:
        """Have a user let go, with this request: what it asks for, and `[released request, staple]`, verified. The same
        request gives the same again. Raises what the registrar refuses with (AlreadyReleased: the user was let go with
        another request); TrustError and its kinds; PeerError."""
        answer = read_enrolled(await self._ask("POST", "/release", request, 32 * KIB))
        if read_request(answer.signed).digest != read_request(request).digest:
            raise BrokenChain("the registrar released another request than it was asked to", "Audit its log")
        return self._let_go(answer, (await self.prove(read_request(request).user, now_ms)).records)

    async def released(self, user: bytes, now_ms: int) -> tuple[HomeRecord, bytes] | None:
        """The same that was given before, of the version after the newest one here; None where there is none. Raises
        like `prove`."""
        status, answer = await self.caller.ask("GET", f"/user/{user.hex()}/release", b"", 32 * KIB)
        if status == HTTPStatus.NOT_FOUND:
            return None
        stapled, known = read_enrolled(self._checked(status, answer)), (await self.prove(user, now_ms)).records
        newer = read_request(stapled.signed).payload.version == len(known) + 1
        return self._let_go(stapled, known) if newer else None

    def _let_go(self, answer: StapledHome, known: Sequence[bytes]) -> tuple[HomeRecord, bytes]:
        chain, version = read_chain(known), read_request(answer.signed).payload.version
        if not 1 < version <= len(chain) + 1:
            raise BrokenChain("the registrar released a version that follows none of its own", "Audit its log")
        record = verify_release(answer.signed, self.root, chain[version - 2])
        verify_staple(answer.staple, release_entry(answer.signed), self.trust)
        return record, staple_home(answer.signed, answer.staple)

    def verify(self, answer: StapledHome, prev: HomeRecord | None, now_ms: int) -> tuple[HomeRecord, Proven]:
        """The answer is a record that follows `prev`, logged, and cosigned. Raises TrustError and its kinds."""
        return verify_stapled_home(answer.signed, answer.staple, self.root, self.trust, prev, now_ms)

    async def prove(self, user: bytes, now_ms: int) -> Proof:
        """A user's records and that they are all, or that there is no such user. Raises TrustError and its kinds."""
        standing = read_standing(await self._ask("GET", f"/user/{user.hex()}", b"", MAX_STANDING))
        fresh = Freshness(now_ms // 1000, CHECKPOINT_FRESH_S) if self.trust.k else None
        times = verify_checkpoint(parse_staple(standing.evidence.staple).note, self.trust).times
        if not standing.records:
            epoch = verify_unknown(user, standing.evidence, self.trust, fresh)
            return Proof(None, (), epoch, standing, times)
        record: HomeRecord | None = None
        for signed in standing.records[:MAX_CHAIN]:
            record = verify_home(signed, self.root, record)
        if record is None or record.user != user:
            raise BrokenChain("the registrar showed another user's records", "Ask again, and audit its log")
        signed, staple = split_home(record.signed)
        proven = verify_staple(staple, home_entry(signed), self.trust)
        check_endorsed(record, self.root, Spot(self.region, proven.index))
        epoch = verify_newest(record, standing.evidence, self.trust, fresh)
        return Proof(record, standing.records, epoch, standing, times)

    async def _ask(self, method: str, path: str, body: bytes, most: int) -> bytes:
        return self._checked(*await self.caller.ask(method, path, body, most))

    def _checked(self, status: int, answer: bytes) -> bytes:
        if status != HTTPStatus.OK:
            raise _refused(answer, f"{self.caller.name} answered {status}")
        return answer


@dataclass(frozen=True)
class Service:
    """A registrar that runs, as the SDK asks one, and as one is asked to let a user go: records and releases come with
    their staples. Each call runs trio: not to be called within it. Raises as `Registrar` does."""

    connect: Callable[[], Registrar]  # a connection is of one run
    now_ms: Callable[[], int]

    def records(self, user: bytes) -> tuple[bytes, ...]:
        """All records of a user; none where there is no such user."""
        return trio.run(self.connect().prove, user, self.now_ms()).records

    def sign(self, request: bytes, before: Sequence[bytes]) -> bytes:
        """See `relay.client.Registrar`."""
        proof, _ = trio.run(self.connect().sign, request, before, self.now_ms())
        return proof.records[len(before)]

    def release(self, request: bytes, before: Sequence[bytes]) -> tuple[HomeRecord, bytes]:
        """What is asked for, and the request with the release, as a file has it. (It knows the records before.)"""
        return trio.run(self.connect().release, request, self.now_ms())

    def released(self, user: bytes, version: int, cell: str) -> bytes | None:
        """The release that was given for this version and this move, if there is one."""
        found = trio.run(self.connect().released, user, self.now_ms())
        return found[1] if found is not None and (found[0].version, found[0].cell) == (version, cell) else None


def service(at: Path, now_ms: Callable[[], int]) -> Service:
    """The running registrar whose directory is `at`. Raises ConfigError, OperatorError."""
    config = load_config(at, now_ms())
    return Service(lambda: Registrar.of(config), now_ms)


def signer(at: Path, now_ms: Callable[[], int]) -> Signer:
    """The same, as the SDK asks one."""
    return service(at, now_ms).sign


def request_of(signed: bytes) -> bytes:
    """The request that a signed record is the answer to: Ed25519 is deterministic, so the answer is the same again."""
    payload, user_signature, _, *release = msgspec.msgpack.decode(split_home(signed)[0])
    return pack([payload, user_signature, *release])


def portions(requests: Iterable[bytes]) -> Iterator[list[bytes]]:
    """So many as fit into one body. A request has at most MAX_REQUEST bytes."""
    some: list[bytes] = []
    size = 0
    for request in requests:
        if some and (len(some) == REGISTRAR_BATCH or size + len(request) > MAX_REQUESTS - 8 * KIB):
            yield some
            some, size = [], 0
        some.append(request)
        size += len(request)
    if some:
        yield some


def _refused(answer: bytes, otherwise: str) -> PosthouseError:
    """The error that a refusal names."""
    lines = [*answer.decode("utf-8", "replace").split("\n"), "", "", ""]
    if lines[0] == Overloaded.__name__:
        return Overloaded(lines[1])
    if kind := _KINDS.get(lines[0]):
        return kind(lines[1], lines[2])
    return PeerError(otherwise, lines[0][:200])
