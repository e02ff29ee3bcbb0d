"""Checks erasure receipts against the disks of stopped nodes: `posthouse audit erasure`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from cluster.audit.look import stores_below
from cluster.audit.register import short
from cluster.audit.residency import forwarded_for
from cluster.audit.shelf import Held, held_in
from cluster.audit.sites import Site, newest_root
from cluster.erasure import Erasure, verify_erasure
from relay.core import records
from relay.core.block import Block
from relay.core.envelope import read_header
from relay.errors import PosthouseError, ProtocolError
from relay.journal.inspect import StoppedStore, open_stopped
from relay.journal.seal import StorageRing


def check_erasures(sites: list[Site], receipts: Sequence[bytes]) -> tuple[list[str], list[str]]:
    """(what holds, what does not), a line each: every receipt by its signature, and against the store that gave it; and
    every store of its cell here, set-aside ones and snapshots under way included, for what a user left who is named."""
    root = newest_root(sites)
    good, bad, verified = list[str](), list[str](), list[Erasure]()
    for signed in receipts:
        try:
            verified.append(verify_erasure(signed, root))
        except PosthouseError as error:
            bad.append(f"a receipt that does not hold: {error.text}")
    for site in sites:
        mine = [one for one in verified if one.cell == site.cell]
        ring = StorageRing.load(site.storage_key)
        for directory in stores_below(site.top) if mine else ():
            with open_stopped(directory, ring) as store:
                for receipt in mine:
                    found = left_in(store, receipt)
                    where = f"{site.cell}/{site.node}, {site.name(directory)}"
                    if store.log_id == receipt.log and site.node == receipt.node and store.first < receipt.below:
                        found.append(f"it keeps blocks from {store.first} on, and the receipt says {receipt.below}")
                    bad += [f"{where}: {one}" for one in found]
                    good += [] if found else [f"{where}: nothing of user {short(receipt.user)}"]
    return good, bad


def left_in(store: StoppedStore, receipt: Erasure) -> list[str]:
    """The envelopes for the user in a store, below the index that the receipt names, or in another log."""
    found: list[str] = []

    def told(error: PosthouseError) -> None:
        found.append(f"it cannot be read whole: {error.text}")

    for block in chain(_below(store, receipt, told), store.staged(told)):
        for encoded in block.records:
            record = records.decode_record(encoded)
            for holder, envelope, _ in held_in(record):
                if _is_for(envelope, holder, receipt.user):
                    found.append(f"block {block.index} holds an envelope for user {short(receipt.user)}")
    return found


def _below(store: StoppedStore, receipt: Erasure, told: Callable[[PosthouseError], None]) -> Iterator[Block]:
    """One at a time: a log may be larger than memory."""
    for block in store.blocks(told):
        if store.log_id != receipt.log or block.index < receipt.below:
            yield block


def _is_for(envelope: bytes, holder: Held, user: bytes) -> bool:
    if forwarded_for(holder) == user:
        return True
    try:
        return read_header(envelope).to == user
    except ProtocolError:
        return False
