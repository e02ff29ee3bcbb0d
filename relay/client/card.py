"""The address card: what one hands to a friend. `posthouse:<region>:<user id in base32, lower case, no padding>`."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from relay.client.errors import BadCard

_CARD = re.compile(r"posthouse:([a-z0-9][a-z0-9.-]{0,63}):([a-z2-7]{52})")


@dataclass(frozen=True, slots=True)
class Card:
    """Who (32-byte user id) and where to ask first (a hint: after a move that region answers with the new home)."""

    region: str
    user: bytes

    @classmethod
    def parse(cls, text: str) -> Card:
        """Raises BadCard."""
        match = _CARD.fullmatch(text.strip())
        if match is None:
            raise BadCard(f"{text.strip()[:100]!r} is not an address card")
        try:
            user = base64.b32decode(match[2].upper() + "====")
        except binascii.Error:
            raise BadCard(f"{text.strip()[:100]!r} is not an address card") from None
        card = cls(match[1], user)
        if str(card) != match[0]:
            raise BadCard(f"{text.strip()[:100]!r} was changed: its last letter carries bits that belong to nobody")
        return card

    def __str__(self) -> str:
        return f"posthouse:{self.region}:{base64.b32encode(self.user).decode().rstrip('=').lower()}"
