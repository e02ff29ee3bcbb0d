"""Certificates say who a node is, and only the claimed region's own authority can make them say it."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from nacl.signing import SigningKey

from cluster.core.linkwire import Peer
from cluster.pki import (
    AUTHORITY_LIFETIME, NODE_LIFETIME, NodeCredentials, asking_context, identify, issue_node, make_authority,
    renew_authority, renew_node,
)  # fmt: skip
from relay.core.trust import Root, RootCell, RootNode, RootRegion
from relay.errors import OperatorError, PeerError
from tests.roots import verified_root

NOW = 1_800_000_000_000  # Unix ms
YEAR = 366 * 86_400_000
NORDEN, SUEDEN = make_authority("norden", now_ms=NOW), make_authority("sueden", now_ms=NOW)


def make_root(other: bytes = SUEDEN[0], own: bytes = NORDEN[0]) -> Root:
    public = bytes(SigningKey(bytes(32)).verify_key)
    regions = [
        RootRegion(name, authority, public, (RootCell(f"{name}/1", (RootNode("n1", "127.0.0.1:1", ()),)),))
        for name, authority in (("norden", own), ("sueden", other))
    ]
    return verified_root(regions, NOW + 20 * YEAR)


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def write(folder: Path, cert: bytes, key: bytes) -> tuple[Path, Path]:
    paths = (folder / "node.crt", folder / "node.key")
    for path, data in zip(paths, (cert, key), strict=True):
        path.write_bytes(data)
        path.chmod(0o600)
    return paths


def norden() -> tuple[bytes, bytes]:
    return issue_node(*NORDEN, "norden", "norden/1", "n1", ["127.0.0.1", "::1", "n1.example"], now_ms=NOW)


def test_an_authority_may_sign_certificates_and_nothing_else() -> None:
    cert = x509.load_der_x509_certificate(NORDEN[0])
    usage = cert.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature
    basic = cert.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical and basic.value.ca and basic.value.path_length == 0
    assert cert.version is x509.Version.v3
    assert cert.not_valid_after_utc - cert.not_valid_before_utc > AUTHORITY_LIFETIME


def test_a_node_certificate_names_the_node_and_its_hosts() -> None:
    cert = x509.load_pem_x509_certificate(norden()[0])
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["posthouse://norden/1/n1"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert names.get_values_for_type(x509.DNSName) == ["n1.example"]
    assert len(list(cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)) == 2
    assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert NODE_LIFETIME < cert.not_valid_after_utc - cert.not_valid_before_utc < NODE_LIFETIME * 2


def test_identify_knows_a_listed_node() -> None:
    assert identify(der(norden()[0]), make_root()) == Peer("norden", "norden/1", "n1")


@pytest.mark.parametrize(
    ("cert", "why"),
    [
        (issue_node(*NORDEN, "sueden", "sueden/1", "n1", [], now_ms=NOW), "issued by the authority of region norden"),
        (issue_node(*make_authority("norden"), "norden", "norden/1", "n1", []), "nobody in this federation"),
        (issue_node(*make_authority("west"), "west", "west/1", "n1", []), "unknown region"),
        (issue_node(*NORDEN, "norden", "norden/2", "n1", [], now_ms=NOW), "does not list norden/2/n1"),
        (issue_node(*NORDEN, "norden", "norden/1", "n2", [], now_ms=NOW), "does not list norden/1/n2"),
    ],
)
def test_identify_refuses_who_may_not_speak(cert: tuple[bytes, bytes], why: str) -> None:
    with pytest.raises(PeerError, match=why):
        identify(der(cert[0]), make_root())


@pytest.mark.parametrize("certificate", [b"", b"garbage", NORDEN[0]])
def test_identify_refuses_what_is_no_node(certificate: bytes) -> None:
    with pytest.raises(PeerError, match="not the certificate of a Posthouse node"):
        identify(certificate, make_root())


def test_credentials_load_into_contexts_for_tls_13_only(tmp_path: Path) -> None:
    credentials = NodeCredentials.load(*write(tmp_path, *norden()), make_root(), now_ms=NOW)
    assert credentials.peer == Peer("norden", "norden/1", "n1")
    contexts = [credentials.links_server, credentials.clients_server, credentials.links_client("sueden")]
    assert {context.minimum_version for context in contexts} == {ssl.TLSVersion.TLSv1_3}
    assert credentials.links_server.verify_mode is ssl.CERT_REQUIRED
    assert credentials.clients_server.verify_mode is ssl.CERT_NONE
    assert len(credentials.links_server.get_ca_certs()) == 2
    (trusted,) = credentials.links_client("sueden").get_ca_certs(binary_form=True)
    assert trusted == SUEDEN[0]


def test_credentials_for_regions_that_the_root_lacks_or_spoils(tmp_path: Path) -> None:
    paths = write(tmp_path, *norden())
    with pytest.raises(PeerError, match="no authority for region 'osten'"):
        NodeCredentials.load(*paths, make_root(), now_ms=NOW).links_client("osten")


@pytest.mark.parametrize("spoiled", [b"", b"junk", SUEDEN[0] + b"x", SUEDEN[0][:-9]])
def test_what_one_region_spoils_is_its_own_loss(tmp_path: Path, spoiled: bytes) -> None:
    """It signs its statement alone: with no certificate in it no node of any region would start, or take another."""
    credentials = NodeCredentials.load(*write(tmp_path, *norden()), make_root(spoiled), now_ms=NOW)
    assert credentials.strangers == ["sueden"] and len(credentials.links_server.get_ca_certs()) == 1
    with pytest.raises(PeerError, match="no authority for region 'sueden'"):
        credentials.links_client("sueden")
    with pytest.raises(OperatorError, match="no certificate"):
        asking_context(b"")
    with pytest.raises(OperatorError, match="nobody in this federation"):
        NodeCredentials.load(*write(tmp_path, *norden()), make_root(own=spoiled), now_ms=NOW)


def test_credentials_refuse_another_key(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="is not the key of"):
        NodeCredentials.load(*write(tmp_path, norden()[0], norden()[1]), make_root(), now_ms=NOW)


@pytest.mark.parametrize(("days", "why"), [(400, "expired on"), (-1, "is valid from")])
def test_credentials_refuse_other_times(tmp_path: Path, days: int, why: str) -> None:
    with pytest.raises(OperatorError, match=why):
        NodeCredentials.load(*write(tmp_path, *norden()), make_root(), now_ms=NOW + days * 86_400_000)


def test_credentials_refuse_another_regions_certificate(tmp_path: Path) -> None:
    pair = issue_node(*NORDEN, "sueden", "sueden/1", "n1", [], now_ms=NOW)
    with pytest.raises(OperatorError, match="region norden"):
        NodeCredentials.load(*write(tmp_path, *pair), make_root(), now_ms=NOW)


def test_credentials_say_which_file_is_missing_damaged_or_open(tmp_path: Path) -> None:
    cert, key = write(tmp_path, *norden())
    with pytest.raises(OperatorError, match=r"nothing\.crt.*No such file"):
        NodeCredentials.load(tmp_path / "nothing.crt", key, make_root(), now_ms=NOW)
    with pytest.raises(OperatorError, match=r"node\.key is not a PEM certificate"):
        NodeCredentials.load(key, key, make_root(), now_ms=NOW)
    with pytest.raises(OperatorError, match=r"node\.crt is not an unencrypted PEM private key"):
        NodeCredentials.load(cert, cert, make_root(), now_ms=NOW)
    key.chmod(0o644)
    with pytest.raises(OperatorError, match="chmod 600"):
        NodeCredentials.load(cert, key, make_root(), now_ms=NOW)


def test_issue_node_refuses_parts_that_do_not_belong_together() -> None:
    with pytest.raises(OperatorError, match="not one of region norden"):
        issue_node(*NORDEN, "norden", "sueden/1", "n1", [])
    with pytest.raises(OperatorError, match="does not belong to its certificate"):
        issue_node(NORDEN[0], SUEDEN[1], "norden", "norden/1", "n1", [])


@pytest.mark.parametrize("names", [b"\x30\x02\xa3\x00", b"\x30\x02\xa5\x00", b"garbage", b"\x30\x04\x86\x02\xff\xfe"])
def test_names_that_the_parser_chokes_on_are_the_peers_fault(names: bytes) -> None:
    """x400Address and ediPartyName, no DER, no ASCII: an authority can sign what it likes."""
    key = serialization.load_pem_private_key(NORDEN[1], None)
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    good = x509.load_pem_x509_certificate(norden()[0])
    builder = x509.CertificateBuilder(
        good.issuer, good.subject, good.public_key(), 1, good.not_valid_before_utc, good.not_valid_after_utc
    ).add_extension(x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, names), critical=False)
    with pytest.raises(PeerError, match="not the certificate"):
        identify(builder.sign(key, None).public_bytes(Encoding.DER), make_root())


# --- renewing ------------------------------------------------------------------------------------
N1 = Peer("norden", "norden/1", "n1")


def test_a_renewed_certificate_has_the_same_names_and_key_and_another_year(tmp_path: Path) -> None:
    old, key = norden()
    later = NOW + 2 * YEAR  # the old one may have expired
    new = renew_node(old, *NORDEN, N1, now_ms=later)
    before, after = x509.load_pem_x509_certificate(old), x509.load_pem_x509_certificate(new)
    assert after.subject == before.subject and after.public_key() == before.public_key()
    for kind in (x509.SubjectAlternativeName, x509.KeyUsage, x509.ExtendedKeyUsage, x509.AuthorityKeyIdentifier):
        assert after.extensions.get_extension_for_class(kind) == before.extensions.get_extension_for_class(kind)
    assert after.serial_number != before.serial_number
    lives = [cert.not_valid_after_utc - cert.not_valid_before_utc for cert in (before, after)]
    assert lives[0] == lives[1] and after.not_valid_before_utc > before.not_valid_after_utc
    paths = write(tmp_path, new, key)
    assert NodeCredentials.load(*paths, make_root(), now_ms=later).peer == N1
    with pytest.raises(OperatorError, match=r"node\.crt expired on 2030.*posthouse init certificate"):
        NodeCredentials.load(*paths, make_root(), now_ms=later + YEAR)


@pytest.mark.parametrize("authority", [b"junk", NORDEN[0].replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x03", 1)])
def test_an_authority_that_is_no_certificate_issues_nothing(authority: bytes) -> None:
    for issue in (
        lambda: issue_node(authority, NORDEN[1], "norden", "norden/1", "n1", []),
        lambda: renew_node(norden()[0], authority, NORDEN[1], N1),
        lambda: renew_authority(authority, NORDEN[1]),
    ):
        with pytest.raises(OperatorError, match="authority is no certificate"):
            issue()


@pytest.mark.parametrize(
    ("old", "why"),
    [
        (b"junk", "not the certificate of a Posthouse node of norden"),
        (issue_node(*NORDEN, "norden", "norden/1", "n2", [], now_ms=NOW)[0], "is of norden/1/n2, not of norden/1/n1"),
        (issue_node(*make_authority("norden"), "norden", "norden/1", "n1", [])[0], "not issued by the authority"),
        (issue_node(*SUEDEN, "sueden", "sueden/1", "n1", [], now_ms=NOW)[0], "not the certificate of a Posthouse node"),
    ],
)
def test_nothing_but_the_nodes_own_certificate_is_renewed(old: bytes, why: str) -> None:
    with pytest.raises(OperatorError, match=why) as caught:
        renew_node(old, *NORDEN, N1, now_ms=NOW)
    assert "server" in caught.value.remedy


def test_a_node_certificate_ends_with_its_authority(tmp_path: Path) -> None:
    until = x509.load_der_x509_certificate(NORDEN[0]).not_valid_after_utc
    end = int(until.timestamp() * 1000)
    late = renew_node(norden()[0], *NORDEN, N1, now_ms=end - 1000)
    assert x509.load_pem_x509_certificate(late).not_valid_after_utc == until
    for issue in (
        lambda: renew_node(norden()[0], *NORDEN, N1, now_ms=end),
        lambda: issue_node(*NORDEN, "norden", "norden/1", "n1", [], now_ms=end),
    ):
        with pytest.raises(OperatorError, match=r"authority's own .*expired on 2037.*posthouse init authority"):
            issue()


def test_what_a_renewed_authority_signed_before_and_after_holds_under_both(tmp_path: Path) -> None:
    end = int(x509.load_der_x509_certificate(NORDEN[0]).not_valid_after_utc.timestamp() * 1000)
    renewed = renew_authority(*NORDEN, now_ms=end + 1000)  # late, and still possible
    assert x509.load_der_x509_certificate(renewed).subject == x509.load_der_x509_certificate(NORDEN[0]).subject
    old, key = norden()
    new = renew_node(old, renewed, NORDEN[1], N1, now_ms=end + 1000)
    for root in (make_root(), make_root(own=renewed)):
        assert identify(der(old), root) == identify(der(new), root) == N1
    credentials = NodeCredentials.load(*write(tmp_path, new, key), make_root(own=renewed), now_ms=end + 1000)
    assert credentials.until_ms == end + 1000 + NODE_LIFETIME.total_seconds() * 1000 < credentials.authority_until_ms
    with pytest.raises(OperatorError, match="does not belong to its certificate"):
        renew_authority(NORDEN[0], SUEDEN[1])
