"""What the stores of a cell say to each other: in from the links, out to them. Raft is made for loss."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

import trio

from cluster.core.linkwire import CellNote, Peer
from cluster.core.raft import Append, Member, Members, Message, Recollection
from cluster.journal.disk import RaftDisk
from cluster.journal.notes import pack_note, unpack_note
from cluster.journal.stamp import CellClock
from cluster.links import Links
from relay.errors import PeerError
from relay.limits import MAX_INBOX, RAFT_INFLIGHT_APPENDS

_KNOWN = 64  # stores whose nodes are remembered beside the members


class Post:
    """The messages of one store."""

    def __init__(self, own: Member, disk: RaftDisk, links: Links, clocks: CellClock) -> None:
        self._own = own
        self._disk = disk
        self._links = links
        self._clocks = clocks
        self._where: dict[bytes, str] = {}  # store → node, as far as it was heard
        self._inbox: deque[Message] = deque()
        self._inbox_bytes = 0
        self._loading = Counter[str]()  # node → appends to it of which blocks are being read

    # --- in --------------------------------------------------------------------------------------
    def take_in(self, peer: Peer, note: CellNote, members: Members) -> None:
        """A note came from a node of this cell. Raises PeerError for bytes that are none, and where the node speaks for
        a store of another one: who votes is proved by the link."""
        log_id = self._disk.tail.log_id
        if note.log_id != log_id:
            return  # of a log that was repaired since, or is to be
        message = unpack_note(note.payload, log_id)
        if message.source != note.store or self.node_of(note.store, members) not in ("", peer.node):
            raise PeerError(f"{peer.node} speaks for another store")
        if self._inbox_bytes + len(note.payload) > MAX_INBOX:
            self._links.count_dropped(peer.node, "inbox", 1)
            return
        if len(self._where) > _KNOWN:
            self._where.clear()
        self._where[note.store] = peer.node
        if isinstance(message, Recollection):  # a new store knows nobody, and is told whom to ask
            self._where |= {one.store: one.node for one in (*message.members.voters, *message.members.learners)}
        self._clocks.heard(note.store, note.clock_ms)
        self._inbox.append(message)
        self._inbox_bytes += len(note.payload)

    def arrived(self) -> Iterator[Message]:
        """Everything that came, oldest first."""
        while self._inbox:
            yield self._inbox.popleft()
        self._inbox_bytes = 0

    # --- out -------------------------------------------------------------------------------------
    def node_of(self, store: bytes | None, members: Members) -> str:
        """The node of a store; empty where it is not known."""
        for member in (*members.voters, *members.learners):
            if member.store == store:
                return member.node
        return self._where.get(store or b"", "")

    def send(self, message: Message, members: Members, nursery: trio.Nursery) -> None:
        """To the node of the store that it is for. Blocks that memory no longer holds are read in `nursery`."""
        node = self.node_of(message.to, members)
        if not node or node == self._own.node:
            return
        payload = pack_note(message, self._disk.tail.recent)
        if payload is not None:
            self._note(node, payload)
        elif isinstance(message, Append) and self._loading[node] < RAFT_INFLIGHT_APPENDS:
            self._loading[node] += 1  # the core repeats itself at each heartbeat, and a damaged block may take its time
            nursery.start_soon(self._send_loaded, node, message)

    async def _send_loaded(self, node: str, message: Append) -> None:
        """An append of which blocks lie on the disk. Those that the core holds may not be there yet: a leader sends
        while it writes."""
        wanted = [entry for entry in message.entries if entry.payload is None]
        try:
            blocks = {block.index: block for block in await self._disk.load_entries(wanted)}
        except LookupError:
            return  # released meanwhile, or another leader's came in their place
        finally:
            self._loading[node] -= 1
        payload = pack_note(message, blocks.get)
        if payload is not None:
            self._note(node, payload)

    def _note(self, node: str, payload: bytes) -> None:
        log_id = self._disk.tail.log_id
        self._links.note(node, CellNote(log_id, self._own.store, self._clocks.now(), payload))
