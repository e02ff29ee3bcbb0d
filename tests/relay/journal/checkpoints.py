"""The checkpoint of a journal, as one value."""

from __future__ import annotations

from relay.ports import Journal


async def load_checkpoint(journal: Journal) -> tuple[int, list[bytes]] | None:
    """(index, rows); None in a new log."""
    rows = list[bytes]()
    index = await journal.load_checkpoint(rows.append)
    return None if index is None else (index, rows)
