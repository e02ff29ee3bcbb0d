"""Broadcast channels in the fold: terms, posts, and the window in which posts are kept (ADR 36).

A post is one record and one row of 32 bytes, whoever reads it; readers leave no trace here. Posts go from the front: by
age, by count, by bytes, as the newest terms say. So what a channel takes is bounded by its terms, and what its owner's
channels take together by MAX_CHANNEL_BYTES and MAX_CHANNEL_POSTS.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from relay.core import records
from relay.core.codec import digest
from relay.core.mailroom.channelstate import ChannelState, Kept
from relay.core.mailroom.effects import ChannelChanged, Posted
from relay.core.mailroom.state import Source, State
from relay.core.mailroom.turn import EXPIRE_CHANNEL, Turn
from relay.core.posts import post_id, read_header, verify_post
from relay.core.trust.channels import VerifiedTerms, verify_terms
from relay.core.wire import Code, ReceiptItem
from relay.errors import ProtocolError, StoreDamaged, TrustError
from relay.limits import MAX_CHANNEL_BYTES, MAX_CHANNEL_POSTS, MAX_CHANNELS, MAX_CHANNELS_EACH

ROW_BYTES: Final = 64  # of memory for a post: its row, and its source's


# --- terms ---------------------------------------------------------------------------------------
def publish(turn: Turn, record: records.Channel) -> None:
    """Apply a version of a channel's terms, from a device of its owner."""
    pos = turn.next_position()
    device = turn.state.devices.peek(record.device)
    if device is None:
        return  # its enrolment ended while the record was under way
    code, version = _publish(turn, record, device.user)
    taken = code == Code.STORED
    turn.answer(record.device, turn.receipt(digest(record.terms), code, version, pos if taken else 0), None)


def _publish(turn: Turn, record: records.Channel, user: bytes) -> tuple[Code, int]:
    state = turn.state
    try:
        terms = verify_terms(record.terms)
        channel = state.channels.get(terms.channel)
        if channel is not None and channel.terms.signed == record.terms:
            return Code.STORED, terms.version
        if channel is not None:
            verify_terms(record.terms, channel.terms)
    except (TrustError, ProtocolError):
        return Code.BAD_RECORD, 0
    if terms.terms.cell != state.cell:
        return Code.BAD_RECORD, 0
    if user != channel.owner if channel else record.device != terms.terms.owner_key:
        return Code.NOT_OWNER, 0
    if terms.terms.keep_ms == 0:
        if channel is not None:
            _end(turn, channel)
        return Code.STORED, terms.version
    if not _fits(state, terms, user):
        return Code.CHANNELS_FULL, channel.terms.version if channel else 0
    if channel is None:
        channel = state.channels[terms.channel] = ChannelState(terms, user)
    channel.terms = terms
    _trim(turn, channel)
    _expire_later(turn, channel)
    turn.effects.append(ChannelChanged(terms.channel))
    return Code.STORED, terms.version


def _fits(state: State, terms: VerifiedTerms, user: bytes) -> bool:
    """Is there room for what these terms promise, beside the other channels of the user?"""
    others = [one for key, one in state.channels.items() if one.owner == user and key != terms.channel]
    known = terms.channel in state.channels
    return (
        (known or (len(others) < MAX_CHANNELS_EACH and len(state.channels) < MAX_CHANNELS))
        and sum(one.terms.terms.keep_bytes for one in others) + terms.terms.keep_bytes <= MAX_CHANNEL_BYTES
        and sum(one.terms.terms.keep_posts for one in others) + terms.terms.keep_posts <= MAX_CHANNEL_POSTS
    )


def owner_left(turn: Turn, user: bytes) -> None:
    """The owner is at home elsewhere from now on: a channel rests in its owner's home, and ends here with what it
    kept."""
    for channel in [one for one in turn.state.channels.values() if one.owner == user]:
        _end(turn, channel)


def device_left(turn: Turn, user: bytes) -> None:
    """A device of the owner is not enrolled any more: nobody can sign for the channels that it made, not even to close
    them. One whose keys were rotated goes on: it keeps the old ones to sign with."""
    state = turn.state
    for channel in [one for one in state.channels.values() if one.owner == user]:
        if state.heir(channel.terms.terms.owner_key) is None:
            _end(turn, channel)


def _end(turn: Turn, channel: ChannelState) -> None:
    while (first := channel.window.first()) is not None:
        _drop(turn.state, channel, first)
    del turn.state.channels[channel.terms.channel]
    turn.effects.append(ChannelChanged(channel.terms.channel))


# --- posts ---------------------------------------------------------------------------------------
def post(turn: Turn, record: records.Post, size: int) -> None:
    """Apply a post from a device of the channel's owner."""
    pos = turn.next_position()
    device = turn.state.devices.peek(record.device)
    if device is not None:
        turn.answer(record.device, _post(turn, record, device.user, turn.source(size), pos), None)


def _post(turn: Turn, record: records.Post, user: bytes, source: Source, pos: int) -> ReceiptItem:
    own = post_id(record.post)
    code, newest = refusal(turn.state, record.post, own, user)
    if code is not None:
        return turn.receipt(own, code, newest, pos if code == Code.STORED else 0)
    header = read_header(record.post)
    channel = turn.state.channels[header.channel]
    channel.window.add(header.number, turn.state.hold(source), turn.time, pos)
    channel.bytes += source.size
    channel.last, channel.last_id = header.number, own
    _trim(turn, channel)
    _expire_later(turn, channel)
    turn.effects.append(Posted(header.channel, header.number, source.key))
    turn.admitted += 1
    return turn.receipt(own, Code.STORED, header.number, pos)


def refusal(state: State, post: bytes, own: bytes, user: bytes) -> tuple[Code | None, int]:
    """Why a post by a device of `user` is not taken, and the newest number, or version, that is known; None if it is.
    STORED: it was taken before. STALE: its number was, or its terms are not the newest: number and seal it anew."""
    try:
        header = read_header(post)
        channel = state.channels.get(header.channel)
        if channel is None:
            return Code.UNKNOWN_CHANNEL, 0
        if user != channel.owner:
            return Code.NOT_OWNER, 0
        if own == channel.last_id:
            return Code.STORED, channel.last
        if header.version < channel.terms.version:
            return Code.STALE, channel.last
        verify_post(post, channel.terms.terms.owner_key)
    except (TrustError, ProtocolError):
        return Code.BAD_ENVELOPE, 0
    if header.version > channel.terms.version:
        return Code.BAD_ENVELOPE, channel.terms.version
    return (Code.STALE, channel.last) if header.number <= channel.last else (None, channel.last)


# --- the window ----------------------------------------------------------------------------------
def _trim(turn: Turn, channel: ChannelState) -> None:
    """Let go from the front what is too much, or too old by terms that have changed."""
    terms = channel.terms.terms
    while (first := channel.window.first()) is not None and (
        channel.bytes > terms.keep_bytes
        or len(channel.window) > terms.keep_posts
        or first.time + terms.keep_ms <= turn.time
    ):
        _drop(turn.state, channel, first)


def _drop(state: State, channel: ChannelState, kept: Kept) -> None:
    source = state.sources.find(kept.source)
    assert source is not None, "a post that is kept holds its source"
    channel.window.pop(kept.number)
    channel.bytes -= source.size
    state.drop(kept.source)


def _expire_later(turn: Turn, channel: ChannelState) -> None:
    """A channel has one entry in the heap, for its first post; an earlier one that was replaced is ignored."""
    first = channel.window.first()
    due = first.time + channel.terms.terms.keep_ms if first is not None else 0
    if due and (not channel.due or due < channel.due):
        channel.due = due
        turn.expire_later(due, EXPIRE_CHANNEL, channel.terms.channel, due)


def expire(turn: Turn, address: bytes, number: int) -> bool:
    """The first post may be too old now. True where it was dropped; the next one has its turn after it."""
    channel = turn.state.channels.get(address)
    if channel is None or channel.due != number:
        return False
    channel.due = 0
    first = channel.window.first()
    due = first is not None and first.time + channel.terms.terms.keep_ms <= turn.time
    if first is not None and due:
        _drop(turn.state, channel, first)
    _expire_later(turn, channel)
    return due


def expiries(state: State) -> Iterator[tuple[int, int, bytes, int]]:
    """Of every channel, when its first post goes: for a heap that is made anew."""
    for key, channel in state.channels.items():
        first = channel.window.first()
        channel.due = first.time + channel.terms.terms.keep_ms if first is not None else 0
        if channel.due:
            yield channel.due, EXPIRE_CHANNEL, key, channel.due


# --- reading -------------------------------------------------------------------------------------
def post_of(record: records.Record) -> bytes:
    """The post in a record that carries one."""
    if isinstance(record, records.Post):
        return record.post
    raise StoreDamaged("a channel points to a record that carries no post")


# --- the checkpoint ------------------------------------------------------------------------------
def sections(state: State, part: int) -> Iterator[tuple[str, Iterable[Any]]]:
    """All of it, as items of a checkpoint; packed rows in parts of about `part` bytes."""
    channels = sorted(state.channels.items())
    yield "channels", ([one.terms.signed, one.owner, one.last, one.last_id, one.bytes] for _, one in channels)
    yield "posts", ([key, rows] for key, one in channels for rows in one.window.dump(part))


def load_channel(state: State, signed: bytes, owner: bytes, last: int, last_id: bytes, size: int) -> None:
    """An item of "channels". Raises TrustError, ProtocolError."""
    terms = verify_terms(signed)
    state.channels[terms.channel] = ChannelState(terms, owner, last, last_id, size)


def weight(state: State) -> int:
    """About how many bytes of a checkpoint they take."""
    return sum(1024 + ROW_BYTES * len(one.window) for one in state.channels.values())
