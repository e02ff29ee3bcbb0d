"""Groups: rosters made, published, told and verified; sender keys made, told and kept.

Rosters and sender keys travel in one-to-one control messages, in a conversation of their own that the app never sees.
Both may come in any order and more than once. Functions of an open transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from nacl.signing import SigningKey

from relay.client import people
from relay.client.card import Card
from relay.client.errors import NotOwner, UnknownGroup
from relay.client.outgoing import (
    ACCEPTED, MAILBOX, PUBLISH, ROSTER, add_parcel, copy_to_added, has_other_devices, keep_news, new_send,
    next_counter, split_parts, write_letters,
)  # fmt: skip
from relay.client.people import newest
from relay.client.shapes import (
    KEY_NEWS, MESSAGE, ROSTER_NEWS, Effects, Group, KeyNews, Own, RosterNews, Sent, author, control_pair,
    message_id, read_roster_news,
)  # fmt: skip
from relay.client.store import Db
from relay.core import wire
from relay.core.codec import digest, encode
from relay.core.sealing import Inner, key_id
from relay.core.trust import (
    HomeRecord, Member, RosterCell, RosterHead, VerifiedHead, make_part, sign_roster, verify_part, verify_roster,
)  # fmt: skip
from relay.errors import BrokenChain, TrustError
from relay.limits import MAX_STRAY_KEYS, MAX_STRAY_KEYS_EACH

MAX_KEYS = 64  # sender keys of one device that are kept for one group: of the newest epochs
# What strays: keys of users who are no members, as far as is known here. A newer roster may make them so.
_STRAYS = (
    "SELECT row, grp, user, device FROM (SELECT k.rowid AS row, k.grp, k.user, k.device,"
    " row_number() OVER ({} ORDER BY k.rowid DESC) AS place FROM sender_keys k"
    " WHERE NOT EXISTS (SELECT 1 FROM members m WHERE m.grp=k.grp AND m.user=k.user)) WHERE place>?"
)


# --- making a roster -----------------------------------------------------------------------------
def draft(
    db: Db, own: Own, title: str, people: Sequence[HomeRecord], now: int, seed: bytes, group: bytes = b""
) -> tuple[bytes, int] | None:
    """Sign and queue the publication of a group's first version (`seed`: 32 random bytes, of which its id is made), or
    of the next one with `people` added.

    (group id, send); None while the version before has no outcome yet: only then is it known what the next one follows.
    Raises UnknownGroup, NotOwner."""
    prev, news, members = _own_group(db, own, group) if group else (None, None, {})
    if group and db.execute("SELECT 1 FROM groups WHERE id=? AND pending<>x''", (group,)).fetchone():
        return None
    version = prev.head.version + 1 if prev else 1
    members.update(_rehomed(db, own, members, version))
    for record in people:
        if record.user not in members:
            members[record.user] = (record.cell, Member(record.user, version))
    by_cell: dict[str, list[Member]] = defaultdict(list)
    for cell, member in members.values():
        by_cell[cell].append(member)
    parts = tuple((cell, make_part(version, found)) for cell, found in sorted(by_cell.items()))
    cells = tuple(RosterCell(cell, len(by_cell[cell]), digest(part)) for cell, part in parts)
    owner = _signing(db, own, prev)
    head = RosterHead(
        1, prev.head.seed if prev else seed, version, prev.digest if prev else b"", bytes(owner.verify_key), cells
    )
    signed = sign_roster(head, owner)
    verified = verify_roster(signed, prev)
    told = encode(RosterNews(news.title if news else title, signed, parts))
    sid = new_send(db, control=True)
    if prev is not None and news is not None and own.cell not in prev.cell_names:
        _queue(db, sid, prev, news.parts, again=True)  # we have moved: our cell shall know who must learn of the next
    _queue(db, sid, verified, parts)
    db.execute(
        "INSERT INTO groups VALUES (?,0,x'',?) ON CONFLICT (id) DO UPDATE SET pending=excluded.pending",
        (verified.group, told),
    )
    return verified.group, sid


def _queue(db: Db, sid: int, head: VerifiedHead, parts: tuple[tuple[str, bytes], ...], again: bool = False) -> None:
    """`again`: what comes of it matters to nobody."""
    add_parcel(db, sid, 0, PUBLISH, head.group, "", own=again, version=head.head.version)
    message = wire.encode_message(wire.Roster(head.signed, parts))
    db.execute("UPDATE parcels SET id=?, envelope=? WHERE sid=? AND own=?", (digest(head.signed), message, sid, again))


def published(db: Db, own: Own, pid: int, now: int, effects: Effects) -> None:
    """The relay took our roster: use it, and tell everybody."""
    address, again = db.execute("SELECT address, own FROM parcels WHERE pid=?", (pid,)).fetchone()
    group = bytes(address)
    row = db.execute("SELECT pending FROM groups WHERE id=?", (group,)).fetchone()
    if row is None or not row[0] or again:
        return
    news = bytes(row[0])
    adopt(db, news, own, effects)
    db.execute("UPDATE groups SET pending=x'' WHERE id=?", (group,))
    _tell(db, own, _members(db, group), ROSTER_NEWS, news, now)
    rehome(db, own, now)
    effects.post = True


def _rehomed(
    db: Db, own: Own, members: dict[bytes, tuple[str, Member]], version: int
) -> dict[bytes, tuple[str, Member]]:
    """Members who are at home elsewhere than the roster says: there they are new (rule 17)."""
    homes = {user: newest(db, own, user) for user in members}
    return {
        user: (record.cell, Member(user, version))
        for user, record in homes.items()
        if record is not None and record.cell != members[user][0]
    }


def owns_with(db: Db, own: Own, user: bytes) -> bool:
    """Is this device the owner of a group of which `user` is a member?"""
    with_user = "SELECT g.news FROM groups g JOIN members m ON m.grp=g.id WHERE m.user=? AND g.version>0"
    rows = db.execute(with_user, (user,))
    heads = (verify_roster(read_roster_news(bytes(news)).head) for (news,) in rows.fetchall())
    return any(head.head.owner_key == own.device for head in heads)


def rehome(db: Db, own: Own, now: int) -> None:
    """Publish the groups of this device anew in which somebody is at home elsewhere than the roster says; those of
    which a version is under way come after it."""
    for group, news_bytes in db.execute("SELECT id, news FROM groups WHERE version>0 AND pending=x''").fetchall():
        head = verify_roster(read_roster_news(bytes(news_bytes)).head)
        if head.head.owner_key != own.device:
            continue
        _, _, members = _own_group(db, own, bytes(group))
        if _rehomed(db, own, members, 0):
            draft(db, own, "", (), now, b"", bytes(group))


# --- a member who has moved ----------------------------------------------------------------------
def is_detoured(db: Db, own: Own, group: bytes) -> bool:
    """Does the roster list us in another cell than our home? Ours cannot vouch for us then."""
    row = db.execute("SELECT cell FROM members WHERE grp=? AND user=?", (group, own.user)).fetchone()
    return row is not None and row[0] != own.cell


def _go_round(db: Db, own: Own, group: bytes, sid: int, mids: Sequence[int]) -> None:
    """To every member alone, until the owner has published where we are at home."""
    for user, cell in _members(db, group):
        if user == own.user and not has_other_devices(db, own):
            continue
        record = newest(db, own, user)
        for device in record.devices if record else ():  # they read the stream already: it does not begin here
            db.execute("INSERT OR IGNORE INTO firsts VALUES (?,?,0)", (group, device.id))
        for mid in mids:
            add_parcel(db, sid, mid, MAILBOX, user, _region(cell), own=user == own.user)


def detour(db: Db, own: Own, effects: Effects) -> None:
    """We have moved: group messages that no cell has taken yet go to every member alone."""
    rows = db.execute(
        "SELECT pid, sid, mid, address FROM parcels WHERE what=? AND state<? ORDER BY pid", (ROSTER, ACCEPTED)
    ).fetchall()
    for pid, sid, mid, group in rows:
        if is_detoured(db, own, bytes(group)):
            _go_round(db, own, bytes(group), sid, [mid])
            db.execute("DELETE FROM parcels WHERE pid=?", (pid,))
            effects.touched.add(sid)


def abandoned(db: Db, group: bytes) -> None:
    """The relay refused our roster."""
    db.execute("UPDATE groups SET pending=x'' WHERE id=?", (group,))
    db.execute("DELETE FROM groups WHERE id=? AND version=0", (group,))


def _own_group(
    db: Db, own: Own, group: bytes
) -> tuple[VerifiedHead, RosterNews, dict[bytes, tuple[str, Member]]]:  # fmt: skip
    row = db.execute("SELECT news FROM groups WHERE id=? AND version>0", (group,)).fetchone()
    if row is None:
        raise UnknownGroup(f"no group {group.hex()[:8]} is known here", "Wait for the invitation, or check the id")
    news = read_roster_news(bytes(row[0]))
    head = verify_roster(news.head)
    if head.head.owner_key not in own.ids:
        raise NotOwner("another device created this group", "Only that device may change it")
    members = {m.user: (cell, m) for cell, part in news.parts for m in verify_part(part, head, cell).members}
    return head, news, members


def _signing(db: Db, own: Own, prev: VerifiedHead | None) -> SigningKey:
    """The key that owns a group: this device's, as it was when it made the group."""
    if prev is None:
        return own.signing
    row = db.execute("SELECT seed FROM device_keys WHERE id=?", (prev.head.owner_key,)).fetchone()
    return SigningKey(bytes(row[0]))


# --- keeping a roster ----------------------------------------------------------------------------
def adopt(db: Db, news_bytes: bytes, own: Own, effects: Effects) -> bytes | None:
    """Verify a roster and use it, if it is newer than what is known; its group, None where it changes nothing.

    Raises TrustError and its kinds, ProtocolError."""
    news = read_roster_news(news_bytes)
    head = verify_roster(news.head)
    row = db.execute("SELECT version, news FROM groups WHERE id=?", (head.group,)).fetchone()
    known = row[0] if row else 0
    if known:
        before = verify_roster(read_roster_news(bytes(row[1])).head)
        if known > head.head.version:
            return None
        if known == head.head.version:
            if before.digest != head.digest:
                raise BrokenChain("two different rosters of one version: a fork")
            return None
        verify_roster(news.head, before)
    if {cell for cell, _ in news.parts} != {entry.cell for entry in head.head.cells}:
        raise TrustError("roster: the member lists are not those of the cells that the head names")
    members = {m.user: (cell, m) for cell, part in news.parts for m in verify_part(part, head, cell).members}
    if own.user not in members:
        raise TrustError("roster: we are not a member")
    added = [
        (user, _region(cell)) for user, (cell, member) in members.items()
        if member.since == head.head.version or not is_member(db, head.group, user)
    ]
    db.execute(
        "INSERT INTO groups VALUES (?,?,?,x'')"
        " ON CONFLICT (id) DO UPDATE SET version=excluded.version, news=excluded.news",
        (head.group, head.head.version, news_bytes),
    )
    db.execute("DELETE FROM members WHERE grp=?", (head.group,))
    rows = [(head.group, user, cell, member.since) for user, (cell, member) in members.items()]
    db.executemany("INSERT INTO members VALUES (?,?,?,?)", rows)
    if known:
        copy_to_added(db, head.group, head.head.version, [(u, h) for u, h in added if u != own.user], effects)
    return head.group


def roster_from(db: Db, own: Own, inner: Inner, news_bytes: bytes, effects: Effects) -> bytes | None:
    """A roster came in a control message: from its owner's device, or passed on by one of our own."""
    head = verify_roster(read_roster_news(news_bytes).head)
    teller, owner = (people.stem(db, own, inner.user, key) for key in (inner.device, head.head.owner_key))
    if inner.user != own.user and (teller is None or teller != owner):
        raise TrustError("roster: told by somebody who does not own the group")
    return adopt(db, news_bytes, own, effects)


def known_version(db: Db, group: bytes) -> int:
    """The newest roster version that is known here, 0 for none."""
    row = db.execute("SELECT version FROM groups WHERE id=?", (group,)).fetchone()
    return int(row[0]) if row else 0


def is_member(db: Db, group: bytes, user: bytes) -> bool:
    return db.execute("SELECT 1 FROM members WHERE grp=? AND user=?", (group, user)).fetchone() is not None


def _members(db: Db, group: bytes) -> list[tuple[bytes, str]]:
    rows = db.execute("SELECT user, cell FROM members WHERE grp=? ORDER BY user", (group,)).fetchall()
    return [(bytes(user), cell) for user, cell in rows]


def _region(cell: str) -> str:
    return cell.partition("/")[0]


def groups(db: Db, own: Own) -> list[Group]:
    """All groups that are known here."""
    out = []
    for group, version, news_bytes in db.execute("SELECT id, version, news FROM groups WHERE version>0").fetchall():
        news = read_roster_news(bytes(news_bytes))
        members = tuple(Card(_region(cell), user) for user, cell in _members(db, group))
        mine = verify_roster(news.head).head.owner_key in own.ids
        out.append(Group(bytes(group), news.title, version, members, mine))
    return out


# --- sender keys and messages --------------------------------------------------------------------
def queue_group_message(
    db: Db, own: Own, group: bytes, content: bytes, name: str, now: int, random_bytes: Callable[[int], bytes]
) -> Sent:
    """A message to a group; before the first one of an epoch, our sender key to every member. Raises UnknownGroup."""
    version = known_version(db, group)
    if not version:
        raise UnknownGroup(f"no group {group.hex()[:8]} is known here", "Wait for the invitation, or check the id")
    ensure_key(db, own, group, version, now, random_bytes)
    sid = new_send(db, control=False)
    counter, mids = write_letters(db, sid, group, MESSAGE, split_parts(b"", group, name, content), now)
    if is_detoured(db, own, group):
        _go_round(db, own, group, sid, mids)
    else:
        for mid in mids:
            add_parcel(db, sid, mid, ROSTER, group, "", version=version)
    return Sent(message_id(own.author, group, counter), group, counter, sid)


def ensure_key(
    db: Db, own: Own, group: bytes, version: int, now: int, random_bytes: Callable[[int], bytes]
) -> None:
    """We have a sender key for this version of a group; if it is drawn now, every member is told."""
    found = db.execute(
        "SELECT 1 FROM sender_keys WHERE grp=? AND version=? AND device=? AND stale=0", (group, version, own.device)
    ).fetchone()
    if found:
        return
    key = random_bytes(32)
    _keep_key(db, KeyNews(group, version, own.user, own.device, key))
    news = encode(KeyNews(group, version, own.user, own.device, key))
    # what is still on its way reaches those who were added as copies, so their stream begins with the first of that
    lowest = db.execute("SELECT min(counter) FROM letters WHERE conversation=?", (group,)).fetchone()[0]
    first = next_counter(db, group) if lowest is None else int(lowest)
    _tell(db, own, _members(db, group), KEY_NEWS, news, now, first)


def key_from(db: Db, own: Own, inner: Inner, news: KeyNews) -> bytes:
    """A sender key came: its device's own word, also under a later key of that, or passed on by one of our own devices.
    The key's id."""
    teller, named = (people.stem(db, own, inner.user, key) for key in (inner.device, news.device))
    if inner.user != own.user and (inner.user != news.user or teller is None or teller != named):
        raise TrustError("sender key: told by somebody else")
    return _keep_key(db, news)


def _author(db: Db, own: Own, user: bytes, device: bytes) -> bytes:
    return author(user, people.stem(db, own, user, device) or device)


def _keep_key(db: Db, news: KeyNews) -> bytes:
    kid = key_id(news.key)
    db.execute(
        "INSERT OR IGNORE INTO sender_keys VALUES (?,?,?,?,?,?,0)",
        (kid, news.device, news.user, news.group, news.version, news.key),
    )
    db.execute(
        "DELETE FROM sender_keys WHERE rowid IN (SELECT rowid FROM sender_keys WHERE grp=? AND device=?"
        " AND user=? ORDER BY version DESC, rowid DESC LIMIT -1 OFFSET ?)",
        (news.group, news.device, news.user, MAX_KEYS),
    )
    return kid


def forget_strays(db: Db, own: Own) -> None:
    """The oldest sender keys of non-members go beyond the bound, and what was kept of streams that nobody can read."""
    gone = []
    for among, bound in (("PARTITION BY k.user", MAX_STRAY_KEYS_EACH), ("", MAX_STRAY_KEYS)):
        rows = db.execute(_STRAYS.format(among), (bound,)).fetchall()
        db.executemany("DELETE FROM sender_keys WHERE rowid=?", [(row,) for row, *_ in rows])
        gone += rows
    db.executemany(
        "DELETE FROM streams WHERE author=:author AND conversation=:grp AND given=0"
        " AND NOT EXISTS (SELECT 1 FROM sender_keys WHERE grp=:grp AND user=:user AND device=:device)"
        " AND NOT EXISTS (SELECT 1 FROM held WHERE author=:author AND conversation=:grp)",
        [
            {"grp": group, "user": user, "device": device, "author": _author(db, own, user, device)}
            for _, group, user, device in gone
        ],
    )


def _tell(
    db: Db, own: Own, members: Sequence[tuple[bytes, str]], kind: int, data: bytes, now: int, first: int = 0,
    only: bytes = b"",
) -> None:  # fmt: skip
    """A control message to each of some (user, cell); to our own user: for our other devices."""
    alone = not only and not has_other_devices(db, own)
    others = [(user, cell) for user, cell in members if not (alone and user == own.user)]
    news = keep_news(db, data) if others else 0
    for user, cell in others:
        sid, conversation = new_send(db, control=True), control_pair(own.user, user)
        hollow = split_parts(user, b"", "", data, hollow=True)
        _, mids = write_letters(db, sid, conversation, kind, hollow, now, first, news)
        for mid in mids:
            add_parcel(db, sid, mid, MAILBOX, user, _region(cell), own=user == own.user, only=only)


def devices_changed(
    db: Db, own: Own, before: HomeRecord | None, after: HomeRecord, now: int, effects: Effects
) -> None:  # fmt: skip
    """A newer home record: what a new device of ours needs it is told; and what one that has gone was told it must not
    be able to read on with: the next message to a group of that user goes out under another sender key."""
    known = {device.stem for device in before.devices} if before else set()
    if after.user == own.user:
        pass_on(db, own, [one.id for one in after.devices if one.stem not in known], now, effects)
    listed = {device.id for device in after.devices}
    if before is not None and any(device.id not in listed for device in before.devices):
        theirs = "UPDATE sender_keys SET stale=1 WHERE device=? AND grp IN (SELECT grp FROM members WHERE user=?)"
        db.execute(theirs, (own.device, after.user))


def pass_on(db: Db, own: Own, devices: Sequence[bytes], now: int, effects: Effects) -> None:
    """Our user has new devices: tell them the groups, and the sender keys that we have."""
    only = b"".join(device for device in devices if device != own.device)
    if not only:
        return
    for (news,) in db.execute("SELECT news FROM groups WHERE version>0").fetchall():
        _tell(db, own, [(own.user, own.cell)], ROSTER_NEWS, bytes(news), now, only=only)
    for row in db.execute("SELECT grp, version, user, device, key FROM sender_keys").fetchall():
        news = KeyNews(bytes(row[0]), row[1], bytes(row[2]), bytes(row[3]), bytes(row[4]))
        _tell(db, own, [(own.user, own.cell)], KEY_NEWS, encode(news), now, only=only)
    effects.post = True
