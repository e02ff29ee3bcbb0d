"""The messages that came, one after the other, from the inbox in the store."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from relay.client.desk import Desk
from relay.client.errors import Revoked
from relay.client.shapes import Message, read_message_head
from relay.client.store import Db
from relay.limits import MIB

_FETCH: Final = 32  # messages taken from the inbox at a time
_FETCH_BYTES: Final = 4 * MIB  # of content, in them


class Messages(AsyncIterator[Message]):
    """The iterator over what came."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._ahead: deque[tuple[int, Message]] = deque()
        self._last: tuple[int, int] | None = None  # (row, bytes) of the message that the app has

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Message:
        desk = self._desk
        desk.check(unless=isinstance(desk.ended, Revoked))  # what a revoked device has it may still read
        if self._last is not None:
            settled, size = self._last
            await desk.run(lambda db: db.execute("DELETE FROM inbox WHERE seq=?", (settled,)), lazily=True)
            self._last = None  # not sooner: a cancelled call has settled nothing, and the next one must
            desk.inbox_bytes -= size
            desk.changed.ring()
        while not self._ahead:
            desk.check(unless=isinstance(desk.ended, Revoked))
            armed = desk.mail.armed()
            self._ahead.extend(await desk.run(self._fetch, lazily=True))
            if not self._ahead:
                desk.check()
                await armed.wait()
        row, message = self._ahead.popleft()
        self._last = (row, len(message.content))
        return message

    @staticmethod
    def _fetch(db: Db) -> list[tuple[int, Message]]:
        out, size = [], 0
        for row, head, content in db.execute("SELECT seq, head, content FROM inbox ORDER BY seq LIMIT ?", (_FETCH,)):
            out.append((row, read_message_head(bytes(head)).message(bytes(content))))
            size += len(content)
            if size >= _FETCH_BYTES:
                break
        return out
