"""Asking a registrar: what it refuses with is told as what it is; who answers has to be it, about who was asked for."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import relay.errors
from cluster.cli import app  # noqa: F401 - with it all errors are there that the command may meet
from relay.core.tlog import BadProof, TooFewWitnesses, UnsoundTrust
from cluster.pki import issue_node, make_authority
from cluster.registrar.asking import Registrar, _refused
from cluster.registrar.endpoints import check_registrar
from cluster.registrar.faces import refusal
from relay.core.codec import encode
from relay.core.trust import RootCell, RootNode, RootRegion, read_home
from relay.errors import (
    AlreadyReleased, Backdated, BrokenChain, ForeignDevice, NotReleased, NotYet, OperatorError, Overloaded, Overreach,
    PeerError, PosthouseError, ReturnedDevice, TrustError, VersionTaken,
)  # fmt: skip
from tests.cluster.registrar.site import NOW, ROOT, World, request
from tests.roots import verified_root

AUTHORITIES = {name: make_authority(name, now_ms=NOW) for name in ("norden", "sauda")}


def _kinds(kind: type[Any]) -> list[type[Any]]:
    return [kind, *(one for sub in kind.__subclasses__() for one in _kinds(sub))]


@pytest.mark.parametrize("kind", [
    AlreadyReleased, Backdated, ForeignDevice, NotReleased, NotYet, OperatorError, Overreach, ReturnedDevice,
    VersionTaken, BadProof, TooFewWitnesses, UnsoundTrust,
])  # fmt: skip
def test_a_refusal_is_told_as_what_it_is(kind: type[PosthouseError]) -> None:
    error = _refused(refusal(kind("what", "what to do")).body, "otherwise")
    assert (type(error), error.text, error.remedy) == (kind, "what", "what to do")


def test_every_kind_of_trust_error_is_known_by_its_name() -> None:
    named = [kind for kind in _kinds(TrustError) if kind.__module__ == relay.errors.__name__]
    assert len(named) > 15
    assert all(type(_refused(f"{kind.__name__}\na\nb\n".encode(), "")) is kind for kind in named)
    assert type(_refused(b"Overloaded\na\n\n", "")) is Overloaded
    assert type(_refused(b"SystemExit\na\nb\n", "otherwise")) is PeerError, "and nothing else"


async def test_a_registrar_that_shows_another_users_records_is_not_believed(world: World) -> None:
    """They are true, and proven to be that user's newest: only that nobody has asked about that user."""
    async with world.region() as region:
        asked, other = [read_home((await region.log.enrol(request(number))).signed).user for number in (1, 2)]

        class Liar:
            name = "a registrar"

            async def ask(self, method: str, path: str, body: bytes, most: int) -> tuple[int, bytes]:
                return 200, encode(await region.log.standing(other))

        registrar = Registrar("norden", ROOT, world.trust("norden", 2), Liar())  # type: ignore[arg-type]
        assert (await registrar.prove(other, NOW)).record is not None
        with pytest.raises(BrokenChain, match="another user's records"):
            await registrar.prove(asked, NOW)


def _certificate(authority: str, cell: str, node: str) -> bytes:
    region = cell.partition("/")[0]
    made, _ = issue_node(*AUTHORITIES[authority], region, cell, node, ["127.0.0.1"], now_ms=NOW)
    return x509.load_pem_x509_certificate(made).public_bytes(Encoding.DER)


def test_who_answers_for_a_registrar_has_to_be_it() -> None:
    house = (RootNode("n1", "x:1", ()),)
    regions = [
        RootRegion(name, authority, name.encode().ljust(32, b"."), (RootCell(f"{name}/1", house),))
        for name, (authority, _) in AUTHORITIES.items()
    ]
    root = verified_root(regions, NOW + 1)
    check_registrar(_certificate("norden", "norden/registrar", "r1"), root, "norden")
    for authority, cell, node in (
        ("norden", "norden/1", "n1"),  # a node of the region, whose key relays have
        ("sauda", "sauda/registrar", "r1"),  # another region's registrar
        ("sauda", "norden/registrar", "r1"),  # another region's authority vouches for this one's
    ):
        with pytest.raises(PeerError, match="who answers for the registrar of norden"):
            check_registrar(_certificate(authority, cell, node), root, "norden")
