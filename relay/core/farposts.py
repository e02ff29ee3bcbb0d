"""Posts of a broadcast channel of another cell: the question that crosses the border, and what the answer must be for a
node to hand it on (ADR 36). Pure. Whether the owner signed the posts is for readers to verify, as at home.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from relay.core.codec import Struct
from relay.core.posts import MAX_NUMBER, read_header
from relay.core.shapes import EnvelopeBytes, Hash, Key, Nonce, Signature, UInt
from relay.core.trust.channels import VerifiedTerms, verify_terms
from relay.core.wire import Code
from relay.errors import ProtocolError, TrustError
from relay.limits import CHANNEL_PAGE, CHANNEL_PAGE_POSTS, KIB, MAX_ENVELOPE

NO_POSTS: Final = 2**63 - 1  # as a place: only the terms and the numbers are wanted


class Shown(Struct, frozen=True):
    """A ticket as a reader showed it to its own node, with the nonce that it was made for."""

    device: Key
    nonce: Nonce
    ticket: Signature


class Question(Struct, frozen=True):
    """The posts of `channel` past number `after`, for who has shown this ticket."""

    channel: Hash
    shown: Shown
    after: UInt


class Reply(Struct, frozen=True):
    """`code` STORED: signed `terms`, numbers of the oldest post kept and of the newest taken, and posts past `after`
    (which is higher than what was asked for where older ones are gone), in order. Else the code is all there is."""

    code: UInt
    terms: Annotated[bytes, Meta(max_length=2 * KIB)]
    after: UInt
    first: UInt
    last: UInt
    posts: Annotated[tuple[EnvelopeBytes, ...], Meta(max_length=CHANNEL_PAGE_POSTS)]


def refusal(code: Code, after: int = 0) -> Reply:
    """A reply that gives nothing."""
    return Reply(code, b"", after, 0, 0, ())


def check_reply(reply: Reply, question: Question, cell: str, known: VerifiedTerms | None) -> VerifiedTerms:
    """The terms of a STORED reply of `cell`, verified; `known`: those that it showed before. Raises TrustError and its
    kinds, ProtocolError: the bytes are of no use to any reader."""
    same = known is not None and known.signed == reply.terms
    terms = known if same and known is not None else verify_terms(reply.terms)
    if terms.channel != question.channel or terms.terms.cell != cell:
        raise TrustError("it shows the terms of another channel")
    if max(reply.first, reply.last) > MAX_NUMBER or reply.first > reply.last:
        raise ProtocolError("it shows numbers that no channel has")
    if sum(map(len, reply.posts)) > CHANNEL_PAGE + MAX_ENVELOPE:
        raise ProtocolError("it shows a page that is too large")
    if reply.after < question.after:
        raise ProtocolError("it answers from another place")
    before = reply.after
    for post in reply.posts:
        header = read_header(post)
        if header.channel != question.channel:
            raise TrustError("it shows posts of another channel")
        if not before < header.number <= reply.last:
            raise ProtocolError("it shows posts out of order")
        before = header.number
    return terms


def is_code(code: int) -> bool:
    """Is it one that a reader may be told instead of posts?"""
    return code in Code.__members__.values() and not Code(code).taken
