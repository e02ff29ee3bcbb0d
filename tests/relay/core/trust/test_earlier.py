"""What a statement says of a registrar's keys of before."""

from __future__ import annotations

import pytest
from msgspec import structs
from nacl.signing import SigningKey

from relay.core.codec import encode
from relay.core.trust import EarlierKey
from relay.core.trust.statement import MAX_EARLIER, _Statement, decode_statement, encode_statement
from relay.errors import ProtocolError, TrustError
from tests.logged import logged_region

REGION = logged_region("norden", SigningKey(b"n" * 32))


def earlier(number: int, *ends: tuple[str, int]) -> EarlierKey:
    return EarlierKey(bytes([number]) * 32, ends)


def test_a_statement_says_which_keys_there_were_and_where_they_end() -> None:
    region = structs.replace(REGION, earlier=(earlier(1, ("norden", 9), ("sauda", 1)), earlier(2)))
    assert decode_statement(encode_statement(region)) == region
    assert encode_statement(region) == encode(_Statement(1, region))


def test_where_no_key_was_replaced_the_statement_is_what_it_always_was() -> None:
    """Releases that do not know of earlier keys take it."""
    assert decode_statement(encode_statement(REGION)) == REGION
    assert len(encode_statement(REGION)) == len(encode(_Statement(1, REGION))) - 1


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ([EarlierKey(REGION.registrar_key, ())], TrustError), ([earlier(1), earlier(1, ("norden", 9))], TrustError),
        ([earlier(1, ("norden", 9), ("norden", 10))], TrustError), ([earlier(1, ("norden", -1))], ProtocolError),
        ([EarlierKey(b"short", ())], ProtocolError), ([earlier(n) for n in range(MAX_EARLIER + 1)], ProtocolError),
    ],
)  # fmt: skip
def test_what_contradicts_itself_nobody_signs_or_takes(keys: list[EarlierKey], error: type[Exception]) -> None:
    region = structs.replace(REGION, earlier=tuple(keys))
    with pytest.raises(error):
        encode_statement(region)
    with pytest.raises(error):
        decode_statement(encode(_Statement(1, region)))
