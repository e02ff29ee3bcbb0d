"""Where an envelope goes: here, or the outbox of another cell. The sender's node's own residency check."""

from __future__ import annotations

from relay.core.envelope import Header, To
from relay.core.trust import HomeRecord, Root
from relay.core.wire import Code
from relay.errors import Refused


def route(header: Header, own_cell: str, home: HomeRecord | None, root: Root) -> str:
    """The destination cell: for a mailbox the user's home by its verified record, for a roster this cell (whose fold
    knows which other cells have members). Raises Refused."""
    if header.kind is To.ROSTER:
        return own_cell
    if home is None or home.user != header.to:
        raise Refused(Code.UNKNOWN_USER, "the recipient's home is not known", "Check the address card")
    if root.cell(home.cell) is None:
        raise Refused(Code.UNKNOWN_REGION, f"the federation has no cell {home.cell}", "Fetch the newest root document")
    return home.cell
