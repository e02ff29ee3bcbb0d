"""The streams of a transaction, by conversation and author (relay.client.shapes.author): loaded when first touched,
written back once, and the messages they give put together.

One Streams object lives as long as one transaction."""

from __future__ import annotations

from dataclasses import dataclass

from relay.client.shapes import Effects, MessageHead, message_id, read_part
from relay.client.store import Db
from relay.core.codec import encode
from relay.core.ordering import Given, Held, Stream, pack_missing, unpack_missing
from relay.core.sealing import read_inner
from relay.limits import MIB

MAX_PARTIAL = 128 * MIB  # bytes of messages of which parts are missing; the oldest are given up first


@dataclass(slots=True)
class _Loaded:
    stream: Stream[bytes | None]  # items that are in the store already are loaded when given
    kept: set[int]  # held counters that have a row
    owed: int  # counters missing before the next message


class Streams:
    """The streams that one transaction touches."""

    def __init__(self, db: Db, effects: Effects) -> None:
        self._db = db
        self._effects = effects
        self._loaded: dict[tuple[bytes, bytes], _Loaded] = {}

    def begin(self, author: bytes, conversation: bytes, first: int) -> None:
        """The sender says where its stream begins for us (0: it does not know)."""
        entry = self._load(author, conversation)
        self._give(author, conversation, entry, entry.stream.begin(first))

    def offer(self, author: bytes, conversation: bytes, counter: int, raw: bytes, now: int, *, dedup: bool) -> None:
        """A verified inner message came."""
        entry = self._load(author, conversation)
        given = entry.stream.offer(counter, raw, now, len(raw))
        if given is None:
            self._effects.counts["duplicates_dropped"] += 1
            given = [] if dedup else [Given(counter, raw)]
        self._give(author, conversation, entry, given)

    def due(self, now: int, hold_ms: int) -> None:
        """Give what waited long enough for its predecessor."""
        rows = self._db.execute(
            "SELECT DISTINCT author, conversation FROM held WHERE since<=?", (now - hold_ms,)
        ).fetchall()
        for author, conversation in rows:
            entry = self._load(bytes(author), bytes(conversation))
            self._give(bytes(author), bytes(conversation), entry, entry.stream.due(now, hold_ms))

    def flush(self) -> None:
        """Write back what was touched."""
        for (author, conversation), entry in self._loaded.items():
            stream = entry.stream
            self._db.execute(
                "INSERT OR REPLACE INTO streams VALUES (?,?,?,?,?,?)",
                (author, conversation, stream.next, stream.given, pack_missing(stream.missing), entry.owed),
            )
            gone = [(author, conversation, counter) for counter in entry.kept - stream.held.keys()]
            self._db.executemany("DELETE FROM held WHERE author=? AND conversation=? AND counter=?", gone)
            new = [
                (author, conversation, counter, held.since, held.size, held.item)
                for counter, held in stream.held.items() if counter not in entry.kept
            ]  # fmt: skip
            self._db.executemany("INSERT INTO held VALUES (?,?,?,?,?,?)", new)
        self._loaded.clear()

    def _load(self, author: bytes, conversation: bytes) -> _Loaded:
        entry = self._loaded.get((author, conversation))
        if entry is None:
            row = self._db.execute(
                "SELECT next, given, missing, owed FROM streams WHERE author=? AND conversation=?",
                (author, conversation),
            ).fetchone()
            stream: Stream[bytes | None] = Stream()
            if row:
                stream = Stream(row[0], bool(row[1]), unpack_missing(bytes(row[2])))
            for counter, since, size in self._db.execute(
                "SELECT counter, since, size FROM held WHERE author=? AND conversation=?", (author, conversation)
            ):
                stream.hold(counter, Held(since, size, None))
            entry = _Loaded(stream, set(stream.held), row[3] if row else 0)
            self._loaded[author, conversation] = entry
        return entry

    def _give(self, author: bytes, conversation: bytes, entry: _Loaded, given: list[Given[bytes | None]]) -> None:
        for one in given:
            raw = one.item
            if raw is None:
                raw = bytes(self._db.execute(
                    "SELECT item FROM held WHERE author=? AND conversation=? AND counter=?",
                    (author, conversation, one.counter),
                ).fetchone()[0])  # fmt: skip
            entry.owed += one.gap
            self._effects.counts["gaps"] += one.gap
            if one.late:
                self._effects.counts["late"] += 1
                entry.owed -= min(entry.owed, 1)
            self._put_together(author, raw, entry, late=one.late)

    def _put_together(self, author: bytes, raw: bytes, entry: _Loaded, *, late: bool) -> None:
        inner = read_inner(raw)
        part = read_part(inner.content)
        first = inner.counter - part.part
        content: bytes | None = part.data
        if part.parts > 1:
            content = collect(self._db, author, inner.conversation, first, part.part, part.parts, part.data)
        if content is None:
            return
        head = MessageHead(
            message_id(author, inner.conversation, first), inner.user, author[len(inner.user) :], part.group,
            inner.conversation, first, part.name, inner.sent_ms, entry.owed, late, part.to,
        )  # fmt: skip
        entry.owed = 0
        self._db.execute("INSERT INTO inbox (head, content) VALUES (?,?)", (encode(head), content))
        self._effects.counts["received"] += 1
        self._effects.mail = True
        self._effects.inbox_bytes += len(content)


def collect(
    db: Db, author: bytes, conversation: bytes, first: int, part: int, parts: int, data: bytes
) -> bytes | None:
    """Keep one part; the whole when it was the last one missing. Parts may come in any order."""
    db.execute(
        "INSERT OR IGNORE INTO partial VALUES (?,?,?,?,(SELECT coalesce(max(at),0)+1 FROM partial),?)",
        (author, conversation, first, part, data),
    )
    key = (author, conversation, first)
    where = "FROM partial WHERE author=? AND conversation=? AND first=?"
    if db.execute(f"SELECT count(*) {where}", key).fetchone()[0] < parts:
        _bound(db)
        return None
    rows = db.execute(f"SELECT data {where} ORDER BY part", key).fetchall()
    db.execute(f"DELETE {where}", key)
    return b"".join(bytes(row[0]) for row in rows)


def _bound(db: Db) -> None:
    while db.execute("SELECT total(length(data)) FROM partial").fetchone()[0] > MAX_PARTIAL:
        oldest = db.execute("SELECT author, conversation, first FROM partial ORDER BY at LIMIT 1").fetchone()
        db.execute("DELETE FROM partial WHERE author=? AND conversation=? AND first=?", oldest)
