"""Our witness beside aics-witness, which we did not write: the same requests, the same verdicts, the same bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import aics_tlog
import pytest
from aics_witness.config import LogConfig
from aics_witness.protocol import format_add_checkpoint_request, parse_add_checkpoint_request
from aics_witness.service import Witness, WitnessError
from aics_witness.store import WitnessStore
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from relay.core.tlog import ED25519, AddCheckpoint, Seen, SignerKey, consider, parse_add_checkpoint
from relay.errors import TrustError
from tests.relay.core.tlog import naive
from tests.relay.core.tlog.logbook import LOG, NOW, ORIGIN, WITNESSES, Book

BOOK = Book(naive.entries(40))
FORKED = Book((*BOOK.entries[:20], *naive.entries(20, b"other ")))
STRANGER = Book(BOOK.entries, SignerKey(ORIGIN, ED25519, bytes(32)))
WITNESS = WITNESSES[0]
VERDICTS = {  # ours, and the HTTP statuses of tlog-witness that it stands for
    "cosigned": {200},
    "BadProof": {422},
    "Fork": {422, 409},  # 409 where the old size is wrong besides
    "Rollback": {409},
    "StaleProof": {409},
    "UnknownKey": {403},
}


class Theirs:
    """Their witness, with our key and a clock of ours."""

    def __init__(self, directory: Path) -> None:
        self.now = NOW
        self.store = WitnessStore(directory / "witness.sqlite", create=True)
        logs = [LogConfig(ORIGIN, (aics_tlog.parse_vkey(str(LOG.verifier)),))]
        key = Ed25519PrivateKey.from_private_bytes(WITNESS.seed)
        self.witness = Witness(WITNESS.name, key, self.store, logs, clock=lambda: float(self.now))
        assert self.witness.vkey_text == str(WITNESS.verifier)

    def ask(self, request: bytes) -> tuple[int, bytes]:
        try:
            return 200, self.witness.add_checkpoint(request)
        except WitnessError as error:
            return error.status, error.body


def draw(random: Random, size: int) -> AddCheckpoint:
    """An honest step, a fork, a stranger, an old size that is wrong, a proof that is."""
    book = random.choice([BOOK] * 6 + [FORKED] * 2 + [STRANGER])
    new = random.randrange(41) if random.random() < 0.4 else min(40, size + random.randrange(4))
    old = min(random.randrange(41) if random.random() < 0.2 else size, new)
    request = book.request(old, new)
    if request.proof and random.random() < 0.1:
        return replace(request, proof=random.choice(naive.changes(request.proof)))
    return request


@pytest.mark.parametrize("seed", range(8))
def test_the_same_requests_have_the_same_verdicts(seed: int, tmp_path: Path) -> None:
    random, theirs = Random(seed), Theirs(tmp_path)
    state: Seen | None = None
    for _ in range(40):
        theirs.now += 1
        request = draw(random, state.size if state else 0)
        status, body = theirs.ask(request.encode())
        try:
            after, line = consider(state, request, LOG.verifier, WITNESS, theirs.now)
            # asked again for what it has just cosigned, theirs may answer with the same line once more
            assert body == str(line).encode() or (state and state.size == after.size)
            verdict, state = "cosigned", after
        except TrustError as error:
            verdict = type(error).__name__
        assert status in VERDICTS[verdict], verdict
        if verdict == "StaleProof":
            assert body == b"%d\n" % (state.size if state else 0)
    theirs.store.close()


def test_every_verdict_comes_up() -> None:
    """What is drawn above is not all of one kind."""
    found: Counter[str] = Counter()
    for seed in range(8):
        random, state = Random(seed), None
        for _ in range(40):
            try:
                state, _ = consider(state, draw(random, state.size if state else 0), LOG.verifier, WITNESS, NOW)
                found["cosigned"] += 1
            except TrustError as error:
                found[type(error).__name__] += 1
    assert set(found) == set(VERDICTS), found


def test_requests_are_the_same_bytes() -> None:
    for old, new in ((0, 0), (0, 40), (13, 40), (40, 40)):
        ours = BOOK.request(old, new)
        theirs = format_add_checkpoint_request(old, list(ours.proof), ours.note.encode())
        assert ours.encode() == theirs
        assert parse_add_checkpoint(theirs) == ours
        parsed = parse_add_checkpoint_request(ours.encode())
        assert (parsed.old_size, tuple(parsed.proof)) == (old, ours.proof)
