"""Who answers what comes over the links: the cell's own business, or what other cells ask. Links are up before the node
serves, since a node may need its cell to start."""

from __future__ import annotations

from collections.abc import Callable

from cluster.core import linkwire
from cluster.core.linkwire import CellNote, Peer
from cluster.handover import Reception
from cluster.journal.cell import Cell
from cluster.notary import Notary
from cluster.onlookers import Onlookers
from relay.errors import Overloaded
from relay.office import Office

_SOON_MS = 500  # when to ask a starting node again


class Switchboard:
    """The handler behind the links. What is not there yet is answered with Overloaded. `check` raises Refused for a
    cell that is not answered at all."""

    def __init__(self, check: Callable[[str], None] = lambda cell: None) -> None:
        self.check = check
        self.cell: Cell | None = None
        self.office: Office | None = None
        self.reception: Reception | None = None
        self.notary: Notary | None = None
        self.onlookers: Onlookers | None = None

    async def answer(self, peer: Peer, message: linkwire.Request) -> linkwire.Answer:
        """Answer one request. Raises PosthouseError, which the link turns into a LinkFault."""
        self.check(peer.cell)
        if isinstance(message, linkwire.CellEphemeral):
            if self.office is not None:
                self.office.deliver_ephemeral(message.user, message.from_user, message.from_device, message.payload)
                return linkwire.Done()
        elif isinstance(message, linkwire.Attest | linkwire.ProveThere):
            if self.notary is not None:
                return await self.notary.answer(peer, message)
        elif isinstance(message, linkwire.AuditHead):
            if self.onlookers is not None:
                return await self.onlookers.answer(peer, message)
        elif isinstance(message, linkwire.CELL_REQUESTS):
            if self.cell is not None:
                return await self.cell.answer(peer, message)
        elif self.reception is not None:
            return await self.reception(peer, message)
        raise Overloaded("this node is starting", _SOON_MS)

    def note(self, peer: Peer, note: CellNote) -> None:
        """A one-way message of a node of this cell. Raises PeerError for bytes that are none."""
        if self.cell is not None:
            self.cell.journal.on_note(peer, note)
