"""The two things that the C2SP texts are made of: base64 (RFC 4648 section 4) and decimals. One value, one form."""

from __future__ import annotations

import binascii
import re
from typing import Final

from relay.core.tlog.errors import Malformed
from relay.limits import MAX_TREE

_DIGITS: Final = len(str(MAX_TREE))
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")  # newline is none
_AGAIN: Final = "Fetch it anew; if it stays so, whoever made it is at fault"


def base64(data: bytes) -> str:
    """Standard alphabet, with padding."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def unbase64(text: str, what: str) -> bytes:
    """The bytes of `text`. Raises Malformed when it is not just what `base64` gives for them."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # binascii.Error is one; so is text that is not ASCII
        data = b""
    if not text or base64(data) != text:
        raise Malformed(f"{what}: not base64 in its one form", _AGAIN)
    return data


def decimal(text: str, what: str) -> int:
    """A number from 0 to 2**63 - 1, without sign or leading zeros. Raises Malformed."""
    if not (text.isascii() and text.isdigit()) or len(text) > _DIGITS or (text[0] == "0" and text != "0"):
        raise Malformed(f"{what}: {text[:40]!r} is not a number in its one form", _AGAIN)
    number = int(text)
    if number > MAX_TREE:
        raise Malformed(f"{what}: {number} is beyond 2**63 - 1", _AGAIN)
    return number


def utf8(data: bytes, what: str) -> str:
    """UTF-8 text without ASCII control characters other than newline, as all C2SP texts are. Raises Malformed."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed(f"{what}: not UTF-8", _AGAIN) from None
    if _CONTROL.search(text):
        raise Malformed(f"{what}: a control character", _AGAIN)
    return text


def is_line(text: str, most: int) -> bool:
    """Can `text` be one line of such a text: 1 to `most` bytes?"""
    try:
        return 0 < len(text.encode("utf-8")) <= most and "\n" not in text and not _CONTROL.search(text)
    except UnicodeEncodeError:  # a lone surrogate
        return False
