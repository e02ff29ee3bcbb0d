"""Who stands by a receipt: one key once, under the certificate that was signed with, within its time to the edge."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from relay.certificates import certify
from relay.core.receipts import Certified, _leaf, _receipt, make_receipt, verify_receipt
from relay.core.codec import encode
from relay.core.trust import Root
from relay.errors import BadSignature, NotValidNow, ReceiptContradicts, TooFewStores
from tests.attesting import NOW
from tests.relay.core.test_receipts import GOOD, N1, N2, PAGE, ROOT, attack, changed


def test_one_key_that_is_certified_for_two_nodes_counts_once() -> None:
    words = [N1.attest([PAGE.statement], store).attestation(0) for store in (N1.store, N2.store)]
    names = iter(("n1", "n2"))

    def careless(certificate: bytes, root: Root) -> Certified:
        return replace(certify(certificate, root), node=next(names))

    with pytest.raises(TooFewStores):
        verify_receipt(make_receipt(*PAGE.parts(0), PAGE.statement, words), ROOT, careless)


def test_another_certificate_over_the_same_key_is_not_what_was_signed_with() -> None:
    """One that held at another time, say, would do for a block that it does not hold for."""
    first, second = _receipt(GOOD).attestations
    other = changed(GOOD, attestations=(first, msgspec.structs.replace(second, certificate=b"renewed")))

    def either(certificate: bytes, root: Root) -> Certified:
        return certify(N2.certificate if certificate == b"renewed" else certificate, root)

    with pytest.raises(BadSignature):
        verify_receipt(other, ROOT, either)


@pytest.mark.parametrize(
    ("times", "holds"), [((NOW, NOW + 1), True), ((NOW + 1, NOW + 2), False), ((NOW - 1, NOW), False)]
)
def test_a_certificate_holds_from_its_first_millisecond_to_before_its_last(times: tuple[int, int], holds: bool) -> None:
    def timed(certificate: bytes, root: Root) -> Certified:
        return replace(certify(certificate, root), from_ms=times[0], until_ms=times[1])

    if holds:
        assert verify_receipt(GOOD, ROOT, timed).nodes == ("n1", "n2")
    else:
        with pytest.raises(NotValidNow):
            verify_receipt(GOOD, ROOT, timed)


@pytest.mark.parametrize("part", [{"region": "sueden"}, {"cell": "sueden/1"}, {"stored_at": NOW + 1}])
def test_a_leaf_of_another_place_or_time_than_the_block(part: dict[str, object]) -> None:
    leaf = encode(msgspec.structs.replace(_leaf(_receipt(GOOD).leaf), **part))
    attack(changed(GOOD, leaf=leaf), ReceiptContradicts)
