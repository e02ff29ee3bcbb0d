"""Frames that were made lately: a record is encoded once, however many devices it goes to."""

from __future__ import annotations

from collections import OrderedDict

from relay.core import wire
from relay.core.block import Block
from relay.core.frames import server_frame
from relay.core.mailroom import reading
from relay.core.mailroom.people import Entry, Notice
from relay.core.mailroom.state import Source
from relay.limits import RECENT_FRAMES


class RecentFrames:
    """The WebSocket frames that deliver entries, the same for every recipient; the newest ones are kept, so that many
    who catch up at the same time share them as well."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, bytes] = OrderedDict()  # by position
        self._bytes = 0

    def find(self, entry: Entry) -> bytes | None:
        """The frame, if it is still kept."""
        return self._kept.get(entry.position)

    def make(self, entry: Entry, source: Source, block: Block) -> bytes:
        """The frame for an entry whose record, `source`, lies in `block`."""
        envelope = reading.envelope_of(reading.record_of(block, source))
        frame = server_frame(wire.encode_deliver(entry.position, envelope))
        if entry.position not in self._kept:
            self._kept[entry.position] = frame
            self._bytes += len(frame)
        while self._bytes > RECENT_FRAMES:
            self._bytes -= len(self._kept.popitem(last=False)[1])
        return frame


def notice_frame(notice: Notice) -> bytes:
    """The WebSocket frame of a notice."""
    message = wire.Notice(notice.position, notice.id, notice.code, notice.newest, notice.cell)
    return server_frame(wire.encode_message(message))
