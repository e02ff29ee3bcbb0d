"""msgpack arrays to frozen structs and back: caps while decoding, exact shapes after.

Every shape on the wire, in the log and in the directory is a `Struct` below: an array whose first element is the tag
(where there is a choice), with nothing missing and nothing left over. Bytes are never taken for text or the other way.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Generic, TypeVar, dataclass_transform

import msgpack
import msgspec

from relay.errors import ProtocolError
from relay.limits import MAX_ARRAY, MAX_STRING

T = TypeVar("T")
_NATIVE = (bytes,)


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))  # so that type checkers see the frozen
class Struct(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False, kw_only=False
):
    """Base of everything that is encoded: immutable, compared by value."""


def digest(data: bytes, person: bytes = b"") -> bytes:
    """BLAKE2b-256 (RFC 7693) of `data`; `person` (≤ 16 bytes) separates domains."""
    return blake2b(data, digest_size=32, person=person).digest()


def pack(value: Any) -> bytes:
    """Encode plain values (lists, bytes, ints, text) as msgpack."""
    packed: bytes = msgpack.packb(value)
    return packed


def encode(struct: Struct) -> bytes:
    """Encode one struct as a msgpack array."""
    return pack(msgspec.to_builtins(struct, builtin_types=_NATIVE))


class Decoder(Generic[T]):
    """Decodes one shape, or a union of tagged ones. `what` names it in errors; `max_bytes` is checked first. `flat`: a
    shape of single values and no list, so that it needs no caps but its own: a field of another kind is refused
    before it is read."""

    def __init__(
        self, shape: Any, what: str, max_bytes: int, max_array: int = MAX_ARRAY, *, flat: bool = False
    ) -> None:
        self._shape: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(shape)  # compiled once: convert() is not
        self._what = what
        self._max_bytes = max_bytes
        self._max_array = max_array
        self._flat = flat

    def __call__(self, data: bytes | bytearray | memoryview) -> T:
        """Raises ProtocolError with the place and the reason; never anything else, whatever the bytes."""
        if len(data) > self._max_bytes:
            raise ProtocolError(f"{self._what} of {len(data)} bytes", f"At most {self._max_bytes} are taken")
        try:
            if not self._flat:
                msgpack.unpackb(  # the caps; its values are thrown away
                    data,
                    max_str_len=MAX_STRING * 4,
                    max_bin_len=self._max_bytes,
                    max_array_len=self._max_array,
                    max_map_len=0,
                    max_ext_len=0,
                )
            return self._shape.decode(data)
        except msgspec.ValidationError as error:
            raise ProtocolError(f"{self._what} has the wrong shape: {error}") from None
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise ProtocolError(f"{self._what} is not msgpack: {error or type(error).__name__}") from None
