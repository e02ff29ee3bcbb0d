"""The ports: what a relay needs from outside, and what it offers to those who compose it.

cluster implements Directory and Env (and, later, a replicated Journal); relay.journal implements Journal.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import trio

from relay.core.block import Block
from relay.core.farposts import Question, Reply
from relay.core.proven import Missing, ProvenBlock, Wanted
from relay.core.trust import HomeRecord
from relay.core.wire import ReceiptItem


Rows = AsyncIterable[bytes] | Iterable[bytes]  # of a checkpoint, in order


class Clock(Protocol):
    """Time, as the process sees it."""

    def wall_ms(self) -> int:
        """Unix time, ms."""

    def monotonic_ms(self) -> int:
        """A clock that never goes back, ms, from an arbitrary start."""


class Env(Protocol):
    """Everything that is not deterministic: clock, randomness, network, disk. Simulated as a whole in tests."""

    @property
    def clock(self) -> Clock: ...

    def random_bytes(self, count: int) -> bytes:
        """Cryptographic randomness."""

    def random_float(self) -> float:
        """Uniform in [0, 1): jitter only."""

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        """A TCP connection. Raises OSError."""

    async def listen(self, host: str, port: int) -> Sequence[trio.abc.Listener[trio.abc.Stream]]:
        """TCP listeners. Raises OperatorError naming the address when it is in use or may not be bound."""

    async def listen_unix(self, path: Path) -> Sequence[trio.abc.Listener[trio.abc.Stream]]:
        """A Unix-socket listener, mode 0600; a stale socket file is replaced. Raises OperatorError."""

    def data_dir(self, path: Path) -> Path:
        """The directory for a store, made with mode 0700 if missing. Raises OperatorError."""


class Journal(Protocol):
    """One log: append from here, follow in order, read, release.

    A journal is opened by its implementation's async context manager; every method raises DiskFailed after the first
    I/O error (nothing is acknowledged after it) and StoreDamaged where a block does not verify.
    """

    @property
    def log_id(self) -> bytes: ...

    @property
    def first(self) -> int:
        """Index of the oldest block that is kept; tip + 1 when none is."""

    @property
    def tip(self) -> int:
        """Index of the newest committed block; 0 in a new log."""

    @property
    def leads(self) -> bool:
        """Does this node speak for its cell: forward, tick, carry? One does at a time; two for a while do no harm."""

    async def leadership(self, leads: bool) -> None:
        """Wait until `self.leads` is `leads`."""

    def time_ms(self) -> int:
        """The log's time, Unix ms: about what the next block is stamped with (rule 14). Never goes back."""

    async def append(self, records: Sequence[bytes], placed: Callable[[], None] = lambda: None) -> None:
        """Commit records, in this order, in one block (at most MAX_BLOCK bytes, MAX_BLOCK_RECORDS). Returns when they
        are durable; raises ResidencyError where the disk writer refuses one (then none is written). Once started the
        commit completes; a cancelled caller does not learn if.

        The intake owns appending, and begins no append before the one before has returned, or `placed` was called:
        then these records have their place in the order, and what is appended next comes after them. (Should the
        leader that gave the place be lost, or refuse one of them, they get others, and the order is as it comes.)"""

    def follow(self, after: int) -> AsyncIterator[Block]:
        """Committed blocks after index `after`, in order, then each new one as it commits. Never ends by itself."""

    async def read(self, index: int) -> Block:
        """One committed block. Raises LookupError below `first` or beyond `tip`."""

    async def release(self, below: int) -> None:
        """Forget the blocks below index `below`: they are settled or carried, and below the saved checkpoint."""

    async def save_checkpoint(self, index: int, rows: Rows) -> None:
        """Replace the checkpoint by `rows` (each ≤ 1 MiB), taken after applying block `index`, atomically. Some at a
        time are held in memory."""

    async def load_checkpoint(self, take: Callable[[bytes], None]) -> int | None:
        """Give the rows of the last checkpoint to `take`, in order, and return its index; None in a new log. Where this
        raises, they are no good: the checksum over all of them is looked at when the last one was read."""


class Directory(Protocol):
    """Where users are at home. The first form; proofs and witnesses come behind the same seam."""

    async def lookup(self, user: bytes, hint: str) -> HomeRecord:
        """The newest verified record of `user`: from this cell, from the cache, or from the hinted region.

        Raises Refused with UNKNOWN_USER, UNKNOWN_REGION or UNREACHABLE; TrustError where an answer did not verify."""

    async def chain(self, user: bytes, hint: str, after: int) -> list[bytes]:
        """The signed records after version `after`, oldest first. Raises like `lookup`."""


class Abroad(Protocol):
    """What reaches other cells at once, or not at all."""

    async def ephemeral(self, cell: str, user: bytes, from_user: bytes, from_device: bytes, payload: bytes) -> None:
        """Pass an ephemeral payload to the cell of `user`, or, if that is this one, to its other nodes; it is dropped
        where they cannot be reached now."""

    async def pass_on(self, cell: str, envelopes: Sequence[bytes]) -> Sequence[ReceiptItem]:
        """Have the fold of `cell` take envelopes that may not wait here, now; its outcome for each, in order, and the
        same when asked again. Raises Refused, PeerError where there is no answer: they may have been taken even so."""


    async def read_channel(self, cell: str, question: Question) -> Reply:
        """Ask `cell` for posts of a channel of its own, within FAR_ASK_S. Raises Refused, PeerError where there is no
        answer. What the reply says is not checked yet (relay.core.farposts)."""


class Notary(Protocol):
    """Has the stores of cells sign for what their folds took: the parts of receipts (relay.core.receipts)."""

    async def prove(self, cell: str, wanted: Sequence[Wanted]) -> tuple[list[ProvenBlock], list[Missing]]:
        """Of these envelopes, what `cell` proves within PROVE_S, and the others. Raises nothing."""


class Residency(Protocol):
    """The disk writer's own check (section 5, rule 2), made just before a block is written.

    A fact (key of 32 bytes, value) is something it must still know when the records it was learned from are released;
    the journal keeps facts, sealed, in the transaction of the block that taught them."""

    def check(
        self, records: Sequence[bytes], above: Sequence[tuple[bytes, bytes]] = (), *, made: bool = False
    ) -> Sequence[tuple[bytes, bytes]]:
        """The facts that the records teach; changes nothing. Later records may build on earlier ones of the batch, and
        all of them on the facts `above`, oldest first: what blocks teach that are written and not committed yet.

        `made`: the block was made before, by another node or under another policy. What a policy forbids is refused
        when a block is made (ADR 25); whose mail rests here is asked always.

        Raises ResidencyError, with the ordinal of the record, if one must not rest on this disk; NotPermitted where a
        policy is against it."""

    def learn(self, facts: Sequence[tuple[bytes, bytes]]) -> None:
        """Take in facts: those of a block once it is committed, and all that were kept when a store opens."""
