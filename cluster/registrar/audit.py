"""An audit: replay a log, and believe nothing but its signatures and what follows from them.

Every entry is a home record that both keys signed and that follows the one before; a release of a user who was at home
there, after which no other record of that version may come; or an epoch whose root is the one of the map that the
records make. Every checkpoint that was ever seen is a root of that one history. Every tile that is
served is the one that the entries make. What is not so is a finding, in words.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import trio

from cluster.core.homelog import EpochEntry, ReleaseEntry, read_entry
from cluster.enrolment import check_released, read_request, verify_release
from relay.core.tlog import (
    Bundle, LogError, Malformed, Tile, Trust, decode_bundle, grow, leaf_hash, parse_note, tiles_written,
    verify_checkpoint,
)  # fmt: skip
from relay.core.tlog.tiles import FULL
from relay.core.tlog.tree import HASH
from cluster.registrar.http import Caller
from cluster.registrar.notebook import Notebook, Replayed
from relay.core.trust import HomeRecord, Root, Spot, check_endorsed, read_home, verify_home
from relay.errors import AlreadyReleased, BrokenChain, OperatorError, PeerError, ProtocolError, TrustError
from relay.limits import MAX_LOG_ENTRY, MAX_SIGNED_NOTE

MAX_FINDINGS: Final = 100  # after so many it is known what the log is worth
_BUNDLE: Final = FULL * (MAX_LOG_ENTRY + 2)  # bytes
Get = Callable[[str, int], Awaitable[bytes | None]]  # a path and the most bytes; None where there is no such page


def from_directory(directory: Path) -> Get:
    """A log as files: `checkpoint`, `tile/…`."""

    async def get(path: str, most: int) -> bytes | None:
        try:
            return await trio.Path(directory / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    return get


def from_caller(caller: Caller) -> Get:
    """A log as it is served. Raises PeerError where nobody answers."""

    async def get(path: str, most: int) -> bytes | None:
        status, body = await caller.ask("GET", f"/{path}", most=most)
        return body if status == 200 else None

    return get


@dataclass
class Audit:
    """One audit of the log of `region`, by the root, into a notebook. `findings`: what is not as it should be."""

    region: str
    root: Root
    trust: Trust
    get: Get
    notebook: Notebook
    findings: list[str] = field(default_factory=list)
    looked_at: int = 0  # entries, this time
    _elsewhere: dict[bytes, str] = field(default_factory=dict)  # users whose newest record, in this batch, is another's

    def find(self, text: str) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(text)

    async def run(self) -> None:
        """Everything. Raises PeerError, DiskFailed; TrustError where there is no checkpoint of this log at all."""
        data = await self.get("checkpoint", MAX_SIGNED_NOTE)
        if data is None:
            raise PeerError("the log serves no checkpoint", "Name its registrar's inner face, or a directory of files")
        note = parse_note(data)
        opened = verify_checkpoint(note, Trust(self.trust.log, self.trust.witnesses, 0))
        size, root = opened.checkpoint.size, opened.checkpoint.root
        await self.notebook.saw(data, size, root)
        if len(opened.times) < self.trust.k:
            self.find(f"checkpoint at {size}: {len(opened.times)} of {self.trust.k} witnesses stand by it")
        before = self.notebook.replayed.size
        if size < before:
            self.find(f"the log was set back: it shows {size} entries, and {before} were there before")
        while self.notebook.replayed.size < size and await self._replay(size):
            pass
        for tile in tiles_written(before, self.notebook.replayed.size):
            await self._compare(tile)
        await self._check_checkpoints()

    async def _replay(self, size: int) -> bool:
        """One bundle, from where we stand; False where the log does not give what its checkpoint promises."""
        before = self.notebook.replayed
        number, skip = divmod(before.size, FULL)
        name = Bundle(number, min(FULL, size - number * FULL))
        entries = await self._bundle(name)
        if entries is None:
            return False
        fresh, now = entries[skip:], before
        for index, entry in enumerate(fresh, before.size):
            now = await self._look_at(index, entry, now)
        leaves = [leaf_hash(entry) for entry in fresh]
        tiles = grow(before.size, await self.notebook.edge(), leaves)
        await self.notebook.advance(replace(now, size=before.size + len(fresh)), tiles, leaves)
        self.looked_at += len(fresh)
        return True

    async def _bundle(self, name: Bundle) -> tuple[bytes, ...] | None:
        data = await self.get(name.path, _BUNDLE)
        try:
            entries = decode_bundle(data) if data is not None else ()
        except Malformed as error:
            self.find(f"{name.path}: {error.text}")
            return None
        if len(entries) != name.width:
            self.find(f"{name.path}: {len(entries)} of {name.width} entries are served")
            return None
        return entries

    async def _look_at(self, index: int, data: bytes, now: Replayed) -> Replayed:
        try:
            entry = read_entry(data)
        except LogError as error:
            self.find(f"entry {index}: {error.text}")
            return now
        if isinstance(entry, EpochEntry):
            return self._epoch(index, entry, now)
        if isinstance(entry, ReleaseEntry):
            await self._release(index, entry.released)
            return now
        try:
            record = read_home(entry.signed)
        except ProtocolError as error:
            self.find(f"entry {index}: {error.text}")
            return now
        return await self._home(index, record, now)

    def _epoch(self, index: int, epoch: EpochEntry, now: Replayed) -> Replayed:
        what = f"entry {index}, epoch {epoch.number}"
        if epoch.number != now.epoch + 1:
            self.find(f"{what}: it follows epoch {now.epoch}")
        if epoch.root != self.notebook.crown.root:
            self.find(f"{what}: its map is not the one that the records make")
        for text in self._elsewhere.values():  # who comes brings the records of other regions; the last is of this one
            self.find(text)
        self._elsewhere.clear()
        if epoch.users != now.users:
            self.find(f"{what}: it counts {epoch.users} users, there are {now.users}")
        if epoch.time < now.time:
            self.find(f"{what}: its time goes back")
        return replace(now, epoch=epoch.number, time=max(epoch.time, now.time))

    async def _home(self, index: int, record: HomeRecord, now: Replayed) -> Replayed:
        """A record that is wrong still counts for the map: then only what is wrong is found, not all that follows."""
        newest = await self.notebook.newest(record.user)
        try:
            spot, brought = Spot(self.region, index), record.payload.region != self.region
            verified = verify_home(record.signed, self.root, newest, spot, brought=brought)
            if not brought:
                check_endorsed(verified, self.root, spot)
            check_released(await self.notebook.released(record.user), record.version, record.digest)
        except (TrustError, AlreadyReleased) as error:
            self.find(f"entry {index}, version {record.version} of a user: {type(error).__name__}, {error.text}")
        if record.payload.region == self.region:
            self._elsewhere.pop(record.user, None)
        else:
            self._elsewhere[record.user] = f"entry {index}: a user who is at home in {record.payload.region}"
        await self.notebook.put_in_map([record])
        return replace(now, users=now.users + (newest is None))

    async def _release(self, index: int, released: bytes) -> None:
        """Of a user who is at home here by what was logged before, with a version that nobody has."""
        try:
            asked = read_request(released)
            newest = await self.notebook.newest(asked.user)
            if newest is None:
                raise BrokenChain("the log has no such user")
            if newest.payload.region != self.region:
                raise BrokenChain(f"the user is at home in {newest.payload.region}")
            check_released(await self.notebook.released(asked.user), asked.payload.version, asked.digest)
            verify_release(released, self.root, newest, Spot(self.region, index))
            await self.notebook.let_go(asked)
        except (TrustError, OperatorError) as error:
            self.find(f"entry {index}, a release: {type(error).__name__}, {error.text}")

    async def _compare(self, tile: Tile) -> None:
        served = await self.get(tile.path, FULL * HASH)
        if served != await self.notebook.tile(tile):
            self.find(f"{tile.path}: {'it is not served' if served is None else 'not what the entries make'}")

    async def _check_checkpoints(self) -> None:
        """Each that was ever seen, of this log's one history."""
        end = self.notebook.replayed.size
        for size, root in await self.notebook.checkpoints():
            if size > end:
                self.find(f"a checkpoint at {size} was seen, and only {end} entries can be had")
            elif await self.notebook.root_at(size) != root:
                self.find(f"a signed checkpoint at {size} has another root than the entries make: the log forked")
