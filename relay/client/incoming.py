"""What comes in, in the store: a batch of deliveries is one transaction, and then one ack.

An envelope that cannot be opened or believed yet (its sender's record, its sender key, its roster is not here) waits in
the store as it came, and is taken up again when that arrives: it is neither lost nor asked for twice.

Functions of an open transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import structlog

from relay.client import groups, people
from relay.client.outgoing import PUBLISH, REFUSED, extend, forget_newer, outcome, refuse_all, settle
from relay.client.receipts import want_receipt
from relay.client.shapes import (
    KEY_NEWS, MESSAGE, ROSTER_NEWS, Effects, Own, Part, author, control_pair, pair, read_key_news, read_part,
)  # fmt: skip
from relay.client.store import Db, put_cursor
from relay.client.streams import Streams, collect
from relay.core import wire
from relay.core.envelope import To, envelope_id, read_header
from relay.core.trust import HomeRecord
from relay.core.sealing import Opened, open_mailbox, open_roster, roster_key_id
from relay.errors import BadSignature, ClientError, PosthouseError, ProtocolError, TrustError
from relay.limits import MIB

log = structlog.get_logger("relay.client")

MAX_WAITING_BYTES = 64 * MIB  # bytes of envelopes that wait in the store; past it the oldest are given up


class _Wait(Exception):
    """The envelope has to wait for `cause`; a user (at home in region `hint`) can be looked up."""

    def __init__(self, cause: bytes, hint: str = "") -> None:
        super().__init__(cause, hint)
        self.cause = cause
        self.hint = hint


def _sender(user: bytes) -> bytes:
    return b"u" + user


def _key(kid: bytes) -> bytes:
    return b"k" + kid


def _roster(group: bytes) -> bytes:
    return b"r" + group


class Incoming:
    """One transaction's work on what came in."""

    def __init__(self, db: Db, own: Own, now: int, *, dedup: bool = True) -> None:
        self._db = db
        self._own = own
        self._now = now
        self._dedup = dedup
        self.effects = Effects()
        self._streams = Streams(db, self.effects)
        self._waited = self._strayed = False

    def finish(self) -> Effects:
        """Write back; what there is to do then. Call once, last."""
        self._streams.flush()
        if self._strayed:
            groups.forget_strays(self._db, self._own)
        settle(self._db, self.effects.touched, self._now, self.effects)
        total = "SELECT total(length(envelope)) FROM waiting"
        while self._waited and self._db.execute(total).fetchone()[0] > MAX_WAITING_BYTES:
            self._db.execute("DELETE FROM waiting WHERE wid=(SELECT min(wid) FROM waiting)")
            self._drop("too_much_waiting")
        return self.effects

    # --- from the connection ---------------------------------------------------------------------
    def batch(self, messages: Sequence[wire.ServerMessage], log_id: bytes) -> None:
        """Deliveries, notices and receipts, in the order in which they came."""
        position = 0
        for message in messages:
            if isinstance(message, wire.Deliver):
                self._take(message.envelope)
                position = max(position, message.position)
            elif isinstance(message, wire.Notice):
                want_receipt(self._db, self._own, message.id, message.code, message.cell, 0, self.effects)
                self._outcome(message.id, message.code, message.newest)
                position = max(position, message.position)
            elif isinstance(message, wire.Receipt):
                for item in message.items:
                    want_receipt(self._db, self._own, item.id, item.code, item.cell, item.position, self.effects)
                    self._outcome(item.id, item.code, item.newest)
        if position:
            put_cursor(self._db, log_id, position)

    def learned(self, user: bytes, chain: Sequence[bytes], server_now: int) -> int:
        """An answer to LOOKUP: the newest version. What is of a device that it does not name waits on: a node answers
        from what it heard a minute ago. Raises TrustError, ProtocolError: then nothing was kept."""
        before = people.newest(self._db, self._own, user)
        record = people.learn(self._db, self._own, user, chain, server_now)
        if before is None or record.version > before.version:
            extend(self._db, self._own, record, self.effects)
            groups.devices_changed(self._db, self._own, before, record, self._now, self.effects)
            if user == self._own.user and record.cell != self._own.cell:
                self.settle_in(record)
            elif user != self._own.user and before is not None and before.cell != record.cell:
                groups.rehome(self._db, self._own, self._now)
        self.effects.post = True
        self._retry(_sender(user))
        self.effects.wanted.pop(user, None)  # whoever asks for this user does so now
        return record.version

    def settle_in(self, record: HomeRecord) -> None:
        """Our own user is at home in another cell, by a record that was verified before it was kept."""
        self._own = replace(self._own, region=record.payload.region, cell=record.cell)
        self.effects.moved = record
        groups.detour(self._db, self._own, self.effects)
        groups.rehome(self._db, self._own, self._now)
        self.effects.post = True

    def unknown(self, user: bytes, hint: str, error: PosthouseError, server_now: int) -> list[str]:
        """Region `hint` has no believable record of `user`: what was to be sealed with it is refused, what came with it
        is dropped. The regions that are left to ask."""
        record = people.newest(self._db, self._own, user)
        if not people.usable(record, server_now):
            refuse_all(self._db, user, hint, error, self.effects)
        forget_newer(self._db, user, self.effects)
        dropped = self._db.execute(
            "DELETE FROM waiting WHERE cause=? AND (hint=? OR ?)", (_sender(user), hint, record is not None)
        ).rowcount
        self.effects.counts["unreadable"] += dropped
        return [] if record else people.hints(self._db, self._own, user)

    def give_up(self, user: bytes) -> None:
        """Nobody has a version of `user` that a receipt spoke of, or that names a device: do not wait for it."""
        forget_newer(self._db, user, self.effects)
        self._retry(_sender(user), last=True)

    def due(self, hold_ms: int) -> None:
        """Give what waited long enough for its predecessor; forget what expired while it waited."""
        self._streams.due(self._now, hold_ms)
        dropped = self._db.execute("DELETE FROM waiting WHERE expires<?", (self._now,)).rowcount
        self.effects.counts["unreadable"] += dropped

    def _outcome(self, found: bytes, code: int, newest: int) -> None:
        taken = outcome(self._db, self._own, found, code, newest, self._now, self.effects)
        if taken is not None:
            groups.published(self._db, self._own, taken, self._now, self.effects)
            group = self._db.execute("SELECT address FROM parcels WHERE pid=?", (taken,)).fetchone()[0]
            self._retry(_roster(bytes(group)))
        refused = self._db.execute(
            "SELECT address FROM parcels WHERE id=? AND what=? AND state=? AND own=0", (found, PUBLISH, REFUSED)
        ).fetchone()
        if refused:
            groups.abandoned(self._db, bytes(refused[0]))

    # --- one envelope ----------------------------------------------------------------------------
    def _take(self, envelope: bytes, *, last: bool = False) -> None:
        """Take one envelope in. `last`: its sender was looked up, do not wait for that again."""
        try:
            opened = self._open(envelope)
            if opened is not None:
                self._sort(opened, self._believe(opened))
        except _Wait as wait:
            if last and wait.cause[:1] == b"u":
                self._drop("not_enrolled")
            else:
                self._wait(envelope, wait)
        except (TrustError, ClientError) as error:
            self._drop(error.text)

    def _drop(self, reason: str) -> None:
        self.effects.counts["unreadable"] += 1
        log.warning("envelope_dropped", reason=reason)

    def _open(self, envelope: bytes) -> Opened | None:
        header = read_header(envelope)
        if header.kind == To.MAILBOX:
            if header.to != self._own.user:
                raise ProtocolError("a mailbox envelope for somebody else")
            return self._open_mailbox(envelope)
        kid = roster_key_id(envelope)
        rows = self._db.execute("SELECT key, device, grp, version FROM sender_keys WHERE kid=?", (kid,)).fetchall()
        if not rows:
            raise _Wait(_key(kid))
        opened = open_roster(envelope, bytes(rows[0][0]))
        if opened.inner.device in self._own.ids:
            return None  # our own, back from the group
        named = (opened.inner.device, header.to, header.to_version)
        if named not in [(bytes(device), bytes(group), version) for _, device, group, version in rows]:
            raise BadSignature("a sender key used by somebody else, or for another group or version")
        if groups.known_version(self._db, header.to) < header.to_version:
            raise _Wait(_roster(header.to))
        return opened

    def _open_mailbox(self, envelope: bytes) -> Opened | None:
        """With our key, or one that was rotated, for what was sealed before."""
        own = self._own
        for device, private in ((own.device, own.private), *own.older):
            if private and (opened := open_mailbox(envelope, device, private)) is not None:
                return opened
        return None

    def _believe(self, opened: Opened) -> bytes:
        """The sender device is enrolled in its user's verified home record, or was when the envelope was made. The
        author of what it says."""
        inner = opened.inner
        record = people.newest(self._db, self._own, inner.user)
        if record is not None and inner.region != record.payload.region and groups.owns_with(
            self._db, self._own, inner.user
        ):
            self.effects.wanted[inner.user] = record.payload.region  # perhaps a member of ours has moved
        stem = record.stem(inner.device, opened.header.created) if record else None
        if stem is not None:
            return author(inner.user, stem)
        if record is not None and record.stem(inner.device) is not None:
            raise BadSignature("made by a device after it was revoked")
        raise _Wait(_sender(inner.user), record.payload.region if record else inner.region)

    def _sort(self, opened: Opened, by: bytes) -> None:
        kind = opened.inner.kind
        if kind not in (MESSAGE, ROSTER_NEWS, KEY_NEWS):
            return  # of a newer software; nothing for us
        part = read_part(opened.inner.content)
        if part.part >= part.parts or opened.inner.counter <= part.part:
            raise ProtocolError("a part beyond the end of its message")
        if kind == MESSAGE:
            self._message(opened, part, by)
        else:
            self._control(opened, part, by)

    def _message(self, opened: Opened, part: Part, by: bytes) -> None:
        inner, own = opened.inner, self._own
        if part.group:
            if inner.conversation != part.group or part.to:
                raise ProtocolError("a group message in another conversation")
            if opened.header.kind == To.ROSTER and opened.header.to != part.group:
                raise ProtocolError("a message for another group")
            if not groups.is_member(self._db, part.group, inner.user):
                raise _Wait(_roster(part.group))  # it may be a member of the next version
        elif opened.header.kind != To.MAILBOX or inner.conversation != pair(inner.user, part.to):
            raise ProtocolError("a message in another conversation")
        elif own.user not in (part.to, inner.user):
            raise ProtocolError("a message for somebody else")
        if opened.first:
            self._streams.begin(by, inner.conversation, opened.first)
        self._streams.offer(by, inner.conversation, inner.counter, opened.raw, self._now, dedup=self._dedup)

    def _control(self, opened: Opened, part: Part, by: bytes) -> None:
        inner = opened.inner
        if opened.header.kind != To.MAILBOX or inner.conversation != control_pair(inner.user, self._own.user):
            raise ProtocolError("a control message in another conversation")
        data: bytes | None = part.data
        if part.parts > 1:
            first = inner.counter - part.part
            data = collect(self._db, by, inner.conversation, first, part.part, part.parts, part.data)
        if data is None:
            return
        if inner.kind == ROSTER_NEWS:
            group = groups.roster_from(self._db, self._own, inner, data, self.effects)
            if group is not None:
                self._retry(_roster(group))
        else:
            news = read_key_news(data)
            kid = groups.key_from(self._db, self._own, inner, news)
            self._strayed = self._strayed or not groups.is_member(self._db, news.group, news.user)
            if opened.first:
                known = people.stem(self._db, self._own, news.user, news.device)
                self._streams.begin(author(news.user, known or news.device), news.group, opened.first)
            self._retry(_key(kid))

    # --- waiting ---------------------------------------------------------------------------------
    def _wait(self, envelope: bytes, wait: _Wait) -> None:
        found = envelope_id(envelope) if self._dedup else None
        new = self._db.execute(
            "INSERT OR IGNORE INTO waiting (id, cause, hint, expires, envelope) VALUES (?,?,?,?,?)",
            (found, wait.cause, wait.hint, read_header(envelope).expires, envelope),
        ).rowcount
        self.effects.counts["duplicates_dropped"] += not new
        if wait.cause[:1] == b"u":
            self.effects.wanted[wait.cause[1:]] = wait.hint
        self._waited = True

    def _retry(self, cause: bytes, *, last: bool = False) -> None:
        """What waited for `cause` is taken up again, in the order in which it came."""
        rows = self._db.execute("SELECT wid, envelope FROM waiting WHERE cause=? ORDER BY wid", (cause,)).fetchall()
        for wid, envelope in rows:
            self._db.execute("DELETE FROM waiting WHERE wid=?", (wid,))
            self._take(bytes(envelope), last=last)


def waits_for(db: Db, user: bytes) -> bool:
    """Something came that no record of `user` that is known here explains."""
    return db.execute("SELECT 1 FROM waiting WHERE cause=?", (_sender(user),)).fetchone() is not None


def wanted_senders(db: Db) -> dict[bytes, str]:
    """Users whose envelopes wait for their record → region hint."""
    rows = db.execute("SELECT DISTINCT cause, hint FROM waiting WHERE substr(cause,1,1)=x'75'").fetchall()
    return {bytes(cause)[1:]: hint for cause, hint in rows}
