"""A witness that lies: to logs that ask it to stand by them, and to whoever asks what it saw, or what forks it knows
of.

It stands by two histories, by a smaller tree after a bigger one, under a wrong key, at a wrong time, under another
text; it says nothing, noise, or too late; claims to have seen more; shows stale and forged checkpoints; and slanders
logs: with checkpoints that agree, with a fork under a key that the root does not name (any more), with a signature of
another text.
"""

from __future__ import annotations

from http import HTTPStatus
from random import Random
from typing import Final

import trio

from cluster.registrar.faces import Face
from cluster.registrar.http import Reply
from cluster.registrar.witness import origin_hash
from relay.core.codec import digest, pack
from relay.core.tlog import (
    COSIGNATURE, ED25519, Checkpoint, Fork, Note, Signature, SignerKey, encode_fork, parse_add_checkpoint,
    parse_checkpoint, read_forks,
)  # fmt: skip
from tests.simulation.keys import witness_key
from tests.simulation.world import START_MS, World

TRUE: Final = 0.3  # share of what it is asked that it answers truly
LATE_S: Final = (0.0, 4.0, 25.0, 70.0)  # before it answers, when it does not
DECADE_S: Final = 315_360_000


def now_s() -> int:
    """Unix seconds, by a clock that is right."""
    return START_MS // 1000 + int(trio.current_time())


class FalseWitness:
    """That of `region`; empty: none. It has a real one, whose word it gives now and then."""

    def __init__(self, world: World, region: str) -> None:
        self.region, self.counts = region, world.counts
        self.random: Random = world.random("false witness")
        self._asked: dict[str, list[Note]] = {}  # by origin, what it was asked to stand by
        self._signed: dict[str, list[Checkpoint]] = {}  # and stood by
        self._lies = [name for name in dir(self) if name.startswith(("cosigns_", "says_"))]
        self._forks = [name for name in dir(self) if name.startswith("slanders_")]

    async def reply(self, face: Face, method: str, path: str, body: bytes) -> Reply:
        """Instead of what `face` answers."""
        seen = [origin for origin in self._asked if path == f"/{origin_hash(origin)}/checkpoint"]
        forks, cosign = path.startswith("/forks"), path == "/add-checkpoint"
        if not (forks or cosign or seen) or self.random.random() < TRUE:
            return await face.reply(method, path, body)
        if self.random.random() < 0.1:
            self._told("says nothing for long")
            await trio.sleep(self.random.choice(LATE_S))
            return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, b"")
        if seen:
            return Reply(HTTPStatus.OK, self._shows(seen[0]))
        if forks:
            return Reply(HTTPStatus.OK, self._tells(face.witness.forks()))
        note = parse_add_checkpoint(body).note
        self._asked.setdefault(parse_checkpoint(note.text).origin, []).append(note)
        name = self.random.choice([*self._lies, *[self.cosigns_anything.__name__] * len(self._lies)])
        status, text = getattr(self, name)(note, parse_checkpoint(note.text))
        self._told(name)
        return Reply(status, text)

    def _told(self, name: str) -> None:
        self.counts[f"lie: witness {name.replace('_', ' ')}"] += 1

    # --- to a log that asks for its cosignature ------------------------------------------------------
    def _line(self, note: Note, time: int = 0, key: SignerKey | None = None) -> tuple[int, bytes]:
        signer = key or witness_key(self.region)
        signature = signer.sign(note.text, time or now_s())
        return HTTPStatus.OK, str(Signature(signer.name, signer.verifier.id, signature)).encode()

    def cosigns_anything(self, note: Note, point: Checkpoint) -> tuple[int, bytes]:
        """Whatever it has stood by before."""
        signed = self._signed.setdefault(point.origin, [])
        if any(one.size == point.size and one.root != point.root for one in signed):
            self._told("cosigns two histories of one size")
        if any(one.size > point.size for one in signed):
            self._told("cosigns a smaller tree after a bigger one")
        signed.append(point)
        return self._line(note)

    def cosigns_at_a_wrong_time(self, note: Note, point: Checkpoint) -> tuple[int, bytes]:
        return self._line(note, self.random.choice([1, now_s() - DECADE_S, now_s() + DECADE_S, 2**62]))

    def cosigns_with_a_wrong_key(self, note: Note, point: Checkpoint) -> tuple[int, bytes]:
        name = self.random.choice([witness_key(self.region).name, point.origin])
        return self._line(note, key=SignerKey(name, COSIGNATURE, digest(b"a stranger's")))

    def cosigns_another_checkpoint(self, note: Note, point: Checkpoint) -> tuple[int, bytes]:
        return self._line(self.random.choice(self._asked[point.origin]))

    def says_noise(self, note: Note, point: Checkpoint) -> tuple[int, bytes]:
        return self.random.choice([200, 403, 404, 422, 500]), self.random.choice([b"", b"\x00", b"\n\n", b"ok\n"])

    def says_that_it_has_seen_more(self, note: Note, point: Checkpoint) -> tuple[int, bytes]:
        said = [b"%d\n" % (point.size + 1), b"1000000\n", b"0\n", b"-1\n", b"noise", b"9" * 50, b""]
        return HTTPStatus.CONFLICT, self.random.choice(said)

    # --- to whoever asks what it saw -----------------------------------------------------------------
    def _shows(self, origin: str) -> bytes:
        """A stale checkpoint, another witness's side, nothing, noise, or one that the log never signed."""
        alone = SignerKey(origin, ED25519, digest(b"this witness's own"))
        forged = Checkpoint(origin, 10_000, bytes(32)).sign(alone)
        shown = self.random.choice([self._asked[origin][0], *self._asked[origin][-2:], forged]).encode()
        self._told("shows a checkpoint")
        return self.random.choice([shown, shown, b"", self.random.randbytes(40)])

    # --- to whoever asks what forked -----------------------------------------------------------------
    def _tells(self, true: bytes) -> bytes:
        """Some of what it knows, and slander; or nothing, or noise."""
        if self.random.random() < 0.3:
            self._told("keeps forks to itself")
            return self.random.choice([pack([]), b"", self.random.randbytes(40)])
        proofs = [proof for proof in read_forks(true) if self.random.random() < 0.5]
        for name in self.random.sample(self._forks, 2):
            if self._asked:
                origin = self.random.choice(list(self._asked))
                proofs.append(getattr(self, name)(origin))
                self._told(name)
        self.random.shuffle(proofs)
        return pack(proofs)

    def _pair(self, origin: str) -> list[Note]:
        """Two checkpoints that the log signed, the older one first or not. They may contradict each other: then it is
        no slander."""
        return [self.random.choice(self._asked[origin]) for _ in range(2)]

    def slanders_with_checkpoints_that_agree(self, origin: str) -> bytes:
        first, second = self._pair(origin)
        hashes = [self.random.randbytes(32) for _ in range(self.random.randint(0, 8))]
        return pack([first.encode(), second.encode(), hashes])

    def slanders_with_another_logs_checkpoint(self, origin: str) -> bytes:
        first, second = self._pair(origin)[0], self._pair(self.random.choice(list(self._asked)))[0]
        return pack([first.encode(), second.encode(), []])

    def slanders_under_another_key(self, origin: str) -> bytes:
        """A true fork of a log of that name: of before it began anew, or of the witness's own making."""
        key = SignerKey(origin, ED25519, digest(self.random.choice([b"the key before", b"this witness's own"])))
        notes = [Checkpoint(origin, 7, bytes([side]) * 32).sign(key).encode() for side in (1, 2)]
        return encode_fork(Fork("", "", *notes), key.verifier)

    def slanders_under_a_borrowed_name(self, origin: str) -> bytes:
        """Two histories under the log's name and key id, with signatures that it made for something else."""
        line = self.random.choice(self._asked[origin]).signatures[0]
        notes = [Note(Checkpoint(origin, 7, bytes([side]) * 32).text(), (line,)).encode() for side in (1, 2)]
        return pack([*notes, []])
