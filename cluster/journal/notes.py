"""What the Raft core says, as bytes: an entry's payload is a block, and travels as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from cluster.core.raft import Append, Entry, Message
from cluster.journal.shapes import members_in
from relay.core.block import Block, check_follows
from relay.core.codec import Decoder, Struct, encode
from relay.core.shapes import Hash, UInt
from relay.errors import PeerError, ProtocolError, StoreDamaged
from relay.limits import MAX_NOTE


class _Body(Struct):
    """A block without what the entry says: its index. `records` as in the block."""

    prev: Hash
    time: UInt
    hash: Hash
    records: tuple[bytes, ...]


_message: Decoder[Message] = Decoder(Message, "note", MAX_NOTE)


def pack_note(message: Message, load: Callable[[int], Block | None]) -> bytes | None:
    """A message as bytes. `load` gives blocks that the core no longer holds; None where it cannot: nothing is sent."""
    if not isinstance(message, Append) or not message.entries:
        return encode(message)
    entries = []
    for entry in message.entries:
        block = entry.payload or load(entry.index)
        if block is None:
            return None
        body = [block.prev, block.time, block.hash, list(block.records)]
        entries.append(msgspec.structs.replace(entry, payload=body))
    return encode(msgspec.structs.replace(message, entries=tuple(entries)))


def unpack_note(data: bytes, log_id: bytes) -> Message:
    """The message, its blocks verified by their own hashes. Raises PeerError for bytes that are none."""
    try:
        message = _message(data)
        if isinstance(message, Append) and message.entries:
            entries = tuple(_entry(entry, log_id) for entry in message.entries)
            message = msgspec.structs.replace(message, entries=entries)
    except (ProtocolError, StoreDamaged, msgspec.ValidationError) as error:
        raise PeerError(f"a note that makes no sense: {error}", "Both nodes must run the same release") from None
    return message


def _entry(entry: Entry, log_id: bytes) -> Entry:
    body: Any = msgspec.convert(entry.payload, _Body)
    block = Block(log_id, entry.index, body.prev, body.time, body.records, body.hash)
    check_follows(block, None)
    if entry.size != block.size:
        raise ProtocolError(f"entry {entry.index} is not of the size it names")
    if entry.members != members_in(block):  # what counts now is the entry's; after the next start it is the block's
        raise ProtocolError(f"entry {entry.index} names other members than its block")
    return msgspec.structs.replace(entry, payload=block)
