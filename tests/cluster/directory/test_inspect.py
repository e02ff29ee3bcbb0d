"""What `posthouse directory show` and `verify` say, for good files and for every bad one."""

from __future__ import annotations

from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from nacl.signing import SigningKey

from cluster.directory.inspect import Finding, verify_bundle
from cluster.pki import issue_node, make_authority
from relay.core.trust import RootCell, RootNode, RootRegion
from tests.roots import signed_root
from tests.flipping import flipped

NOW = 1_800_000_000_000  # Unix ms
YEAR = 366 * 86_400_000
NORDEN, SUEDEN = make_authority("norden", now_ms=NOW), make_authority("sueden", now_ms=NOW)


def region(name: str, authority: bytes, seed: bytes, link: str = "127.0.0.1:9101") -> RootRegion:
    registrar = bytes(SigningKey(seed * 32).verify_key)
    return RootRegion(name, authority, registrar, (RootCell(f"{name}/1", (RootNode("n1", link, ("wss://x:1",)),)),))


GOOD = (region("norden", NORDEN[0], b"n"), region("sueden", SUEDEN[0], b"s"))


def signed(*regions: RootRegion) -> bytes:
    return signed_root(regions, NOW + YEAR)


def bad(findings: list[Finding]) -> str:
    assert all(finding.ok or finding.remedy for finding in findings)
    return "\n".join(f"{finding.where}: {finding.what}" for finding in findings if not finding.ok)


def test_a_good_bundle_has_only_good_findings(world: Any) -> None:
    pem = issue_node(*NORDEN, "norden", "norden/1", "n1", [], now_ms=NOW)[0]
    findings = verify_bundle(signed(*GOOD), now_ms=NOW, certificates={"node.crt": pem})
    assert not bad(findings)
    assert [finding.where for finding in findings] == ["root", "region norden", "region sueden", "node.crt"]
    assert "version 1 of test, signed by 1 of 1, valid until 2028" in findings[0].what
    user = world.user(2)
    user.grow()
    (finding,) = verify_bundle(world.root.signed, now_ms=world.now, chains={"bob": user.chain})[-1:]
    assert finding.ok and "at home in sueden/1, version 2" in finding.what


def test_a_root_that_does_not_hold_ends_the_report() -> None:
    assert "not the pinned one" in bad(verify_bundle(signed(*GOOD), now_ms=NOW, pinned=bytes(32)))
    assert "expired" in bad(verify_bundle(signed(*GOOD), now_ms=NOW + 2 * YEAR))
    good = signed(*GOOD)
    for junk in (b"", b"junk", good[:-1], flipped(good)):
        (finding,) = verify_bundle(junk, now_ms=NOW)
        assert not finding.ok


def test_regions_that_do_not_hold() -> None:
    shared = replace_authority(GOOD[1], NORDEN[0])
    assert "authority" in bad(verify_bundle(signed(GOOD[0], shared), now_ms=NOW))
    assert "registrar key" in bad(verify_bundle(signed(GOOD[0], region("sueden", SUEDEN[0], b"n")), now_ms=NOW))
    of_version_4 = NORDEN[0].replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x03", 1)  # an error of its own
    for junk in (b"junk", of_version_4):
        assert "no X.509" in bad(verify_bundle(signed(region("norden", junk, b"n")), now_ms=NOW))
    leaf = issue_node(*NORDEN, "norden", "norden/1", "n1", [], now_ms=NOW)[0]
    assert "no self-signed authority" in bad(verify_bundle(signed(region("norden", der(leaf), b"n")), now_ms=NOW))
    old = make_authority("norden", now_ms=NOW - 11 * YEAR)[0]
    assert "its authority expired" in bad(verify_bundle(signed(region("norden", old, b"n")), now_ms=NOW))
    assert "no usable link" in bad(verify_bundle(signed(region("norden", NORDEN[0], b"n", "nowhere")), now_ms=NOW))


def test_certificates_and_chains_that_do_not_hold(world: Any) -> None:
    wrong = issue_node(*NORDEN, "sueden", "sueden/1", "n1", [], now_ms=NOW)[0]
    old = issue_node(*NORDEN, "norden", "norden/1", "n1", [], now_ms=NOW - 2 * YEAR)[0]
    text = bad(verify_bundle(signed(*GOOD), now_ms=NOW, certificates={"a": wrong, "b": old, "c": b"junk"}))
    assert "a: a certificate for sueden/1/n1 was issued by the authority of region norden" in text
    assert "b: expired on" in text and "c: not a PEM certificate" in text
    user = world.user(2)
    user.grow()
    chains = {"half": user.chain[1:], "none": [], "junk": [b"junk"]}
    text = bad(verify_bundle(world.root.signed, now_ms=world.now, chains=chains))
    assert "half: " in text and "none: no home record" in text and "junk: signed home record is not msgpack" in text


def replace_authority(old: RootRegion, authority: bytes) -> RootRegion:
    return msgspec.structs.replace(old, authority=authority)


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
