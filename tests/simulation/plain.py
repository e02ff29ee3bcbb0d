"""The plainest disk: a LogStore in memory whose writes take a while and are then durable. Nothing goes wrong on it but
that a crash comes before, in the midst of, or after a write; tests.simulation.store is the one that misbehaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import trio

from cluster.directory.seen import Sighting
from relay.core.codec import digest
from relay.errors import DiskFailed
from relay.journal.api import BlockRow, CheckpointHead, FactRow, Hard, Meta, Write


@dataclass
class Content:
    """What lies on the disk."""

    meta: Meta
    hard: Hard = Hard()
    known: dict[bytes, int] = field(default_factory=dict)
    commit: int = 0
    rows: dict[int, BlockRow] = field(default_factory=dict)
    facts: dict[bytes, list[tuple[int, bytes]]] = field(default_factory=dict)
    checkpoints: dict[int, dict[int, bytes]] = field(default_factory=dict)
    head: CheckpointHead | None = None


class PlainDisk:
    """The disk of one node; it survives the node. `delay` gives the seconds that one access takes."""

    def __init__(self, random: Random, delay: Callable[[], float]) -> None:
        self.random, self.delay = random, delay
        self.content: Content | None = None
        self.seen: dict[bytes, Sighting] = {}
        self.flag = False  # the bootstrap file

    def rows(self) -> Iterator[BlockRow]:
        """All blocks at rest."""
        return iter(self.content.rows.values() if self.content else ())

    def at_rest(self) -> Iterator[bytes]:
        """All bytes at rest that may hold an envelope."""
        if self.content is not None:
            for row in self.content.rows.values():
                yield row.sealed
            for rows in self.content.checkpoints.values():
                yield from rows.values()

    async def open(self, env: Any, directory: Path, fresh: Meta) -> PlainStore:
        await env.at_disk(self.delay())
        if self.content is None:
            self.content = Content(fresh)
        return PlainStore(self, env, directory, self.content)

    @asynccontextmanager
    async def open_seen(self, env: Any):
        await env.at_disk(self.delay())
        yield PlainSeen(self, env)


class PlainSeen:
    """cluster.directory.seen.Seen."""

    def __init__(self, disk: PlainDisk, env: Any) -> None:
        self._disk, self._env = disk, env

    async def highest(self, user: bytes) -> Sighting | None:
        await self._env.at_disk(0.0)
        return self._disk.seen.get(user)

    def sighting(self, record: Any) -> Sighting:
        return Sighting(record.version, digest(record.digest))

    async def raise_to(self, user: bytes, sighting: Sighting) -> Sighting:
        await self._env.at_disk(self._disk.delay())
        known = self._disk.seen.get(user)
        if known is None or known.version < sighting.version:
            self._disk.seen[user] = sighting
        return self._disk.seen[user]

    async def failed(self) -> None:
        await trio.sleep_forever()


class PlainStore:
    """relay.journal.api.LogStore. A write happens in the middle of its delay: a crash finds it done or not."""

    behind: str | None = None

    def __init__(self, disk: PlainDisk, env: Any, directory: Path, content: Content) -> None:
        self._disk, self._env, self._content = disk, env, content
        self.file = directory / "log.sqlite"
        self.on_failure: Callable[[DiskFailed], None] = lambda error: None
        self._closed = False

    @property
    def meta(self) -> Meta:
        return self._content.meta

    @property
    def hard(self) -> Hard:
        return self._content.hard

    @property
    def known(self) -> dict[bytes, int]:
        return self._content.known

    @property
    def commit(self) -> int:
        return self._content.commit

    def check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the store is closed")
        self._env.check_disk()

    async def _access(self, change: Callable[[], Any]) -> Any:
        """Half of the time passes before the change is durable, and half of it after. Once started it completes."""
        self.check()
        delay = self._disk.delay()
        with trio.CancelScope(shield=True):
            await self._env.at_disk(delay / 2)
            result = change()
            await self._env.at_disk(delay / 2)
        return result

    async def write(self, write: Write) -> None:
        await self._access(lambda: self._write(write))

    def _write(self, write: Write) -> None:
        content = self._content
        if write.truncate_from is not None:
            for index in [index for index in content.rows if index >= write.truncate_from]:
                del content.rows[index]
            for versions in content.facts.values():
                versions[:] = [fact for fact in versions if fact[0] < write.truncate_from]
        for row in write.rows:
            content.rows[row.index] = row
        for key, index, sealed in write.facts:
            content.facts.setdefault(key, []).append((index, sealed))
        content.hard = write.hard or content.hard
        if write.known is not None:
            content.known = dict(write.known)
        if write.commit is not None:
            content.commit = write.commit

    async def ends(self) -> tuple[int, int] | None:
        await self._read()
        rows = self._content.rows
        return (min(rows), max(rows)) if rows else None

    async def _read(self) -> None:
        self.check()
        await self._env.at_disk(0.0001)

    async def blocks(self, first: int, last: int) -> list[BlockRow]:
        await self._read()
        rows = self._content.rows
        return [rows[index] for index in range(first, min(last, first + 63) + 1) if index in rows]

    async def terms(self, first: int, last: int) -> list[tuple[int, int, bytes]]:
        await self._read()
        rows = self._content.rows
        found = (rows[index] for index in range(first, min(last, first + 999) + 1) if index in rows)
        return [(row.index, row.term, row.hash) for row in found]

    async def repair(self, row: BlockRow) -> None:
        await self._access(lambda: self._content.rows.__setitem__(row.index, row))

    async def release(self, first: int, below: int, members: bytes | None = None) -> int:
        def change() -> int:
            content, upto = self._content, min(below, first + 100)
            last = content.rows[upto - 1]
            for index in range(first, upto):
                del content.rows[index]
            meta = content.meta
            kept = meta.members if members is None or upto != below else members
            content.meta = replace(
                meta, first=upto, prev=last.hash, prev_term=last.term, time=last.time, members=kept
            )
            for versions in content.facts.values():
                old = [fact for fact in versions if fact[0] < upto]
                versions[:] = old[-1:] + [fact for fact in versions if fact[0] >= upto]
            return upto

        result: int = await self._access(change)
        return result

    async def checkpoint(self) -> CheckpointHead | None:
        await self._read()
        return self._content.head

    async def checkpoint_rows(self, generation: int, first: int) -> list[bytes]:
        await self._read()
        rows = self._content.checkpoints.get(generation, {})
        return [rows[ordinal] for ordinal in range(first, first + 16) if ordinal in rows]

    async def clear_unfinished(self, generation: int) -> None:
        def change() -> None:
            kept = self._content.checkpoints.get(generation)
            self._content.checkpoints = {} if kept is None else {generation: kept}

        await self._access(change)

    async def add_checkpoint_rows(self, generation: int, ordinal: int, sealed: Sequence[bytes]) -> None:
        def change() -> None:
            rows = self._content.checkpoints.setdefault(generation, {})
            rows.update(enumerate(sealed, ordinal))

        await self._access(change)

    async def finish_checkpoint(self, head: CheckpointHead) -> None:
        def change() -> None:
            content = self._content
            content.head, content.checkpoints = head, {head.generation: content.checkpoints[head.generation]}

        await self._access(change)

    async def facts(self, after: bytes, upto: int | None = None) -> list[FactRow]:
        await self._read()
        found: list[FactRow] = []
        for key, versions in sorted(self._content.facts.items()):
            fit = [fact for fact in versions if upto is None or fact[0] <= upto]
            if key > after and fit and len(found) < 64:
                found.append((key, *fit[-1]))
        return found

    async def install(
        self, meta: Meta, head: CheckpointHead, facts: Sequence[FactRow], known: Mapping[bytes, int], commit: int
    ) -> None:
        def change() -> None:
            content = self._content
            content.meta, content.head, content.known, content.commit = meta, head, dict(known), commit
            content.rows = {}
            content.facts = {key: [(index, sealed)] for key, index, sealed in facts}
            content.checkpoints = {head.generation: content.checkpoints[head.generation]}

        await self._access(change)

    async def fold_wal(self) -> None:
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        self._closed = True
