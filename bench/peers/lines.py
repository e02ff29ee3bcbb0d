"""Cutting deliveries out of a byte stream, as quickly as Python can: for protocols in which a head says how long the
payload is, and CRLF ends it."""

from __future__ import annotations

from typing import Final

from bench.tape import Taped
from relay.errors import ProtocolError
from relay.limits import KIB, MIB

CRLF: Final = b"\r\n"
MAX_HEAD: Final = 8 * KIB  # bytes until its CRLF, of any head or control line
MAX_PAYLOAD: Final = MIB  # bytes; far more than a scenario can ask for
_DIGITS: Final = len(str(MAX_PAYLOAD))  # a size in a head has fewer
NOTHING: Final = -1  # for a size: what was read is no delivery


class HeadLine(Taped):
    """A head that is the same as the one before is recognised whole; another one is read by `parse`.

    `WHOLE`: messages are given with their heads, for those who need to know which is which."""

    WHOLE = False
    __slots__ = ("_head", "_size", "live", "output")

    def __init__(self, greeting: bytes) -> None:
        super().__init__()
        self.output = bytearray(greeting)
        self.live = False
        self._head, self._size = b"\0", 0  # nothing begins so

    @property
    def ended(self) -> bool:
        """Never: these servers close the connection, or say an error, which is raised."""
        return False

    def parse(self, data: bytes, at: int) -> tuple[int, int] | None:
        """Read what begins at `at`: (where the payload starts, its size). None: it is not all there yet. A size of
        NOTHING: it was dealt with, and the next thing starts there. Raises ProtocolError."""
        raise NotImplementedError

    def cut(self, data: bytes) -> tuple[list[bytes], list[int], int, bool]:
        """See bench.tape.Taped."""
        payloads: list[bytes] = []
        ends: list[int] = []
        at, end, plain = 0, len(data), True
        head, size, whole = self._head, self._size, self.WHOLE
        while at < end:
            if data.startswith(head, at):
                start = at + len(head)
                if start + size + 2 > end:
                    break
            else:
                found = self.parse(data, at)
                if found is None:
                    break
                start, fresh = found
                if fresh == NOTHING:
                    at, plain = start, False
                    continue
                if start + fresh + 2 > end:
                    break
                head, size = data[at:start], fresh
            stop = start + size
            payloads.append(data[at if whole else start : stop])
            at = stop + 2
            ends.append(at)
        self._head, self._size = head, size
        return payloads, ends, at, plain


def line_end(data: bytes, at: int) -> int:
    """Where the CRLF of the line at `at` stands; -1: not there yet. Raises ProtocolError for a line without end."""
    stop = data.find(CRLF, at, at + MAX_HEAD)
    if stop < 0 and len(data) - at >= MAX_HEAD:
        raise ProtocolError("the server sent a line without an end")
    return stop


def payload_size(digits: bytes) -> int:
    """A size as a head says it. Raises ProtocolError."""
    if len(digits) < _DIGITS and digits.isdigit():
        return int(digits)
    raise ProtocolError(f"the server sent a payload of {digits[:20]!r} bytes")
