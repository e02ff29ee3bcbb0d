"""docs/PROTOCOL.md and docs/vectors.json say what the code does."""

from __future__ import annotations

import re
from base64 import b64decode
from enum import IntEnum
from pathlib import Path
from typing import get_args

import aics_tlog
import pytest
from msgspec.msgpack import decode

from docs import vectors
from relay.core import wire
from relay.core.codec import digest, encode
from relay.core.envelope import envelope_id
from relay.core.posts import open_post, verify_post
from relay.core.tlog import BadProof, Trust, VerifierKey, verify_staple
from relay.core.trust import read_home, split_home
from relay.core.trust.channels import verify_terms, verify_ticket

TEXT = (Path(__file__).parent.parent / "docs/PROTOCOL.md").read_text("utf-8")
MESSAGES = (*get_args(wire.ClientMessage), *get_args(wire.ServerMessage))


def test_the_vectors_are_up_to_date() -> None:
    assert vectors.FILE.read_text("utf-8") == vectors.rendered(), "run `make docs` and look at what changed"


def test_every_message_has_a_vector() -> None:
    assert [type(message) for message in vectors.messages()] == list(MESSAGES)


def test_the_vectors_hold() -> None:
    made = vectors.vectors()
    for entry in made["messages"]:
        data = bytes.fromhex(entry["bytes"])
        read = wire.decode_client if data[1] < 64 else wire.decode_server
        assert wire.encode_message(read(data)) == data, entry["name"]
    (proof,) = (message for message in vectors.messages() if isinstance(message, wire.Proof))
    assert wire.encode_proof(proof) == wire.encode_message(proof)
    envelope = made["envelope"]
    assert envelope_id(bytes.fromhex(envelope["envelope"])).hex() == envelope["id"]


def test_the_vectors_of_a_channel_hold() -> None:
    made = vectors.vectors()["channel"]
    terms, secret = verify_terms(bytes.fromhex(made["signed"])), bytes.fromhex(made["secret"])
    assert terms.channel.hex() == made["channel"] and terms.digest.hex() == made["digest"]
    nonce, device, ticket = (bytes.fromhex(made["ticket"][name]) for name in ("nonce", "device", "signature"))
    verify_ticket(terms.terms.reader_key, terms.channel, nonce, device, ticket)
    post = bytes.fromhex(made["post"]["post"])
    assert encode(verify_post(post, terms.terms.owner_key)).hex() == made["post"]["header"]
    assert open_post(post, secret).data.hex() == made["post"]["data"] and digest(post).hex() == made["post"]["id"]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.__name__)
def test_the_text_names_every_message_with_tag_and_fields(message: type[wire.Struct]) -> None:
    fields = ", ".join(message.__struct_fields__)
    row = f"| {message.__name__.upper()} | {message.__struct_config__.tag} | {fields} |"
    assert row in TEXT, f"docs/PROTOCOL.md lacks: {row}"


@pytest.mark.parametrize("codes", [wire.Code, wire.Fault])
def test_the_text_names_every_code(codes: type[IntEnum]) -> None:
    for code in codes:
        assert re.search(rf"^\| {code.value} \| {code.name} \|", TEXT, re.MULTILINE), f"docs/PROTOCOL.md lacks {code!r}"


def test_the_proofs_of_the_vectors_hold_by_our_verifier_and_by_one_that_we_did_not_write() -> None:
    for entry in vectors.vectors()["region_logs"]:
        keys = [VerifierKey.parse(entry["log"]), *map(VerifierKey.parse, entry["witnesses"])]
        signed, staple = split_home(bytes.fromhex(entry["stapled"]))
        assert (signed.hex(), staple.decode()) == (entry["signed"], entry["staple"])
        data = bytes.fromhex(entry["entries"][entry["index"]])
        tag, content = decode(data)
        assert content == signed and tag == (3 if "released" in entry["what"] else 1)
        proven = verify_staple(staple, data, Trust(keys[0], tuple(keys[1:]), entry["quorum"]))
        assert proven.index == entry["index"] and len(proven.times) == 2
        with pytest.raises(BadProof):
            verify_staple(staple, data + b"x", Trust(keys[0], tuple(keys[1:]), 2))
        # by aics-tlog: the checkpoint, both cosignatures, the leaf and the way to the root
        head, _, note = staple.decode().partition("\n\n")
        lines = head.split("\n")
        log, *witnesses = map(aics_tlog.parse_vkey, (entry["log"], *entry["witnesses"]))
        verdict = aics_tlog.verify_checkpoint(aics_tlog.parse_note(note.encode()), log, witnesses, 2)
        assert verdict.ok, verdict.error
        path = [b64decode(line) for line in lines[2:]]
        assert aics_tlog.leaf_hash(data).hex() == entry["leaf_hash"]
        assert aics_tlog.verify_leaf_inclusion(data, entry["index"], verdict.size, path, verdict.root)


def test_the_move_of_the_vectors_is_one() -> None:
    first, release, moved = (bytes.fromhex(one["signed"]) for one in vectors.vectors()["region_logs"])
    one = read_home(first)
    two = read_home(moved, one)
    assert (two.user, two.cell, two.payload.prev) == (one.user, "birch/1", one.digest)
    payload, user_signature, released = decode(release)
    assert decode(moved)[:2] == [payload, user_signature] and decode(moved)[3] == released
