"""What the disk writer knows of broadcast channels: that they rest in their owners' home, and for how long (ADR 36)."""

from __future__ import annotations

from collections.abc import Container, Mapping

from relay.core import posts, records
from relay.core.codec import Struct, digest
from relay.core.shapes import Hash, Millis, UInt
from relay.core.trust.channels import verify_terms
from relay.errors import NotPermitted, ResidencyError
from relay.limits import DAY


class ChannelFact(Struct, frozen=True, tag=3):
    """A channel of this cell, by its newest version seen: how long its terms keep a post, ms."""

    channel: Hash
    version: UInt
    keep_ms: Millis

    @property
    def key(self) -> bytes:
        return digest(self.channel, b"posthouse.chan")


def check_terms(signed: bytes, cell: str, devices: Container[bytes]) -> ChannelFact:
    """Terms whose channel rests in `cell`, the home of the owner's device. Raises ResidencyError, TrustError,
    ProtocolError."""
    verified = verify_terms(signed)
    if verified.terms.cell != cell:
        raise ResidencyError(f"a channel of cell {verified.terms.cell}, not of {cell}")
    if verified.terms.owner_key not in devices:
        raise ResidencyError(f"channel {verified.channel[:4].hex()}, whose owner is not at home in {cell}")
    return ChannelFact(verified.channel, verified.version, verified.terms.keep_ms)


def check_post(post: bytes, cell: str, known: Mapping[bytes, ChannelFact]) -> None:
    """A post to a channel that rests here. Raises ResidencyError, ProtocolError."""
    channel = posts.read_header(post).channel
    if channel not in known:
        raise ResidencyError(f"a post to channel {channel[:4].hex()}, which does not rest in {cell}")


def check_kept(record: records.Channel | records.Post, longest: int, known: Mapping[bytes, ChannelFact]) -> None:
    """The region keeps mail for `longest` ms. Raises NotPermitted where a channel would for longer."""
    if isinstance(record, records.Post):
        keep_ms = known[posts.read_header(record.post).channel].keep_ms
    else:
        keep_ms = verify_terms(record.terms).terms.keep_ms
    if keep_ms > longest:
        raise NotPermitted(f"a channel that keeps posts for more than {longest // DAY} days")
