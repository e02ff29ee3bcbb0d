"""What stores say to each other. The link below knows which log it serves and who is at its other end.

`term` is the sender's, except in a PreVote's request and grant: there it is the one that the asker would begin. Recall
and Recollection are outside of terms: they change nobody's.
"""

from __future__ import annotations

from typing import Annotated, Union

from msgspec import Meta

from cluster.core.raft.entry import Entry, Point
from cluster.core.raft.members import Members, StoreId
from relay.core.codec import Struct
from relay.core.shapes import UInt
from relay.limits import MAX_ARRAY, MAX_CELL

MAX_FIGURES = 2 * MAX_CELL  # stores whose figures are kept: the cell's, and those that are joining or leaving it


class Figure(Struct):
    """`store` has acknowledged, under the leader of `upto.term`, everything up to `upto.index` (see recall.py)."""

    store: StoreId
    upto: Point


class _Message(Struct):
    source: StoreId
    to: StoreId
    term: UInt


class VoteRequest(_Message, tag=1):
    """Vote for me (dissertation 3.4). `pre`: would you (9.6)? `transfer`: the leader asked me to (3.10)."""

    tip: Point
    pre: bool
    transfer: bool


class VoteReply(_Message, tag=2):
    """Answers a VoteRequest with the same `pre`."""

    pre: bool
    granted: bool


class Append(_Message, tag=3):
    """The entries after `prev`; none in a sign of life. `known`: what the leader knows to be acknowledged (rule 5)."""

    prev: Point
    entries: Annotated[tuple[Entry, ...], Meta(max_length=MAX_ARRAY)]
    commit: UInt
    known: Annotated[tuple[Figure, ...], Meta(max_length=MAX_FIGURES)]
    beat: bool


class Accepted(_Message, tag=4):
    """My log, on disk, is the leader's up to index `match`."""

    match: UInt


class Rejected(_Message, tag=5):
    """My log has not the entry at index `prev` that an Append built on; we may meet at `hint`. Or, with a higher term:
    you no longer lead."""

    prev: UInt
    hint: Point


class TimeoutNow(_Message, tag=6):
    """Stand for election at once: I hand over to you (dissertation 3.10)."""


class Recall(_Message, tag=7):
    """I have started: what have I acknowledged, as far as you know? `nonce` is this start's."""

    nonce: UInt


class Recollection(_Message, tag=8):
    """Answers a Recall: the highest figure for the asker, and the newest members known here with their place."""

    nonce: UInt
    figure: Point
    members_at: Point
    members: Members


Message = Union[VoteRequest, VoteReply, Append, Accepted, Rejected, TimeoutNow, Recall, Recollection]
