"""Broadcast channels in the store of a device: own ones with what waits to be posted, and places in those it reads.

Functions of an open transaction. The tables are made when they are first needed: stores of earlier builds lack them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nacl.signing import SigningKey

from relay.client.channelcard import ChannelCard
from relay.client.errors import NotOwner, UnknownChannel
from relay.client.shapes import Own
from relay.client.store import Db
from relay.core.posts import NONCE, Content, PostHeader, post_id, read_header, seal_post
from relay.core.sealing import SUITE
from relay.core.trust.channels import (
    ChannelTerms, VerifiedTerms, channel_id, reader_of, sign_terms, verify_terms,
)  # fmt: skip
from relay.errors import Rollback, TrustError

_TABLES = (
    "CREATE TABLE IF NOT EXISTS channels (id BLOB PRIMARY KEY, cell TEXT NOT NULL, title TEXT NOT NULL,"
    " terms BLOB NOT NULL,"  # the newest that was verified; empty: none yet
    " draft BLOB NOT NULL DEFAULT x'',"  # our own next terms, until the relay took them
    " mine INTEGER NOT NULL,"
    " place INTEGER NOT NULL DEFAULT 0,"  # the number of the last post that was read
    " last INTEGER NOT NULL DEFAULT 0)",  # and of the last one that was posted from here
    "CREATE TABLE IF NOT EXISTS channel_secrets (seq INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL,"
    " secret BLOB NOT NULL, UNIQUE (id, secret))",
    "CREATE TABLE IF NOT EXISTS channel_posts (seq INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL,"
    " name TEXT NOT NULL, data BLOB NOT NULL, post BLOB NOT NULL DEFAULT x'')",  # post: sealed, maybe sent
)


@dataclass(frozen=True, slots=True)
class Known:
    """A channel that this device reads or owns. `place`: the number of the last post that was read."""

    card: ChannelCard
    title: str
    version: int
    mine: bool
    place: int


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A post to be handed to the relay: its row, bytes, id and number."""

    row: int
    post: bytes
    id: bytes
    number: int


def ensure(db: Db) -> Db:
    """The tables are there."""
    for table in _TABLES:
        db.execute(table)
    return db


def _row(db: Db, channel: bytes) -> tuple[str, str, bytes, bytes, bool, int]:
    """(cell, title, terms, draft, mine, place). Raises UnknownChannel."""
    columns = "cell, title, terms, draft, mine, place"
    row = ensure(db).execute(f"SELECT {columns} FROM channels WHERE id=?", (channel,)).fetchone()
    if row is None:
        raise UnknownChannel(f"no channel {channel.hex()[:8]} is known here", "Join it with its card")
    return row[0], row[1], bytes(row[2]), bytes(row[3]), bool(row[4]), int(row[5])


def secrets(db: Db, channel: bytes) -> list[bytes]:
    """The secrets of a channel, newest first: older posts were sealed with older ones."""
    rows = db.execute("SELECT secret FROM channel_secrets WHERE id=? ORDER BY seq DESC", (channel,))
    return [bytes(secret) for (secret,) in rows.fetchall()]


def known(db: Db) -> list[Known]:
    """All channels."""
    out = []
    columns = "id, cell, title, terms, draft, mine, place"
    rows = ensure(db).execute(f"SELECT {columns} FROM channels ORDER BY rowid").fetchall()
    for channel, cell, title, terms, draft, mine, place in rows:
        card = ChannelCard(cell, bytes(channel), secrets(db, bytes(channel))[0])
        newest = bytes(draft) or bytes(terms)
        version = verify_terms(newest).version if newest else 0
        out.append(Known(card, title, version, bool(mine), int(place)))
    return out


# --- reading -------------------------------------------------------------------------------------
def join(db: Db, card: ChannelCard, title: str) -> None:
    """Keep a card; a newer secret of a channel that is known already goes before its older ones."""
    sql = "INSERT INTO channels (id, cell, title, terms, mine) VALUES (?,?,?,x'',0) ON CONFLICT (id) DO NOTHING"
    ensure(db).execute(sql, (card.channel, card.cell, title))
    db.execute("DELETE FROM channel_secrets WHERE id=? AND secret=?", (card.channel, card.secret))
    db.execute("INSERT INTO channel_secrets (id, secret) VALUES (?,?)", (card.channel, card.secret))


def leave(db: Db, channel: bytes) -> None:
    """Forget a channel. Raises UnknownChannel."""
    _row(db, channel)
    for table in ("channels", "channel_secrets", "channel_posts"):
        db.execute(f"DELETE FROM {table} WHERE id=?", (channel,))


def reading(db: Db, channel: bytes) -> tuple[str, list[bytes], int]:
    """(cell, secrets, place). Raises UnknownChannel."""
    cell, *_, place = _row(db, channel)
    return cell, secrets(db, channel), place


def put_place(db: Db, channel: bytes, number: int) -> None:
    """Everything up to post `number` was read."""
    db.execute("UPDATE channels SET place=max(place, ?) WHERE id=?", (number, channel))


def learn(db: Db, channel: bytes, signed: bytes) -> VerifiedTerms:
    """Terms that a node showed: the channel's, no older than those that are known, and for our newest secret.
    Raises TrustError and its kinds, ProtocolError, UnknownChannel."""
    cell, _, before_, _, mine, _ = _row(db, channel)
    terms = verify_terms(signed)
    if terms.channel != channel or terms.terms.cell != cell:
        raise TrustError("the node showed the terms of another channel")
    before = verify_terms(before_) if before_ else None
    if before is not None and terms.version < before.version:
        raise Rollback(f"channel terms: version {terms.version} after {before.version}")
    if before is not None and terms.digest != before.digest:
        verify_terms(signed, before if terms.version > before.version else None)
        if terms.version == before.version:
            raise TrustError("two different channel terms of one version: a fork")
    if not mine and terms.terms.reader_key != bytes(reader_of(secrets(db, channel)[0]).verify_key):
        raise TrustError("the channel's terms are not for the secret on the card")
    db.execute("UPDATE channels SET terms=? WHERE id=?", (signed, channel))
    return terms


# --- owning --------------------------------------------------------------------------------------
def create(db: Db, own: Own, title: str, seed: bytes, secret: bytes, kept: dict[str, Any]) -> ChannelCard:
    """Draft the first terms of a channel of this device."""
    channel = channel_id(own.device, seed)
    reader = bytes(reader_of(secret).verify_key)
    draft = sign_terms(ChannelTerms(1, seed, 1, b"", own.device, own.cell, reader, **kept), own.signing)
    verify_terms(draft)
    sql = "INSERT INTO channels (id, cell, title, terms, draft, mine) VALUES (?,?,?,x'',?,1)"
    ensure(db).execute(sql, (channel, own.cell, title, draft))
    db.execute("INSERT INTO channel_secrets (id, secret) VALUES (?,?)", (channel, secret))
    return ChannelCard(own.cell, channel, secret)


def redraft(db: Db, channel: bytes, kept: dict[str, Any], secret: bytes = b"") -> None:
    """Draft the next terms of an own channel; with a new `secret`, who has the old one does not read any more.
    Raises UnknownChannel, NotOwner."""
    before = _newest(db, channel)
    if secret:
        db.execute("INSERT INTO channel_secrets (id, secret) VALUES (?,?)", (channel, secret))
        kept = {**kept, "reader_key": bytes(reader_of(secret).verify_key)}
    fields = {name: getattr(before.terms, name) for name in before.terms.__struct_fields__}
    fields.update(kept, version=before.version + 1, prev=before.digest)
    draft = sign_terms(ChannelTerms(**fields), _signing(db, before))
    verify_terms(draft, before)
    db.execute("UPDATE channels SET terms=?, draft=? WHERE id=?", (before.signed, draft, channel))


def closing(db: Db, channel: bytes) -> bool:
    """Was the end of an own channel drafted? Raises UnknownChannel, NotOwner."""
    return _newest(db, channel).terms.keep_ms == 0


def _newest(db: Db, channel: bytes) -> VerifiedTerms:
    _, _, terms, draft, mine, _ = _row(db, channel)
    if not mine:
        raise NotOwner("another device created this channel", "Only that device may change it and post to it")
    return verify_terms(draft or terms)


def _signing(db: Db, terms: VerifiedTerms) -> SigningKey:
    row = db.execute("SELECT seed FROM device_keys WHERE id=?", (terms.terms.owner_key,)).fetchone()
    return SigningKey(bytes(row[0]))


def draft_of(db: Db, channel: bytes) -> bytes:
    """Own terms that the relay has not taken yet; empty where there are none. Raises UnknownChannel."""
    return _row(db, channel)[3]


def published(db: Db, channel: bytes, signed: bytes) -> None:
    """The relay took our terms: they count from now on. A channel that they close is forgotten."""
    if verify_terms(signed).terms.keep_ms == 0:
        leave(db, channel)
        return
    db.execute("UPDATE channels SET terms=?, draft=x'' WHERE id=? AND draft=?", (signed, channel, signed))


def abandoned(db: Db, channel: bytes, signed: bytes) -> None:
    """The relay refused our terms for good: neither they nor a secret that was drawn for them count."""
    _, _, terms, draft, _, _ = _row(db, channel)
    if draft != signed:
        return  # another process of ours was faster
    if not terms:
        leave(db, channel)
        return
    db.execute("UPDATE channels SET draft=x'' WHERE id=?", (channel,))
    refused, holds = (verify_terms(one).terms.reader_key for one in (signed, terms))
    for secret in secrets(db, channel) if refused != holds else ():
        if bytes(reader_of(secret).verify_key) == refused:
            db.execute("DELETE FROM channel_secrets WHERE id=? AND secret=?", (channel, secret))


def queue(db: Db, channel: bytes, name: str, data: bytes) -> int:
    """A post is to be made; its row. Raises UnknownChannel, NotOwner."""
    if closing(db, channel):
        raise UnknownChannel(f"channel {channel.hex()[:8]} is being closed", "Close it once more, or make another")
    cursor = db.execute("INSERT INTO channel_posts (id, name, data) VALUES (?,?,?)", (channel, name, data))
    return int(cursor.lastrowid or 0)


def next_post(db: Db, channel: bytes, now: int, random_bytes: Callable[[int], bytes]) -> Outgoing | None:
    """The first post that waits, sealed under the next number; the same bytes until it has an outcome."""
    columns = "SELECT seq, name, data, post FROM channel_posts WHERE id=? ORDER BY seq LIMIT 1"
    row = ensure(db).execute(columns, (channel,)).fetchone()
    if row is None:
        return None
    seq, name, data, post = row[0], row[1], bytes(row[2]), bytes(row[3])
    terms = _newest(db, channel)
    if not post:
        last = db.execute("SELECT last FROM channels WHERE id=?", (channel,)).fetchone()[0]
        number = last + 1
        header = PostHeader(1, channel, terms.version, number, now, SUITE)
        content, secret = Content(name, data), secrets(db, channel)[0]
        post = seal_post(header, content, secret, random_bytes(NONCE), _signing(db, terms))
        db.execute("UPDATE channel_posts SET post=? WHERE seq=?", (post, seq))
    return Outgoing(seq, post, post_id(post), read_header(post).number)


def settle_post(db: Db, channel: bytes, out: Outgoing) -> None:
    """It was taken."""
    db.execute("DELETE FROM channel_posts WHERE seq=?", (out.row,))
    db.execute("UPDATE channels SET last=max(last, ?) WHERE id=?", (out.number, channel))


def reseal_post(db: Db, channel: bytes, out: Outgoing, last: int) -> None:
    """Its number was taken, or there are newer terms: seal it anew, after number `last`. Not if it was settled."""
    db.execute("UPDATE channel_posts SET post=x'' WHERE seq=? AND post=?", (out.row, out.post))
    db.execute("UPDATE channels SET last=max(last, ?) WHERE id=?", (last, channel))


def drop_post(db: Db, out: Outgoing) -> None:
    """It was refused for good."""
    db.execute("DELETE FROM channel_posts WHERE seq=?", (out.row,))


def waits(db: Db, row: int) -> bool:
    """Is a post not settled yet?"""
    return db.execute("SELECT 1 FROM channel_posts WHERE seq=?", (row,)).fetchone() is not None

