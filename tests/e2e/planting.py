"""Puts an envelope where it must not be: into the store of a stopped node, sealed and chained as a node would do it."""

from __future__ import annotations

import time

from cluster.core.linkwire import federation_id
from cluster.env import RealEnv
from cluster.local import Layout
from relay.core import records
from relay.core.codec import encode
from relay.core.envelope import Header, To, join
from relay.journal.portal import open_portal
from relay.journal.seal import StorageRing
from relay.journal.solo import open_solo
from tests.residency import AnythingGoes


async def plant(layout: Layout, region: str, user: bytes, home: str, envelope: bytes = b"") -> bytes:
    """An envelope (or this one) for `user`, who is at home in region `home`, as record 1 of the newest block of the one
    node of `region`. Returns it."""
    node = layout.node(region)
    root = layout.home.root(time.time_ns() // 1_000_000)
    envelope = envelope or join(encode(Header(1, To.MAILBOX, user, 1, 1, 2, 1)), bytes(range(256)) * 3)
    handed = records.HandIn(f"{home}/1", bytes(16), 1, 0, records.HANDIN_ENVELOPE, envelope, b"")
    async with open_portal() as portal, open_solo(
        node.data_dir, env=RealEnv(portal), ring=StorageRing.load(layout.home.secrets / f"{region}.storage.key"),
        residency=AnythingGoes(), cell=node.cell, federation=federation_id(root),
    ) as journal:  # fmt: skip
        await journal.append([records.encode_record(records.Tick()), records.encode_record(handed)])
    return envelope
