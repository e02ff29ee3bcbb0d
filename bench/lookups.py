"""What looking up a user of another region costs, once the record is verified and kept: the directory of a node, with a
region behind it that answers from memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import trio

from cluster.core.linkwire import Answer, LookUp, Records, Request
from cluster.directory.federation import FederationDirectory
from cluster.directory.seen import open_seen
from cluster.env import RealEnv
from relay.core.trust import HomeRecord, Root
from relay.core.wire import Code
from relay.journal.portal import open_portal
from relay.limits import LOOKUP_S

_ROUNDS: Final = 20


class _Nobody:
    """Who is at home here."""

    def home(self, user: bytes) -> HomeRecord | None:
        return None

    def chain(self, user: bytes, after: int) -> list[bytes]:
        return []

    def moved(self, user: bytes) -> tuple[list[bytes], bool]:
        return [], False

    async def settled(self, asker: str = "") -> None:
        await trio.lowlevel.checkpoint()


class _Region:
    """The cells of the other region, all of which have all users."""

    def __init__(self, records: list[HomeRecord]) -> None:
        self._records = {record.user: record for record in records}
        self.asked = 0

    async def request(self, cell: str, message: Request, deadline_s: float = LOOKUP_S) -> Answer:
        await trio.lowlevel.checkpoint()
        assert isinstance(message, LookUp)
        self.asked += 1
        return Records(Code.STORED, (self._records[message.user].signed,))

    def connected(self, cell: str) -> bool:
        return True


async def cached_us(file: Path, root: Root, region: str, cell: str, records: list[HomeRecord]) -> float:
    """CPU µs of one lookup of a kept record, by a node of `cell`; the users are at home in `region`."""
    env, cells = RealEnv(), _Region(records)
    async with open_portal() as portal, open_seen(file, portal, env.random_bytes(32)) as seen:
        directory = FederationDirectory(root, cell, _Nobody(), cells, env, seen)
        for record in records:
            await directory.lookup(record.user, region)
        begun = time.thread_time()
        for _ in range(_ROUNDS):
            for record in records:
                await directory.lookup(record.user, region)
        spent = time.thread_time() - begun
        assert cells.asked == len(records), "a record was not kept"
    return spent / (_ROUNDS * len(records)) * 1e6
