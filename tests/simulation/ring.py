"""Sealing at rest that can be looked through: the same shape and the same checks as relay.journal.seal, but the bytes
lie open, so that a search of a disk finds every canary on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from relay.core.codec import digest, pack
from relay.errors import ProtocolError, StoreDamaged
from relay.journal.seal import NONCE_BYTES, RandomBytes, StorageRing, _sealed


_BLOCK = b"B"  # how the place of a block's records begins (relay.journal.rows)


class OpenRing(StorageRing):
    """A StorageRing without encryption; every item is bound to its place by a digest. `saw` gets what is sealed, and
    whether it is a record of a block."""

    def __init__(self, saw: Callable[[bytes, bool], None]) -> None:
        super().__init__([bytes(32)])
        self._saw = saw

    def seal(self, place: bytes, records: Sequence[bytes], random_bytes: RandomBytes) -> bytes:
        items = []
        for ordinal, record in enumerate(records):
            self._saw(record, place.startswith(_BLOCK))
            items.append(_tag(place, ordinal, record) + record)
        return pack([self.active, items])

    def open(self, place: bytes, sealed: bytes, what: str) -> tuple[bytes, ...]:
        try:
            items = _sealed(sealed).items
        except ProtocolError as error:
            raise StoreDamaged(f"{what}: {error.text}") from None
        records = []
        for ordinal, item in enumerate(items):
            record = item[NONCE_BYTES + 16 :]
            if _tag(place, ordinal, record) != item[: NONCE_BYTES + 16]:
                raise StoreDamaged(f"{what}: record {ordinal} does not open: its bytes were changed")
            records.append(record)
        return tuple(records)


def opened(sealed: bytes) -> list[bytes]:
    """The records in what an OpenRing has sealed, wherever it lies. Raises ProtocolError."""
    return [item[NONCE_BYTES + 16 :] for item in _sealed(sealed).items]


def _tag(place: bytes, ordinal: int, record: bytes) -> bytes:
    return (digest(place + ordinal.to_bytes(8, "big") + record) * 2)[: NONCE_BYTES + 16]
