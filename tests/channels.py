"""A broadcast channel's owner, for tests: signs terms and posts."""

from __future__ import annotations

from typing import Any

from msgspec import structs
from nacl.signing import SigningKey

from relay.core import records
from relay.core.codec import digest, encode
from relay.core.posts import Content, PostHeader, seal_post
from relay.core.trust.channels import ChannelTerms, channel_id, reader_of, sign_terms
from relay.limits import CHANNEL_BYTES_LEAST, DAY

KEEP: dict[str, Any] = {"keep_ms": DAY, "keep_posts": 100, "keep_bytes": CHANNEL_BYTES_LEAST}


class Channel:
    """What one device owns; `seed` tells its channels apart."""

    def __init__(self, owner: SigningKey, cell: str, seed: bytes = bytes(32)) -> None:
        self.owner, self.cell, self.seed = owner, cell, seed
        self.device = bytes(owner.verify_key)
        self.id = channel_id(self.device, seed)
        self.secret = digest(seed, b"secret")
        self.terms: ChannelTerms | None = None
        self.number = 0

    @property
    def version(self) -> int:
        return self.terms.version if self.terms else 0

    def draft(self, **changed: Any) -> ChannelTerms:
        prev = digest(encode(self.terms)) if self.terms else b""
        reader = bytes(reader_of(self.secret).verify_key)
        terms = ChannelTerms(
            1, self.seed, self.version + 1, prev, self.device, self.cell, reader, **{**KEEP, **self._kept()}
        )
        return structs.replace(terms, **changed)

    def _kept(self) -> dict[str, Any]:
        return {name: getattr(self.terms, name) for name in KEEP} if self.terms else {}

    def sign(self, terms: ChannelTerms) -> bytes:
        return sign_terms(terms, self.owner)

    def publish(self, **changed: Any) -> records.Channel:
        """The next version."""
        self.terms = self.draft(**changed)
        return records.Channel(self.device, self.sign(self.terms))

    def seal(self, text: bytes, number: int | None = None, version: int | None = None, created: int = 0) -> bytes:
        """A post; without a number, the next one."""
        if number is None:
            number = self.number = self.number + 1
        header = PostHeader(1, self.id, self.version if version is None else version, number, created, 1)
        return seal_post(header, Content("", text), self.secret, digest(text)[:24], self.owner)

    def post(self, text: bytes, number: int | None = None, version: int | None = None) -> records.Post:
        return records.Post(self.device, self.seal(text, number, version))
