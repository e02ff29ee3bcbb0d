"""Ed25519 keys that are none: whoever lists one must not have made a key for which everybody can sign."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.signing import SigningKey, VerifyKey

from relay.certificates import issued_by
from relay.core import wire
from relay.core.session import Session
from relay.core.tlog import COSIGNATURE, ED25519, VerifierKey
from relay.core.trust import RootRegion
from relay.core.trust.metadata import _check_keys, _Key, _KeyValue
from relay.core.trust.signing import verify
from relay.errors import AuthError, BadSignature, TrustError
from tests.points import NO_KEYS, NOT_CANONICAL, SMALL, forgeries, mixed, sign_mixed
from tests.roots import verified_root

HERE = Path(__file__).resolve().parents[3]
MESSAGES = [bytes([number]) for number in range(32)]  # a forgery holds for one in eight, where it does at all


def listed(key: bytes) -> _Key:
    return _Key("ed25519", "ed25519", _KeyValue(key.hex()))


def test_the_list_is_whole() -> None:
    assert len({*SMALL}) == 8 and len({*NO_KEYS}) == len(SMALL) + len(NOT_CANONICAL) == 14
    assert not any(crypto_core_ed25519_is_valid_point(key) for key in NO_KEYS)


@pytest.mark.parametrize("key", NO_KEYS, ids=bytes.hex)
def test_the_library_takes_no_signature_under_them(key: bytes) -> None:
    """Of the release that is installed. (The equation alone, without asking for the key's order, takes them.)"""
    for message in MESSAGES:
        for forged in forgeries():
            with pytest.raises(BadSignature):
                verify(key, b"", message, forged, "it")
    for kind in (ED25519, COSIGNATURE):
        noted = VerifierKey("log.example", kind, key)
        for forged in forgeries():
            with pytest.raises(BadSignature):
                noted.verify(b"text\n", (bytes(8) if kind == COSIGNATURE else b"") + forged)


@pytest.mark.parametrize("key", NO_KEYS, ids=bytes.hex)
def test_nobody_proves_a_device_of_such_a_key(key: bytes) -> None:
    for forged in forgeries():
        challenge = wire.Challenge(bytes(32), "norden", "norden/1", "n1", bytes(16), 1)
        session = Session(challenge, lambda: verified_root([], 10**13))
        with pytest.raises(AuthError):
            session._on_auth(wire.Auth(bytes(32), key, forged, ()))


@pytest.mark.parametrize("key", [*NO_KEYS, mixed(b"keeper")[1]], ids=bytes.hex)
def test_a_root_document_names_none(key: bytes) -> None:
    """TUF metadata are verified by OpenSSL, which asks for the equation alone: with such a key everybody could sign."""
    with pytest.raises(TrustError, match="no Ed25519 public key"):
        _check_keys({"one": listed(key)}, [], "targets")
    _check_keys({"one": listed(bytes(SigningKey(b"k" * 32).verify_key))}, [], "targets")


def test_a_key_of_mixed_order_can_sign() -> None:
    """It has a secret, which only its maker has: nobody else signs with it (ADR 19)."""
    scalar, key = mixed(b"device")
    assert not crypto_core_ed25519_is_valid_point(key)
    for message in MESSAGES:
        VerifyKey(key).verify(message, sign_mixed(scalar, key, message))
        for forged in forgeries():
            with pytest.raises(BadSignature):
                verify(key, b"", message, forged, "it")


def certificate(key: bytes, signer: Ed25519PrivateKey, name: str = "n1") -> x509.Certificate:
    """Of any public key, also of one that is none."""
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    public = Ed25519PublicKey.from_public_bytes(key)
    begin, end = datetime(2025, 1, 1, tzinfo=UTC), datetime(2125, 1, 1, tzinfo=UTC)
    return x509.CertificateBuilder(named, named, public, 1, begin, end).sign(signer, None)


@pytest.mark.parametrize("key", [*NO_KEYS, mixed(b"node")[1]], ids=bytes.hex)
def test_no_certificate_is_of_one_and_none_is_issued_by_one(key: bytes) -> None:
    signer = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
    good = signer.public_key().public_bytes_raw()

    def issued(node: bytes, authority: bytes) -> bool:
        region = RootRegion("norden", certificate(authority, signer).public_bytes(Encoding.DER), b"r" * 32, ())
        return issued_by(certificate(node, signer), region)

    assert issued(good, good) and not issued(key, good) and not issued(good, key)


def test_who_verifies_by_libsodium_is_known() -> None:
    """Whoever verifies somewhere else asks what that library says of these keys, first."""
    found = set()
    for room in ("relay", "cluster"):
        for path in (HERE / room).rglob("*.py"):
            text = path.read_text("utf-8")
            if re.search(r"VerifyKey\(|Ed25519PublicKey\b.*\n?.*public\.verify|\.public_key\(\)\.verify", text):
                found.add(str(path.relative_to(HERE)))
    assert found == {
        "relay/core/sealing.py", "relay/core/session.py", "relay/core/tlog/keys.py", "relay/core/trust/signing.py",
    }
