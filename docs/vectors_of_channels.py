"""The part of docs/vectors.json about broadcast channels."""

from __future__ import annotations

from typing import Any

from nacl.signing import SigningKey

from relay.core import wire
from relay.core.codec import Struct, encode
from relay.core.posts import Content, PostHeader, post_id, seal_post
from relay.core.trust.channels import (
    ChannelTerms, channel_id, make_ticket, reader_of, sign_terms, verify_terms,
)  # fmt: skip

SEED, SECRET, POST_NONCE = bytes([31]) * 32, bytes([32]) * 32, bytes([33]) * 24


def channels(owner: SigningKey, nonce: bytes, now: int) -> dict[str, Any]:
    """Terms, a ticket and a post of one channel. `nonce`: of a CHALLENGE, whose device is the owner's."""
    key = bytes(owner.verify_key)
    reader = reader_of(SECRET)
    terms = ChannelTerms(1, SEED, 1, b"", key, "amber/1", bytes(reader.verify_key), 86_400_000, 100, 1 << 20)
    header = PostHeader(1, channel_id(key, SEED), 1, 7, now, 1)
    post = seal_post(header, Content("", b"hello"), SECRET, POST_NONCE, owner)
    return {
        "owner_key_seed": bytes(owner).hex(), "seed": SEED.hex(), "secret": SECRET.hex(),
        "channel": header.channel.hex(), "reader_key_seed": bytes(reader).hex(), "payload": encode(terms).hex(),
        "signed": sign_terms(terms, owner).hex(), "digest": verify_terms(sign_terms(terms, owner)).digest.hex(),
        "ticket": {
            "nonce": nonce.hex(), "device": key.hex(),
            "signature": make_ticket(SECRET, header.channel, nonce, key).hex(),
        },
        "post": {
            "header": encode(header).hex(), "name": "", "data": b"hello".hex(), "nonce": POST_NONCE.hex(),
            "post": post.hex(), "id": post_id(post).hex(),
        },
    }  # fmt: skip


def asked() -> list[Struct]:
    """Messages from the client."""
    channel = bytes([34]) * 32
    return [
        wire.Subscribe(1, channel, bytes(64), True), wire.Unsubscribe(channel), wire.Read(channel, 7),
        wire.Terms(b"signed terms"), wire.Posts((b"a post", b"another")),
        wire.SubscribeFar(1, channel, bytes(64), True, "norden/1"),
    ]  # fmt: skip


def told() -> list[Struct]:
    """Messages from the node."""
    channel = bytes([34]) * 32
    return [
        wire.Channel(1, channel, 2, b"signed terms", 3, 9), wire.Page(channel, 7, 2, 3, 9, (b"a post", b"another")),
        wire.Posted(b"a post"),
    ]  # fmt: skip
