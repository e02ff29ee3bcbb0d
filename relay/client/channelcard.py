"""The card of a broadcast channel: what its owner hands to those who may read it.

    posthouse-channel:<cell>:<channel id in base32>:<secret in base32>          lower case, no padding

Whoever has the card can read. The owner's terms are verified by the id, so that nothing of them has to be in it.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from relay.client.errors import BadCard

_REMEDY = "It looks like posthouse-channel:cell:…:…, copy it whole"
_NAME = r"[a-z0-9][a-z0-9.-]{0,46}"
_CARD = re.compile(rf"posthouse-channel:({_NAME}/{_NAME}):([a-z2-7]{{52}}):([a-z2-7]{{52}})")


@dataclass(frozen=True, slots=True)
class ChannelCard:
    """Where the channel's posts lie, its 32-byte id, and the 32-byte secret that opens them."""

    cell: str
    channel: bytes
    secret: bytes

    @classmethod
    def parse(cls, text: str) -> ChannelCard:
        """Raises BadCard."""
        match = _CARD.fullmatch(text.strip())
        try:
            if match is None:
                raise BadCard("this is not a channel's card", _REMEDY)
            card = cls(match[1], *(base64.b32decode(part.upper() + "====") for part in match.groups()[1:]))
        except binascii.Error:
            raise BadCard("this is not a channel's card", _REMEDY) from None
        if str(card) != match[0]:
            raise BadCard("this channel's card was changed", _REMEDY)
        return card

    def __str__(self) -> str:
        channel, secret = (base64.b32encode(part).decode().rstrip("=").lower() for part in (self.channel, self.secret))
        return f"posthouse-channel:{self.cell}:{channel}:{secret}"
