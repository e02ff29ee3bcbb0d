"""Terms, tickets and posts of broadcast channels: what holds, and what does not."""

from __future__ import annotations

import pytest
from msgspec import structs
from nacl.signing import SigningKey

from relay.core.codec import encode
from relay.core.posts import MAX_TEXT, Content, PostHeader, open_post, read_header, seal_post, verify_post
from relay.core.trust.channels import make_ticket, reader_of, sign_terms, verify_terms, verify_ticket
from relay.errors import BadSignature, BrokenChain, ProtocolError, Rollback, TrustError
from relay.limits import CHANNEL_BYTES_LEAST, MAX_CHANNEL_BYTES, MAX_CHANNEL_POSTS, MAX_ENVELOPE, MAX_LIFETIME
from tests.channels import Channel
from tests.flipping import flipped

OWNER, THIEF = SigningKey(b"\x01" * 32), SigningKey(b"\x02" * 32)


@pytest.fixture
def channel() -> Channel:
    made = Channel(OWNER, "norden/1")
    made.publish()
    return made


def test_terms_follow_each_other(channel: Channel) -> None:
    assert channel.terms is not None
    first = verify_terms(channel.sign(channel.terms))
    assert first.channel == channel.id
    second = channel.draft(keep_ms=1)
    assert verify_terms(channel.sign(second), first).version == 2
    with pytest.raises(BrokenChain):
        verify_terms(channel.sign(structs.replace(second, prev=bytes(32))), first)
    with pytest.raises(BrokenChain, match="another cell"):
        verify_terms(channel.sign(structs.replace(second, cell="sauda/1")), first)
    with pytest.raises(BrokenChain, match="another channel"):
        verify_terms(channel.sign(structs.replace(second, seed=b"\x09" * 32)), first)
    with pytest.raises(Rollback):
        verify_terms(first.signed, verify_terms(channel.sign(second)))
    channel.terms = second
    assert verify_terms(channel.sign(channel.draft()), first).version == 3  # who was away does not know the second


def test_only_the_owner_signs_terms(channel: Channel) -> None:
    assert channel.terms is not None
    with pytest.raises(BadSignature):
        verify_terms(sign_terms(channel.terms, THIEF))
    with pytest.raises((TrustError, ProtocolError)):
        verify_terms(flipped(channel.sign(channel.terms)))
    taken_over = structs.replace(channel.terms, owner_key=bytes(THIEF.verify_key))
    assert verify_terms(sign_terms(taken_over, THIEF)).channel != channel.id  # it is another channel


@pytest.mark.parametrize("changed", [
    {"keep_ms": MAX_LIFETIME + 1}, {"keep_posts": 0}, {"keep_posts": MAX_CHANNEL_POSTS + 1},
    {"keep_bytes": CHANNEL_BYTES_LEAST - 1}, {"keep_bytes": MAX_CHANNEL_BYTES + 1}, {"version": 0}, {"prev": bytes(32)},
])  # fmt: skip
def test_terms_out_of_bounds(changed: dict[str, object]) -> None:
    channel = Channel(OWNER, "norden/1")
    with pytest.raises(TrustError):
        verify_terms(channel.sign(channel.draft(**changed)))


def test_a_ticket_is_for_one_channel_one_device_and_one_connection(channel: Channel) -> None:
    reader = bytes(reader_of(channel.secret).verify_key)
    nonce, device = b"n" * 32, b"d" * 32
    ticket = make_ticket(channel.secret, channel.id, nonce, device)
    verify_ticket(reader, channel.id, nonce, device, ticket)
    for other in (
        (b"x" * 32, nonce, device, ticket), (channel.id, b"x" * 32, device, ticket),
        (channel.id, nonce, b"x" * 32, ticket), (channel.id, nonce, device, flipped(ticket)),
    ):  # fmt: skip
        with pytest.raises(BadSignature):
            verify_ticket(reader, *other)
    with pytest.raises(BadSignature):
        verify_ticket(reader, channel.id, nonce, device, make_ticket(bytes(32), channel.id, nonce, device))


def test_a_post_is_opened_by_who_has_the_secret(channel: Channel) -> None:
    post = channel.seal(b"hello", created=7)
    header = verify_post(post, channel.device)
    assert (header.channel, header.version, header.number, header.created) == (channel.id, 1, 1, 7)
    assert open_post(post, channel.secret) == Content("", b"hello")
    with pytest.raises(BadSignature, match="another secret"):
        open_post(post, bytes(32))


def test_a_reader_cannot_write(channel: Channel) -> None:
    """Who has the secret can seal; only the owner's signature makes it a post."""
    header = PostHeader(1, channel.id, 1, 9, 0, 1)
    forged = seal_post(header, Content("", b"not the owner's"), channel.secret, bytes(24), THIEF)
    with pytest.raises(BadSignature):
        verify_post(forged, channel.device)


def test_a_changed_post_does_not_hold(channel: Channel) -> None:
    post = channel.seal(b"hello")
    for at in range(0, len(post), 7):
        with pytest.raises((BadSignature, ProtocolError)):
            verify_post(post[:at] + bytes([post[at] ^ 1]) + post[at + 1 :], channel.device)


def test_the_largest_post_fits_and_sizes_are_in_buckets(channel: Channel) -> None:
    assert len(channel.seal(bytes(MAX_TEXT))) <= MAX_ENVELOPE
    assert len(channel.seal(b"a")) == len(channel.seal(b"b" * 300))
    with pytest.raises(ProtocolError):
        channel.seal(bytes(MAX_ENVELOPE))


def test_a_post_of_another_suite(channel: Channel) -> None:
    header = PostHeader(1, channel.id, 1, 1, 0, 2)
    post = seal_post(header, Content("", b""), channel.secret, bytes(24), OWNER)
    with pytest.raises(ProtocolError, match="suite"):
        open_post(post, channel.secret)
    with pytest.raises(ProtocolError):
        read_header(encode(header))
